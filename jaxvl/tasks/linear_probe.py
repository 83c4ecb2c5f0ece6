"""Linear probing: answers as independent classes with soft scores, from features that stay what they are.

Shape legend: `B` rows, `F` features, `K` labels of a row, `C` classes. Source: specification of CCRL, 9.2.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.tasks.momentum import call
from jaxvl.tasks.stateless import Stateless
from jaxvl.types import Array, Batch, Key, Metrics, Predictor, PyTree


class LinearProbeTask(Stateless):
    """Binary cross entropy against the soft scores, summed over classes, mean over rows.

    Args:
      model: `LinearProbe`, or any Linen module of one array, with `classes`.
      top_n: classes that "answer" returns; more than there are means all.

    Batches: `features [B,F]`; to train `label [B,K]`, `label_score [B,K]`; optionally `mask`. Predictor: "answer"
      `{index, score}` `[B,n]`, best first.
    """

    def __init__(self, model: Any, *, top_n: int = 1):
        if top_n < 1:
            raise ValueError(f"top_n={top_n}: must be at least 1")
        self.model, self.top_n = model, min(top_n, model.classes)
        self.renames: tuple[tuple[str, str], ...] = ()
        self.predictors: dict[str, Predictor] = {"answer": self._answer}

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters."""
        return self.model.init(rng, batch["features"])["params"]

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """Mean over rows. Metrics: "loss", "accuracy" (score of the likeliest answer)."""
        logits = call(self.model, params, "__call__", batch["features"])
        targets = losses.dense_targets(batch["label"], score=batch["label_score"], classes=self.model.classes)
        rows = batch["mask"].astype(jnp.float32) if "mask" in batch else jnp.ones(len(targets), jnp.float32)
        each = losses.binary_cross_entropy(logits, targets=targets)
        scored = jnp.take_along_axis(targets, logits.argmax(-1)[:, None], axis=-1)[:, 0]
        loss = losses.mean(each, weights=rows)
        metrics = {"loss": ((each * rows).sum(), rows.sum()), "accuracy": ((scored * rows).sum(), rows.sum())}
        return loss, ({}, metrics)

    def _answer(self, params: PyTree, batch: Batch, rng: Key) -> dict[str, Array]:
        logits = call(self.model, params, "__call__", batch["features"])
        score, index = jax.lax.top_k(jax.nn.sigmoid(logits), self.top_n)
        return {"index": index, "score": score}
