"""Two encoders joined by a bridge: each image and text is encoded once, a small cross-modal encoder reads the upper
layers of both (Huang and Guo, "Multi-modal Fusion Method Based on Dual Encoders", Computer Science 51(9), 2024, after
BridgeTower, Xu et al., 2023).

Shape legend: `B` batch (`Bt` texts that share images), `M` text tokens, `P` image tokens (class token + patches), `S`
either, `D` width, `Z` taps, `H` heads, `K` head dim, `W` width of what heads read, `A` classes, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from jax import Array

from jaxvl.models import pair_options
from jaxvl.models.bert import MLMHead
from jaxvl.models.bridge import BridgeFusion
from jaxvl.models.cross import Primed
from jaxvl.models.layers import FEATURES, WHOLE, Dense, Dtype
from jaxvl.models.pair_heads import (
    EPS,
    ClassHead,
    Shallow,
    Virt,
    check_rows,
    side_by_side,
    unit,
    virtual_attention,
)
from jaxvl.models.pair_options import TEXT_ARCHES, VISION_ARCHES
from jaxvl.models.towers import TextTower, Tower, VisionTower
from jaxvl.types import CrossQK, Encoded, Fused

# Prefixes of a ViLT -> those of the two towers of arch "vilt".
TEXT_FROM_VILT = {"embeddings": "embeddings", "modality": "embeddings/modality", "norm": "norm"}
IMAGE_FROM_VILT = {name: name for name in ("cls_token", "pos_embed", "patch_embed", "modality", "norm")}


class BridgeTower(nn.Module):
    """Text tower, vision tower, bridge, cross-modal encoder and heads; defaults are the paper's sizes.

    Attributes:
      vocab_size, width, heads, mlp: sizes of everything, where `text`, `vision` and `cross` do not say otherwise.
      image_size: pixels of the square image.
      text: `arch` "bert", "roberta" or "vilt", `depth`, `max_positions`, `eps`, `dropout`, `attn_dropout`, `width`,
        `heads`, `mlp` of the text tower (`pair_options.TEXT`).
      vision: `arch` "vit", "clip" or "vilt", `depth`, `patch`, `eps`, `width`, `heads`, `mlp` of the vision tower.
      cross: `depth`; `order` of the attentions in a layer, "pre" = to the other modality first, "post" = to itself
        first (BridgeTower's); `bridge` "add", "scaled_add", "interpolate", or "none" = only the first layer reads the
        towers; `mapping` "top", "cross", "cumulative" with `cumulative_scope` (`pair_options.tapped_layers`);
        `share_projection` = one projection per modality for all taps; `heads`, `mlp`, `eps`, `dropout`,
        `attn_dropout` (`pair_options.CROSS`).
      interaction: "bridge"; "shallow" or "virt" have no cross-modal encoder (`pair_heads`).
      embed_dim: width `C` of the contrastive embeddings; temp: their temperature at the start.
      classes: `A` of the class head; None = no class head.
      images: 1, or 2 if a class head reads two images with one text.
      head_scale: hidden units of the class head, in multiples of `2 width`.
      head_dropout: of the class head's input; None = 0.1 with two images, else 0.
      mlm_tied: whether the vocabulary head uses the word table.
      dtype: type of the computation; parameters, norms, softmax and logits are float32.
      remat: None, "full" or "names": which activations are recomputed, block by block.
      scan: tower layers as one `lax.scan` (short compilation) instead of unrolled (faster on CPU).
    """

    vocab_size: int = 30522
    width: int = 768
    heads: int = 12
    mlp: int = 3072
    image_size: int = 224
    text: Mapping[str, Any] = field(default_factory=dict)
    vision: Mapping[str, Any] = field(default_factory=dict)
    cross: Mapping[str, Any] = field(default_factory=dict)
    interaction: str = "bridge"
    embed_dim: int = 256
    temp: float = 0.07
    classes: int | None = None
    images: int = 1
    head_scale: int = 1
    head_dropout: float | None = None
    mlm_tied: bool = False
    dtype: Dtype = jnp.float32
    remat: str | None = None
    scan: bool = False

    def __post_init__(self) -> None:
        # Frozen mappings make the module hashable, so that it can be a static argument of jit.
        for name in ("text", "vision", "cross"):
            given = getattr(self, name)
            pair_options.merged(name, given)
            setattr(self, name, FrozenDict(given))
        pair_options.choose("model.interaction", self.interaction, ("bridge", "shallow", "virt"))
        pair_options.choose("model.images", self.images, (1, 2))
        super().__post_init__()

    @property
    def contrastive(self) -> bool:
        """Whether there are contrastive embeddings."""
        return True

    @property
    def image_tokens(self) -> int:
        """`P`: class token and patches."""
        return 1 + (self.image_size // self._options("vision")["patch"]) ** 2

    @property
    def head_count(self) -> int:
        """Heads of the cross-modal attention."""
        return self._options("cross")["heads"]

    @property
    def text_arch(self) -> str:
        """Architecture of the text tower: what its tokens are."""
        return self._options("text")["arch"]

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Mean that pixels in 0..1 are normalised with."""
        return VISION_ARCHES[self._options("vision")["arch"]].mean

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """Deviation that pixels in 0..1 are normalised with."""
        return VISION_ARCHES[self._options("vision")["arch"]].std

    @property
    def renames(self) -> tuple[tuple[str, str], ...]:
        """`(source, target)` prefixes for `transfer.adapt` that start towers of arch "vilt" from a ViLT; else empty."""
        text, vision = self._options("text"), self._options("vision")
        if (text["arch"], vision["arch"]) != ("vilt", "vilt"):
            return ()
        pairs = [(old, f"text_encoder/{new}") for old, new in TEXT_FROM_VILT.items()]
        pairs += [(old, f"visual_encoder/{new}") for old, new in IMAGE_FROM_VILT.items()]
        for tower, depth in (("text_encoder", text["depth"]), ("visual_encoder", vision["depth"])):
            pairs += [(f"blocks_{i}", f"{tower}/blocks_{i}") for i in range(depth)]
        return tuple(pairs)

    @nn.nowrap
    def _options(self, name: str) -> dict[str, Any]:
        """The mapping `name` with all defaults filled in."""
        options = pair_options.merged(name, getattr(self, name))
        for key in ("width", "heads", "mlp"):
            if key in options and options[key] is None:
                options[key] = getattr(self, key)
        if name == "text":
            rows, eps = TEXT_ARCHES[options["arch"]]
            options["max_positions"] = options["max_positions"] or rows
            options["eps"] = eps if options["eps"] is None else options["eps"]
        if name == "vision" and options["eps"] is None:
            options["eps"] = VISION_ARCHES[options["arch"]].eps
        return options

    @nn.nowrap
    def _taps(self, depth: int) -> tuple[tuple[int, ...], ...]:
        cross = self._options("cross")
        if self.interaction != "bridge" or cross["bridge"] == "none":
            return ((depth,),)
        scope = cross["cumulative_scope"]
        return pair_options.tapped_layers(depth, cross["depth"], mapping=cross["mapping"], scope=scope)

    def setup(self) -> None:
        run: dict[str, Any] = dict(dtype=self.dtype, remat=self.remat, scan=self.scan)
        text, vision = self._options("text"), self._options("vision")
        self.text_encoder = TextTower(
            vocab_size=self.vocab_size, taps=self._taps(text["depth"]), **text, **run
        )
        self.visual_encoder = VisionTower(
            image_size=self.image_size, taps=self._taps(vision["depth"]), **vision, **run
        )
        self._setup_interaction(text, vision)
        self.itm_head = Dense(2, WHOLE)
        self.mlm_head = MLMHead(dtype=self.dtype, eps=EPS, tied=self.mlm_tied)
        self.text_proj = Dense(self.embed_dim, FEATURES)
        self.vision_proj = Dense(self.embed_dim, FEATURES)
        if self.classes is not None:
            dropout = (0.1 if self.images == 2 else 0.0) if self.head_dropout is None else self.head_dropout
            self.class_head = ClassHead(2 * self.width * self.head_scale, self.classes, dropout=dropout)

    def _setup_interaction(self, text: dict[str, Any], vision: dict[str, Any]) -> None:
        if self.interaction == "shallow":
            self.shallow = Shallow(self.width)
        elif self.interaction == "virt":
            if (text["width"], text["heads"]) != (vision["width"], vision["heads"]):
                raise ValueError("interaction='virt' needs towers of one width and number of heads")
            self.virt = Virt(self.width)
        else:
            taps = len(self._taps(text["depth"]))
            kw: dict[str, Any] = dict(
                width=self.width, images=self.images, dtype=self.dtype, remat=self.remat
            )
            self.fusion = BridgeFusion(FrozenDict(self._options("cross")), taps, **kw)
            nn.share_scope(self, self.fusion)

    def encode_image(self, image: Array, *, train: bool = False) -> Encoded:
        """Normalised pixels `[B,H,W,3]`; `train` changes nothing, there is no dropout.

        Raises:
          ValueError: another size than `image_size`.
        """
        del train
        return self._encoded("image", self.visual_encoder(image))

    def encode_text(self, text: Array, text_mask: Array, *, train: bool = False) -> Encoded:
        """Ids `[B,M]` i32 and mask `[B,M]` bool (True = token).

        Raises:
          ValueError: more tokens than the tower has positions.
        """
        return self._encoded("text", self.text_encoder(text, text_mask.astype(bool), train=train))

    def _encoded(self, modality: str, tower: Tower) -> Encoded:
        """The record is what `fuse` reads: projected taps; last state; or that with merged queries, keys, values."""
        if self.interaction == "bridge":
            record = self.fusion.bridge.record(modality, tower.taps)
        elif self.interaction == "shallow":
            record = tower.last[:, None]
        else:
            merged = [x.reshape(tower.last.shape) for x in tower.qkv]
            record = jnp.stack([tower.last, *merged], 1)
        return Encoded(record, tower.last, tower.qkv)

    def prime_text(self, text: Encoded, text_mask: Array, *, train: bool = False) -> Primed:
        """What the first cross-modal layer makes of texts alone (`interaction="bridge"`)."""
        return self.fusion.prime_text(text, text_mask.astype(bool), train=train)

    def prime_image(self, image: Encoded, *, image_type: int = 1, train: bool = False) -> Primed:
        """What the first cross-modal layer makes of images alone; `image_type` 2 = second image of a pair."""
        return self.fusion.prime_image(image, image_type=image_type, train=train)

    def join(
        self,
        text: Primed,
        text_mask: Array,
        image: Primed,
        *,
        image_index: Array | None = None,
        train: bool = False,
        tokens: str = "all",
    ) -> Fused:
        """The cross-modal encoder from primed texts and images; arguments as in `fuse`."""
        check_rows(text.x, image.x, image_index)
        pair_options.choose("tokens", tokens, ("all", "class"))
        kw: dict[str, Any] = dict(image_index=image_index, train=train, first=tokens == "class")
        return self.fusion.join(text, text_mask.astype(bool), image, **kw)

    def fuse(
        self,
        text: Encoded,
        text_mask: Array,
        image: Encoded,
        *,
        image_type: int = 1,
        image_index: Array | None = None,
        train: bool = False,
        tokens: str = "all",
    ) -> Fused:
        """Texts and images meet.

        Args:
          text: of `encode_text`, `Bt` rows, or only its record.
          text_mask: `[Bt,M]` bool, True = token.
          image: of `encode_image`, `B` rows, or only its record.
          image_type: 1, or 2 for the second image of a pair.
          image_index: `[Bt]` i32, the image row of each text row; None = its own row (`B == Bt`). What depends on the
            image alone is computed once per image.
          train: whether dropout is active.
          tokens: "all", or "class": only what `pooled` needs, in the last layer one token of each modality.

        Raises:
          ValueError: the numbers of texts and images differ and `image_index` is None, or an unknown type or `tokens`.
        """
        if self.interaction == "bridge":
            primed = self.prime_text(text, text_mask, train=train)
            primed_image = self.prime_image(image, image_type=image_type, train=train)
            kw: dict[str, Any] = dict(image_index=image_index, train=train, tokens=tokens)
            return self.join(primed, text_mask, primed_image, **kw)
        check_rows(text.record, image.record, image_index)
        pair_options.choose("tokens", tokens, ("all", "class"))
        images = image.record if image_index is None else jnp.take(image.record, image_index, axis=0)
        texts, images, mask = (
            text.record.astype(self.dtype),
            images.astype(self.dtype),
            text_mask.astype(bool),
        )
        if self.interaction == "shallow":
            states = texts[:, 0], images[:, 0]
            pooled = self.shallow(states[0][:, 0], states[1][:, 0])
        else:
            states = virtual_attention(texts, mask, images, heads=self._options("text")["heads"])
            pooled = self.virt(states[0], mask, states[1])
        if tokens == "class":
            return Fused(None, None, pooled, None)
        return Fused(states[0], states[1], pooled, None)

    def uni_qk(self, text: Encoded, image: Encoded) -> CrossQK:
        """Queries and keys of the towers' last layers, which never saw the other modality: attention simulated.

        Raises:
          ValueError: only records are given, or the towers' heads do not match.
        """
        if text.qkv is None or image.qkv is None:
            raise ValueError("uni_qk: stored records hold no queries and keys; encode text and image")
        if text.qkv[0].shape[2:] != image.qkv[0].shape[2:]:
            shapes = text.qkv[0].shape[2:], image.qkv[0].shape[2:]
            raise ValueError(f"uni_qk: the towers have other heads (count, dim): {shapes[0]} and {shapes[1]}")
        return CrossQK(text.qkv[0], image.qkv[1], image.qkv[0], text.qkv[1])

    def image_embed(self, image: Encoded) -> Array:
        """Contrastive embeddings `[B,C]` f32 of unit norm."""
        return unit(self.vision_proj(_last(image)[:, 0]))

    def text_embed(self, text: Encoded) -> Array:
        """Contrastive embeddings `[B,C]` f32 of unit norm."""
        return unit(self.text_proj(_last(text)[:, 0]))

    @nn.compact  # not in setup: parameters without `temp` must still run the other methods
    def temperature(self) -> Array:
        """Scalar f32 by which contrastive similarities are divided. The optimiser keeps it in its range."""
        return self.param("temp", nn.initializers.constant(self.temp), (), jnp.float32)

    def match_logits(self, fused: Fused) -> Array:
        """`[B,2]` f32; column 1 = the text describes the image."""
        return self.itm_head(fused.pooled)

    def mlm_logits(self, states: Array) -> Array:
        """States `[...,D]` of text -> vocabulary logits `[...,V]` f32."""
        return self.mlm_head(states, self.text_encoder.embeddings.word)

    def class_logits(self, pooled: tuple[Array, ...], *, train: bool = False) -> Array:
        """`[B,A]` f32 from `Fused.pooled` of each of `images` images.

        Raises:
          ValueError: the model has no class head, or other than `images` entries.
        """
        joined = side_by_side(pooled, classes=self.classes, images=self.images)
        return self.class_head(joined, train=train)

    def __call__(
        self,
        image: Array,
        text: Array,
        text_mask: Array,
        *,
        image2: Array | None = None,
        train: bool = False,
    ) -> Fused:
        """Aligned pairs, fused; at initialisation it touches every parameter.

        Args:
          image: normalised pixels `[B,H,W,3]`.
          text: ids `[B,M]` i32.
          text_mask: `[B,M]` bool, True = token.
          image2: second image of a pair, whose parameters are those of the first: not read here.
          train: whether dropout is active.
        """
        encoded = self.encode_text(text, text_mask, train=train), self.encode_image(image, train=train)
        fused = self.fuse(encoded[0], text_mask, encoded[1], train=train)
        if self.is_initializing():
            self.text_embed(encoded[0])
            self.image_embed(encoded[1])
            self.temperature()
            self.match_logits(fused)
            assert fused.text is not None
            self.mlm_logits(fused.text[:, :1])  # as wide as the cross-modal layers, not as the text tower
            if self.classes is not None:
                self.class_logits((fused.pooled,) * self.images)
        return fused


def _last(encoded: Encoded) -> Array:
    if encoded.last is None:
        raise ValueError("contrastive embeddings need the last state of a tower, which stored records lack")
    return encoded.last
