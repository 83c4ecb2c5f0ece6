"""Layers in which text and image attend to each other and to themselves (Huang and Guo, Computer Science 51(9), 2024;
with order "post", BridgeTower's, Xu et al., 2023).

What the first layer needs of one modality alone is made by `prime_text` and `prime_image`, the rest by `join`: one
image is primed once however many texts look at it.

Shape legend: `B` batch, `M` text tokens, `P` image tokens, `S` either, `D` width, `H` heads, `K` head dim, `Z` taps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.bert import BertAttention, FeedForward, padding_mask
from jaxvl.models.layers import Dtype, batch_major, rematerialised
from jaxvl.types import CrossQK


class Primed(NamedTuple):
    """One modality in front of a cross-modal layer, with what the layer can do without the other one.

    Attributes:
      x: `[B,S,D]`: the layer's input (order "pre"), or that after self-attention ("post").
      query: `[B,S,H,K]` of cross attention.
      key, value: `[B,S,H,K]` of the layer's input, which the other modality reads.
      record: `[B,Z,S,D]` projected taps with their type, which later layers bridge; None after the first layer.
    """

    x: Array
    query: Array
    key: Array
    value: Array
    record: Array | None


Bridging = Callable[[str, int, Any, Array], Array]


class Stream(nn.Module):
    """One modality of a cross-modal layer; owns `attention` (to itself), `cross_attention` (to the other), `ffn`."""

    heads: int
    mlp: int
    order: str
    eps: float
    dropout: float = 0.1
    attn_dropout: float = 0.1
    train: bool = False
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        kw: dict[str, Any] = dict(dropout=self.dropout, train=self.train, dtype=self.dtype, eps=self.eps)
        self.attention = BertAttention(self.heads, attn_dropout=self.attn_dropout, **kw)
        self.cross_attention = BertAttention(self.heads, attn_dropout=self.attn_dropout, **kw)
        self.ffn = FeedForward(self.mlp, **kw)

    def ask(self, x_bsd: Array, mask: Array | None, *, first: bool = False) -> tuple[Array, Array]:
        """`x [B,S,D]` -> `Primed.x` and `Primed.query`; with order "post" and `first`, those of the first token."""
        if self.order == "post":
            x_bsd = self._itself(x_bsd, mask, first)
        return x_bsd, self.cross_attention.queries(x_bsd)

    def read(self, other: Array) -> tuple[Array, Array]:
        """Keys and values `[B,S,H,K]` of the input of the other modality."""
        return self.cross_attention.keys_values(other)

    def update(
        self,
        primed: Primed,
        key_value: tuple[Array, Array],
        masks: tuple[Array | None, Array | None],
        *,
        first: bool = False,
    ) -> Array:
        """Output `[B,S,D]` of the layer from what is primed and `read`; with `first`, `[B,1,D]`.

        `masks` are those of this modality and of the other one.
        """
        (x, query), (own, other) = primed[:2], masks
        if first and self.order == "post":
            x, query = x[:, :1], query[:, :1]
        x = self.cross_attention.update(x, query, *key_value, other)
        if self.order == "pre":
            x = self._itself(x, own, first)
        return batch_major(self.ffn(x))

    def _itself(self, x_bsd: Array, mask: Array | None, first: bool) -> Array:
        queries = x_bsd[:, :1] if first else x_bsd
        return self.attention(queries, x_bsd, mask)


class CrossLayer(nn.Module):
    """Text and image attend to each other's input of this layer, in parallel; owns `text`, `image`."""

    heads: int
    mlp: int
    order: str
    eps: float
    dropout: float = 0.1
    attn_dropout: float = 0.1
    train: bool = False
    first: bool = False  # compute the first token of each modality only
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        names = ("heads", "mlp", "order", "eps", "dropout", "attn_dropout", "train", "dtype")
        kw = {name: getattr(self, name) for name in names}
        self.text = Stream(**kw)
        self.image = Stream(**kw)

    def prime_text(self, x_bmd: Array, text_mask: Array, record: Array | None = None) -> Primed:
        """Input `[B,M,D]` and its mask `[B,M]`."""
        return self._prime_text(x_bmd, text_mask, record, first=False)

    def prime_image(self, x_bpd: Array, record: Array | None = None) -> Primed:
        """Input `[B,P,D]`."""
        return self._prime_image(x_bpd, record, first=False)

    def join(self, text: Primed, text_mask: Array, image: Primed) -> tuple[Array, Array, CrossQK]:
        """Outputs `[B,M,D]` and `[B,P,D]` (with `first`, `[B,1,D]`), and what both attended with."""
        return self._join(text, text_mask, image)

    def __call__(self, x_bmd: Array, text_mask: Array, x_bpd: Array) -> tuple[Array, Array, CrossQK]:
        """`join` of both inputs."""
        text = self._prime_text(x_bmd, text_mask, None, first=self.first)
        return self._join(text, text_mask, self._prime_image(x_bpd, None, first=self.first))

    def _prime_text(self, x: Array, mask: Array, record: Array | None, *, first: bool) -> Primed:
        return Primed(*self.text.ask(x, padding_mask(mask), first=first), *self.image.read(x), record)

    def _prime_image(self, x: Array, record: Array | None, *, first: bool) -> Primed:
        return Primed(*self.image.ask(x, None, first=first), *self.text.read(x), record)

    def _join(self, text: Primed, text_mask: Array, image: Primed) -> tuple[Array, Array, CrossQK]:
        mask = padding_mask(text_mask)
        z_text = self.text.update(text, (image.key, image.value), (mask, None), first=self.first)
        z_image = self.image.update(image, (text.key, text.value), (None, mask), first=self.first)
        return z_text, z_image, CrossQK(text.query, image.key, image.query, text.key)


class CrossEncoder(nn.Module):
    """`depth` cross-modal layers; owns `layers_l`, one by one whether or not other layers are scanned."""

    depth: int
    heads: int
    mlp: int
    order: str
    eps: float
    dropout: float = 0.1
    attn_dropout: float = 0.1
    dtype: Dtype = jnp.float32
    remat: str | None = None

    def prime_text(self, x_bmd: Array, text_mask: Array, record: Array, *, train: bool = False) -> Primed:
        """Text in front of the first layer."""
        return self._layer(0, train).prime_text(x_bmd, text_mask, record)

    def prime_image(self, x_bpd: Array, record: Array, *, train: bool = False) -> Primed:
        """Images in front of the first layer."""
        return self._layer(0, train).prime_image(x_bpd, record)

    def join(
        self, text: Primed, text_mask: Array, image: Primed, *, bridge: Bridging, first: bool, train: bool
    ) -> tuple[Array, Array, CrossQK]:
        """All layers; with `first` the last one computes the first token of each modality only.

        `bridge(modality, layer, record, z)` makes the input of a layer after the first (0) from the output `z` of the
        layer before. Returns the outputs of the last layer, and what it attended with.
        """
        last = self.depth - 1
        layer = self._layer(0, train, first and last == 0)
        z_text, z_image, qk = layer.join(text, text_mask, image)
        for i in range(1, self.depth):
            x_text = bridge("text", i, text.record, z_text)
            x_image = bridge("image", i, image.record, z_image)
            z_text, z_image, qk = self._layer(i, train, first and i == last)(x_text, text_mask, x_image)
        return z_text, z_image, qk

    @nn.compact  # the one place that makes layers: `train` is known to methods only
    def _layer(self, i: int, train: bool, first: bool = False) -> CrossLayer:
        names = ("heads", "mlp", "order", "eps", "dropout", "attn_dropout", "dtype")
        kw = {name: getattr(self, name) for name in names} | dict(train=train, first=first)
        layer: Any = rematerialised(CrossLayer, self.remat, methods=("__call__", "join"))
        return layer(**kw, name=f"layers_{i}")


def gather(primed: Primed, index: Array | None) -> Primed:
    """The rows `index [B'] i32` of every part; None = as it is."""
    return primed if index is None else jax.tree.map(lambda x: jnp.take(x, index, axis=0), primed)
