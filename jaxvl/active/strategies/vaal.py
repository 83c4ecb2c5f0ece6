"""VAAL and TA-VAAL: images that a critic can tell from labelled ones, by latent means, and by expected losses.

Sources: Sinha et al., "Variational Adversarial Active Learning", ICCV 2019; Kim et al., "Task-Aware Variational
Adversarial Active Learning", CVPR 2021 (specification 8.8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, finite, images_only, top
from jaxvl.active.strategies.vectors import Beside, Vectors, states
from jaxvl.types import Predict, Source


@dataclass(frozen=True)
class VAAL(Strategy):
    """Takes the images that look least like labelled ones to the critic.

    Attributes:
      stage: a model trained by the task "adversarial_vae".
    """

    stage: str = "vaal"

    @property
    def needs(self) -> tuple[str, ...]:
        """The stage."""
        return (self.stage,)

    def on(self, unit: str) -> Strategy:
        """Itself, for images."""
        return images_only(self, unit, "its critic sees the regions of an image and no question")

    def data(
        self, stage: str, predict: Predict, pool: Any, labelled: Any, rng: np.random.Generator
    ) -> Source:
        """A labelled image beside each unlabelled one."""
        found = states(predict, pool, labelled)
        return Beside(
            Vectors(labelled.ids, {"state": found.labelled, **self._ranks(predict, labelled)}),
            Vectors(pool.ids, {"state": found.pool, **self._ranks(predict, pool)}),
        )

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """The best `budget`: the lowest logits of "labelled"; equal ones by image id."""
        name, found = f"{self.stage}/critic", states(predict, pool, labelled)
        ranks = self._ranks(predict, pool)
        seen = Vectors(pool.ids, {"state": found.pool, **ranks})
        score = -np.asarray(predict(name, seen), np.float64)
        finite(score, name=name, ids=pool.ids)
        notes = {"expected_loss": ranks["rank"]} if ranks else {}
        return Selection(top(score, pool.ids, budget), score, notes)

    def _ranks(self, predict: Predict, source: Any) -> dict[str, np.ndarray]:
        """What else the networks see of each image: nothing."""
        return {}


@dataclass(frozen=True)
class TAVAAL(VAAL):
    """VAAL whose networks also see the loss that a ranker expects; the note `expected_loss` is that of each image.

    Attributes:
      ranker: a task model with a loss network trained by the cross entropy of pairs.
    """

    stage: str = "tavaal"
    ranker: str = "ranker"

    @property
    def needs(self) -> tuple[str, ...]:
        """The ranker, on the labelled questions, then the stage."""
        return (self.ranker, self.stage)

    def on(self, unit: str) -> Strategy:
        """Itself: the expected loss, which the critic sees too, is that of the question."""
        return self

    def data(
        self, stage: str, predict: Predict, pool: Any, labelled: Any, rng: np.random.Generator
    ) -> Source:
        """The labelled questions for the ranker; then a labelled image beside each unlabelled one."""
        if stage == self.ranker:
            return labelled.questions
        return super().data(stage, predict, pool, labelled, rng)

    def _ranks(self, predict: Predict, source: Any) -> dict[str, np.ndarray]:
        name = f"{self.ranker}/loss"
        return {"rank": finite(np.asarray(predict(name, source), np.float32), name=name, ids=source.ids)}
