"""VAUE: the answers that the present labels suggest for a pair, to see how uncertain they are.

Regions look at the words (guided attention), the result is pooled, and both pooled sides are classified. Everything
that depends on one side is a method of its own, so that a pool and a bank are each encoded once (specification 6.1,
7.3; Zhang et al., CCRL, equations 11 and 12).

Shape legend: `B` images, `Q` questions, `P` pairs, `R` regions, `L` words, `S` positions, `D` width, `H` heads, `K`
  head dim, `C` answers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.layers import VOCABULARY, Dtype, LayerNorm
from jaxvl.models.mcan_layers import KeysValues, MHAtt, dropout, linear
from jaxvl.models.pair_blocks import EPS, ImageBlocks, Pool, TextBlocks

GUIDES = ("image", "question")


class Ready(NamedTuple):
    """One side, ready to be paired; what the other direction of attention would need is None.

    Attributes:
      states: `[.,S,D]`; None if this side is only looked at.
      query: `[.,S,H,K]`, if this side looks.
      seen: keys and values `[.,S,H,K]`, if it is looked at.
      pooled: `[.,D]` of a question; None of an image.
      half: `[.,C]` f32, the question's part of the logits; None of an image.
    """

    states: Array | None = None
    query: Array | None = None
    seen: KeysValues | None = None
    pooled: Array | None = None
    half: Array | None = None


class PairOutput(NamedTuple):
    """`logits [P,C]` f32, and the pooled sides `v`, `s` `[P,D]`."""

    logits: Array
    v: Array
    s: Array


class VAUE(nn.Module):
    """See the module.

    Attributes:
      words: vocabulary with PAD; classes: `C`; feat_dim, width, heads, layers, word_dim: sizes.
      block: see `pair_blocks.Block`; pool: "attflat" or "mean".
      qga: which side looks at the other: "image" (MCAN's guided attention) or "question".
    """

    words: int
    classes: int
    feat_dim: int = 2048
    width: int = 512
    heads: int = 8
    layers: int = 1
    block: str = "residual"
    pool: str = "attflat"
    qga: str = "image"
    dropout: float = 0.1
    word_dim: int = 300
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.qga not in GUIDES:
            raise ValueError(f"model.qga={self.qga!r}: expected one of {', '.join(GUIDES)}")
        d = self.width
        kw: dict[str, Any] = dict(dropout=self.dropout, dtype=self.dtype)
        sides: dict[str, Any] = dict(width=d, heads=self.heads, layers=self.layers, block=self.block, **kw)
        self.image_encoder = ImageBlocks(self.feat_dim, **sides)
        self.text_encoder = TextBlocks(self.words, self.word_dim, **sides)
        self.guided = MHAtt(d, self.heads, **kw)
        self.norm = LayerNorm(EPS, dtype=self.dtype)
        self.drop = dropout(self.dropout, "each")
        self.pair_pool, self.text_pool = Pool(d, self.pool, **kw), Pool(d, self.pool, **kw)
        out: dict[str, Any] = dict(dtype=self.dtype, out_dtype=jnp.float32)
        self.image_half = linear(2 * d, self.classes, VOCABULARY, use_bias=False, **out)
        self.text_half = linear(2 * d, self.classes, VOCABULARY, **out)

    def image_ready(self, regions: Array, region_mask: Array, *, train: bool = False) -> Ready:
        """`[B,R,F]`, `[B,R]` -> what pairs need of images."""
        states = self.image_encoder(regions, region_mask, train=train)
        if self.qga == "image":
            return Ready(states=states, query=self.guided.queries(states))
        return Ready(seen=self.guided.keys_values(states))

    def text_ready(self, text: Array, text_mask: Array, *, train: bool = False) -> Ready:
        """`[Q,L]`, `[Q,L]` -> what pairs need of questions."""
        states = self.text_encoder(text, text_mask, train=train)
        pooled = self.text_pool(states, text_mask, train=train)
        half = self.text_half(pooled).astype(jnp.float32)
        if self.qga == "image":
            return Ready(seen=self.guided.keys_values(states), pooled=pooled, half=half)
        return Ready(states=states, query=self.guided.queries(states), pooled=pooled, half=half)

    def pair_ready(
        self, image: Ready, region_mask: Array, text: Ready, text_mask: Array, *, train: bool = False
    ) -> PairOutput:
        """`P` images and `P` questions, row by row."""
        looks, other = (image, text) if self.qga == "image" else (text, image)
        mask, seen_mask = (region_mask, text_mask) if self.qga == "image" else (text_mask, region_mask)
        assert looks.states is not None and looks.query is not None and other.seen is not None
        assert text.pooled is not None and text.half is not None
        found = self.guided.mix(looks.query, other.seen, seen_mask, train=train)
        states = self.norm(looks.states + self.drop(found, deterministic=not train))
        v = self.pair_pool(states, mask, train=train)
        return PairOutput(self.image_half(v).astype(jnp.float32) + text.half, v, text.pooled)

    def __call__(
        self, regions: Array, region_mask: Array, text: Array, text_mask: Array, *, train: bool = False
    ) -> PairOutput:
        """`B` pairs from their inputs."""
        image = self.image_ready(regions, region_mask, train=train)
        words = self.text_ready(text, text_mask, train=train)
        return self.pair_ready(image, region_mask, words, text_mask, train=train)
