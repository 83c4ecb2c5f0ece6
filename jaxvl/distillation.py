"""What a student learns from a teacher: attention across modalities and soft labels. Pure functions, in float32.

Shape legend: `B` batch, `M` text tokens, `P` image tokens, `H` heads, `K` head dim, `A` classes. Maps are named by
direction: `t2v [B,H,M,P]` is text looking at image, `v2t [B,H,P,M]` image looking at text; a row is what one query
sees. The teacher is a constant: no gradient flows into it. Masked keys get a finite logit and their products are set
to 0: with infinite ones the divergence and its gradient would be NaN.

Sources: Huang and Guo, "Multi-modal Fusion Method Based on Dual Encoders", Computer Science 51(9), 2024, eqs. 7-10;
Wang et al., "Distilled Dual-Encoder Model for Vision-Language Understanding", 2021 (attention of the last layer).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvl.types import CrossQK

MASKED = -1e9  # logit of a masked key: exp underflows to exactly 0, and 0 * MASKED is 0 where 0 * inf is not
DIRECTIONS = ("student_teacher", "teacher_student")  # KL(S|T), as the paper writes it; KL(T|S), the usual one
QUERIES = ("valid", "all")
HEADS = ("equal", "mean")


class Words(NamedTuple):
    """The words that student and teacher are compared on where they cut texts into other tokens.

    Attributes:
      student, teacher: i32 `[B,M]`, `[B,M']`: the word of each token, below M; -1 = padding. Both sides have tokens of
        every word.
      teacher_mask: bool `[B,M']`.
    """

    student: Array
    teacher: Array
    teacher_mask: Array


class Maps(NamedTuple):
    """Log-probabilities `t2v [B,H,M,P]` and `v2t [B,H,P,M]`; masked keys have a finite logit far below the others."""

    t2v: Array
    v2t: Array


def log_maps(qk: CrossQK, text_mask: Array) -> Maps:
    """Masked log-softmax over the keys of the other modality alone, scaled by `1/sqrt(K)`.

    It equals the block of a joint attention that crosses the modalities, divided by the sum of its rows.

    Args:
      qk: queries and keys of one layer, any float type.
      text_mask: bool `[B,M]`; image keys are never masked.
    """
    t2v = _scores(qk.text_q, qk.image_k)
    v2t = jnp.where(text_mask[:, None, None, :], _scores(qk.image_q, qk.text_k), MASKED)
    return Maps(jax.nn.log_softmax(t2v, axis=-1), jax.nn.log_softmax(v2t, axis=-1))


def _scores(query_bqhk: Array, key_bshk: Array) -> Array:
    query, key = (x.astype(jnp.float32) for x in (query_bqhk, key_bshk))
    return jnp.einsum("bqhk,bshk->bhqs", query, key, precision="highest") * query.shape[-1] ** -0.5


def word_maps(qk: CrossQK, text_mask: Array, word: Array, *, count: int) -> Maps:
    """Log-probabilities over words: `t2v [B,H,N,P]` and `v2t [B,H,P,N]`.

    As a key a word has the sum of the probabilities of its pieces, as a query the mean of their rows. A word without
    pieces has a finite logit far below the others, and as a query a row of those.

    Args:
      qk, text_mask: as for `log_maps`.
      word: i32 `[B,M]`, the word of each token; -1 = padding.
      count: N, more than any of them.
    """
    t2v, v2t = log_maps(qk, text_mask)
    word = jnp.where(text_mask & (word >= 0), word, count)
    pieces = jax.nn.one_hot(word, count, dtype=jnp.float32).sum(1)[:, None, :, None]  # [B,1,N,1]
    rows = _over_words(t2v, word, count) - jnp.log(jnp.maximum(pieces, 1.0))
    return Maps(rows, _over_words(v2t.swapaxes(2, 3), word, count).swapaxes(2, 3))


def _over_words(logs_bhmp: Array, word_bm: Array, count: int) -> Array:
    """`[B,H,N,P]`: log of the sum of the probabilities of each word's tokens; word `count` is left out.

    In the log domain: a probability below float32 would lose its logarithm.
    """

    def one(logs_mhp: Array, word_m: Array) -> Array:
        most = jax.ops.segment_max(jax.lax.stop_gradient(logs_mhp), word_m, count + 1)
        most = jnp.where(jnp.isfinite(most), most, 0.0)
        total = jax.ops.segment_sum(jnp.exp(logs_mhp - most[word_m]), word_m, count + 1)
        return jnp.where(total > 0, most + jnp.log(jnp.where(total > 0, total, 1.0)), MASKED)[:count]

    return jax.vmap(one)(logs_bhmp.swapaxes(1, 2), word_bm).swapaxes(1, 2)


def cross_maps(qk: CrossQK, text_mask: Array) -> tuple[Array, Array]:
    """Probabilities `(t2v [B,H,M,P], v2t [B,H,P,M])` f32; masked keys are exactly 0, also where a text has no token."""
    logs = log_maps(qk, text_mask)
    return jnp.exp(logs.t2v), jnp.where(text_mask[:, None, None, :], jnp.exp(logs.v2t), 0.0)


def attention_kl(
    student: CrossQK,
    teacher: CrossQK,
    *,
    text_mask: Array,
    weights: Array | None = None,
    direction: str = "student_teacher",
    queries: str = "valid",
    heads: str = "equal",
    words: Words | None = None,
) -> Array:
    """Mean KL divergence of the rows of `t2v` plus that of the rows of `v2t`.

    Args:
      student: queries and keys of the student's layer.
      teacher: the teacher's, for the same tokens in the same order; its head dim may differ.
      text_mask: bool `[B,M]`; padding is no key.
      weights: f32 `[B]`; 0 drops a pair from sum and count. None = all 1.
      direction: "student_teacher" = KL(S|T), "teacher_student" = KL(T|S).
      queries: which text queries count in `t2v`: the "valid" ones, or "all", padding too, as DiDE's code averages.
      heads: "equal" compares head by head; "mean" compares the mean of the probabilities over heads, for teachers
        with another number of heads.
      words: the texts' tokens differ, and the maps are compared word by word (`word_maps`); then `queries` is "valid".
        None = token by token.

    Returns:
      f32 scalar; 0 if no pair counts.

    Raises:
      ValueError: other tokens without `words`, `queries="all"` with them, or with "equal" another number of heads.
    """
    check_alike(student, teacher, heads=heads, words=words is not None)
    if words is None:
        valid = text_mask
        student_maps, teacher_maps = log_maps(student, text_mask), log_maps(teacher, text_mask)
    elif queries == "all":
        raise ValueError('queries="all" counts padding, which is no word: use queries="valid" with words')
    else:
        count = text_mask.shape[1]
        valid = jax.nn.one_hot(jnp.where(text_mask, words.student, -1), count).any(1)
        student_maps = word_maps(student, text_mask, words.student, count=count)
        teacher_maps = word_maps(teacher, words.teacher_mask, words.teacher, count=count)
    both = student_maps, jax.lax.stop_gradient(teacher_maps)
    keys_of: tuple[Array | bool, Array] = (True, valid[:, None, None, :])
    rows_of = _counted(student, valid, weights, queries)
    total = jnp.zeros((), jnp.float32)
    for ours, theirs, keys, rows in zip(*both, keys_of, rows_of, strict=True):
        if heads == "mean":
            ours, theirs = _mean_over_heads(ours), _mean_over_heads(theirs)
        if direction == "teacher_student":
            ours, theirs = theirs, ours
        total += _row_mean(_kl(ours, theirs, keys), rows)
    return total


def check_alike(student: CrossQK, teacher: CrossQK, *, heads: str, words: bool = False) -> None:
    """Raise ValueError unless both have the same tokens and, with `heads="equal"`, the same heads.

    With `words` the texts may have other tokens.
    """
    for name, ours, theirs in zip(CrossQK._fields, student, teacher, strict=True):
        free = words and name.startswith("text")
        if ours.shape[:1] != theirs.shape[:1] or (ours.shape[1] != theirs.shape[1] and not free):
            raise ValueError(
                f"{name}: [B,S] is {ours.shape[:2]} for the student but {theirs.shape[:2]} for the teacher: attention "
                "is compared token by token"
            )
        if heads == "equal" and ours.shape[2] != theirs.shape[2]:
            raise ValueError(
                f'{name}: {ours.shape[2]} heads but {theirs.shape[2]} of the teacher: use heads="mean"'
            )


def attention_entropy(qk: CrossQK, text_mask: Array, weights: Array | None = None) -> dict[str, Array]:
    """Mean entropies of the rows of each map, `{"t2v", "v2t"}`, in nats; padding is neither key nor query.

    `log P` (image tokens) and `log m` (text tokens) say that attention is uniform, 0 that it sees one token.
    """
    logs = jax.lax.stop_gradient(log_maps(qk, text_mask))
    found = {}
    for name, log_p, rows in zip(Maps._fields, logs, _counted(qk, text_mask, weights, "valid"), strict=True):
        found[name] = _row_mean(
            -(jnp.exp(log_p) * log_p).sum(-1), rows
        )  # a masked key adds exp(MASKED) * MASKED = 0
    return found


def _kl(log_p: Array, log_q: Array, keys: Array | bool) -> Array:
    """`sum_keys p (log p - log q)`, `[B,H,Q]`; exactly 0 on masked keys."""
    return jnp.where(keys, jnp.exp(log_p) * (log_p - log_q), 0.0).sum(-1)


def _mean_over_heads(logs_bhqs: Array) -> Array:
    """Log of the mean probability, `[B,1,Q,S]`."""
    return jax.nn.logsumexp(logs_bhqs, axis=1, keepdims=True) - jnp.log(float(logs_bhqs.shape[1]))


def _counted(qk: CrossQK, text_mask: Array, weights: Array | None, queries: str) -> tuple[Array, Array]:
    """Weights of the rows of `t2v [B,M]` and of `v2t [B,P]`."""
    pairs = jnp.ones(len(text_mask), jnp.float32) if weights is None else weights.astype(jnp.float32)
    text = jnp.ones_like(text_mask) if queries == "all" else text_mask
    return pairs[:, None] * text, jnp.broadcast_to(pairs[:, None], qk.image_q.shape[:2])


def _row_mean(values_bhq: Array, weights_bq: Array) -> Array:
    total = weights_bq.sum()
    return (values_bhq.mean(1) * weights_bq).sum() / jnp.where(total == 0, 1.0, total)


# Soft labels ----------------------------------------------------------------------------------------------


def soft_categorical(
    student_logits: Array, teacher_logits: Array, *, tau: float = 1.0, direction: str = "student_teacher"
) -> Array:
    """KL divergence of `softmax(logits / tau)` over the last axis, times `tau**2`.

    Args:
      student_logits, teacher_logits: `[...,A]`.
      tau: temperature; the factor keeps the gradient's size independent of it.
      direction: as in `attention_kl`.

    Returns:
      `[...]` f32.
    """
    ours = jax.nn.log_softmax(student_logits.astype(jnp.float32) / tau, axis=-1)
    theirs = jax.lax.stop_gradient(jax.nn.log_softmax(teacher_logits.astype(jnp.float32) / tau, axis=-1))
    if direction == "teacher_student":
        ours, theirs = theirs, ours
    return (jnp.exp(ours) * (ours - theirs)).sum(-1) * tau**2


def soft_bernoulli(student_logits: Array, teacher_logits: Array) -> Array:
    """KL(T|S) of independent yes/no decisions with probabilities `sigmoid(logits)`, summed over the last axis.

    Its gradient is that of the binary cross entropy with targets `sigmoid(teacher)`, but it is 0 at equality.

    Args:
      student_logits, teacher_logits: `[...,A]`.

    Returns:
      `[...]` f32.
    """
    ours, theirs = (
        student_logits.astype(jnp.float32),
        jax.lax.stop_gradient(teacher_logits.astype(jnp.float32)),
    )
    log_yes, log_no = jax.nn.log_sigmoid(theirs), jax.nn.log_sigmoid(-theirs)
    yes = jnp.exp(log_yes) * (log_yes - jax.nn.log_sigmoid(ours))
    return (yes + jnp.exp(log_no) * (log_no - jax.nn.log_sigmoid(-ours))).sum(-1)
