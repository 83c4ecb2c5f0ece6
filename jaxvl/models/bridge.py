"""From two towers to one: projected taps, and the bridges by which cross-modal layers read them (BridgeTower, Xu et
al., 2023; Huang and Guo, Computer Science 51(9), 2024, equations 3-6).

Shape legend: `B` batch, `M` text tokens, `P` image tokens, `S` tokens, `D` width, `H` heads, `K` head dim, `Z` taps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.cross import CrossEncoder, Primed, gather
from jaxvl.models.initial import Init, table
from jaxvl.models.layers import WHOLE, Dense, Dtype, Embedding, LayerNorm
from jaxvl.types import Encoded, Fused


def copied_last(count: int) -> Init:
    """`init_table` of `count` rows: two, the last of which is repeated: a second image starts as the first."""

    def init(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
        rows = table(key, (2, shape[1]), dtype)
        return rows[jnp.minimum(jnp.arange(count), 1)]

    return init


class Bridge(nn.Module):
    """Projections of the taps, type rows (text, image, second image), and the norms that join taps and layers.

    Owns `text_proj`, `image_proj` (or one per tap, `text_proj_l`), `token_type`, `text_norm_l`, `image_norm_l`, with
    `kind="scaled_add"` also scalars `text_scale_l`, with "interpolate" `text_beta_l` (and of image), from `l = 1`.
    With "none" there is one tap, and layers after the first see no tower.
    """

    kind: str
    taps: int
    width: int
    images: int
    shared: bool
    eps: float
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.text_proj = self._projections()
        self.image_proj = self._projections()
        rows = 1 + self.images
        self.token_type = Embedding(rows, self.width, dtype=self.dtype, init_table=copied_last(rows))
        self.text_norm = [LayerNorm(self.eps, dtype=self.dtype) for _ in range(self.taps)]
        self.image_norm = [LayerNorm(self.eps, dtype=self.dtype) for _ in range(self.taps)]
        if self.kind in ("scaled_add", "interpolate"):
            name, value = ("scale", 1.0) if self.kind == "scaled_add" else ("beta", 0.5)
            init = nn.initializers.constant(value)
            self.weights = {
                (modality, i): self.param(f"{modality}_{name}_{i}", init, (), jnp.float32)
                for modality in ("text", "image")
                for i in range(1, self.taps)
            }

    def _projections(self) -> Any:
        each = [Dense(self.width, WHOLE, dtype=self.dtype) for _ in range(1 if self.shared else self.taps)]
        return each[0] if self.shared else each

    def record(self, modality: str, taps: tuple[Array, ...]) -> Array:
        """`Z` taps `[B,S,D']` of a tower -> projected `[B,Z,S,D]`."""
        proj = self.text_proj if modality == "text" else self.image_proj
        if self.shared:
            return proj(jnp.stack(taps, 1))
        return jnp.stack([dense(tap) for dense, tap in zip(proj, taps, strict=True)], 1)

    def typed(self, record: Array, row: int) -> Array:
        """The record plus a row of the type table: 0 text, 1 image, 2 second image."""
        return record.astype(self.dtype) + self.token_type(jnp.int32(row))

    def first(self, modality: str, record: Array) -> Array:
        """Input of the first layer: `LN(tap)`."""
        return self._norms(modality)[0](record[:, 0])

    def next(self, modality: str, layer: int, record: Array, z_bsd: Array) -> Array:
        """Input of layer `layer >= 1` (from 0): its tap joined to the output of the layer before."""
        if self.kind == "none":
            return z_bsd
        tap = record[:, layer]
        if self.kind != "add":
            weight = self.weights[modality, layer].astype(self.dtype)
            scaled = self.kind == "scaled_add"
            tap, z_bsd = (weight * tap, z_bsd) if scaled else ((1 - weight) * tap, weight * z_bsd)
        return self._norms(modality)[layer](tap + z_bsd)

    def _norms(self, modality: str) -> Any:
        return self.text_norm if modality == "text" else self.image_norm


class BridgeFusion(nn.Module):
    """Bridge, cross-modal layers and pooling; owns `bridge`, `cross`, `text_pool`, `image_pool`.

    `options` are those of `pair_options.CROSS` without None; `taps` is the number of states that a record holds.
    """

    options: Mapping[str, Any]
    taps: int
    width: int
    images: int
    dtype: Dtype = jnp.float32
    remat: str | None = None

    def setup(self) -> None:
        options = self.options
        sizes: dict[str, Any] = dict(taps=self.taps, width=self.width, images=self.images)
        self.bridge = Bridge(
            options["bridge"],
            **sizes,
            shared=options["share_projection"],
            eps=options["eps"],
            dtype=self.dtype,
        )
        names = ("depth", "heads", "mlp", "order", "eps", "dropout", "attn_dropout")
        layers = {name: options[name] for name in names}
        self.cross = CrossEncoder(**layers, dtype=self.dtype, remat=self.remat)
        self.text_pool = Dense(self.width, WHOLE, dtype=self.dtype)
        self.image_pool = Dense(self.width, WHOLE, dtype=self.dtype)

    def prime_text(self, text: Encoded, text_mask: Array, *, train: bool = False) -> Primed:
        """What the first layer makes of texts alone."""
        record = self.bridge.typed(text.record, 0)
        return self.cross.prime_text(self.bridge.first("text", record), text_mask, record, train=train)

    def prime_image(self, image: Encoded, *, image_type: int, train: bool = False) -> Primed:
        """What the first layer makes of images alone."""
        if not 1 <= image_type <= self.images:
            raise ValueError(
                f"image_type={image_type}: a model of images={self.images} has types 1..{self.images}"
            )
        record = self.bridge.typed(image.record, image_type)
        return self.cross.prime_image(self.bridge.first("image", record), record, train=train)

    def join(
        self,
        text: Primed,
        text_mask: Array,
        image: Primed,
        *,
        image_index: Array | None,
        train: bool,
        first: bool,
    ) -> Fused:
        """All layers and the pooled first tokens; with `first` nothing else of the last layer."""
        z_text, z_image, qk = self.cross.join(
            text, text_mask, gather(image, image_index), bridge=self.bridge.next, first=first, train=train
        )
        ends = self.text_pool(z_text[:, 0]), self.image_pool(z_image[:, 0])
        pooled = jnp.concatenate([jnp.tanh(x) for x in ends], -1)
        return Fused(None, None, pooled, None) if first else Fused(z_text, z_image, pooled, qk)
