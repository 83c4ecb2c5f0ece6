"""Matching of questions and images, trained by mutual information and contrast on labelled pairs without answers.

Shape legend: `B` pairs. Source: Zhang et al., CCRL, equations 8 to 10 (specification 5).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvl.objectives import mutual_information as mi
from jaxvl.tasks.momentum import call
from jaxvl.tasks.options import one_of
from jaxvl.tasks.stateless import Stateless
from jaxvl.types import Array, Batch, Key, Metrics, Predictor, PyTree

NEGATIVES = ("all", "derangement")


class QuestionMatchTask(Stateless):
    """`mi_weight` times the JSD loss of the critic + `cl_weight` times the contrastive loss.

    Args:
      model: `VQME`, or any Linen module whose call gives its `a`, `b`, `z`, `w`, `match`, `tau`.
      mi_weight, cl_weight: of the two losses; one may be 0.
      cl_form: "infonce" or "printed", see `contrast_loss`.
      neg: negatives of the critic: "all" valid pairs of the batch, or "derangement" = `neg_count` for each row, drawn
        anew each step: the critic then sees `(1 + neg_count) B` pairs instead of `B^2`. The contrast always has all.
      neg_count: see `neg`; None = 1.

    Batches: `regions`, `region_mask`, `text`, `text_mask`, `image_id`, `question_key`, `keys_of_image`, optionally
      `mask`.
    Predictors: "match" `[B]`, the critic of the pair itself; "encoded" `{a, b, z, w}`, for pairs across rows;
      "image_state", "text_state" `[B,D]`, what both come from, of rows with one side only.
    """

    def __init__(
        self,
        model: Any,
        *,
        mi_weight: float = 1.0,
        cl_weight: float = 1.0,
        cl_form: str = "infonce",
        neg: str = "all",
        neg_count: int | None = None,
    ):
        one_of("cl_form", cl_form, mi.FORMS)
        one_of("neg", neg, NEGATIVES)
        if mi_weight < 0 or cl_weight < 0 or not (mi_weight or cl_weight):
            raise ValueError(f"mi_weight={mi_weight}, cl_weight={cl_weight}: not negative, and not both 0")
        self.model, self.mi_weight, self.cl_weight = model, mi_weight, cl_weight
        if neg_count is not None and (neg != "derangement" or neg_count < 1):
            raise ValueError(f"neg_count={neg_count}, neg={neg!r}: a number from 1 on, for neg='derangement'")
        self.cl_form, self.neg, self.neg_count = cl_form, neg, neg_count or 1
        self.renames: tuple[tuple[str, str], ...] = ()
        self.predictors: dict[str, Predictor] = {
            "match": lambda p, batch, rng: self._encode(p, batch)["match"],
            "encoded": lambda p, batch, rng: {k: v for k, v in self._encode(p, batch).items() if k in "abzw"},
            "image_state": self._image,
            "text_state": lambda p, batch, rng: call(
                self.model, p, "encode_text", batch["text"], batch["text_mask"]
            ),
        }

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters."""
        return self.model.init(rng, *_inputs(batch))["params"]

    def rescaled(self, params: PyTree, *, scale: float, shift: float) -> PyTree:
        """Parameters whose match is `scale` times this one plus `shift`: how a critic is calibrated."""
        return self.model.rescaled(params, scale=scale, shift=shift)

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """The weighted sum. Metrics: "loss", "mi", "cl", "information" (2 log 2 - mi, a bound of twice the JSD)."""
        out = self._encode(params, batch, rng=rng, train=True)
        valid = mi.negatives(batch["image_id"], batch["question_key"], batch["keys_of_image"])
        rows = batch.get("mask")
        if self.neg == "derangement":
            partner = mi.derangements(jax.random.fold_in(rng, 1), len(valid), count=self.neg_count)
            critic = call(self.model, params, "critic_pairs", out["a"][None], out["b"][partner])
            l_mi = mi.jsd_pairs_loss(out["match"], critic, negative=valid, partner=partner, rows=rows)
        else:
            critic = call(self.model, params, "critic_all", out["a"], out["b"])
            l_mi = mi.jsd_loss(critic, negative=valid, rows=rows)
        similarity = out["z"] @ out["w"].T / out["tau"]
        l_cl = mi.contrast_loss(similarity, negative=valid, form=self.cl_form, rows=rows)
        loss = self.mi_weight * l_mi + self.cl_weight * l_cl
        one = jnp.ones(())
        found = {"loss": loss, "mi": l_mi, "cl": l_cl, "information": mi.jsd_estimate(l_mi)}
        return loss, ({}, {name: (value, one) for name, value in found.items()})

    def _image(self, params: PyTree, batch: Batch, rng: Key) -> Array:
        regions = (batch["regions"], batch["region_mask"])
        return call(self.model, params, "encode_image", *regions).astype(jnp.float32)

    def _encode(
        self, params: PyTree, batch: Batch, *, rng: Key | None = None, train: bool = False
    ) -> dict[str, Array]:
        return call(self.model, params, "__call__", *_inputs(batch), rng=rng, train=train)


def _inputs(batch: Batch) -> tuple[Array, Array, Array, Array]:
    return batch["regions"], batch["region_mask"], batch["text"], batch["text_mask"]
