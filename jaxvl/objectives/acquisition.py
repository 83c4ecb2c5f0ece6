"""Acquisition scores: how much an unlabelled pair would teach, from predicted probabilities. Pure functions, float32.

Shape legend: `C` answers, `T` members (dropout passes), `B` images, `J` questions asked of each, `K` answer types,
`D` size of a sketch, `F` feature width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvl.types import Array, Key

KINDS_OF_PROBABILITY = ("softmax", "sigmoid_norm", "bernoulli")
ENTROPY_FLOOR = 1e-6  # of the weights of a mixture: pairs that are certain still count


def probabilities(logits: Array, *, kind: str = "softmax") -> Array:
    """`[...,C]` f32 from logits of a model that was trained with independent answers.

    Args:
      kind: "softmax" (Karamcheti et al., 2021), "sigmoid_norm" = sigmoid over its sum, "bernoulli" = sigmoid, which
        does not sum to 1: entropies then count the `p log p` of answers that are given, not of those that are not.

    Raises:
      ValueError: unknown kind.
    """
    logits = logits.astype(jnp.float32)
    if kind == "softmax":
        return jax.nn.softmax(logits, axis=-1)
    if kind == "bernoulli":
        return jax.nn.sigmoid(logits)
    if kind == "sigmoid_norm":
        return jax.nn.softmax(jax.nn.log_sigmoid(logits), axis=-1)  # a sum of sigmoids may be 0 in float32
    raise ValueError(f"prob={kind!r}: expected one of {', '.join(KINDS_OF_PROBABILITY)}")


def least_confidence(p: Array) -> Array:
    """`1 - max p`, over the last axis."""
    return 1 - p.max(-1)


def entropy(p: Array) -> Array:
    """`-sum p log p` in nats, over the last axis; 0 log 0 = 0."""
    return -(p * jnp.log(jnp.where(p > 0, p, 1.0))).sum(-1)


def margin(p: Array) -> Array:
    """`-(p1 - p2)` of the two largest; -1 = certain, 0 = a tie. With one answer only, -p1."""
    if p.shape[-1] == 1:
        return -p[..., 0]
    best = jax.lax.top_k(p, 2)[0]
    return best[..., 1] - best[..., 0]


def mc_entropy(p_t: Array) -> Array:
    """Entropy of the mean of members `[T,...,C]`."""
    return entropy(p_t.mean(0))


def bald(p_t: Array) -> Array:
    """Mutual information of answer and member, `H(mean p) - mean H(p)`, of members `[T,...,C]`; at least 0.

    Source: Houlsby et al., 2011; Gal et al., ICML 2017.
    """
    return jnp.maximum(mc_entropy(p_t) - entropy(p_t).mean(0), 0.0)


def mocu(p_t: Array) -> Array:
    """`(1 - K) K` with `K = mean_t max p_t - max mean_t p_t`, of members `[T,...,C]`.

    `K` is what deciding without knowing the right member costs; the weight makes one step of look-ahead converge.
    Source: Zhao et al., "Uncertainty-aware active learning for optimal Bayesian classifier", ICLR 2021.
    """
    k = jnp.maximum(p_t.max(-1).mean(0) - p_t.mean(0).max(-1), 0.0)
    return (1 - k) * k


class Hashes(NamedTuple):
    """Buckets `[size]` i32 in [0, D) and signs `[size]` f32 of both factors, and D."""

    buckets: tuple[Array, Array]
    signs: tuple[Array, Array]
    dim: int


def sketch_hashes(key: Key, sizes: tuple[int, int], dim: int) -> Hashes:
    """Independent hashes for two factors of these sizes."""
    keys = jax.random.split(key, 4)
    buckets = tuple(jax.random.randint(k, (n,), 0, dim) for k, n in zip(keys[:2], sizes, strict=True))
    signs = tuple(
        jax.random.rademacher(k, (n,), dtype=jnp.float32) for k, n in zip(keys[2:], sizes, strict=True)
    )
    return Hashes(buckets, signs, dim)  # type: ignore[arg-type]


def tensor_sketch(first: Array, second: Array, hashes: Hashes) -> Array:
    """Sketch `[...,D]` of the outer product of `first [...,C]` and `second [...,F]`, which is never formed.

    Inner products of sketches estimate `<a,c><b,d>` without bias, with variance of the order of `1/D`.
    Source: Pham and Pagh, "Fast and scalable polynomial kernels via explicit feature maps", KDD 2013.
    """

    def count_sketch(x: Array, i: int) -> Array:
        x = x.astype(jnp.float32) * hashes.signs[i]
        flat = x.reshape(-1, x.shape[-1])
        out = jnp.zeros((len(flat), hashes.dim), jnp.float32).at[:, hashes.buckets[i]].add(flat)
        return out.reshape(*x.shape[:-1], hashes.dim)

    transformed = jnp.fft.rfft(count_sketch(first, 0)) * jnp.fft.rfft(count_sketch(second, 1))
    return jnp.fft.irfft(transformed, n=hashes.dim).astype(jnp.float32)


def kind_mixture(p: Array, kind: Array, kinds: int) -> tuple[Array, Array]:
    """Per answer type the mean of the distributions of an image's questions, weighted by their entropies.

    Args:
      p: `[B,J,C]`.
      kind: `[J]` or `[B,J]` answer types; -1 = not asked.
      kinds: K.

    Returns:
      `P [B,K,C]` (zeros for a type that is not asked for) and `present [B,K]` bool.

    Source: Agarwal et al., "Contextual Diversity for Active Learning", ECCV 2020, with questions for image regions.
    """
    kind = jnp.broadcast_to(kind, p.shape[:2])
    member = kind[..., None] == jnp.arange(kinds)
    weight = jnp.maximum(entropy(p), ENTROPY_FLOOR)[..., None] * member
    total = weight.sum(1)
    mixed = (
        jnp.einsum("bjk,bjc->bkc", weight, p, precision="highest")
        / jnp.where(total > 0, total, 1.0)[..., None]
    )
    return mixed, member.any(1)
