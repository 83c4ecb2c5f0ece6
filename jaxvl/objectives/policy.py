"""Choosing as a policy: what a choice of a sequence's images is worth, and the loss that makes worthy ones likelier.

Shape legend: `E` episodes, `T` images of a sequence. Source: Agarwal et al., "Contextual Diversity for Active
Learning", ECCV 2020, whose policy and loss are those of Zhou et al., "Deep reinforcement learning for unsupervised
video summarization", AAAI 2018.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxvl.types import Array

DIVERSE, NEAR, SCALE = 1.5, 0.5, 50.0  # weights of both parts of a reward; unit of squared distances


def reward(taken_et: Array, *, diversity_tt: Array, squared_tt: Array, there_t: Array) -> Array:
    """`[E]`: 1.5 times the mean diversity of two taken images + 0.5 exp(-mean squared distance to a taken one / 50).

    The mean distance is over all images of the sequence, each from the nearest that is taken. Nothing taken is worth 0;
    a single image has no diversity.

    Args:
      taken_et: bool.
      diversity_tt: symmetric, zeros on the diagonal.
      squared_tt: squared distances of the images.
      there_t: bool, False = padding, which counts nowhere.
    """
    taken = (taken_et & there_t).astype(jnp.float32)
    count = taken.sum(1)
    pairs = jnp.einsum("es,st,et->e", taken, diversity_tt, taken, precision="highest")
    diverse = pairs / jnp.maximum(count * (count - 1), 1.0)
    nearest = jnp.where(taken[:, None] > 0, squared_tt[None], jnp.inf).min(-1)  # [E,T]
    far = jnp.where(there_t, nearest, 0.0).sum(1) / jnp.maximum(there_t.sum(), 1)
    return jnp.where(count > 0, DIVERSE * diverse + NEAR * jnp.exp(-far / SCALE), 0.0)


def policy_loss(
    logits_t: Array,
    taken_et: Array,
    advantage_e: Array,
    *,
    there_t: Array,
    share: Array | float,
    weight: float = 0.01,
) -> Array:
    """REINFORCE: `-mean_e advantage mean_t log p(taken)` + `weight (mean p - share)^2`, which keeps choices few.

    Args:
      logits_t: of taking each image.
      advantage_e: reward over the baseline; no gradient goes into it.
      share: of the images that will be taken.
    """
    there = there_t.astype(jnp.float32)
    count = jnp.maximum(there.sum(), 1.0)
    log_p = jnp.where(taken_et, jax.nn.log_sigmoid(logits_t), jax.nn.log_sigmoid(-logits_t))
    each = (log_p * there).sum(1) / count
    mean = (jax.nn.sigmoid(logits_t) * there).sum() / count
    return -(jax.lax.stop_gradient(advantage_e) * each).mean() + weight * jnp.square(mean - share)
