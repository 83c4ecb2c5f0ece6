"""How fast are answers: pairs a second, with images and texts encoded for each pair or taken from memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxvl.types import Predict


class Held:
    """Rows in memory as a source, so that reading and drawing images is not timed."""

    def __init__(self, rows: list[Mapping[str, np.ndarray]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Mapping[str, np.ndarray]:
        return self.rows[i]

    def augmented(self, i: int, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        return self.rows[i]

    def annotation(self, i: int) -> Mapping[str, Any]:
        return {}


class SpeedEval:
    """Times the predictor "answer"; its compilation does not count.

    Args:
      examples: pairs that are timed together, the first ones of the source.
      rounds: repetitions, of which the median counts; full and cached take turns.
      cached: whether answers from the predictors "image_states" and "text_states" are timed too.
      clock: in seconds.

    Returns (when called):
      "ms_per_pair" from pixels and words; with `cached`, "ms_per_pair/cached" from stored states, and "ratio" of the
      two, which counts the handling of batches as well as the model. Timings depend on the machine and on what else
      it does; bench/cached_inference.py compares models under equal conditions.
    """

    def __init__(
        self,
        *,
        examples: int = 256,
        rounds: int = 3,
        cached: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ):
        if examples < 1 or rounds < 1:
            raise ValueError(f"examples={examples}, rounds={rounds}: expected at least 1")
        self.examples, self.rounds, self.cached, self.clock = examples, rounds, cached, clock

    def __call__(self, predict: Predict, source: Any) -> dict[str, float]:
        """Time the first examples of a question source."""
        rows = [source[i] for i in range(min(self.examples, len(source)))]
        ways = {"ms_per_pair": Held(rows)}
        if self.cached:
            ways["ms_per_pair/cached"] = Held(with_states(predict, rows))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(self.rounds + 1):
            for name, held in ways.items():
                start = self.clock()
                predict("answer", held)
                if turn:  # the first one compiles
                    seconds[name].append(self.clock() - start)
        found = {name: 1e3 * float(np.median(times)) / len(rows) for name, times in seconds.items()}
        if self.cached:
            found["ratio"] = found["ms_per_pair"] / found["ms_per_pair/cached"]
        return found


def with_states(predict: Predict, rows: list[Mapping[str, np.ndarray]]) -> list[Mapping[str, np.ndarray]]:
    """`rows` with stored states in place of pixels and ids; the mask of the text stays."""
    found = {"text_states": np.asarray(predict("text_states", Held(rows)))}
    for name in ("image", "image2"):
        if name in rows[0]:
            shown = Held([{**row, "image": row[name]} for row in rows])
            found[f"{name}_states"] = np.asarray(predict("image_states", shown))
    return [
        {"text_mask": row["text_mask"], **{name: states[i] for name, states in found.items()}}
        for i, row in enumerate(rows)
    ]
