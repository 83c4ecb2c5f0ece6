"""Random, and the classics: the images about which the task model is least certain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, enough, top
from jaxvl.types import Predict


@dataclass(frozen=True)
class Random(Strategy):
    """Uniform, without replacement."""

    asks: ClassVar[bool] = False
    reads_task: ClassVar[bool] = False

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """`budget` of the pool's images."""
        enough(budget, len(pool))
        return Selection(rng.permutation(len(pool))[:budget].astype(np.int64))


@dataclass(frozen=True)
class Scored(Strategy):
    """Takes the images with the largest values of one predictor of the task model, averaged over what is asked."""

    predictor: ClassVar[str] = ""

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """The best `budget`; equal ones by image id."""
        score = np.asarray(predict(f"task/{self.predictor}", pool), np.float64)
        return Selection(top(score, pool.ids, budget), score)


@dataclass(frozen=True)
class LeastConfidence(Scored):
    """1 - max p."""

    predictor: ClassVar[str] = "least_conf"


@dataclass(frozen=True)
class Entropy(Scored):
    """Entropy of the answer."""

    predictor: ClassVar[str] = "entropy"


@dataclass(frozen=True)
class Margin(Scored):
    """How little the likeliest answer leads: -(p1 - p2)."""

    predictor: ClassVar[str] = "margin"


@dataclass(frozen=True)
class BALD(Scored):
    """Mutual information of answer and dropout mask, each image for itself (Gal et al., ICML 2017); not BatchBALD."""

    predictor: ClassVar[str] = "bald"
    passes: ClassVar[bool] = True


@dataclass(frozen=True)
class MCEntropy(Scored):
    """Entropy of the mean of the dropout passes' answers."""

    predictor: ClassVar[str] = "mc_entropy"
    passes: ClassVar[bool] = True
