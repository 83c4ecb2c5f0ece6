"""Ending a fit when its held-out score no longer rises, with the best parameters (specification 5.6).

A killed fit goes on from its newest checkpoint and ends as it would have:

    plateau.json                   the held-out scores so far: [{"step": 400, "scores": {...}}, ...]
    best-00000400.safetensors      parameters that were the best so far at a step

Both are in the folder of the model, and gone when it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvl.atomic import TEMPORARY, read_json, write_file, write_json
from jaxvl.train import TrainState
from jaxvl.types import Predict, PyTree, Source

SCORES, BEST, ANY = "plateau.json", "best-{:08d}.safetensors", "best-*.safetensors"


@dataclass(frozen=True)
class Plateau:
    """Ending a fit when its held-out score no longer rises; the best parameters are kept (specification 5.6).

    Attributes:
      share: part of the images that is held out.
      delta: a rise below this is none.
      patience: scores without a rise before the end.
      least: scores that are taken in any case.
      every: updates between two scores, if an epoch has fewer; else each epoch is scored.
      score: `(predict, held-out source, rng) -> scores`; `key` of them must rise.
      finish: `(trainer, parameters, held-out source, rng) -> (parameters, more scores)`, asked once, of the best state:
        what it returns is kept. None = as they are.
    """

    score: Callable[[Predict, Source, np.random.Generator], Mapping[str, float]]
    key: str
    share: float = 0.1
    delta: float = 0.002
    patience: int = 3
    least: int = 5
    every: int = 1
    finish: Callable[..., tuple[PyTree, Mapping[str, float]]] | None = None


class Best(NamedTuple):
    """A state's held-out scores and its parameters."""

    scores: dict[str, float]
    params: PyTree


class Watch:
    """Scores a fit on held-out rows each epoch, remembers the best, and says when to end.

    Args:
      stage: of the fit.
      held: held-out rows.
      every: updates of an epoch.
      seed: of what is drawn for a score.
      folder: of the model, where all of this is kept.
      saved: step of the newest checkpoint, if any: the fit may have to go on from there.
    """

    def __init__(
        self,
        stage: Any,
        plateau: Plateau,
        held: Source,
        every: int,
        seed: int,
        *,
        folder: Path,
        saved: Callable[[], int | None],
    ):
        self.stage, self.plateau, self.held, self.seed = stage, plateau, held, seed
        self.every = max(every, plateau.every)
        self.folder, self.saved = folder, saved
        self.best: Best | None = None
        self.rows: list[dict[str, Any]] = []
        self.base, self.since = -math.inf, 0

    def restored(self, step: int | None) -> int | None:
        """Go on as it was at a checkpoint's step; None, as at the beginning, if something for that is gone."""
        path, last = self.folder / SCORES, step or 0
        known = [row for row in read_json(path) if row["step"] <= last] if path.exists() else []
        due = set(range(self.every, last + 1, self.every)) - {row["step"] for row in known}
        best = [row for row in known if self._take(row)][-1:]
        files = [self.folder / BEST.format(row["step"]) for row in best]
        if step is None or due - {step} or not all(file.exists() for file in files):
            forget(self.folder)
            self.rows, self.base, self.since = [], -math.inf, 0
            return None
        for stale in set(self._files()) - set(files):
            stale.unlink()
        for row, file in zip(best, files, strict=True):
            self.best = Best(row["scores"], load_tree(file))
        return step

    def lacks(self, step: int, steps: int) -> bool:
        """Whether the score of a step that was due is not there."""
        return step % self.every == 0 and step < steps and self._row(step) is None

    def run(self, state: TrainState) -> dict[str, float]:
        """Score the state; its metrics for the log."""
        trainer, step = self.stage.trainer, int(state.step)

        def predict(name: str, source: Source) -> Any:
            return trainer.predict(state.params, name, source)

        scores = {
            name: float(value)
            for name, value in self.plateau.score(
                predict, self.held, np.random.default_rng(self.seed)
            ).items()
        }
        if self._take({"step": step, "scores": scores}):
            self.best = Best(scores, trainer.partition.fetch(state.params))
            save_tree(self.folder / BEST.format(step), self.best.params)
        write_json(self.folder / SCORES, self.rows)
        self._sweep()
        return {f"held_out/{k}": v for k, v in scores.items()}

    def stop(self) -> bool:
        """Whether the score has not risen for long enough."""
        return len(self.rows) >= self.plateau.least and self.since >= self.plateau.patience

    def finish(self, state: TrainState, steps: int) -> Best:
        """The best state, the last one included, with its parameters on the devices."""
        if int(state.step) == steps and self._row(steps) is None:
            self.run(state)
        assert self.best is not None
        placed = jax.device_put(self.best.params, jax.tree.map(lambda x: x.sharding, state.params))
        if self.plateau.finish is None:
            return Best(self.best.scores, placed)
        rng = np.random.default_rng(self.seed)
        params, more = self.plateau.finish(self.stage.trainer, placed, self.held, rng)
        return Best({**self.best.scores, **more}, params)

    def _take(self, row: dict[str, Any]) -> bool:
        """Count a score; whether it is the best so far."""
        key = self.plateau.key
        value, before = row["scores"][key], [r["scores"][key] for r in self.rows]
        self.rows.append(row)
        if value >= self.base + self.plateau.delta:
            self.base, self.since = value, 0
        else:
            self.since += 1
        return not before or value > max(before)

    def _row(self, step: int) -> dict[str, Any] | None:
        return next((row for row in self.rows if row["step"] == step), None)

    def _files(self) -> list[Path]:
        """Parameters that were the best so far, by step."""
        return sorted(self.folder.glob(ANY))

    def _sweep(self) -> None:
        """Remove parameters that are no longer the best, also if the fit has to go on from its newest checkpoint."""
        saved = self.saved() or 0
        early = [file for file in self._files() if int(file.stem.rpartition("-")[2]) <= saved]
        for file in early[:-1]:
            file.unlink(missing_ok=True)


def forget(folder: Path) -> None:
    """Remove what a fit under way has kept in the folder of its model, and what a killed one was writing."""
    for file in (folder / SCORES, *folder.glob(ANY), *folder.glob(f"*{TEMPORARY}")):
        file.unlink(missing_ok=True)


def save_tree(path: Path, tree: PyTree) -> None:
    """Write host arrays as safetensors, names of nested dicts joined by "/"."""
    flat = {"/".join(k): np.asarray(v) for k, v in flatten_dict(tree).items()}
    write_file(path, lambda p: safetensors.numpy.save_file(flat, p))


def load_tree(path: Path) -> PyTree:
    """The inverse of `save_tree`."""
    flat = safetensors.numpy.load_file(path)
    return unflatten_dict({tuple(k.split("/")): v for k, v in flat.items()})
