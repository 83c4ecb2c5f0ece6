"""Batches of images of which a strategy asks a few questions each, and means over these questions.

Shape legend: `B` images, `J` asked questions, `T` texts to encode, `L` words, `N` things to average over.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxvl.types import Array, Batch


class Asked(NamedTuple):
    """Images and what is asked of them.

    Attributes:
      text: `[T,L]` i32, the questions to encode: `B J`, or `J` if all images share them.
      image_index, text_index: `[B J]` i32, image and text of each pair; the pairs of an image are consecutive.
      there: `[B,J]` bool, False where a question is only padding.
    """

    text: Array
    image_index: Array
    text_index: Array
    there: Array


def asked_of(batch: Batch) -> Asked:
    """The pairs that an image batch stands for, from `asked [B,J,L]`, or `asked_shared` whose rows are all equal.

    Raises:
      KeyError: nothing is asked of the images.
    """
    if "asked_shared" not in batch and "asked" not in batch:
        raise KeyError(
            f'the batch has neither "asked" nor "asked_shared" (it has {sorted(batch)}): predictors of images need a '
            "source that asks questions of them, e.g. RegionImages(...).asking(text, kinds)"
        )
    shared = "asked_shared" in batch
    ids = batch["asked_shared"] if shared else batch["asked"]
    size, count = ids.shape[:2]
    pairs = jnp.arange(size * count, dtype=jnp.int32)
    text = ids[0] if shared else ids.reshape(size * count, -1)
    return Asked(text, pairs // count, pairs % count if shared else pairs, (ids != 0).any(-1))


def kinds_of(batch: Batch, asked: Asked) -> Array:
    """Answer types `[B,J]` i32 of the asked questions; -1 = not asked."""
    return jnp.where(asked.there, batch["asked_kind"], -1)


def mean_over(values: Array, there: Array) -> Array:
    """Mean of `values [B,N,...]` where `there [B,N]` is True: `[B,...]` f32; 0 where it is nowhere."""
    weight = there.astype(jnp.float32).reshape(*there.shape, *(1,) * (values.ndim - 2))
    return (values.astype(jnp.float32) * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)
