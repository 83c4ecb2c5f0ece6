"""The three pre-training losses over encoded pairs; `pretrain` runs the networks and adds them up.

Shape legend: `B` batch, `L` text length, `P` patches, `D` width, `C` contrastive width, `M` contrastive columns
(batch, then queue), `V` vocabulary, `K` positions given to the vocabulary product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.tasks.options import Contrast, Masking, Matching, Tokens
from jaxvl.types import Array, Batch, Key, Metrics

NO_ID = -100  # image id of a queue entry that was never written


class Step(NamedTuple):
    """What all losses of one step share.

    Attributes:
      batch: the batch.
      rows: `[B]` f32, 0 for padding rows.
      alpha: weight of the soft targets; None = nothing is distilled.
      tau: temperature.
      queue: "image" and "text" `[C,Q]`, "ids" `[Q]`; None = no queue.
    """

    batch: Batch
    rows: Array
    alpha: Array | None
    tau: Array
    queue: Mapping[str, Array] | None


class Views(NamedTuple):
    """What one network makes of a batch; `corrupt_bld` is None without the masked-language loss."""

    image_bpd: Array
    text_bld: Array
    corrupt_bld: Array | None
    image_bc: Array
    text_bc: Array


class Similarities(NamedTuple):
    """Logits `[B,M]` of each image against all texts and of each text against all images."""

    images: Array
    texts: Array


class Pairing(NamedTuple):
    """For each text an image, and for each image a text, that do not belong together."""

    images: losses.Negatives
    texts: losses.Negatives


def image_ids(batch: Batch, *, option: str) -> Array:
    """`[B]` i32; raises KeyError naming the option that asks for them if the batch has none."""
    if "image_id" not in batch:
        raise KeyError(f'{option}="image_id" needs batch["image_id"]; the batch has {sorted(batch)}')
    return batch["image_id"]


def similarities(queries: Views, *, keys: Views, step: Step) -> Similarities:
    """Similarities over temperature; the columns are the keys of the batch, then those of the queue."""

    def against(query_bc: Array, key_bc: Array, name: str) -> Array:
        columns = [key_bc.T] if step.queue is None else [key_bc.T, step.queue[name]]
        parts = [jnp.matmul(query_bc, c, precision="highest") for c in columns]
        return jnp.concatenate(parts, axis=1) / step.tau

    return Similarities(
        against(queries.image_bc, keys.text_bc, "text"), against(queries.text_bc, keys.image_bc, "image")
    )


def contrastive(itc: Contrast, *, similar: Similarities, taught: Similarities | None, step: Step) -> Array:
    """Image-text contrastive loss of each row, `[B]`: mean of both directions.

    Args:
      itc: options.
      similar: the model's similarities.
      taught: those of the momentum copy, read if `step.alpha` is given.
      step: shared inputs.
    """
    size, columns = similar.images.shape
    near_bb = losses.same_group(size, size=itc.group) & (step.rows > 0)[None, :]
    where_bm = jnp.concatenate([near_bb, jnp.ones((size, columns - size), bool)], axis=1)
    if itc.targets == "own":
        hard_bm = losses.own_targets(size, columns=columns)
    else:
        ids = image_ids(step.batch, option="itc.targets")
        queued = [] if step.queue is None else [step.queue["ids"]]
        hard_bm = losses.identity_targets(ids, ids_m=jnp.concatenate([ids, *queued]), where=where_bm)

    def one_way(logits_bm: Array, taught_bm: Array | None) -> Array:
        targets_bm = hard_bm
        if step.alpha is not None and taught_bm is not None:
            targets_bm = losses.distilled_targets(
                hard_bm, similarities=taught_bm, where=where_bm, alpha=step.alpha
            )
        return losses.soft_cross_entropy(logits_bm, targets=targets_bm, where=where_bm)

    images_bm, texts_bm = taught or (None, None)
    return 0.5 * (one_way(similar.images, images_bm) + one_way(similar.texts, texts_bm))


def draw_negatives(itm: Matching, *, key: Key, similar: Similarities, step: Step) -> Pairing:
    """Draw one negative per row and direction; `found` is 0 where every row of the batch is excluded."""
    size = len(step.rows)
    same_bb = jnp.eye(size, dtype=bool)
    if itm.exclude == "image_id":
        ids = image_ids(step.batch, option="itm.exclude")
        same_bb = ids[:, None] == ids[None, :]
    allowed_bb = losses.same_group(size, size=itm.group) & ~same_bb & (step.rows > 0)[None, :]
    texts_bb, images_bb = similar.images[:, :size], similar.texts[:, :size]
    if itm.negatives == "uniform":
        texts_bb, images_bb = jnp.zeros_like(texts_bb), jnp.zeros_like(images_bb)
    k_image, k_text = jax.random.split(key)
    return Pairing(
        images=losses.sample_negatives(k_image, logits=images_bb, allowed=allowed_bb),
        texts=losses.sample_negatives(k_text, logits=texts_bb, allowed=allowed_bb),
    )


def matching(logits: Array, *, pairing: Pairing, step: Step) -> tuple[Array, Metrics]:
    """Image-text matching loss over `logits [3B,2]` of the positives, then both kinds of negatives."""
    labels = jnp.repeat(jnp.array([1, 0, 0], jnp.int32), len(step.rows))
    weights = jnp.concatenate([step.rows, *(step.rows * n.found for n in pairing)])
    ce = losses.cross_entropy(logits, labels=labels)
    right = (logits.argmax(-1) == labels) * weights
    metrics = {"itm": ((ce * weights).sum(), weights.sum()), "itm_accuracy": (right.sum(), weights.sum())}
    return losses.mean(ce, weights=weights), metrics


def corrupt(mlm: Masking, *, key: Key, tokens: Tokens, step: Step) -> losses.Corrupted:
    """The batch's texts with some tokens masked; never padding, [CLS] or [SEP]."""
    ids = step.batch["text"]
    special = (ids == tokens.cls) | (ids == tokens.sep) | (ids == tokens.pad)
    maskable = step.batch["text_mask"] & ~special & (step.rows > 0)[:, None]
    how: dict[str, Any] = dict(ids=ids, maskable=maskable, mask_id=tokens.mask)
    if mlm.strategy == "single":
        return losses.mask_single(key, **how)
    if mlm.whole_word and tokens.continues is not None:
        how["starts"] = losses.word_starts(jnp.asarray(tokens.continues)[ids], maskable)
    return losses.mask_bernoulli(key, **how, size=tokens.size, prob=mlm.prob)


def masked(
    mlm: Masking,
    *,
    logits: Callable[[Array], Array],
    taught: Callable[[Array], Array] | None,
    corrupted: losses.Corrupted,
    step: Step,
) -> tuple[Array, Metrics]:
    """Masked-language loss, the mean over selected tokens (0 if there is none).

    Args:
      mlm: options.
      logits: positions `[B,K]` -> the model's vocabulary logits `[B,K,V]` there.
      taught: the same for the momentum copy; None = nothing to distil from.
      corrupted: ids and selected positions.
      step: shared inputs.
    """
    selected, ids = corrupted.selected, step.batch["text"]

    def sums(order_bk: Array) -> Array:
        labels = jnp.take_along_axis(ids, order_bk, axis=1)
        weights = jnp.take_along_axis(selected, order_bk, axis=1).astype(jnp.float32)
        student = logits(order_bk)
        teacher = None if taught is None or step.alpha is None else taught(order_bk)
        alpha = 0.0 if step.alpha is None else step.alpha
        ce = losses.cross_entropy(student, labels=labels, teacher=teacher, alpha=alpha)
        right = student.argmax(-1) == labels
        return jnp.stack([(ce * weights).sum(), (right * weights).sum()])

    total = over_selected(sums, selected=selected, max_share=mlm.max_share)
    count = selected.sum().astype(jnp.float32)
    metrics = {"mlm": (total[0], count), "mlm_accuracy": (total[1], count)}
    return total[0] / jnp.maximum(count, 1.0), metrics


def over_selected(sums: Callable[[Array], Array], *, selected: Array, max_share: float | None) -> Array:
    """The sums over all selected tokens, though only a share of the positions enters the vocabulary product.

    The selected positions come first; those beyond the share form a second part that runs only if one of them is
    selected. That branch is rematerialised: otherwise its residuals, logits of the whole rest, would be allocated in
    every step.

    Args:
      sums: positions `[B,K]` -> `[n]` f32, sums over those of them that are selected.
      selected: bool `[B,L]`.
      max_share: the share of `L`; None = all.
    """
    order_bl, length = losses.selected_first(selected), selected.shape[1]
    share = length if max_share is None else math.ceil(max_share * length)
    total = sums(order_bl[:, :share])
    if share < length:
        overflow = (selected.sum(-1) > share).any()
        rest = jax.checkpoint(lambda: sums(order_bl[:, share:]))
        total += jax.lax.cond(overflow, rest, lambda: jnp.zeros_like(total))
    return total
