"""VaB-AL's sampler: an auto-encoder in which the latents of an image's own group of answers are zero.

Source: Choi et al., "VaB-AL: Incorporating Class Imbalance and Difficulty with Variational Bayes for Active Learning",
CVPR 2021, on vectors of the task model (specification 8.7).

Shape legend: `B` rows, `D` width of the task model's vectors, `G` groups of answers, `Z` latent width, `S` samples.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.tasks import batch_statistics
from jaxvl.tasks.adversarial import divergence, noise, squared_error
from jaxvl.tasks.batch_statistics import BatchNormTask
from jaxvl.tasks.state_discrepancy import require
from jaxvl.types import Array, Batch, Key, Metrics, Predictor, PyTree


class BayesVAETask(BatchNormTask):
    """Squared error without the latents of the predicted group, divergence, and latents of that group being shortest.

    Args:
      model: `VaBAL`, or any Linen module with its methods and the fields `groups`, `per_group`.
      group_weight: of the cross entropy of `softmax(-|z_g|^2)`.
      samples: `S`, points of the posterior that "evidence" averages over.
      seed: of these points; the same for all rows.

    Batches: `states [B,3,D]`; to train `group [B,G]`, one-hot, maybe `mask`. Predictor "evidence": `nll [B,G]`, mean
    over the samples of the squared error without the latents of each group, plus the divergence; `norms [B,G]`, mean
    squared lengths of the groups' latents.
    """

    def __init__(self, model: Any, *, group_weight: float = 0.005, samples: int = 10, seed: int = 0):
        require(dict(group_weight=group_weight), critic_every=1)
        if samples < 1:
            raise ValueError(f"samples={samples}: must be at least 1")
        self.model, self.group_weight, self.samples, self.seed = model, group_weight, samples, seed
        self.latent = model.groups * model.per_group
        self.predictors: dict[str, Predictor] = {"evidence": self._evidence}

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters and the statistics."""
        self._check(batch)
        drawn = noise(rng, len(batch["states"]), self.latent)
        return batch_statistics.fresh(self.model, rng, batch["states"], drawn, batch["group"])

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """Means over the rows. What is rebuilt is a constant there: the layers before learn as the encoder's.

        Metrics: "loss", its parts "rebuild", "kl", "group", and "shortest", the share of rows whose own group has the
        shortest latents.
        """
        self._check(batch)
        drawn, rows = noise(rng, len(batch["states"]), self.latent), self._count(batch, "states")
        args = (batch["states"], drawn, batch["group"])
        (features, found), moments = batch_statistics.train(self.model, params, "__call__", *args)
        norms = batch_statistics.evaluate(self.model, params, "norms", found.z)
        target = jax.lax.stop_gradient(features)
        each = {
            "rebuild": squared_error(found.states, target),
            "kl": divergence(found.posterior, over="mean"),
            "group": losses.soft_cross_entropy(-norms, targets=batch["group"]),
        }
        total = each["rebuild"] + each["kl"] + self.group_weight * each["group"]
        right = (norms.argmin(-1) == batch["group"].argmax(-1)).astype(jnp.float32)
        metrics = {
            name: ((v * rows).sum(), rows.sum())
            for name, v in {"loss": total, **each, "shortest": right}.items()
        }
        return losses.mean(total, weights=rows), (batch_statistics.as_rows(moments, len(rows)), metrics)

    def _check(self, batch: Batch) -> None:
        if batch["group"].shape[-1] != self.model.groups:
            raise ValueError(
                f"rows have {batch['group'].shape[-1]} groups of answers, model.groups is {self.model.groups}: set the "
                "strategy's `groups` and the model's to the same number"
            )

    def _evidence(self, params: PyTree, batch: Batch, rng: Key) -> dict[str, Array]:
        features = batch_statistics.evaluate(self.model, params, "features", batch["states"])
        posterior = batch_statistics.evaluate(self.model, params, "encode", features)

        def one(drawn: Array) -> tuple[Array, Array]:
            z = posterior.at(drawn)
            rebuilt = batch_statistics.evaluate(self.model, params, "without_each", z)
            lengths = batch_statistics.evaluate(self.model, params, "norms", z)
            return squared_error(rebuilt, features[:, None]), lengths

        errors, norms = jax.lax.map(one, noise(jax.random.key(self.seed), self.samples, self.latent))
        return {
            "nll": errors.mean(0) + divergence(posterior, over="mean")[:, None],
            "norms": norms.mean(0),
        }
