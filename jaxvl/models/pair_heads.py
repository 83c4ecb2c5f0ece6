"""Heads over two modalities: classes, and the two interactions without cross-modal layers.

Shape legend: `B` batch, `M` text tokens, `P` image tokens, `D` width, `W` width of what a head reads, `A` classes.
Layer norms of heads have PyTorch's default eps, 1e-5. All computation here is float32.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxvl.models.layers import WHOLE, Dense, LayerNorm, attend, gelu

EPS = 1e-5


class ClassHead(nn.Module):
    """Dense, layer norm, GELU, Dense: `[B,W] -> [B,features]` f32; owns `fc1`, `norm`, `fc2`."""

    hidden: int
    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """`x [B,W]`; dropout acts on it."""
        x = nn.Dropout(self.dropout, deterministic=not train)(x.astype(jnp.float32))
        x = gelu(LayerNorm(EPS, name="norm")(Dense(self.hidden, WHOLE, name="fc1")(x)))
        return Dense(self.features, WHOLE, name="fc2")(x)


class Shallow(nn.Module):
    """Fusion of two class tokens (Distilled Dual-Encoder, Wang et al., 2021).

    Owns `text_pool`, `image_pool`, `fc1`, `norm`, `fc2`.
    """

    width: int

    def setup(self) -> None:
        self.text_pool, self.image_pool = Dense(self.width, WHOLE), Dense(self.width, WHOLE)
        self.head = ClassHead(2 * self.width, self.width)
        nn.share_scope(self, self.head)

    def __call__(self, text_bd: Array, image_bd: Array) -> Array:
        """First states `[B,D']` of text and image -> `[B,D]`."""
        text, image = text_bd.astype(jnp.float32), image_bd.astype(jnp.float32)
        return self.head(
            jnp.concatenate([jnp.tanh(self.text_pool(text)), jnp.tanh(self.image_pool(image))], -1)
        )


class Virt(nn.Module):
    """Fusion of mean states, enriched with what the last layers' queries find in the other modality.

    The idea is VIRT's (Li et al., 2021), the formula this library's. Owns `fc1`, `norm`, `fc2`.
    """

    width: int

    def setup(self) -> None:
        self.head = ClassHead(2 * self.width, self.width)
        nn.share_scope(self, self.head)

    def __call__(self, text_bmd: Array, text_mask: Array, image_bpd: Array) -> Array:
        """Enriched states `[B,M,D]`, `[B,P,D]` of `virtual_attention` -> `[B,D]`."""
        weight = text_mask[..., None].astype(jnp.float32)
        a = (text_bmd.astype(jnp.float32) * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)
        b = image_bpd.astype(jnp.float32).mean(1)
        return self.head(jnp.concatenate([a, b, jnp.abs(a - b), jnp.maximum(a, b)], -1))


def virtual_attention(text: Array, text_mask: Array, image: Array, *, heads: int) -> tuple[Array, Array]:
    """States plus what their queries find in the other modality.

    Args:
      text: `[B,4,M,D]`: last state, queries, keys, values of the text tower, heads merged.
      text_mask: `[B,M]` bool, True = token.
      image: `[B,4,P,D]`, the same of the image tower.
      heads: of both towers.

    Returns:
      `[B,M,D]`, `[B,P,D]`.
    """
    split = lambda x: x.reshape(*x.shape[:-1], heads, -1)  # noqa: E731
    (_, tq, tk, tv), (_, iq, ik, iv) = (tuple(split(r[:, i]) for i in range(4)) for r in (text, image))
    found_text = attend(tq, ik, iv, None).reshape(text.shape[0], *text.shape[2:])
    found_image = attend(iq, tk, tv, text_mask[:, None, None, :]).reshape(image.shape[0], *image.shape[2:])
    return text[:, 0] + found_text, image[:, 0] + found_image


def unit(x: Array) -> Array:
    """`x [...,C]` scaled to unit norm."""
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def check_rows(text: Array, image: Array, image_index: Array | None) -> None:
    """Raises ValueError unless every row of text has its image."""
    rows = len(image) if image_index is None else len(image_index)
    if rows != len(text):
        raise ValueError(
            f"{len(text)} rows of text and {rows} of images: give image_index, one per row of text"
        )


def side_by_side(pooled: tuple[Array, ...], *, classes: int | None, images: int) -> Array:
    """Pooled states `[B,W]` of each of `images` images as the input `[B,images W]` of a class head.

    Raises:
      ValueError: there is no class head (`classes` is None), or other than `images` entries.
    """
    if classes is None:
        raise ValueError("class_logits: the model has no class head; set model.classes")
    if len(pooled) != images:
        raise ValueError(f"class_logits: {len(pooled)} images, but the model has images={images}")
    return jnp.concatenate(pooled, -1)
