"""Hyper-ALBEF: ALBEF (Li et al., 2021; `salesforce/ALBEF`) with a hypergraph branch in its fusion layers (Li, Wu
and Han, "Visual-language Multimodal Pre-training Based on Multi-entity Alignment", Journal of Software).

Shape legend: `B` batch, `M` texts that are fused, `N` answers of a question, `P` image tokens (class token +
patches), `L` text length, `D` width, `C` width of the contrastive embeddings, `V` vocabulary. `hypergraph=None`
is ALBEF, parameter for parameter.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from flax.core import FrozenDict
from jax import Array, lax

from jaxvl.models import transfer
from jaxvl.models.bert import Decoder, MLMHead, TextEncoder
from jaxvl.models.fusion import FusionEncoder
from jaxvl.models.initial import torch_uniform
from jaxvl.models.layers import FEATURES, WHOLE, Axes, Dense, Dtype, unit_columns, unstack_layers
from jaxvl.models.vit import VisionTransformer

VISION = {"patch": 16, "depth": 12, "width": None, "heads": None, "mlp": None}


@struct.dataclass
class Output:
    """What one forward pass over aligned pairs returns; logits and embeddings are float32.

    Attributes:
      image_states: `[B,P,D]`.
      text_states: `[B,L,D]`, before fusion.
      fused: `[B,L,D]`, after fusion.
      image_embed: `[B,C]`, unit norm.
      text_embed: `[B,C]`, unit norm.
      match_logits: `[B,2]`; column 1 = the text describes the image.
      mlm_logits: `[B,L,V]`.
      temperature: scalar of the contrastive loss.
      answer_logits: `[B,N,L,V]`, None without decoder or answers.
    """

    image_states: Array
    text_states: Array
    fused: Array
    image_embed: Array
    text_embed: Array
    match_logits: Array
    mlm_logits: Array
    temperature: Array
    answer_logits: Array | None = None


class HyperALBEF(nn.Module):
    """Image encoder, text encoder, fusion encoder and heads; defaults are the paper's sizes.

    Attributes:
      vocab_size, width, heads, mlp, max_positions: sizes of BERT, shared by text, fusion and decoder.
      text_depth, fusion_depth: BERT layers before and after the modalities meet.
      embed_dim: width `C` of the contrastive embeddings.
      pool: what the contrastive and matching heads read: "cls", the first state, as ALBEF does, or "mean", the mean
        over patches or words. Short runs that start from a sentence encoder need the mean: its first state hardly
        depends on the text.
      dropout, attn_dropout: of the text side; the image encoder has none.
      image_size: pixels of the square image.
      vision: `patch`, `depth`, `width`, `heads`, `mlp` of the image encoder; None = as the text's.
      hypergraph: options of the hypergraph branch (`jaxvl.models.fusion`), `{}` = all defaults; None = ALBEF.
      decoder_depth: layers of the answer decoder; None = no decoder.
      dtype: type of the computation; parameters, norms, softmax and logits are float32.
      remat: None, "full" or "names": which activations are recomputed, block by block.
      scan: layers as one `lax.scan` (short compilation) instead of unrolled (faster on CPU).
    """

    vocab_size: int = 30522
    width: int = 768
    heads: int = 12
    mlp: int = 3072
    text_depth: int = 6
    fusion_depth: int = 6
    max_positions: int = 512
    embed_dim: int = 256
    pool: str = "cls"
    dropout: float = 0.1
    attn_dropout: float = 0.1
    image_size: int = 256
    vision: Mapping[str, Any] = field(default_factory=dict)
    hypergraph: Mapping[str, Any] | None = field(default_factory=dict)
    decoder_depth: int | None = None
    dtype: Dtype = jnp.float32
    remat: str | None = None
    scan: bool = False

    def __post_init__(self) -> None:
        # Frozen mappings make the module hashable, so that it can be a static argument of jit.
        self.vision = FrozenDict(self.vision)
        self.hypergraph = None if self.hypergraph is None else FrozenDict(self.hypergraph)
        if self.pool not in ("cls", "mean"):
            raise ValueError(f"model.pool={self.pool!r}: expected 'cls' or 'mean'")
        super().__post_init__()

    def setup(self) -> None:
        run: dict[str, Any] = dict(dtype=self.dtype, remat=self.remat, scan=self.scan)
        rates: dict[str, Any] = dict(dropout=self.dropout, attn_dropout=self.attn_dropout)
        layer: dict[str, Any] = dict(heads=self.heads, mlp=self.mlp, **rates, **run)
        text: dict[str, Any] = dict(
            vocab_size=self.vocab_size, width=self.width, max_positions=self.max_positions, **layer
        )
        self.visual_encoder = VisionTransformer(
            image_size=self.image_size, out_width=self.width, **self._vision(), **run
        )
        self.text_encoder = TextEncoder(depth=self.text_depth, **text)
        self.fusion_encoder = FusionEncoder(depth=self.fusion_depth, hypergraph=self.hypergraph, **layer)
        self.mlm_head = MLMHead(dtype=self.dtype)
        self.vision_proj = self._head(self.embed_dim, FEATURES)
        self.text_proj = self._head(self.embed_dim, FEATURES)
        self.itm_head = self._head(2, WHOLE)
        if self.decoder_depth is not None:
            self.text_decoder = Decoder(depth=self.decoder_depth, **text)

    def _vision(self) -> dict[str, Any]:
        for key in self.vision:
            if key not in VISION:
                near = difflib.get_close_matches(key, VISION)
                hint = f"did you mean {near[0]!r}?" if near else f"expected some of {sorted(VISION)}"
                raise ValueError(f"model.vision: unknown key {key!r}; {hint}")
        given = {**VISION, **self.vision}
        return {key: getattr(self, key) if value is None else value for key, value in given.items()}

    def _head(self, features: int, axes: Axes) -> Dense:
        init = torch_uniform(self.width)
        return Dense(features, axes, kernel_init=init, bias_init=init, dtype=jnp.float32)

    def encode_image(self, image: Array, *, train: bool = False) -> Array:
        """Normalised pixels `[B,H,W,3]` -> states `[B,P,D]`; `train` changes nothing, there is no dropout."""
        del train
        return self.visual_encoder(image)

    def encode_text(self, text: Array, text_mask: Array, *, train: bool = False) -> Array:
        """Ids `[B,L]` i32 and mask `[B,L]` bool (True = token) -> states `[B,L,D]`."""
        return self.text_encoder(text, text_mask, train=train)

    def fuse(
        self,
        text_states: Array,
        text_mask: Array,
        image_states: Array,
        *,
        image_index: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Texts look at images.

        Args:
          text_states: `[M,L,D]` of `encode_text`.
          text_mask: `[M,L]` bool, True = token.
          image_states: `[B,P,D]` of `encode_image`.
          image_index: `[M]` i32, the image row that each text row looks at; None = its own row (`M == B`). Keys
            and values of an image are computed once however many texts look at it.
          train: whether dropout is active.

        Returns:
          Fused text states `[M,L,D]`.

        Raises:
          ValueError: the numbers of texts and images differ and `image_index` is None.
        """
        return self.fusion_encoder(text_states, text_mask, image_states, image_index, train=train)

    def image_embed(self, image_states: Array) -> Array:
        """States `[B,P,D]` -> contrastive embeddings `[B,C]` f32 of unit norm."""
        return _unit(self.vision_proj(self._pooled(image_states)))

    def text_embed(self, text_states: Array, text_mask: Array) -> Array:
        """States `[B,L,D]` (before fusion) and their mask -> contrastive embeddings `[B,C]` f32 of unit norm."""
        return _unit(self.text_proj(self._pooled(text_states, text_mask)))

    @nn.nowrap
    def _pooled(self, states: Array, mask: Array | None = None) -> Array:
        """`[B,D]`: the first state, or the float32 mean over all after the first where `mask` is True.

        A text that is nothing but its first token has that one.
        """
        if self.pool == "cls":
            return states[:, 0]
        rest = states[:, 1:].astype(jnp.float32)
        if mask is None:
            return rest.mean(1)
        weight = mask[:, 1:, None].astype(jnp.float32)
        count = weight.sum(1)
        mean = (rest * weight).sum(1) / jnp.maximum(count, 1.0)
        return jnp.where(count > 0, mean, states[:, 0])

    def mlm_logits(self, states: Array) -> Array:
        """Fused states `[...,D]` -> vocabulary logits `[...,V]` f32."""
        return self.mlm_head(states, self.text_encoder.embeddings.word)

    def match_logits(self, fused: Array, text_mask: Array) -> Array:
        """Fused states `[M,L,D]` and their mask -> logits `[M,2]` f32; column 1 = the text describes the image."""
        return self.itm_head(self._pooled(fused, text_mask))

    @nn.compact  # not in setup: a momentum copy without `temp` must still run the other methods
    def temperature(self) -> Array:
        """Scalar f32 by which contrastive similarities are divided. The optimiser keeps it in its range."""
        return self.param("temp", nn.initializers.constant(0.07), (), jnp.float32)

    def decode(self, answer: Array, states: Array, states_mask: Array, *, train: bool = False) -> Array:
        """Logits of the next token of every answer, given a question.

        Args:
          answer: ids `[B,N,L]` i32, padded on the right.
          states: fused question states `[B,Lq,D]`.
          states_mask: `[B,Lq]` bool, True = token.
          train: whether dropout is active.

        Returns:
          f32 `[B,N,L,V]`.

        Raises:
          ValueError: the model has no decoder.
        """
        if self.decoder_depth is None:
            raise ValueError("decode: the model has no answer decoder; set model.decoder_depth (paper: 6)")
        return self.text_decoder(answer, states, states_mask, train=train)

    @nn.nowrap
    def embedding_queue(self, rng: Array, size: int) -> nn.LogicallyPartitioned:
        """A queue of `size` random contrastive embeddings, `[C,size]` f32 unit columns, boxed; no parameters."""
        return unit_columns(rng, self.embed_dim, size)

    def __call__(
        self,
        image: Array,
        text: Array,
        text_mask: Array,
        answer: Array | None = None,
        *,
        train: bool = False,
    ) -> Output:
        """Everything the model says about aligned pairs; at initialisation it touches every parameter.

        Args:
          image: normalised pixels `[B,H,W,3]`.
          text: ids `[B,L]` i32.
          text_mask: `[B,L]` bool, True = token.
          answer: ids `[B,N,L]` i32 for the decoder, if there is one.
          train: whether dropout is active.
        """
        image_states = self.encode_image(image, train=train)
        text_states = self.encode_text(text, text_mask, train=train)
        fused = self.fuse(text_states, text_mask, image_states, train=train)
        if answer is None and self.decoder_depth is not None and self.is_initializing():
            answer = text[:, None]
        return Output(
            image_states=image_states,
            text_states=text_states,
            fused=fused,
            image_embed=self.image_embed(image_states),
            text_embed=self.text_embed(text_states, text_mask),
            match_logits=self.match_logits(fused, text_mask),
            mlm_logits=self.mlm_logits(fused),
            temperature=self.temperature(),
            answer_logits=None if answer is None else self.decode(answer, fused, text_mask, train=train),
        )


def _unit(x: Array) -> Array:
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def decoder_renames(depth: int) -> tuple[tuple[str, str], ...]:
    """Where a decoder of `depth` layers starts from: `(source, target)` prefixes for `transfer.adapt`.

    Embeddings and vocabulary head come from the text side, layers from the fusion layers without hypergraph.
    """
    parts = ("attention", "cross_attention", "ffn")
    layers = [f"layers_{i}/{part}" for i in range(depth) for part in parts]
    return (
        ("text_encoder/embeddings", "text_decoder/embeddings"),
        ("mlm_head", "text_decoder/mlm_head"),
        *((f"fusion_encoder/{layer}", f"text_decoder/{layer}") for layer in layers),
    )


def adapt(loaded: Mapping[str, Any], fresh: Mapping[str, Any]) -> tuple[dict[str, Any], transfer.Report]:
    """`transfer.adapt` for `HyperALBEF`: a model with a decoder starts it from the fusion layers of one without.

    Args:
      loaded: unboxed parameters to start from (pre-trained, maybe at another resolution).
      fresh: initialised unboxed parameters.

    Returns:
      Parameters in the structure of `fresh`, and a report.

    Raises:
      ValueError: as `transfer.adapt`.
    """
    needs_decoder = "text_decoder" in fresh and "text_decoder" not in loaded
    decoder = unstack_layers(fresh["text_decoder"]) if needs_decoder else {}
    depth = sum(name.startswith("layers_") for name in decoder)
    return transfer.adapt(loaded, fresh, renames=decoder_renames(depth) if needs_decoder else ())
