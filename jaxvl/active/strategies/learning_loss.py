"""LL: images on which a network, trained beside a task model of its own, expects that model to have the largest loss.

Source: Yoo and Kweon, "Learning Loss for Active Learning", CVPR 2019. The published code ranks a random subset of the
pool; here all of it is ranked.
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
    """

    reads_task: ClassVar[bool] = False

    stage: str = "ll"

    @property
    def needs(self) -> tuple[str, ...]:
        """The stage, on the labelled questions."""
        return (self.stage,)

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """The best `budget`; equal ones by image id."""
        score = np.asarray(predict(f"{self.stage}/loss", pool), np.float64)
        return Selection(top(score, pool.ids, budget), score)
