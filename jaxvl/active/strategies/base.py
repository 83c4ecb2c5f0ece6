"""What a strategy is: a choice of images, made from predictions only. NumPy; no model, no files, no answers.

What is said of images holds for questions too, where these are chosen (`jaxvl.active.items`): a row of the pool is then
an image with one question of its own.

Shape legend: `N` images of the pool, `k` images chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxvl.types import Predict, Source


class Selection(NamedTuple):
    """What a strategy chose.

    Attributes:
      rows: `[k]` i64, distinct positions in the pool, in the order of choice: best first, or spread.
      score: `[N]` f64, larger = sooner; None where images are not scored one by one.
      notes: more about each image of the pool, `[N, ...]`, for the record.
    """

    rows: np.ndarray
    score: np.ndarray | None = None
    notes: Mapping[str, np.ndarray] = {}


@dataclass(frozen=True)
class Strategy:
    """Base of all strategies: options are fields, the choice is `__call__`; it keeps no state.

    `needs` names the sampler stages that are trained before it is asked, in this order; the scored model is always
    there as stage "task". `asks`: whether it reads predictions about the questions that images are asked; `reads_task`:
    whether it asks the stage "task". What it does not use is not trained for it. `passes`: whether it asks for dropout
    passes of the task model, which must have dropout then.
    """

    asks: ClassVar[bool] = True
    reads_task: ClassVar[bool] = True
    passes: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[str, ...]:
        """Stages of the config to train first."""
        return ()

    @property
    def approximations(self) -> tuple[str, ...]:
        """In which ways its choice only approximates what it stands for; they are said wherever the choice is used."""
        return ()

    @property
    def vectors(self) -> str:
        """The predictor whose vectors of images say which images are alike; by default mean region features."""
        return "task/vision"

    def on(self, unit: str) -> Strategy:
        """The strategy that chooses items of this unit, "image" or "qa" (a question about an image): itself.

        Raises:
          ValueError: it is not defined for them; says why.
        """
        return self

    def data(
        self, stage: str, predict: Predict, pool: Any, labelled: Any, rng: np.random.Generator
    ) -> Source:
        """Training rows of one of `needs`: by default the labelled questions. May use the stages before it."""
        return labelled.questions

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """Choose `budget` images.

        Args:
          predict: `("<stage>/<predictor>", source) -> rows`, e.g. `predict("task/entropy", pool)`.
          pool: unlabelled images, a source of rows with `ids`; the same patterns are asked of each.
          labelled: labelled images, likewise; `labelled.questions` are their questions with answers.
          budget: k.
          rng: the only randomness.
        """
        raise NotImplementedError


def top(scores: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    """Positions `[k]` of the `k` largest scores, best first; equal ones in the order of the image ids.

    Raises:
      ValueError: fewer than `k` scores, or one that is NaN.
    """
    scores = np.asarray(scores, np.float64)
    enough(k, len(scores))
    if np.isnan(scores).any():
        raise ValueError(
            f"scores of {int(np.isnan(scores).sum())} images are NaN, e.g. of image {ids[np.isnan(scores)][0]}"
        )
    return np.lexsort((ids, -scores))[:k].astype(np.int64)


def images_only(strategy: Strategy, unit: str, why: str) -> Strategy:
    """The strategy, whose scores are of images.

    Raises:
      ValueError: items are questions; gives the reason.
    """
    if unit != "image":
        raise ValueError(f"{why}; it chooses images only")
    return strategy


def enough(k: int, n: int) -> None:
    """Raise ValueError unless `k` images can be taken of `n`."""
    if not 0 < k <= n:
        raise ValueError(f"{k} images of {n} were asked for")


def finite(values: np.ndarray, *, name: str, ids: np.ndarray) -> np.ndarray:
    """The predicted rows `[N,...]` as they are.

    Raises:
      ValueError: NaN or infinity in one of them; says of which predictor and image.
    """
    bad = ~np.isfinite(values.reshape(len(values), -1).sum(1))
    if bad.any():
        raise ValueError(
            f"{name} is not finite for {int(bad.sum())} of {len(values)} images, e.g. image {ids[bad][0]}: "
            "has the model diverged?"
        )
    return values


def there(source: Any) -> np.ndarray:
    """`[N,J]` bool: which of its questions are asked of an image; the others are padding."""
    return np.asarray((source.asked() != 0).any(-1))
