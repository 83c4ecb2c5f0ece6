"""Vision transformer (Dosovitskiy et al., 2021; timm's ViT) and PyTorch's bicubic resize.

Shape legend: `B` batch, `P` tokens (class token + patches), `D` width. Pre-norm blocks, layer norm eps 1e-6, no
dropout. The output is every token after the final norm.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from jaxvl.models.initial import scaled
from jaxvl.models.layers import (
    MLP,
    WHOLE,
    Attention,
    Dense,
    Dtype,
    LayerNorm,
    PatchEmbed,
    batch_major,
    run_layers,
)

EPS = 1e-6


def bicubic_matrix(size: int, source: int) -> np.ndarray:
    """Weights `[size, source]` f32 of one axis of PyTorch's `interpolate(mode="bicubic", align_corners=False)`.

    Cubic coefficient -0.75, no antialiasing, borders clamped. `jax.image.resize` uses -0.5 (and antialiases),
    which moves unit-variance values by more than 0.1.
    """
    a = -0.75
    centre = (np.arange(size) + 0.5) * source / size - 0.5
    first = np.floor(centre).astype(int) - 1
    matrix = np.zeros((size, source))
    for tap in range(4):
        t = np.abs(centre - (first + tap))
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        column = np.clip(first + tap, 0, source - 1)
        np.add.at(matrix, (np.arange(size), column), np.where(t <= 1, near, far))
    return matrix.astype(np.float32)


def resize_bicubic(x: Array, *, height: int, width: int) -> Array:
    """`x [...,H,W]` -> `[...,height,width]` f32, as PyTorch's bicubic interpolation."""
    rows, cols = bicubic_matrix(height, x.shape[-2]), bicubic_matrix(width, x.shape[-1])
    x = jnp.asarray(x, jnp.float32)
    return jnp.einsum("yh,...hw,xw->...yx", rows, x, cols, precision=lax.Precision.HIGHEST)


def resize_positions(positions: Array, *, grid: int) -> Array:
    """Position embeddings `[1,1+G*G,D]` -> `[1,1+grid*grid,D]` f32; row 0, the class token's, is kept.

    Raises:
      ValueError: the table is not that of a class token and a square grid.
    """
    count, width = positions.shape[1] - 1, positions.shape[2]
    side = round(max(count, 0) ** 0.5)
    if side < 1 or side * side != count:
        raise ValueError(f"position embeddings of shape {tuple(positions.shape)} are not 1 + a square grid")
    maps = jnp.asarray(positions[0, 1:], jnp.float32).T.reshape(width, side, side)
    maps = resize_bicubic(maps, height=grid, width=grid)
    first = jnp.asarray(positions[:, :1], jnp.float32)
    return jnp.concatenate([first, maps.reshape(width, grid * grid).T[None]], axis=1)


class ViTBlock(nn.Module):
    """`x += attn(norm1(x)); x += mlp(norm2(x))`; owns `norm1`, `attn`, `norm2`, `mlp`.

    With `qkv` it returns its queries, keys and values besides; with `first` it computes the first token only, which
    sees all others. `act` is a key of `layers.ACTIVATIONS`.
    """

    heads: int
    mlp: int
    dtype: Dtype = jnp.float32
    eps: float = EPS
    act: str = "gelu"
    dropout: float = 0.0
    attn_dropout: float = 0.0
    train: bool = False
    qkv: bool = False
    first: bool = False

    @nn.compact
    def __call__(self, x_bpd: Array, mask: Array | None = None) -> Any:
        """`[B,P,D]`, `mask` broadcastable to `[B,H,P,P]` -> `[B,P,D]`; `qkv`: and three of `[B,P,H,K]`."""
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        attn = Attention(
            self.heads, dropout=self.attn_dropout, train=self.train, dtype=self.dtype, name="attn"
        )
        y_bpd = LayerNorm(self.eps, dtype=self.dtype, name="norm1")(x_bpd)
        if self.first:
            x_bpd = x_bpd[:, :1]
        qkv = attn.queries(y_bpd[:, :1] if self.first else y_bpd), *attn.keys_values(y_bpd)
        x_bpd = x_bpd + drop(attn.mix(*qkv, mask))
        y_bpd = LayerNorm(self.eps, dtype=self.dtype, name="norm2")(x_bpd)
        y_bpd = MLP(self.mlp, act=self.act, dtype=self.dtype, name="mlp")(y_bpd)
        x_bpd = batch_major(x_bpd + drop(y_bpd))
        return (x_bpd, qkv) if self.qkv else x_bpd


class ImageTokens(nn.Module):
    """Class token and patches, row by row, with their positions; owns `cls_token`, `pos_embed`, `patch_embed`."""

    image_size: int
    patch: int
    width: int
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Normalised pixels `image [B,S,S,3]` with `S = image_size` -> `[B,1+(S/patch)**2,D]`.

        Raises:
          ValueError: the image has another size, or `image_size` is no multiple of `patch`.
        """
        size, patch = self.image_size, self.patch
        if size % patch:
            raise ValueError(f"image_size={size} is not a multiple of patch={patch}")
        if image.shape[1:3] != (size, size):
            raise ValueError(
                f"image is {image.shape[1]}x{image.shape[2]} but the model was built with image_size={size}"
            )
        # Too small to shard: plain parameters without logical axes are replicated.
        cls_token = self.param("cls_token", scaled(self.width), (1, 1, self.width), jnp.float32)
        pos_embed = self.param(
            "pos_embed", scaled(self.width), (1, 1 + (size // patch) ** 2, self.width), jnp.float32
        )
        embed = PatchEmbed(patch, self.width, use_bias=self.use_bias, dtype=self.dtype, name="patch_embed")
        first = jnp.broadcast_to(cls_token.astype(self.dtype), (image.shape[0], 1, self.width))
        x_bpd = jnp.concatenate([first, embed(image)], axis=1) + pos_embed.astype(self.dtype)
        return batch_major(x_bpd)


class VisionTransformer(nn.Module):
    """Image encoder; owns `cls_token`, `pos_embed`, `patch_embed`, `blocks_i`, `norm`, maybe `adapter`.

    `out_width` is the width that the rest of the model reads; when it differs from `width`, a Dense `adapter`
    follows the final norm.
    """

    image_size: int = 256
    patch: int = 16
    depth: int = 12
    width: int = 768
    heads: int = 12
    mlp: int = 3072
    out_width: int | None = None
    dtype: Dtype = jnp.float32
    remat: str | None = None
    scan: bool = False

    def setup(self) -> None:
        self.tokens = ImageTokens(self.image_size, self.patch, self.width, dtype=self.dtype)
        nn.share_scope(self, self.tokens)

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Normalised pixels `image [B,S,S,3]` with `S = image_size` -> states `[B,1+(S/patch)**2,D]`.

        Raises:
          ValueError: the image has another size, or `image_size` is no multiple of `patch`.
        """
        x_bpd = self.tokens(image)
        block: dict[str, Any] = dict(heads=self.heads, mlp=self.mlp, dtype=self.dtype)
        x_bpd = run_layers(
            ViTBlock,
            [block] * self.depth,
            x_bpd,
            name="blocks",
            scan=self.scan,
            remat=self.remat,
        )
        x_bpd = LayerNorm(EPS, dtype=self.dtype, name="norm")(x_bpd)
        if self.out_width in (None, self.width):
            return x_bpd
        return Dense(self.out_width, WHOLE, dtype=self.dtype, name="adapter")(x_bpd)
