"""Parts of variational adversarial samplers: an auto-encoder against a critic that tells labelled from unlabelled.

Both learn in one update from one sum of losses, in which each sees the other as fixed: the critic's parameters are
constants in the auto-encoder's adversarial loss, the latent means are constants in the critic's. Where the originals
take several steps of the auto-encoder for one of the critic, the critic's loss counts in every n-th update only.
(Adam's moments see zeros in between: with n = 2 its steps are 0.7 of a full one each, 1.4 per turn instead of 1.)

Shape legend: `B` rows of each of the two sets, `Z` latent width.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.tasks.batch_statistics import STATISTICS
from jaxvl.types import Array, Key, PyTree

KL = ("sum", "mean")


def divergence(posterior: Any, *, over: str) -> Array:
    """`[B]` f32: KL of a `Posterior` from the standard normal, "sum" or "mean" over the latents."""
    mean, log_var = posterior.mean.astype(jnp.float32), posterior.log_var.astype(jnp.float32)
    each = 0.5 * (jnp.square(mean) + jnp.exp(log_var) - 1 - log_var)
    return each.sum(-1) if over == "sum" else each.mean(-1)


def squared_error(rebuilt: Array, states: Array) -> Array:
    """`[B]` f32: mean square of the differences."""
    return jnp.square(rebuilt - states).mean(-1)


def noise(rng: Key, rows: int, width: int) -> Array:
    """Standard normal `[rows,width]` f32."""
    return jax.random.normal(rng, (rows, width), jnp.float32)


def of_both(values: Array, *, rows: Array) -> Array:
    """Mean over the labelled rows plus mean over the unlabelled: `values [2B]`, labelled first; weights `rows [B]`."""
    first, second = jnp.split(values, 2)
    return losses.mean(first, weights=rows) + losses.mean(second, weights=rows)


def decision(logits: Array, *, targets: Array | float) -> Array:
    """Cross entropy `[B]` f32 of a yes/no decision with targets in [0, 1]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(logits) - targets * logits


def turn(extra: PyTree, *, every: int) -> Array:
    """1.0 in every `every`-th update, 0.0 in the others."""
    return ((extra["updates"] + 1) % every == 0).astype(jnp.float32)


def judged(model: Any, params: PyTree, *args: Any) -> Array:
    """Logits `[B]` of the model's critic."""
    own = {name: part for name, part in params.items() if name != STATISTICS}
    return model.apply({"params": own}, *args, method="critic")
