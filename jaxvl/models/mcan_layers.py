"""Parts of MCAN (Yu et al., "Deep Modular Co-Attention Networks", CVPR 2019; `MILVLG/openvqa`) that other models share.

Parameters start as PyTorch's: U(-1/sqrt(inputs), 1/sqrt(inputs)) for kernels and biases alike.

Dropout has two forms, by the field `masks`: "each" draws a mask for every row of the batch, as training does; "shared"
draws one for all rows, so that a key stands for one sub-network whatever the batch and whatever a row's place in it
(Monte-Carlo dropout). The parameters are the same: `module.clone(masks="shared")`.

Shape legend: `B` batch, `L` positions that look, `S` positions looked at, `E` inputs, `D` width, `H` heads,
`K` head dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.initial import ones, torch_uniform, zeros
from jaxvl.models.layers import WHOLE, Axes, Dense, Dtype, logical

MASKS = ("each", "shared")
FAR = -1e9  # in place of the logit of a masked position; a row without any other has equal weights
IN_HEADS: Axes = ("embed", "heads")
OUT_HEADS: Axes = ("heads", "embed")
IN_MLP: Axes = ("embed", "mlp")
OUT_MLP: Axes = ("mlp", "embed")
WHOLE_MLP: Axes = ("mlp", None)


def linear(
    inputs: int, features: int, axes: Axes = WHOLE, *, dtype: Dtype = jnp.float32, **kwargs: Any
) -> Dense:
    """A dense layer of `inputs` that starts as PyTorch's; `kwargs` are further fields of `Dense`."""
    init = torch_uniform(inputs)
    return Dense(features, axes, kernel_init=init, bias_init=init, dtype=dtype, **kwargs)


def dropout(rate: float, masks: str) -> nn.Dropout:
    """Dropout with masks as the module says.

    Raises:
      ValueError: `masks` is not one of `MASKS`.
    """
    if masks not in MASKS:
        raise ValueError(f"masks={masks!r}: expected one of {', '.join(MASKS)}")
    return nn.Dropout(rate, broadcast_dims=(0,) if masks == "shared" else ())


def masked_mean(x_bsd: Array, mask_bs: Array) -> Array:
    """Mean over the positions where `mask_bs` is True, f32: `[B,S,D] -> [B,D]`; 0 where there is none."""
    weight = mask_bs.astype(jnp.float32)[..., None]
    return (x_bsd.astype(jnp.float32) * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0)


class UnbiasedNorm(nn.Module):
    """`scale (x - mean) / (std + eps) + bias` with the unbiased deviation (n - 1), eps outside the root.

    It is not the usual layer norm. Statistics are float32; it returns `dtype`.
    """

    eps: float = 1e-6
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        scale = self.param("scale", logical(ones, None), (width,), jnp.float32)
        bias = self.param("bias", logical(zeros, None), (width,), jnp.float32)
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).sum(-1, keepdims=True) / (width - 1)
        std = jnp.sqrt(jnp.maximum(variance, 1e-30))  # the root has a gradient at equal features too
        return (scale * centred / (std + self.eps) + bias).astype(self.dtype)


class LSTM(nn.Module):
    """One layer, forward, from zero: `[B,L,E] -> [B,L,width]`, all hidden states.

    Owns `ih` and `hh`, kernels `[E,4 width]`, `[width,4 width]` with a bias each, gates in PyTorch's order i, f, g, o.
    Both biases are kept, so that weights come back bit for bit and Adam moves their sum as it does in PyTorch.
    """

    inputs: int
    width: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        init = torch_uniform(self.width)  # of all four
        kw: dict[str, Any] = dict(kernel_init=init, bias_init=init, dtype=self.dtype)
        self.ih = Dense(4 * self.width, WHOLE, **kw)
        self.hh = Dense(4 * self.width, WHOLE, **kw)

    def __call__(self, x_ble: Array) -> Array:
        inputs = self.ih(x_ble).astype(jnp.float32)
        h = c = jnp.zeros((len(x_ble), self.width), jnp.float32)
        states = []
        for t in range(x_ble.shape[1]):  # unrolled: sequences are short, and a scan is slower on CPU
            i, f, g, o = jnp.split(inputs[:, t] + self.hh(h).astype(jnp.float32), 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            states.append(h)
        return jnp.stack(states, axis=1).astype(self.dtype)


class KeysValues(NamedTuple):
    """What is looked at: `key [B,S,H,K]`, `value [B,S,H,K]`."""

    key: Array
    value: Array


class MHAtt(nn.Module):
    """Multi-head attention between states of one width; owns `query`, `key`, `value`, `out`.

    Head `h` has columns `hK..hK+K-1` of the first three. `queries`, `keys_values` and `mix` are parts of a call, for
    those who compute one side once for many of the other.
    """

    width: int
    heads: int
    dropout: float = 0.0
    masks: str = "each"
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} is not a multiple of heads={self.heads}")
        for name in ("query", "key", "value"):
            setattr(self, name, linear(self.width, self.width, IN_HEADS, dtype=self.dtype))
        self.out = linear(self.width, self.width, OUT_HEADS, dtype=self.dtype)
        self.drop = dropout(self.dropout, self.masks)

    def __call__(
        self, x_bld: Array, y_bsd: Array, mask_bs: Array | None = None, *, train: bool = False
    ) -> Array:
        """`x_bld` looks at `y_bsd` where `mask_bs [B,S]` bool is True: `[B,L,D]`."""
        return self.mix(self.queries(x_bld), self.keys_values(y_bsd), mask_bs, train=train)

    def queries(self, x_bld: Array) -> Array:
        """`[B,L,D] -> [B,L,H,K]`, before scaling."""
        return self._split(self.query(x_bld))

    def keys_values(self, y_bsd: Array) -> KeysValues:
        """`[B,S,D]` -> keys and values `[B,S,H,K]`."""
        return KeysValues(self._split(self.key(y_bsd)), self._split(self.value(y_bsd)))

    def mix(
        self, q_blhk: Array, seen: KeysValues, mask_bs: Array | None = None, *, train: bool = False
    ) -> Array:
        """What the queries find, through `out`: `[B,L,D]`; softmax in float32."""
        logits = jnp.einsum("blhk,bshk->bhls", q_blhk, seen.key, preferred_element_type=jnp.float32)
        logits = logits * q_blhk.shape[-1] ** -0.5
        if mask_bs is not None:
            logits = jnp.where(mask_bs[:, None, None, :], logits, FAR)
        probs = self.drop(jax.nn.softmax(logits, axis=-1), deterministic=not train).astype(self.dtype)
        found = jnp.einsum("bhls,bshk->blhk", probs, seen.value)
        return self.out(found.reshape(*found.shape[:2], self.width))

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)


class FFN(nn.Module):
    """`[...,D] -> [...,features]` through `hidden` units, ReLU and dropout; `features=None` keeps the width `D`."""

    width: int
    hidden: int
    features: int | None = None
    dropout: float = 0.0
    masks: str = "each"
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        out, axes = (self.width, OUT_MLP) if self.features is None else (self.features, WHOLE_MLP)
        self.fc1 = linear(self.width, self.hidden, IN_MLP, dtype=self.dtype)
        self.fc2 = linear(self.hidden, out, axes, dtype=self.dtype)
        self.drop = dropout(self.dropout, self.masks)

    def __call__(self, x: Array, *, train: bool = False) -> Array:
        return self.fc2(self.drop(nn.relu(self.fc1(x)), deterministic=not train))


class SA(nn.Module):
    """Self-attention and feed-forward, each with residual and norm behind it; owns `attn`, `ffn`, `norm1`, `norm2`."""

    width: int
    heads: int
    mlp: int
    dropout: float = 0.0
    masks: str = "each"
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        kw: dict[str, Any] = dict(dropout=self.dropout, masks=self.masks, dtype=self.dtype)
        self.attn = MHAtt(self.width, self.heads, **kw)
        self.ffn = FFN(self.width, self.mlp, **kw)
        self.norm1, self.norm2 = UnbiasedNorm(dtype=self.dtype), UnbiasedNorm(dtype=self.dtype)
        self.drop = dropout(self.dropout, self.masks)

    def __call__(self, x_bld: Array, mask_bl: Array, *, train: bool = False) -> Array:
        """`[B,L,D]` and its mask (True = attend) -> `[B,L,D]`."""
        x = self._join(self.norm1, x_bld, self.attn(x_bld, x_bld, mask_bl, train=train), train)
        return self._join(self.norm2, x, self.ffn(x, train=train), train)

    def _join(self, norm: nn.Module, x: Array, change: Array, train: bool) -> Array:
        return norm(x + self.drop(change, deterministic=not train))


class SGA(nn.Module):
    """Self-attention, attention guided by other states, feed-forward; each with residual and norm behind it.

    Owns `self_attn`, `guided_attn`, `ffn`, `norm1`, `norm2`, `norm3`. `look`, `guidance`, `follow` are the parts of a
    call: the first depends on `x` alone, the second on `y` alone, the third on the pair.
    """

    width: int
    heads: int
    mlp: int
    dropout: float = 0.0
    masks: str = "each"
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        kw: dict[str, Any] = dict(dropout=self.dropout, masks=self.masks, dtype=self.dtype)
        self.self_attn = MHAtt(self.width, self.heads, **kw)
        self.guided_attn = MHAtt(self.width, self.heads, **kw)
        self.ffn = FFN(self.width, self.mlp, **kw)
        self.norm1, self.norm2, self.norm3 = (UnbiasedNorm(dtype=self.dtype) for _ in range(3))
        self.drop = dropout(self.dropout, self.masks)

    def __call__(
        self, x_bld: Array, x_mask: Array, y_bsd: Array, y_mask: Array, *, train: bool = False
    ) -> Array:
        """`x_bld [B,L,D]` guided by `y_bsd [B,S,D]`, with masks `[B,L]`, `[B,S]` (True = attend) -> `[B,L,D]`."""
        return self.follow(self.look(x_bld, x_mask, train=train), self.guidance(y_bsd), y_mask, train=train)

    def look(self, x_bld: Array, x_mask: Array, *, train: bool = False) -> Array:
        """The self-attention: `[B,L,D] -> [B,L,D]`."""
        return self._join(self.norm1, x_bld, self.self_attn(x_bld, x_bld, x_mask, train=train), train)

    def guidance(self, y_bsd: Array) -> KeysValues:
        """Keys and values of the states that guide."""
        return self.guided_attn.keys_values(y_bsd)

    def follow(self, x_bld: Array, seen: KeysValues, y_mask: Array, *, train: bool = False) -> Array:
        """What is left after `look`: guided attention and feed-forward."""
        found = self.guided_attn.mix(self.guided_attn.queries(x_bld), seen, y_mask, train=train)
        x = self._join(self.norm2, x_bld, found, train)
        return self._join(self.norm3, x, self.ffn(x, train=train), train)

    def _join(self, norm: nn.Module, x: Array, change: Array, train: bool) -> Array:
        return norm(x + self.drop(change, deterministic=not train))


class AttFlat(nn.Module):
    """Attention over positions to one vector: `[B,S,D] -> [B,features]`; owns `mlp` (to one logit) and `out`."""

    width: int
    hidden: int
    features: int
    dropout: float = 0.0
    masks: str = "each"
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        kw: dict[str, Any] = dict(dropout=self.dropout, masks=self.masks, dtype=self.dtype)
        self.mlp = FFN(self.width, self.hidden, 1, **kw)
        self.out = linear(self.width, self.features, dtype=self.dtype)

    def __call__(self, x_bsd: Array, mask_bs: Array, *, train: bool = False) -> Array:
        """Weights are a softmax, in float32, over the positions where `mask_bs` is True."""
        logits = self.mlp(x_bsd, train=train)[..., 0].astype(jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask_bs, logits, FAR), axis=-1).astype(self.dtype)
        return self.out(jnp.einsum("bs,bsd->bd", weights, x_bsd))
