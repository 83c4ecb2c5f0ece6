"""The sampler of VAAL and TA-VAAL: an auto-encoder against a critic that tells labelled from unlabelled images.

Sources: Sinha et al., "Variational Adversarial Active Learning", ICCV 2019; Kim et al., "Task-Aware Variational
Adversarial Active Learning", CVPR 2021; on vectors of images (specification 8.8). One pass normalises labelled and
unlabelled rows together, where the releases take them apart.

Shape legend: `B` pairs of a labelled and an unlabelled image, `F` feature width, `Z` latent width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvl.tasks import batch_statistics
from jaxvl.tasks.adversarial import KL, decision, divergence, judged, noise, of_both, squared_error, turn
from jaxvl.tasks.batch_statistics import BatchNormTask
from jaxvl.tasks.options import one_of
from jaxvl.tasks.state_discrepancy import require
from jaxvl.types import Array, Batch, Key, Metrics, Predictor, PyTree


class AdversarialVAETask(BatchNormTask):
    """Auto-encoder and critic in one loss. The defaults are VAAL's; TA-VAAL has `kl_over="mean"`, `critic_every=1`.

    Args:
      model: `VAAL`, or any Linen module with its methods and the fields `latent` and `ranked`.
      kl_over: the divergence is the "sum" or the "mean" over the latents.
      kl, adversarial: weights of divergence and adversarial loss beside the mean squared error.
      critic_every: the critic learns in every so-manieth update.

    Training batches, row `i` a labelled beside an unlabelled image: `state`, `pool_state` `[B,F]`; if the model is
    ranked also `rank`, `pool_rank` `[B]`, the losses that a loss network expects; maybe `mask`. Predictor "critic" of
    rows with `state` (and `rank`): `[B]`, the logit that the image is labelled.
    """

    def __init__(
        self,
        model: Any,
        *,
        kl_over: str = "sum",
        kl: float = 1.0,
        adversarial: float = 1.0,
        critic_every: int = 2,
    ):
        one_of("kl_over", kl_over, KL)
        require(dict(kl=kl, adversarial=adversarial), critic_every=critic_every)
        self.model, self.kl_over, self.kl, self.adversarial = model, kl_over, kl, adversarial
        self.critic_every = critic_every
        self.predictors: dict[str, Predictor] = {"critic": self._critic}

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters and the statistics."""
        drawn = noise(rng, len(batch["state"]), self.model.latent)
        return batch_statistics.fresh(self.model, rng, batch["state"], drawn, batch.get("rank"))

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """All losses; each is a mean over the labelled plus a mean over the unlabelled rows.

        The first update sees random ranks, as in the release. Metrics: "loss", of the auto-encoder; its parts
        "rebuild", "kl", "adversarial"; "critic".
        """
        keys = jax.random.split(rng)
        states, rows = jnp.concatenate([batch["state"], batch["pool_state"]]), self._count(batch, "state")
        rank = self._ranks(batch, extra, keys[1])
        drawn = noise(keys[0], len(states), self.model.latent)
        found, moments = batch_statistics.train(self.model, params, "rebuild", states, drawn, rank)
        mean, fixed = found.posterior.mean, jax.lax.stop_gradient
        labelled = jnp.concatenate([jnp.ones_like(rows), jnp.zeros_like(rows)])
        parts = {
            "rebuild": of_both(squared_error(found.states, states), rows=rows),
            "kl": of_both(divergence(found.posterior, over=self.kl_over), rows=rows),
            "adversarial": of_both(
                decision(judged(self.model, fixed(params), mean, rank), targets=1.0), rows=rows
            ),
        }
        critic = of_both(decision(judged(self.model, params, fixed(mean), rank), targets=labelled), rows=rows)
        own = parts["rebuild"] + self.kl * parts["kl"] + self.adversarial * parts["adversarial"]
        metrics = {
            name: (value, jnp.ones(())) for name, value in {"loss": own, **parts, "critic": critic}.items()
        }
        loss = own + turn(extra, every=self.critic_every) * critic
        return loss, (batch_statistics.as_rows(moments, len(rows)), metrics)

    def _ranks(self, batch: Batch, extra: PyTree, rng: Key) -> Array | None:
        """`[2B]`: of the labelled, then of the unlabelled rows."""
        if "rank" not in batch:
            return None
        rank = jnp.concatenate([batch["rank"], batch["pool_rank"]]).astype(jnp.float32)
        return jnp.where(extra["updates"] == 0, jax.random.uniform(rng, rank.shape), rank)

    def _critic(self, params: PyTree, batch: Batch, rng: Key) -> Array:
        mean = batch_statistics.evaluate(self.model, params, "encode", batch["state"]).mean
        return judged(self.model, params, mean, batch.get("rank"))
