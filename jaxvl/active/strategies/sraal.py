"""SRAAL: images whose states a critic, told how uncertain each unlabelled one is, finds most worth labelling.

Source: Zhang et al., "State-Relabeling Adversarial Active Learning", CVPR 2020 (specification 8.4). The initial images
are random as for all methods, not the paper's k-center ones.

Shape legend: `N` unlabelled images, `Q` labelled questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, finite, images_only, top
from jaxvl.active.strategies.vectors import Beside, Vectors, states
from jaxvl.types import Predict, Source


@dataclass(frozen=True)
class SRAAL(Strategy):
    """Takes the images with the largest value of the critic.

    Attributes:
      stage: a model trained by the task "state_discrepancy".
    """

    stage: str = "sraal"

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
        """A labelled question beside each unlabelled image, with that image's uncertainty by the task model."""
        name, found, questions = "task/uncertainty", states(predict, pool, labelled), labelled.questions
        uncertainty = finite(np.asarray(predict(name, pool), np.float32), name=name, ids=pool.ids)
        unlabelled = Vectors(pool.ids, {"state": found.pool, "uncertainty": np.clip(uncertainty, 0.0, 1.0)})
        order = np.argsort(labelled.ids)
        rows = order[np.searchsorted(labelled.ids, questions.image_ids, sorter=order)]
        texts = {key: questions.array(key) for key in ("text", "text_mask", "hard_label")}
        return Beside(
            Vectors(questions.image_ids, texts, shared={"state": (found.labelled, rows)}), unlabelled
        )

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """The best `budget` by the critic's logit; equal ones by image id."""
        name, found = f"{self.stage}/critic", states(predict, pool, labelled)
        score = np.asarray(predict(name, Vectors(pool.ids, {"state": found.pool})), np.float64)
        return Selection(top(finite(score, name=name, ids=pool.ids), pool.ids, budget), score)
