"""Linear probes: what a linear map reads off frozen features about the answers (specification of CCRL, 9.2).

Features are computed before and never change. A probe is a `Stage` like any other, one for each learning rate; the rate
is chosen on a share of the training images, then the probe is trained on all of them.

Shape legend: `N` questions, `M` images, `D` width of an image's features, `E` of a question's, `F` of both together.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active import evaluation
from jaxvl.active.fitting import Fitter, split_by_image
from jaxvl.types import Rows, Source

FUSIONS = ("concat", "concat+hadamard")
CHUNK = 8192  # rows at a time, where all are looked at


@dataclass(frozen=True)
class ProbeOptions:
    """How probes are trained.

    Attributes:
      lrs: learning rates to choose from.
      share: of the training images, held out for that choice.
      batch_size, epochs: of every fit.
      fusion: "concat" = image and question side by side; "concat+hadamard" = their product too, of equal widths.
    """

    lrs: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    share: float = 0.1
    batch_size: int = 512
    epochs: int = 20
    fusion: str = "concat"

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise ValueError(f"probe.fusion={self.fusion!r}: expected one of {', '.join(FUSIONS)}")
        if not self.lrs or min(self.lrs) <= 0 or len(set(self.lrs)) < len(self.lrs):
            raise ValueError(f"probe.lrs={self.lrs}: expected distinct positive learning rates")
        if not 0 < self.share < 1 or self.batch_size < 1 or self.epochs < 1:
            raise ValueError(
                f"probe.share={self.share}, batch_size={self.batch_size}, epochs={self.epochs}: expected a share "
                "between 0 and 1, and numbers from 1 on"
            )


class Features:
    """Fixed features of the questions of a source; the arrays are read-only.

    Args:
      text: `[N,E]` f32.
      image: `[M,D]` f32, a row an image; None = the question alone.
      row: `[N]`: each question's row of `image`.
      fusion: of `FUSIONS`.

    Raises:
      ValueError: a product of unequal widths.
    """

    def __init__(
        self,
        text: np.ndarray,
        image: np.ndarray | None = None,
        row: np.ndarray | None = None,
        *,
        fusion: str = "concat",
    ):
        self.product = fusion == "concat+hadamard" and image is not None
        if image is not None and self.product and image.shape[1] != text.shape[1]:
            raise ValueError(
                f"probe.fusion={fusion}: image features of width {image.shape[1]} and question features of width "
                f"{text.shape[1]} have no product; take fusion=concat"
            )
        self.text, self.image = _frozen(text), None if image is None else _frozen(image)
        self.row = np.zeros(len(text), np.int64) if row is None else np.asarray(row, np.int64)
        if len(self.row) != len(text):
            raise ValueError(f"{len(self.row)} image rows for {len(text)} questions")

    def __len__(self) -> int:
        return len(self.text)

    @property
    def width(self) -> int:
        """F."""
        return self.rows(np.zeros(1, np.int64)).shape[1]

    def rows(self, at: np.ndarray) -> np.ndarray:
        """`[n,F]` f32: the features of these questions."""
        if self.image is None:
            return self.text[at]
        image, text = self.image[self.row[at]], self.text[at]
        return np.concatenate([image, text, image * text] if self.product else [image, text], axis=-1)


def _frozen(array: np.ndarray) -> np.ndarray:
    out = np.asarray(array, np.float32).view()
    out.flags.writeable = False
    return out


class Scale(NamedTuple):
    """`mean [F]`, `std [F]` f32 of training features; a feature that is constant has the deviation 1."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, features: Features) -> Scale:
        """Over all rows, in float64."""
        parts = [np.arange(a, min(a + CHUNK, len(features))) for a in range(0, len(features), CHUNK)]
        mean = sum(features.rows(p).sum(0, dtype=np.float64) for p in parts) / len(features)
        square = sum(np.square(features.rows(p) - mean).sum(0) for p in parts)
        std = np.sqrt(square / len(features))
        std[std <= 1e-6 * np.maximum(1.0, np.abs(mean))] = 1.0
        return cls(mean.astype(np.float32), std.astype(np.float32))


class ProbeRows:
    """Questions as rows `features [F]`, standardised, with `label [K]` and `label_score [K]`.

    Args:
      questions: a `RegionQuestions`, or any source with its `array`, `image_ids`, `annotation`.
      features: of these questions.
      scale: of the training features.
    """

    def __init__(self, questions: Any, features: Features, scale: Scale):
        if len(questions) != len(features):
            raise ValueError(f"{len(features)} rows of features for {len(questions)} questions")
        self.questions, self.features, self.scale = questions, features, scale
        self.at = np.arange(len(questions))
        self._labels = {name: questions.array(name) for name in ("label", "label_score")}

    @property
    def image_ids(self) -> np.ndarray:
        """`[N]` i64."""
        return self.questions.image_ids[self.at]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        at = int(self.at[i])
        found = (self.features.rows(np.array([at]))[0] - self.scale.mean) / self.scale.std
        return {"features": found, **{name: array[at] for name, array in self._labels.items()}}

    def augmented(self, i: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The same as `[i]`."""
        return self[i]

    def annotation(self, i: int) -> Mapping[str, Any]:
        """The record of the question."""
        return self.questions.annotation(int(self.at[i]))

    def subset(self, positions: Sequence[int] | np.ndarray) -> ProbeRows:
        """The rows at these positions, in that order."""
        out = copy.copy(self)
        out.at = self.at[np.asarray(positions, np.int64)]
        return out


class Probed(NamedTuple):
    """What a probe came to.

    Attributes:
      accuracy: percent on the evaluation questions, "overall" and by answer type.
      lr: the rate that was chosen.
      tried: rate -> percent, overall, on the training images held out for the choice; empty where there was none.
      key: of the final fit, see `Fitter`.
    """

    accuracy: dict[str, float]
    lr: float
    tried: dict[float, float]
    key: str


def stage_name(lr: float) -> str:
    """The stage of a learning rate."""
    return f"probe_{lr:g}"


def probe(
    train: ProbeRows,
    held: ProbeRows,
    *,
    fitter: Fitter,
    answers: Sequence[str],
    options: ProbeOptions,
    seed: int,
    data: Any,
    variant: str = "official",
    title: str = "probe",
) -> Probed:
    """Choose the learning rate, train on all of `train`, score on `held`.

    Args:
      train, held: training and evaluation questions.
      fitter: has the stage `stage_name(lr)` of each rate.
      answers: the strings that classes stand for.
      options: of the probe.
      seed: of the split, of initial values and of the order.
      data: JSON that says what the features depend on; part of the key of each fit.
      variant: of the official accuracy.
      title: for the display.
    """

    def fitted(rows: ProbeRows, lr: float, part: str) -> Any:
        name = f"{title}, rate {lr:g}"
        return fitter.fit(stage_name(lr), rows, seed=seed, data={"data": data, "part": part}, title=name)

    def score(params: Any, lr: float, rows: ProbeRows) -> dict[str, float]:
        ask = functools.partial(_answer, fitter, stage_name(lr), params)
        return evaluation.score(ask, rows, answers, variant=variant).accuracy()

    tried: dict[float, float] = {}
    if len(options.lrs) > 1:
        part, rest = split_by_image(train, share=options.share, rng=np.random.default_rng(seed))
        for lr in options.lrs:
            tried[lr] = score(fitted(part, lr, "without the held-out share").params, lr, rest)["overall"]
    best = max(options.lrs, key=lambda lr: tried.get(lr, 0.0))  # of equal ones the first
    final = fitted(train, best, "all")
    return Probed(score(final.params, best, held), best, tried, final.key)


def _answer(fitter: Fitter, stage: str, params: Any, source: Source) -> Rows:
    return fitter.stages[stage].trainer.predict(params, "answer", source)
