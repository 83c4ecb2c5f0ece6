"""Regions and words as sequences of states: what VQME and VAUE, each with its own parameters, begin with.

An image is a projection of its region features and self-attention over them; a question is an LSTM over word vectors
and self-attention over its states (specification 5.2; Zhang et al., CCRL, equations 2, 3 and 5).

Shape legend: `B` batch, `R` regions, `L` words, `S` positions, `F` feature width, `D` width.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.layers import Dtype, Embedding, LayerNorm
from jaxvl.models.mcan_layers import LSTM, SA, AttFlat, MHAtt, dropout, linear, masked_mean

BLOCKS = ("residual", "attn_only", "mcan_sa")
POOLS = ("attflat", "mean")
EPS = 1e-6


class Block(nn.Module):
    """Self-attention over one modality: `[B,S,D] -> [B,S,D]`.

    Attributes:
      kind: "residual" = residual and layer norm around the attention; "attn_only" = the attention alone, as the paper
        writes it; "mcan_sa" = MCAN's layer, with feed-forward.
    """

    width: int
    heads: int
    kind: str = "residual"
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bsd: Array, mask_bs: Array, *, train: bool = False) -> Array:
        kw: dict[str, Any] = dict(dropout=self.dropout, dtype=self.dtype)
        if self.kind == "mcan_sa":
            return SA(self.width, self.heads, 4 * self.width, name="layer", **kw)(x_bsd, mask_bs, train=train)
        if self.kind not in BLOCKS:
            raise ValueError(f"model.block={self.kind!r}: expected one of {', '.join(BLOCKS)}")
        found = MHAtt(self.width, self.heads, name="attn", **kw)(x_bsd, x_bsd, mask_bs, train=train)
        if self.kind == "attn_only":
            return found
        change = dropout(self.dropout, "each")(found, deterministic=not train)
        return LayerNorm(EPS, dtype=self.dtype, name="norm")(x_bsd + change)


class ImageBlocks(nn.Module):
    """`regions [B,R,F]`, `region_mask [B,R]` -> states `[B,R,D]`."""

    feat_dim: int
    width: int
    heads: int
    layers: int = 1
    block: str = "residual"
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, regions: Array, region_mask: Array, *, train: bool = False) -> Array:
        x = linear(self.feat_dim, self.width, dtype=self.dtype, name="proj")(regions)
        for i in range(self.layers):
            layer = Block(self.width, self.heads, self.block, self.dropout, self.dtype, name=f"block_{i}")
            x = layer(x, region_mask, train=train)
        return x


class TextBlocks(nn.Module):
    """`text [B,L]` i32, `text_mask [B,L]` -> states `[B,L,D]`."""

    words: int
    word_dim: int
    width: int
    heads: int
    layers: int = 1
    block: str = "residual"
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        table = nn.initializers.normal(1.0)  # PyTorch's, where there are no word vectors to start from
        self.word_embedding = Embedding(self.words, self.word_dim, dtype=self.dtype, init_table=table)
        self.lstm = LSTM(self.word_dim, self.width, dtype=self.dtype)
        self.blocks = [
            Block(self.width, self.heads, self.block, self.dropout, self.dtype) for _ in range(self.layers)
        ]

    def __call__(self, text: Array, text_mask: Array, *, train: bool = False) -> Array:
        x = self.lstm(self.word_embedding(text))
        for layer in self.blocks:
            x = layer(x, text_mask, train=train)
        return x


class Pool(nn.Module):
    """States to one vector of the same width: `[B,S,D] -> [B,D]`; "attflat" = MCAN's attention, or "mean"."""

    width: int
    kind: str = "attflat"
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bsd: Array, mask_bs: Array, *, train: bool = False) -> Array:
        if self.kind not in POOLS:
            raise ValueError(f"model.pool={self.kind!r}: expected one of {', '.join(POOLS)}")
        if self.kind == "mean":
            return masked_mean(x_bsd, mask_bs).astype(self.dtype)
        kw: dict[str, Any] = dict(dropout=self.dropout, dtype=self.dtype)
        return AttFlat(self.width, self.width, self.width, name="flat", **kw)(x_bsd, mask_bs, train=train)
