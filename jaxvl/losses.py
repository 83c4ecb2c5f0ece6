"""Losses and the state updates that go with them: pure functions of arrays, computed in float32.

Shape legend: `B` batch, `L` text length, `M` contrastive columns (batch, then queue), `C` contrastive width,
`Q` queue size, `V` vocabulary. Functions return per-row or per-token values and leave averaging to `mean`,
so that padding and absent candidates are a matter of weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any
FAR = -1e9  # logit of a forbidden column: exp underflows to exactly 0, and 0 * FAR is 0 where 0 * inf is not


def mean(values: Array, *, weights: Array) -> Array:
    """Weighted mean of `values`, 0 where all weights are 0; both of one shape."""
    total = weights.sum()
    return (values * weights).sum() / jnp.where(total == 0, 1.0, total)


def soft_cross_entropy(logits: Array, *, targets: Array, where: Array | None = None) -> Array:
    """`-sum_m targets log softmax(logits)` over the last axis.

    Args:
      logits: `[..., M]`.
      targets: `[..., M]` probabilities, 0 on forbidden columns.
      where: bool `[..., M]`, False removes a column from the softmax. None = all columns.

    Returns:
      `[...]` f32.
    """
    logits = logits.astype(jnp.float32)
    if where is not None:
        logits = jnp.where(where, logits, FAR)
    return -(targets * jax.nn.log_softmax(logits, axis=-1)).sum(-1)


def cross_entropy(logits: Array, *, labels: Array, teacher: Array | None = None, alpha: Any = 0.0) -> Array:
    """Cross entropy with integer labels, mixed with that of a teacher's distribution.

    Args:
      logits: `[..., V]`.
      labels: i32 `[...]`.
      teacher: teacher logits `[..., V]`; None = labels only.
      alpha: weight of the teacher in [0, 1]: `(1 - alpha) CE(labels) + alpha CE(softmax(teacher))`.

    Returns:
      `[...]` f32.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    hard = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    if teacher is None:
        return hard
    taught = jax.lax.stop_gradient(jax.nn.softmax(teacher.astype(jnp.float32), axis=-1))
    return (1.0 - alpha) * hard - alpha * (taught * log_p).sum(-1)


def binary_cross_entropy(logits: Array, *, targets: Array) -> Array:
    """Cross entropy of independent yes/no decisions, summed over the last axis: `[..., A]` twice -> `[...]` f32.

    Args:
      logits: of `sigmoid`.
      targets: in [0, 1]; soft scores are allowed.
    """
    logits = logits.astype(jnp.float32)
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(targets * yes + (1.0 - targets) * no).sum(-1)


def dense_targets(label: Array, *, score: Array, classes: int) -> Array:
    """Soft scores `[B,A]` f32 from lists of classes `[B,K]` i32 and their scores `[B,K]`.

    Class `A` pads and is dropped; a class listed twice has its larger score.
    """
    rows = jnp.arange(len(label))[:, None]
    return jnp.zeros((len(label), classes), jnp.float32).at[rows, label].max(score, mode="drop")


def token_log_likelihood(logits: Array, *, labels: Array, valid: Array) -> Array:
    """Log-probability of whole sequences: `logits [..., L, V]`, `labels`, `valid [..., L]` -> `[...]` f32."""
    return -(cross_entropy(logits, labels=labels) * valid).sum(-1)


# Contrastive learning -------------------------------------------------------------------------------------


def same_group(rows: int, *, size: int | None) -> Array:
    """Bool `[B,B]`: True where two rows lie in one consecutive group of `size` rows; None = one group.

    Restricting negatives to groups reproduces training on shards of `size` rows without communication.
    """
    if size is None:
        return jnp.ones((rows, rows), bool)
    if size < 1 or rows % size:
        raise ValueError(f"group={size} does not divide the batch of {rows} rows: choose a divisor or None")
    group = jnp.arange(rows) // size
    return group[:, None] == group[None, :]


def own_targets(rows: int, *, columns: int) -> Array:
    """One-hot `[B,M]`: row `b` belongs to column `b` and nothing else."""
    return jnp.eye(rows, columns, dtype=jnp.float32)


def identity_targets(ids_b: Array, *, ids_m: Array, where: Array) -> Array:
    """`[B,M]` uniform over the allowed columns of the same identity; a row without any is all 0."""
    equal_bm = ((ids_b[:, None] == ids_m[None, :]) & where).astype(jnp.float32)
    return equal_bm / jnp.maximum(equal_bm.sum(-1, keepdims=True), 1.0)


def distilled_targets(targets: Array, *, similarities: Array, where: Array, alpha: Any) -> Array:
    """`(1 - alpha) targets + alpha softmax(similarities)` over allowed columns, without gradient."""
    soft = jax.nn.softmax(jnp.where(where, similarities.astype(jnp.float32), FAR), axis=-1)
    return jax.lax.stop_gradient((1.0 - alpha) * targets + alpha * soft)


class Negatives(NamedTuple):
    """`column [B]` i32, the one drawn for each row; `found [B]` f32, 0 where no column was allowed."""

    column: Array
    found: Array


def sample_negatives(key: Array, *, logits: Array, allowed: Array) -> Negatives:
    """Draw one column per row with probability softmax(logits) over the allowed ones.

    Gumbel-max in the log domain: unlike softmax, zeroing and renormalising, it cannot underflow, however low
    the temperature and however unlikely the allowed columns.

    Args:
      key: random key.
      logits: `[B,B]`; no gradient flows through the draw.
      allowed: bool `[B,B]`.
    """
    scores = jnp.where(allowed, jax.lax.stop_gradient(logits).astype(jnp.float32), -jnp.inf)
    column = jax.random.categorical(key, scores, axis=-1).astype(jnp.int32)
    return Negatives(column, allowed.any(-1).astype(jnp.float32))


class Mismatch(NamedTuple):
    """A batch of pairs, half of them broken up.

    Attributes:
      column: `[B]` i32, the row whose image each text is paired with; `B + k` = that of further image `k`.
      broken: bool `[B]`, True for `floor(n/2)` of the `n` valid rows, False for the others.
      some: `[floor(B/2)]` i32, distinct rows that hold all broken ones.
    """

    column: Array
    broken: Array
    some: Array


def mismatch_half(key: Array, *, valid: Array) -> Mismatch:
    """Break up half of the valid pairs: a random subset passes its images on in a random circle.

    The circle is turned by a random number of places, never by none, so no text keeps its own image unless it is
    the only one that is broken (two or three valid rows). Rows that are not valid keep their images and give none
    away; where they are and how many there are does not change what becomes of the others.

    Args:
      key: random key.
      valid: bool `[B]`.
    """
    k_order, k_turn = jax.random.split(key)
    size = len(valid)
    order = jnp.argsort(jnp.where(valid, jax.random.uniform(k_order, (size,)), 2.0)).astype(jnp.int32)
    count = valid.sum() // 2
    turn = 1 + jnp.floor(jax.random.uniform(k_turn) * jnp.maximum(count - 1, 1)).astype(jnp.int32)
    place = jnp.arange(size)
    source = jnp.where(place < count, (place + turn) % jnp.maximum(count, 1), place)
    column = jnp.zeros(size, jnp.int32).at[order].set(order[source])
    broken = jnp.zeros(size, bool).at[order].set(place < count)
    return Mismatch(column, broken, order[: size // 2])


def mismatch_further(pairing: Mismatch) -> Mismatch:
    """The same rows broken up, but row `some[k]` gets further image `k` (`column` B + k), not another row's."""
    size = len(pairing.column)
    own = jnp.arange(size, dtype=jnp.int32)
    further = own.at[pairing.some].set(size + jnp.arange(len(pairing.some), dtype=jnp.int32))
    return pairing._replace(column=jnp.where(pairing.broken, further, own))


# Masked language modelling --------------------------------------------------------------------------------


class Corrupted(NamedTuple):
    """`ids [B,L]` i32 after corruption; `selected [B,L]` bool, the positions to predict."""

    ids: Array
    selected: Array


def mask_bernoulli(
    key: Array,
    *,
    ids: Array,
    maskable: Array,
    mask_id: int,
    size: int,
    prob: float,
    starts: Array | None = None,
) -> Corrupted:
    """Select each maskable token with `prob`; 80 % become [MASK], 10 % a uniform id, 10 % stay (BERT).

    With `starts` whole words are selected, each with `prob`: all pieces of a word or none, and each of them is then
    corrupted for itself, as BERT's whole-word models were trained.

    Args:
      key: random key.
      ids: i32 `[B,L]`.
      maskable: bool `[B,L]`.
      mask_id: id of [MASK].
      size: vocabulary size; replacements are uniform in `[0, size)`.
      prob: selection probability in (0, 1].
      starts: i32 `[B,L]` of `word_starts`; None = each token for itself.
    """
    k_select, k_action, k_token = jax.random.split(key, 3)
    draw = jax.random.uniform(k_select, ids.shape)
    if starts is not None:  # a word is decided by the draw of its first piece
        draw = jnp.take_along_axis(draw, starts, axis=-1)
    selected = maskable & (draw < prob)
    action = jax.random.uniform(k_action, ids.shape)
    token = jax.random.randint(k_token, ids.shape, 0, size, ids.dtype)
    replaced = jnp.where(action < 0.8, jnp.asarray(mask_id, ids.dtype), jnp.where(action < 0.9, token, ids))
    return Corrupted(jnp.where(selected, replaced, ids), selected)


def word_starts(continues: Array, maskable: Array) -> Array:
    """The position `[B,L]` i32 of the first piece of the word that each token belongs to.

    A piece that continues a word after a token that is not maskable (RoBERTa's first word has no marker) begins one.

    Args:
      continues: bool `[B,L]`, whether a piece by its form continues the word before it.
      maskable: bool `[B,L]`, False for special tokens and padding, each of which stands for itself.
    """
    before = jnp.pad(maskable[:, :-1], ((0, 0), (1, 0)))
    first = ~(continues & maskable & before)
    place = jnp.arange(maskable.shape[1], dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(first, place, 0), axis=1)


def mask_single(key: Array, *, ids: Array, maskable: Array, mask_id: int) -> Corrupted:
    """Turn exactly one maskable token per row, chosen uniformly, into [MASK]; none if the row has none."""
    place = jax.random.categorical(key, jnp.where(maskable, 0.0, -jnp.inf), axis=-1)
    selected = maskable & (jnp.arange(ids.shape[1]) == place[:, None])
    return Corrupted(jnp.where(selected, jnp.asarray(mask_id, ids.dtype), ids), selected)


def selected_first(selected: Array) -> Array:
    """Positions `[B,L]` i32 of each row, the selected ones first, each part in reading order."""
    return jnp.argsort(~selected, axis=-1, stable=True).astype(jnp.int32)


# State ----------------------------------------------------------------------------------------------------


def ema(average: PyTree, *, current: PyTree, decay: float) -> PyTree:
    """`decay * average + (1 - decay) * current`, leaf by leaf; after n steps the gap shrinks by `decay**n`."""
    return jax.tree.map(lambda a, c: decay * a + (1.0 - decay) * c.astype(a.dtype), average, current)


def require_divisible(queue_size: int, *, batch: int) -> None:
    """A queue is written in whole batches: raise ValueError unless `batch` divides `queue_size`."""
    if queue_size % batch:
        raise ValueError(
            f"queue_size={queue_size} is not a multiple of the batch of {batch} rows: "
            f"use queue_size={max(queue_size // batch, 1) * batch} or another batch size"
        )


def enqueue(queue: Array, *, rows: Array, ptr: Array) -> Array:
    """Write `rows [B,...]` over the oldest entries of a ring.

    Args:
      queue: `[C,Q]` for features (one column an entry) or `[Q]` for ids.
      rows: `[B,C]` or `[B]`; `B` divides `Q`.
      ptr: i32 scalar, a multiple of `B`: where the oldest entries start.
    """
    require_divisible(queue.shape[-1], batch=rows.shape[0])
    start = (jnp.zeros_like(ptr), ptr) if queue.ndim == 2 else (ptr,)
    return jax.lax.dynamic_update_slice(queue, rows.T.astype(queue.dtype), start)
