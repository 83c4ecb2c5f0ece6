"""The parts of pre-training on pairs: which rows go through fusion together, and each loss term.

Shape legend: `B` batch, `M` text tokens, `P` image tokens, `D` width, `C` contrastive width, `V` vocabulary, `K`
positions given to the vocabulary product. A term is `(sum, weight)`; its loss is the mean, 0 without weight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.tasks import pretrain_losses as parts
from jaxvl.tasks.momentum import call
from jaxvl.tasks.options import InBatch, Masking, Mismatching, Teaching
from jaxvl.tasks.teaching import soft_labels, take
from jaxvl.types import Array, Batch, CrossQK, Encoded, Fused, Key, Metrics, PyTree


class Seen(NamedTuple):
    """What one network makes of a batch.

    Attributes:
      text: `B` texts, then the `B` masked ones if it reads them.
      image: `B` images, then the further ones that are matched with broken texts, if there are.
      fused: the groups of pairs that it fused, by name.
    """

    text: Encoded
    image: Encoded
    fused: Mapping[str, Fused]


Groups = Mapping[str, tuple[Array, Array]]  # name -> rows of the texts, rows of the images


def groups(names: Collection[str], *, size: int, pairing: losses.Mismatch | None) -> Groups:
    """The pairs to fuse, as rows of `[texts; masked texts]` and of the images.

    Args:
      names: "itm" = each text with the image it is matched with; "mlm" = the masked texts with their own images;
        "own" = texts with their own images, only the broken rows if "itm" holds the others.
      size: `B`.
      pairing: who is matched with whom, if "itm" is asked for.
    """
    every = jnp.arange(size, dtype=jnp.int32)
    found = {}
    if "itm" in names and pairing is not None:
        found["itm"] = every, pairing.column
    if "mlm" in names:
        found["mlm"] = every + size, every
    if "own" in names:
        rows = every if "itm" not in found or pairing is None else pairing.some
        found["own"] = rows, rows
    return found


def see(
    model: Any,
    params: PyTree,
    batch: Batch,
    corrupted: losses.Corrupted | None,
    pairs: Groups,
    *,
    further: Array | None = None,
    rng: Key | None = None,
    train: bool = False,
) -> Seen:
    """Encode images once, texts and masked texts in one call, and fuse all groups in one call.

    `further`: false images for the broken rows, encoded after the batch's own.
    """
    k_image, k_text, k_fuse = (None if rng is None else jax.random.fold_in(rng, i) for i in range(3))
    texts = [batch["text"]] if corrupted is None else [batch["text"], corrupted.ids]
    mask = jnp.concatenate([batch["text_mask"]] * len(texts))
    images_bhwc = batch["image"] if further is None else jnp.concatenate([batch["image"], further])
    image = call(model, params, "encode_image", images_bhwc, rng=k_image, train=train)
    text = call(model, params, "encode_text", jnp.concatenate(texts), mask, rng=k_text, train=train)
    if not pairs:
        return Seen(text, image, {})
    rows, images = (jnp.concatenate(x) for x in zip(*pairs.values(), strict=True))
    states = take(text, rows), take(mask, rows), image
    fused = call(model, params, "fuse", *states, image_index=images, rng=k_fuse, train=train)
    found, at = {}, 0
    for name, (index, _) in pairs.items():
        found[name] = take(fused, at + jnp.arange(len(index)))
        at += len(index)
    return Seen(text, image, found)


def own_qk(seen: Seen, pairing: losses.Mismatch | None) -> CrossQK | None:
    """Cross-modal queries and keys of the `B` true pairs: the unbroken rows of "itm", the others from "own"."""
    rest = seen.fused["own"].qk
    if "itm" not in seen.fused or pairing is None:
        return rest
    return jax.tree.map(lambda x, y: x.at[pairing.some].set(y), seen.fused["itm"].qk, rest)


def same_image(options: InBatch, batch: Batch, *, name: str) -> Array:
    """Bool `[B,B]`: pairs that are no negatives of each other, beside each row and itself."""
    size = len(batch["text"])
    if not options.mask_same_image:
        return jnp.eye(size, dtype=bool)
    if "image_id" not in batch:
        raise KeyError(
            f'{name}.mask_same_image=True needs batch["image_id"]; the batch has {sorted(batch)}. '
            "Set it to False if no image comes twice"
        )
    ids = batch["image_id"]
    return ids[:, None] == ids[None, :]


def contrast(image_bc: Array, text_bc: Array, *, tau: Array, same_bb: Array, rows: Array) -> Metrics:
    """Term "itc": cross entropy over the batch with the own pair as target, mean of both directions."""
    where_bb = (rows > 0)[None, :] & (~same_bb | jnp.eye(len(rows), dtype=bool))
    targets = losses.own_targets(len(rows), columns=len(rows))
    logits_bb = jnp.matmul(image_bc, text_bc.T, precision="highest") / tau
    one_way = (
        losses.soft_cross_entropy(x, targets=targets, where=where_bb) for x in (logits_bb, logits_bb.T)
    )
    return {"itc": ((0.5 * sum(one_way) * rows).sum(), rows.sum())}


def false_images(itm: Mismatching | None, batch: Batch, pairing: losses.Mismatch | None) -> Array | None:
    """`[B//2,H,W,3]`: images from the whole data set for the rows `pairing.some`; None where the batch serves.

    Raises:
      KeyError: the batch has none.
    """
    if itm is None or pairing is None or itm.negatives == "batch":
        return None
    if "false_image" not in batch:
        raise KeyError(
            f'itm.negatives="dataset" needs batch["false_image"]; the batch has {sorted(batch)}. '
            "Wrap the training source in jaxvl.data.source.FalseImages"
        )
    return take(batch["false_image"], pairing.some)


def matching_weights(itm: Mismatching, batch: Batch, *, pairing: losses.Mismatch, rows: Array) -> Array:
    """`[B]` f32: 0 for padding, and for broken rows that got an image of their own kind."""
    if itm.negatives == "dataset":  # where the loader found no other image, it gave the row's own
        alike = batch["image_id"] == batch["false_image_id"]
    else:
        same_bb = same_image(itm, batch, name="itm")
        alike = jnp.take_along_axis(same_bb, pairing.column[:, None], axis=1)[:, 0]
    return rows * ~(pairing.broken & alike)


def matching(logits_b2: Array, *, pairing: losses.Mismatch, weights: Array) -> Metrics:
    """Term "itm" and "itm_accuracy"."""
    labels = (~pairing.broken).astype(jnp.int32)
    right = (logits_b2.argmax(-1) == labels) * weights
    ce = losses.cross_entropy(logits_b2, labels=labels) * weights
    return {"itm": (ce.sum(), weights.sum()), "itm_accuracy": (right.sum(), weights.sum())}


def words(
    mlm: Masking,
    *,
    ids: Array,
    corrupted: losses.Corrupted,
    student: Callable[[Array], Array],
    teacher: Callable[[Array], Array] | None,
    distill: Teaching | None,
) -> Metrics:
    """Term "mlm", "mlm_accuracy" and, with a teacher, term "mlm_soft": means over the selected tokens.

    Args:
      mlm: options.
      ids: `[B,M]` before corruption.
      corrupted: after it.
      student: positions `[B,K]` -> vocabulary logits `[B,K,V]` there.
      teacher: the same for the teacher; None = no soft labels.
      distill: their options.
    """

    def sums(order_bk: Array) -> Array:
        labels = jnp.take_along_axis(ids, order_bk, axis=1)
        weights = jnp.take_along_axis(corrupted.selected, order_bk, axis=1).astype(jnp.float32)
        ours = student(order_bk)
        found = [losses.cross_entropy(ours, labels=labels), ours.argmax(-1) == labels]
        if teacher is not None and distill is not None:
            found.append(soft_labels(ours, teacher(order_bk), distill))
        return jnp.stack([(x * weights).sum() for x in found])

    totals = parts.over_selected(sums, selected=corrupted.selected, max_share=mlm.max_share)
    count = corrupted.selected.sum().astype(jnp.float32)
    return {name: (x, count) for name, x in zip(("mlm", "mlm_accuracy", "mlm_soft"), totals, strict=False)}


def total(terms: Metrics) -> Array:
    """Sum of the means."""
    return sum((x / jnp.where(n == 0, 1.0, n) for x, n in terms.values()), jnp.zeros((), jnp.float32))
