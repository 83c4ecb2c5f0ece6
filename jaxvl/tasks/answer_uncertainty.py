"""Answers as one class of many, trained to say how uncertain the present labels leave a pair.

Shape legend: `B` pairs, `K` labels of a row, `C` answers. Source: Zhang et al., CCRL, equations 11 to 13
  (specification 6).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl import losses
from jaxvl.objectives.uncertainty import indicator
from jaxvl.tasks.momentum import call
from jaxvl.tasks.options import one_of
from jaxvl.tasks.stateless import Stateless
from jaxvl.types import Array, Batch, Key, Metrics, Predictor, PyTree

LABELS = ("hard", "soft")
TEMPERATURES = np.geomspace(0.1, 10.0, 61)  # 1 is the middle one


class AnswerUncertaintyTask(Stateless):
    """Mean cross entropy over the rows that have a label.

    Args:
      model: `VAUE`, or any Linen module whose call gives `logits`, with `classes`.
      label: "hard" = the consensus answer; "soft" = the shares of all answers that are classes.
      top_n: classes that "answer" returns; more than there are means all.

    Batches: `regions`, `region_mask`, `text`, `text_mask`; to train `hard_label`, or `label` and `label_share`;
      optionally `mask`. Predictors: "answer" `{index, score}` `[B,n]`; "uncertainty" `{f, p_max, index}` `[B]`;
      "temperatures", with `hard_label`: `{nll, confidence}` `[B,T]`, of the hard label and of the likeliest answer with
      logits over each of `TEMPERATURES`, and `right [B]`, whether they are the same.
    """

    def __init__(self, model: Any, *, label: str = "hard", top_n: int = 10):
        one_of("label", label, LABELS)
        self.model, self.label, self.top_n = model, label, min(top_n, model.classes)
        self.renames: tuple[tuple[str, str], ...] = ()
        self.predictors: dict[str, Predictor] = {
            "answer": self._answer, "uncertainty": self._uncertainty, "temperatures": self._temperatures,
        }  # fmt: skip

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters."""
        return self.model.init(rng, *_inputs(batch))["params"]

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """Mean cross entropy. Metrics: "loss", "accuracy" (share of rows whose likeliest answer is the hard label)."""
        logits = call(self.model, params, "__call__", *_inputs(batch), rng=rng, train=True).logits
        known = batch["hard_label"] >= 0
        rows = known.astype(jnp.float32) * (batch["mask"].astype(jnp.float32) if "mask" in batch else 1.0)
        each = losses.soft_cross_entropy(logits, targets=self._targets(batch))
        right = (logits.argmax(-1) == batch["hard_label"]).astype(jnp.float32)
        count = jnp.maximum(rows.sum(), 1.0)
        loss = (each * rows).sum() / count
        metrics = {"loss": (loss * rows.sum(), rows.sum()), "accuracy": ((right * rows).sum(), rows.sum())}
        return loss, ({}, metrics)

    def _targets(self, batch: Batch) -> Array:
        if self.label == "hard":
            return jax.nn.one_hot(batch["hard_label"], self.model.classes, dtype=jnp.float32)  # -1: all zeros
        return losses.dense_targets(batch["label"], score=batch["label_share"], classes=self.model.classes)

    def _logits(self, params: PyTree, batch: Batch) -> Array:
        return call(self.model, params, "__call__", *_inputs(batch)).logits

    def _answer(self, params: PyTree, batch: Batch, rng: Key) -> dict[str, Array]:
        """Best classes first, with their probabilities."""
        score, index = jax.lax.top_k(jax.nn.softmax(self._logits(params, batch), axis=-1), self.top_n)
        return {"index": index, "score": score}

    def _uncertainty(self, params: PyTree, batch: Batch, rng: Key) -> dict[str, Array]:
        return indicator(self._logits(params, batch))._asdict()

    def _temperatures(self, params: PyTree, batch: Batch, rng: Key) -> dict[str, Array]:
        logits, label = self._logits(params, batch), batch["hard_label"]
        best = logits.argmax(-1)

        def at(temperature: Array) -> tuple[Array, Array]:
            logp = jax.nn.log_softmax(logits / temperature, axis=-1)
            nll, top = (
                jnp.take_along_axis(logp, i[:, None], axis=-1)[:, 0] for i in (jnp.maximum(label, 0), best)
            )
            return -nll, jnp.exp(top)

        nll, confidence = jax.lax.map(at, jnp.asarray(TEMPERATURES, jnp.float32))
        return {"nll": nll.T, "confidence": confidence.T, "right": (best == label).astype(jnp.float32)}

    def rescaled(self, params: PyTree, *, temperature: float) -> PyTree:
        """`params` of a `VAUE` with all logits divided by `temperature`."""
        halves = {n: jax.tree.map(lambda x: x / temperature, params[n]) for n in ("image_half", "text_half")}
        return {**params, **halves}


def _inputs(batch: Batch) -> tuple[Array, Array, Array, Array]:
    return batch["regions"], batch["region_mask"], batch["text"], batch["text_mask"]
