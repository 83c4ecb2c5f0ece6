"""CCRL: the sum over the patterns that match an image of answer uncertainty times answer balance; and its ablations.

Source: Zhang, Li, Zha, Huang, "Active learning for VQA based on cross-modal contrastive representation learning",
equation 16 and algorithm 1, as reconstructed in the specification (sections 6 to 8.9).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxvl.active.request import Request
from jaxvl.active.strategies.base import Selection, Strategy, top

ENGINE = "pool/score"


@dataclass(frozen=True)
class CCRL(Strategy):
    """Takes the images with the largest scores.

    Attributes:
      threshold: a pattern matches above this probability ("critic"), or cosine ("contrast").
      min_k: patterns that match in any case; 0 = an image without a match has score 0.
      k_max: most patterns that count; None = all (exact).
      agg: "sum", "mean", "topk_mean" or "sum_capped".
      rate: balance of the answers: a mode of `Shares.rate`; "none" = ablation A.
      match: "critic", "similarity" = ablation B, "contrast", or "all".
      uncertainty: "indicator", or "one": every match counts 1.
      prune: "exact" (the same selection with fewer pairs) or None.
      stage: the matcher's.
    """

    asks: ClassVar[bool] = False  # the whole bank is its own
    reads_task: ClassVar[bool] = False

    threshold: float = 0.5
    min_k: int = 1
    k_max: int | None = None
    agg: str = "sum"
    rate: str = "one_minus"
    match: str = "critic"
    uncertainty: str = "indicator"
    prune: str | None = None
    stage: str = "vqme"

    @property
    def needs(self) -> tuple[str, ...]:
        """Matcher and answer model, as far as the options use them."""
        counts_only = self.uncertainty == "one" and self.rate == "none" and self.match != "similarity"
        return (*(() if self.match == "all" else (self.stage,)), *(() if counts_only else ("vaue",)))

    def __call__(
        self, predict: Any, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """Score all images, take the best; equal scores by image id."""
        request = Request(
            images=pool, text=pool.bank.text, kinds=pool.bank.kinds, rates=pool.shares.rate(self.rate),
            stage=self.stage, match=self.match, threshold=self.threshold, min_k=self.min_k, k_max=self.k_max,
            agg=self.agg, uncertainty=self.uncertainty, budget=budget, prune=self.prune,
        )  # fmt: skip
        found = predict(ENGINE, request)
        score = np.where(np.isnan(found["score"]), -np.inf, found["score"])
        notes = {name: values for name, values in found.items() if name != "score"}
        return Selection(top(score, pool.ids, budget), found["score"], notes)
