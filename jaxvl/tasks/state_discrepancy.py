"""SRAAL's sampler: a critic that expects of each unlabelled state how uncertain it is.

Source: Zhang et al., "State-Relabeling Adversarial Active Learning", CVPR 2020, and its released code, on vectors of
images (specification 8.4). Two things differ from the latter: the auto-encoder's adversarial target is the critic's
value for labelled rows (the release pushes the other way, `adversarial="as_released"`), and one pass normalises
labelled and unlabelled rows together.

Shape legend: `B` pairs of a labelled question and an unlabelled image, `F` feature width, `Z` latent width, `L` words,
`C` answers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.tasks import batch_statistics
from jaxvl.tasks.adversarial import decision, divergence, judged, noise, of_both, squared_error, turn
from jaxvl.tasks.batch_statistics import BatchNormTask
from jaxvl.tasks.options import one_of
from jaxvl.types import Array, Batch, Key, Metrics, Predictor, PyTree

ADVERSARIAL = ("labelled", "as_released")


class StateDiscrepancyTask(BatchNormTask):
    """Auto-encoder, target learner and critic in one loss.

    Args:
      model: `SRAAL`, or any Linen module with its methods.
      rebuild, kl, answer, adversarial_weight: weights of squared error, divergence (summed over the latents), the
        target learner's cross entropy, and the adversarial loss.
      adversarial: what the auto-encoder wants the critic to say of both sets: 0 as of "labelled" rows, or 1
        ("as_released").
      critic_every: the critic learns in every so-manieth update.

    Training batches, row `i` a labelled question beside an unlabelled image: `state [B,F]`, `text`, `text_mask [B,L]`,
    `hard_label [B]` (-1 = none) of the one, `pool_state [B,F]` and `pool_uncertainty [B]` in [0, 1] of the other, maybe
    `mask`. Predictor "critic" of rows with `state`: `[B]`, the critic's logit; larger = more worth labelling.
    """

    def __init__(
        self,
        model: Any,
        *,
        rebuild: float = 5.0,
        kl: float = 1.0,
        answer: float = 5.0,
        adversarial_weight: float = 1.0,
        adversarial: str = "labelled",
        critic_every: int = 2,
    ):
        one_of("adversarial", adversarial, ADVERSARIAL)
        weights = dict(rebuild=rebuild, kl=kl, answer=answer, adversarial=adversarial_weight)
        require(weights, critic_every=critic_every)
        self.model, self.weights, self.critic_every = model, weights, critic_every
        self.wanted = 1.0 if adversarial == "as_released" else 0.0
        self.predictors: dict[str, Predictor] = {"critic": self._critic}

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters and the statistics."""
        drawn = noise(rng, len(batch["state"]), self.model.latent)
        return batch_statistics.fresh(
            self.model, rng, batch["state"], drawn, batch["text"], batch["text_mask"]
        )

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """All losses; those of both sets are means over the labelled plus means over the unlabelled rows.

        Metrics: "loss", of the auto-encoder; its parts "rebuild", "kl", "answer", "adversarial"; "critic".
        """
        states, rows = jnp.concatenate([batch["state"], batch["pool_state"]]), self._count(batch, "state")
        drawn = noise(rng, len(states), self.model.latent)
        found, moments = batch_statistics.train(self.model, params, "rebuild", states, drawn)
        mean = found.posterior.mean
        unlabelled = jnp.concatenate([jnp.zeros_like(rows), batch["pool_uncertainty"].astype(jnp.float32)])
        fixed = jax.lax.stop_gradient
        parts = {
            "rebuild": of_both(squared_error(found.states, states), rows=rows),
            "kl": of_both(divergence(found.posterior, over="sum"), rows=rows),
            "answer": self._answers(params, found.z[: len(rows)], batch, rows),
            "adversarial": of_both(
                decision(judged(self.model, fixed(params), mean), targets=self.wanted), rows=rows
            ),
        }
        critic = of_both(decision(judged(self.model, params, fixed(mean)), targets=unlabelled), rows=rows)
        own = sum((self.weights[name] * part for name, part in parts.items()), jnp.zeros(()))
        metrics = {
            name: (value, jnp.ones(())) for name, value in {"loss": own, **parts, "critic": critic}.items()
        }
        loss = own + turn(extra, every=self.critic_every) * critic
        return loss, (batch_statistics.as_rows(moments, len(rows)), metrics)

    def _answers(self, params: PyTree, z: Array, batch: Batch, rows: Array) -> Array:
        """Mean cross entropy of the target learner over the labelled rows that have a hard label."""
        logits = batch_statistics.evaluate(self.model, params, "target", z, batch["text"], batch["text_mask"])
        label = batch["hard_label"]
        each = losses.cross_entropy(logits, labels=jnp.maximum(label, 0))
        return losses.mean(each, weights=rows * (label >= 0))

    def _critic(self, params: PyTree, batch: Batch, rng: Key) -> Array:
        mean = batch_statistics.evaluate(self.model, params, "encode", batch["state"]).mean
        return judged(self.model, params, mean)


def require(weights: dict[str, float], *, critic_every: int) -> None:
    """Raise ValueError for a negative weight, or a critic that never learns."""
    for name, value in weights.items():
        if not value >= 0:
            raise ValueError(f"{name}={value}: expected 0 or more")
    if critic_every < 1:
        raise ValueError(f"critic_every={critic_every}: must be at least 1")
