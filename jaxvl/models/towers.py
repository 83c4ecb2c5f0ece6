"""Uni-modal encoders whose upper layers are read by others: text (BERT, RoBERTa, ViLT) and images (ViT, CLIP, ViLT).

Shape legend: `B` batch, `M` text tokens, `P` image tokens (class token + patches), `S` tokens, `D` width, `Z` taps,
`H` heads, `K` head dim. The last layer stands outside a scanned stack, because its queries, keys and values are
returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.bert import BertLayer, Embeddings, padding_mask
from jaxvl.models.layers import Dtype, Embedding, LayerNorm, rematerialised, run_layers
from jaxvl.models.pair_options import VISION_ARCHES
from jaxvl.models.vit import ImageTokens, ViTBlock

Taps = tuple[tuple[int, ...], ...]


class Tower(NamedTuple):
    """What a tower returns.

    Attributes:
      taps: `Z` states `[B,S,D]`, each the mean of the normed outputs of the layers of one group.
      last: `[B,S,D]`, normed output of the last layer.
      qkv: queries, keys and values `[B,S,H,K]` of the last layer, after the bias and before scaling.
    """

    taps: tuple[Array, ...]
    last: Array
    qkv: tuple[Array, Array, Array]


class TextTower(nn.Module):
    """Text encoder; `arch` is a key of `pair_options.TEXT_ARCHES`, `taps` are groups of layers, counted from 1.

    Owns `embeddings` and `layers_i` (BERT, RoBERTa), or `blocks_i` and `norm` (ViLT: pre-norm blocks, of whose every
    tapped output `norm` is taken).
    """

    arch: str
    vocab_size: int
    width: int
    depth: int
    heads: int
    mlp: int
    max_positions: int
    eps: float
    taps: Taps
    dropout: float = 0.1
    attn_dropout: float = 0.1
    dtype: Dtype = jnp.float32
    remat: str | None = None
    scan: bool = False

    def setup(self) -> None:
        sizes = (self.vocab_size, self.width, self.max_positions)
        kw: dict[str, Any] = dict(dropout=self.dropout, dtype=self.dtype, eps=self.eps)
        if self.arch == "roberta":
            kw |= dict(types=1, pad=1)
        self.embeddings = Embeddings(*sizes, shared=self.arch == "vilt", **kw)
        if self.arch == "vilt":
            self.norm = LayerNorm(self.eps, dtype=self.dtype)

    @nn.compact
    def __call__(self, text: Array, text_mask: Array, *, train: bool = False) -> Tower:
        """`text [B,M]` i32, `text_mask [B,M]` bool (True = token).

        Raises:
          ValueError: the text is longer than the position table.
        """
        names = ("heads", "mlp", "dropout", "attn_dropout", "dtype", "eps")
        layer = {name: getattr(self, name) for name in names} | {"train": train}
        x_bmd = self.embeddings(text, text_mask, train=train)
        block, name = (ViTBlock, "blocks") if self.arch == "vilt" else (BertLayer, "layers")
        run: dict[str, Any] = dict(name=name, scan=self.scan, remat=self.remat)
        states, qkv = tower_layers(block, layer, x_bmd, padding_mask(text_mask), depth=self.depth, **run)
        return tapped(states, qkv, self.taps, norm=self.norm if self.arch == "vilt" else None)


class VisionTower(nn.Module):
    """Image encoder; `arch` is a key of `pair_options.VISION_ARCHES`, `taps` are groups of layers, counted from 1.

    Owns `cls_token`, `pos_embed`, `patch_embed`, `blocks_i`, `norm`, of CLIP also `norm_pre`, of ViLT `modality`. One
    `norm` is taken of every tapped output. There is no dropout.
    """

    arch: str
    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp: int
    eps: float
    taps: Taps
    dtype: Dtype = jnp.float32
    remat: str | None = None
    scan: bool = False

    def setup(self) -> None:
        arch = VISION_ARCHES[self.arch]
        self.tokens = ImageTokens(
            self.image_size, self.patch, self.width, use_bias=not arch.clip, dtype=self.dtype
        )
        nn.share_scope(self, self.tokens)
        if arch.clip:
            self.norm_pre = LayerNorm(self.eps, dtype=self.dtype)
        if arch.modality:
            self.modality = Embedding(1, self.width, dtype=self.dtype)
        self.norm = LayerNorm(self.eps, dtype=self.dtype)

    @nn.compact
    def __call__(self, image: Array) -> Tower:
        """Normalised pixels `[B,H,W,3]`.

        Raises:
          ValueError: the image has another size than `image_size`, or that is no multiple of `patch`.
        """
        arch = VISION_ARCHES[self.arch]
        x_bpd = self.tokens(image)
        if arch.clip:
            x_bpd = self.norm_pre(x_bpd)
        if arch.modality:
            x_bpd = x_bpd + self.modality(jnp.zeros((1,), jnp.int32))
        layer = dict(heads=self.heads, mlp=self.mlp, dtype=self.dtype, eps=self.eps, act=arch.act)
        run: dict[str, Any] = dict(name="blocks", scan=self.scan, remat=self.remat)
        states, qkv = tower_layers(ViTBlock, layer, x_bpd, None, depth=self.depth, **run)
        return tapped(states, qkv, self.taps, norm=self.norm)


def tower_layers(
    block: type[nn.Module],
    layer: dict[str, Any],
    x_bsd: Array,
    mask: Array | None,
    *,
    depth: int,
    name: str,
    scan: bool,
    remat: str | None,
) -> tuple[list[Array], tuple[Array, Array, Array]]:
    """Inside a compact method: the outputs of `depth` layers, and queries, keys and values of the last one."""
    states: list[Array] = []
    x_bsd = run_layers(
        block, [layer] * (depth - 1), x_bsd, mask, name=name, scan=scan, remat=remat, states=states
    )
    last = rematerialised(block, remat)(**layer, qkv=True, name=f"{name}_{depth - 1}")
    x_bsd, qkv = last(x_bsd, mask)
    return [*states, x_bsd], qkv


def tapped(
    states: list[Array],
    qkv: tuple[Array, Array, Array],
    taps: Taps,
    *,
    norm: Callable[[Array], Array] | None,
) -> Tower:
    """Means of the states of each group of layers, every state normed first."""
    needed = sorted({layer for group in taps for layer in group} | {len(states)})
    normed = {layer: states[layer - 1] if norm is None else norm(states[layer - 1]) for layer in needed}
    return Tower(tuple(_mean([normed[i] for i in group]) for group in taps), normed[len(states)], qkv)


def _mean(states: list[Array]) -> Array:
    """Mean in float32, in the type of the states."""
    if len(states) == 1:
        return states[0]
    total = states[0].astype(jnp.float32)
    for x in states[1:]:
        total = total + x.astype(jnp.float32)
    return (total / len(states)).astype(states[0].dtype)
