"""Mutual information of images and questions from a critic (JSD) and from contrast (InfoNCE). Pure functions, float32.

Shape legend: `B` pairs of a batch; rows are images, columns questions, pair `i` is the true one of row `i`; `K`
negatives of each row.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxvl.types import Array, Key

LOG2 = math.log(2.0)
FORMS = ("infonce", "printed")
NEVER = -1e9  # in place of a similarity that must not count


def jsd_loss(critic_bb: Array, *, negative: Array, rows: Array | None = None) -> Array:
    """`mean softplus(-T)` over true pairs + `mean softplus(T)` over negatives, which are averaged apart.

    Its least value is `2 log 2 - 2 JSD` of the joint and the product distribution, reached at `T = log
    p(x,q)/(p(x)p(q))`: a match probability `sigmoid(T)` of one half is a density ratio of 1. Derivation:
    specification 5.4.

    Args:
      critic_bb: `T [B,B]`.
      negative: `[B,B]` bool, pairs that count as negatives; the diagonal never does.
      rows: `[B]` bool, False = padding, whose pairs count nowhere. None = all are real.
    """
    real = jnp.ones(len(critic_bb), bool) if rows is None else rows
    valid = _valid(negative, real)
    true = _mean(jax.nn.softplus(-jnp.diagonal(critic_bb)), real)
    return true + _mean(jax.nn.softplus(critic_bb), valid)


def jsd_pairs_loss(
    true_b: Array, false_kb: Array, *, negative: Array, partner: Array, rows: Array | None = None
) -> Array:
    """`jsd_loss` with `K` negatives for each row, which alone are computed: `K B` pairs instead of `B^2`.

    Args:
      true_b: `T [B]` of the true pairs; false_kb: `[K,B]` of each row's image with the question of its partner.
      negative: `[B,B]` bool, as in `jsd_loss`.
      partner: `[K,B]` i32, see `derangements`.
      rows: as in `jsd_loss`.
    """
    real = jnp.ones(len(true_b), bool) if rows is None else rows
    valid = jnp.take_along_axis(_valid(negative, real), partner.T, axis=1).T
    return _mean(jax.nn.softplus(-true_b), real) + _mean(jax.nn.softplus(false_kb), valid)


def jsd_estimate(loss: Array) -> Array:
    """`2 log 2 - loss`: a lower bound of twice the Jensen-Shannon divergence, in nats, at most 2 log 2."""
    return 2 * LOG2 - loss


def contrast_loss(
    similarity_bb: Array, *, negative: Array, form: str = "infonce", rows: Array | None = None
) -> Array:
    """InfoNCE in both directions, or the form that the paper prints.

    Args:
      similarity_bb: `[B,B]`, cosine over temperature.
      negative, rows: as in `jsd_loss`; other off-diagonal pairs do not count.
      form: "infonce" = mean over both directions of `-log softmax` of the true pair, so that `log B - loss` bounds the
        information from below. "printed" = `-(LSE of true pairs - LSE of negatives)`, the positive not in the
        denominator.

    Raises:
      ValueError: unknown form.
    """
    if form not in FORMS:
        raise ValueError(f"cl_form={form!r}: expected one of {', '.join(FORMS)}")
    real = jnp.ones(len(similarity_bb), bool) if rows is None else rows
    valid, true = _valid(negative, real), jnp.diagonal(similarity_bb)
    if form == "printed":
        others = jnp.where(valid, similarity_bb, NEVER)
        return jax.nn.logsumexp(others) - jax.nn.logsumexp(jnp.where(real, true, NEVER))
    seen = jnp.where(valid | jnp.eye(len(true), dtype=bool), similarity_bb, NEVER)
    by_image, by_text = (jax.nn.logsumexp(seen, axis=axis) for axis in (1, 0))
    return 0.5 * (_mean(by_image - true, real) + _mean(by_text - true, real))


def _valid(negative: Array, real: Array) -> Array:
    """The negatives that are off the diagonal and of real rows."""
    return negative & ~jnp.eye(len(real), dtype=bool) & real[:, None] & real[None]


def _mean(values: Array, where: Array) -> Array:
    return jnp.where(where, values, 0.0).sum() / jnp.maximum(where.sum(), 1)


def negatives(image_id: Array, question_key: Array, keys_of_image: Array) -> Array:
    """`[B,B]` bool: image `i` with question `j` is a negative pair.

    Left out are pairs of one image, and those where either question was asked of the other's image: most questions
    recur, and "how many?" beside a picture of which it was asked is no negative.

    Args:
      image_id, question_key: `[B]` i32.
      keys_of_image: `[B,M]` i32, keys of all questions of each row's image, padded with -1.
    """
    same = image_id[:, None] == image_id[None]
    asked = (keys_of_image[:, None, :] == question_key[None, :, None]).any(-1)  # j's question of i's image
    return ~(same | asked | asked.T)


def derangements(key: Key, size: int, *, count: int = 1) -> Array:
    """`[count,B]` i32: partners of each row, none of them itself and no two of a row equal.

    They are shifts along one random cycle through the batch; a batch of `B` rows has `B - 1` of them at most.
    """
    order = jax.random.permutation(key, size)

    def partners(shift: Array) -> Array:
        given = order[(jnp.arange(size) + shift) % size]
        return jnp.zeros(size, jnp.int32).at[order].set(given.astype(jnp.int32))

    return jax.vmap(partners)(jnp.arange(1, 1 + min(count, size - 1)))
