"""LL: images on which a network, trained beside a task model of its own, expects that model to have the largest loss.

Source: Yoo and Kweon, "Learning Loss for Active Learning", CVPR 2019. The published code ranks a random subset of
10,000 images; here all of the pool is ranked, unless a `subset` is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, top
from jaxvl.types import Predict


@dataclass(frozen=True)
class LearningLoss(Strategy):
    """Takes the images with the largest expected losses, averaged over what is asked.

    Attributes:
      stage: a task model with a loss network; the scored model is another one, so its accuracy does not change.
      subset: images, drawn anew each round, that are ranked, at least as many as are chosen; None = all. The others
        have no score (NaN).

    Raises:
      ValueError: `subset` is not positive.
    """

    reads_task: ClassVar[bool] = False

    stage: str = "ll"
    subset: int | None = None

    def __post_init__(self) -> None:
        if self.subset is not None and self.subset < 1:
            raise ValueError(
                f"ll.subset={self.subset!r}: expected a positive number, or None for the whole pool"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """The stage, on the labelled questions."""
        return (self.stage,)

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """The best `budget`; equal ones by image id."""
        name = f"{self.stage}/loss"
        if self.subset is None or self.subset >= len(pool):
            score = np.asarray(predict(name, pool), np.float64)
            return Selection(top(score, pool.ids, budget), score)
        rows = np.sort(rng.permutation(len(pool))[: max(budget, self.subset)])
        found = np.asarray(predict(name, pool.subset(rows)), np.float64)
        score = np.full(len(pool), np.nan)
        score[rows] = found
        return Selection(rows[top(found, pool.ids[rows], budget)], score)
