"""VQME: can this question be asked of this image? Encoders of both, a critic of pairs, and heads for contrast.

The critic's first layer is linear in each side, so all pairs of a pool and a bank cost one addition and one product
each beyond what each side costs alone (specification 5.3, 7.3).

Shape legend: `B` images, `Q` questions, `P` pairs, `R` regions, `L` words, `D` width, `W` critic width, `Z` width of
  the contrastive heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.initial import torch_uniform, zeros
from jaxvl.models.layers import Dtype, logical
from jaxvl.models.mcan_layers import linear
from jaxvl.models.pair_blocks import ImageBlocks, Pool, TextBlocks

CRITICS = ("concat1", "separable", "concat2", "cosine")
SEPARATE = 128  # width of the factors of the separable critic


class VQME(nn.Module):
    """See the module.

    Attributes:
      words: vocabulary with PAD; feat_dim, width, heads, layers, word_dim: sizes.
      block: of self-attention, see `pair_blocks.Block`; pool: "attflat" or "mean".
      critic: "concat1" = `w relu(A v + B s + b) + c`; "separable" = product of two embeddings; "concat2" = a second
        hidden layer, pair by pair; "cosine" = `w z.w + c` of the contrastive heads, for models that learn by contrast
        alone: calibration sets `w` and `c`, which no loss moves.
      critic_width: `W`; project: `Z`.
      tau: temperature of the contrast; with `learn_tau=(low, high)` it is learned within these bounds.
    """

    words: int
    feat_dim: int = 2048
    width: int = 512
    heads: int = 8
    layers: int = 1
    block: str = "residual"
    pool: str = "attflat"
    critic: str = "concat1"
    critic_width: int = 512
    project: int = 128
    tau: float = 0.1
    learn_tau: tuple[float, float] | None = None
    dropout: float = 0.1
    word_dim: int = 300
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.critic not in CRITICS:
            raise ValueError(f"model.critic={self.critic!r}: expected one of {', '.join(CRITICS)}")
        if self.tau <= 0:
            raise ValueError(f"model.tau={self.tau}: expected a positive number")
        if self.learn_tau is not None and not 0 < self.learn_tau[0] < self.tau < self.learn_tau[1]:
            # Clipped from the start, it would never have a gradient.
            raise ValueError(
                f"model.learn_tau={self.learn_tau}: expected bounds, both positive, around tau={self.tau}"
            )
        d, w = self.width, self.critic_width
        kw: dict[str, Any] = dict(dropout=self.dropout, dtype=self.dtype)
        sides: dict[str, Any] = dict(width=d, heads=self.heads, layers=self.layers, block=self.block, **kw)
        self.image_encoder = ImageBlocks(self.feat_dim, **sides)
        self.text_encoder = TextBlocks(self.words, self.word_dim, **sides)
        self.image_pool, self.text_pool = Pool(d, self.pool, **kw), Pool(d, self.pool, **kw)
        if self.critic == "separable":
            self.image_factor, self.text_factor = ([linear(d, w), linear(w, SEPARATE)] for _ in range(2))
        elif self.critic == "cosine":
            ones = logical(nn.initializers.ones, None)
            self.weight = self.param("critic_weight", ones, (1,), jnp.float32)
        else:
            self.image_side = linear(d, w, use_bias=False)
            self.text_side = linear(d, w)
            self.weight = self.param("critic_weight", logical(torch_uniform(w), None), (w,), jnp.float32)
        if self.critic == "concat2":
            self.second = linear(w, w)
        self.offset = self.param("critic_offset", logical(zeros, None), (1,), jnp.float32)
        self.image_head, self.text_head = ([linear(d, d), linear(d, self.project)] for _ in range(2))
        if self.learn_tau is not None:
            start = nn.initializers.constant(jnp.log(self.tau))
            self.log_tau = self.param("log_tau", logical(start, None), (1,), jnp.float32)

    # ---- sides --------------------------------------------------------------------------------------------

    def encode_image(self, regions: Array, region_mask: Array, *, train: bool = False) -> Array:
        """`[B,R,F]`, `[B,R]` -> `v [B,D]`."""
        states = self.image_encoder(regions, region_mask, train=train)
        return self.image_pool(states, region_mask, train=train)

    def encode_text(self, text: Array, text_mask: Array, *, train: bool = False) -> Array:
        """`[Q,L]`, `[Q,L]` -> `s [Q,D]`."""
        states = self.text_encoder(text, text_mask, train=train)
        return self.text_pool(states, text_mask, train=train)

    def critic_image(self, v_bd: Array) -> Array:
        """What the critic needs of images: `[B,D] -> [B,W]` f32."""
        if self.critic == "cosine":
            return self.project_image(v_bd)
        return _mlp(self.image_factor, v_bd) if self.critic == "separable" else _f32(self.image_side(v_bd))

    def critic_text(self, s_qd: Array) -> Array:
        """What the critic needs of questions: `[Q,D] -> [Q,W]` f32."""
        if self.critic == "cosine":
            return self.project_text(s_qd)
        return _mlp(self.text_factor, s_qd) if self.critic == "separable" else _f32(self.text_side(s_qd))

    def project_image(self, v_bd: Array) -> Array:
        """Contrastive embeddings `[B,Z]` f32 of length 1."""
        return _unit(_mlp(self.image_head, v_bd))

    def project_text(self, s_qd: Array) -> Array:
        """Contrastive embeddings `[Q,Z]` f32 of length 1."""
        return _unit(_mlp(self.text_head, s_qd))

    def temperature(self) -> Array:
        """`tau`, a scalar."""
        if self.learn_tau is None:
            return jnp.asarray(self.tau, jnp.float32)
        return jnp.clip(jnp.exp(self.log_tau[0]), *self.learn_tau)

    # ---- pairs --------------------------------------------------------------------------------------------

    def critic_all(self, a_bw: Array, b_qw: Array) -> Array:
        """Logits `T [B,Q]` f32 of all pairs; their hidden layer is fused away, never an array `[B,Q,W]`."""
        if self.critic == "separable":
            return a_bw @ b_qw.T + self.offset
        if self.critic == "cosine":
            return self.weight * (a_bw @ b_qw.T) + self.offset
        if self.critic == "concat2":
            return jax.lax.map(lambda a: self._two(nn.relu(a + b_qw)), a_bw)  # an image at a time
        # A product with the weights as a matrix would need the hidden layer in memory; a sum is fused with it.
        return (nn.relu(a_bw[:, None] + b_qw[None]) * self.weight).sum(-1) + self.offset

    def critic_pairs(self, a_pw: Array, b_pw: Array) -> Array:
        """Logits `[P]` f32 of given pairs."""
        if self.critic == "separable":
            return (a_pw * b_pw).sum(-1) + self.offset
        if self.critic == "cosine":
            return self.weight * (a_pw * b_pw).sum(-1) + self.offset
        hidden = nn.relu(a_pw + b_pw)
        return self._two(hidden) if self.critic == "concat2" else (hidden * self.weight).sum(-1) + self.offset

    @nn.nowrap
    def rescaled(self, params: Mapping[str, Any], *, scale: float, shift: float) -> dict[str, Any]:
        """Parameters whose critic is `scale T + shift`; all else is the same."""
        out = {**params, "critic_offset": scale * params["critic_offset"] + shift}
        name = "image_factor_1" if self.critic == "separable" else "critic_weight"
        return {**out, name: jax.tree.map(lambda x: scale * x, params[name])}

    def _two(self, hidden: Array) -> Array:
        return (nn.relu(self.second(hidden)) * self.weight).sum(-1) + self.offset

    def __call__(
        self, regions: Array, region_mask: Array, text: Array, text_mask: Array, *, train: bool = False
    ) -> dict[str, Array]:
        """Both sides of `B` pairs: `a`, `b` for the critic, `z`, `w` for the contrast; their `match [B]`; `tau`."""
        v = self.encode_image(regions, region_mask, train=train)
        s = self.encode_text(text, text_mask, train=train)
        a, b = self.critic_image(v), self.critic_text(s)
        out = {"a": a, "b": b, "z": self.project_image(v), "w": self.project_text(s)}
        return {**out, "match": self.critic_pairs(a, b), "tau": self.temperature()}


def _mlp(layers: list[Any], x: Array) -> Array:
    first, second = layers
    return _f32(second(nn.relu(first(x))))


def _f32(x: Array) -> Array:
    return x.astype(jnp.float32)


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
