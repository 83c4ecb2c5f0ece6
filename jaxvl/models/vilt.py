"""ViLT (Kim et al., 2021; `dandelin/ViLT`): words and patches in one transformer. The teacher of a dual encoder.

Patches stand row by row, always: the original draws them in random order, which would make maps of image tokens useless
to a student. Positions of another grid are resized when weights are imported.

Shape legend: `B` batch (`Bt` texts that share images), `M` text tokens, `P` image tokens (class token + patches), `D`
width, `H` heads, `K` head dim, `A` classes, `V` vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.bert import Embeddings, MLMHead, padding_mask
from jaxvl.models.bridge import copied_last
from jaxvl.models.layers import WHOLE, Dense, Dtype, Embedding, LayerNorm, rematerialised, run_layers
from jaxvl.models.pair_heads import ClassHead, check_rows, side_by_side
from jaxvl.models.pair_options import VISION_ARCHES, choose
from jaxvl.models.vit import ImageTokens, ViTBlock
from jaxvl.types import CrossQK, Encoded, Fused


class ViLT(nn.Module):
    """Embeddings of both modalities, `depth` pre-norm blocks over their concatenation, and heads.

    Attributes:
      vocab_size, width, heads, mlp, depth, image_size, patch, max_positions: sizes; the defaults are those of ViLT-B/32
        at 224 pixels.
      eps: of the layer norms: 1e-12 as Hugging Face's, 1e-6 in the blocks of the original.
      dropout, attn_dropout: of states, and of attention probabilities.
      classes: `A` of the class head; None = no class head.
      images: 1, or 2 if a class head reads two images with one text.
      head_scale: hidden units of the class head, in multiples of `width`.
      mlm_tied: whether the vocabulary head uses the word table.
      dtype: type of the computation; parameters, norms, softmax and logits are float32.
      remat: None, "full" or "names": which activations are recomputed, block by block.
      scan: blocks as one `lax.scan` (short compilation) instead of unrolled (faster on CPU).
    """

    vocab_size: int = 30522
    width: int = 768
    heads: int = 12
    mlp: int = 3072
    depth: int = 12
    image_size: int = 224
    patch: int = 32
    max_positions: int = 40
    eps: float = 1e-12
    dropout: float = 0.1
    attn_dropout: float = 0.0
    classes: int | None = None
    images: int = 1
    head_scale: int = 2
    mlm_tied: bool = True
    dtype: Dtype = jnp.float32
    remat: str | None = None
    scan: bool = False

    contrastive = False  # there are no embeddings of one modality
    text_arch = "vilt"
    renames = ()

    def __post_init__(self) -> None:
        choose("model.images", self.images, (1, 2))
        super().__post_init__()

    @property
    def image_tokens(self) -> int:
        """`P`: class token and patches."""
        return 1 + (self.image_size // self.patch) ** 2

    @property
    def head_count(self) -> int:
        """Heads of the attention."""
        return self.heads

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Mean that pixels in 0..1 are normalised with."""
        return VISION_ARCHES["vilt"].mean

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """Deviation that pixels in 0..1 are normalised with."""
        return VISION_ARCHES["vilt"].std

    def setup(self) -> None:
        kw: dict[str, Any] = dict(dropout=self.dropout, dtype=self.dtype, eps=self.eps)
        self.embeddings = Embeddings(self.vocab_size, self.width, self.max_positions, **kw)
        rows = 1 + self.images
        self.modality = Embedding(rows, self.width, dtype=self.dtype, init_table=copied_last(rows))
        self.tokens = ImageTokens(self.image_size, self.patch, self.width, dtype=self.dtype)
        nn.share_scope(self, self.tokens)
        self.drop = nn.Dropout(self.dropout)
        self.norm = LayerNorm(self.eps, dtype=self.dtype)
        self.pool = Dense(self.width, WHOLE, dtype=self.dtype)
        self.itm_head = Dense(2, WHOLE)
        self.mlm_head = MLMHead(dtype=self.dtype, eps=self.eps, tied=self.mlm_tied)
        if self.classes is not None:
            self.class_head = ClassHead(self.width * self.head_scale, self.classes)

    def encode_image(self, image: Array, *, train: bool = False) -> Encoded:
        """Normalised pixels `[B,H,W,3]` -> embedded tokens, before the modality row: only a record.

        Raises:
          ValueError: another size than `image_size`.
        """
        return Encoded(self.drop(self.tokens(image), deterministic=not train)[:, None])

    def encode_text(self, text: Array, text_mask: Array, *, train: bool = False) -> Encoded:
        """Ids `[B,M]` i32 and mask `[B,M]` bool (True = token) -> embedded tokens, before the modality row.

        Raises:
          ValueError: more tokens than the model has positions.
        """
        return Encoded(self.embeddings(text, text_mask, train=train)[:, None])

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
        """Texts and images meet: all blocks.

        Args:
          text: of `encode_text`, `Bt` rows.
          text_mask: `[Bt,M]` bool, True = token.
          image: of `encode_image`, `B` rows.
          image_type: 1, or 2 for the second image of a pair.
          image_index: `[Bt]` i32, the image row of each text row; None = its own row (`B == Bt`).
          train: whether dropout is active.
          tokens: "all", or "class": only what `pooled` needs, in the last block one token.

        Raises:
          ValueError: the numbers of texts and images differ and `image_index` is None, or an unknown type or `tokens`.
        """
        check_rows(text.record, image.record, image_index)
        choose("tokens", tokens, ("all", "class"))
        choose("image_type", image_type, tuple(range(1, self.images + 1)))
        images = image.record if image_index is None else jnp.take(image.record, image_index, axis=0)
        x_text, x_image = (x[:, 0].astype(self.dtype) for x in (text.record, images))
        rows = self.modality(jnp.array([0, image_type]))
        x = jnp.concatenate([x_text + rows[0], x_image + rows[1]], 1)
        mask = jnp.concatenate([text_mask.astype(bool), jnp.ones(x_image.shape[:2], bool)], 1)
        x, (q, k, _) = self._blocks(x, padding_mask(mask), train, tokens == "class")
        x = self.norm(x)
        pooled = jnp.tanh(self.pool(x[:, 0]))
        if tokens == "class":
            return Fused(None, None, pooled, None)
        cut = x_text.shape[1]
        qk = CrossQK(text_q=q[:, :cut], image_k=k[:, cut:], image_q=q[:, cut:], text_k=k[:, :cut])
        return Fused(x[:, :cut], x[:, cut:], pooled, qk)

    @nn.compact
    def _blocks(self, x: Array, mask: Array, train: bool, first: bool) -> Any:
        """`[B,M+P,D]` -> the same (or its first token), and queries, keys and values of the last block."""
        names = ("heads", "mlp", "dropout", "attn_dropout", "dtype", "eps")
        block = {name: getattr(self, name) for name in names} | {"train": train}
        run: dict[str, Any] = dict(name="blocks", scan=self.scan, remat=self.remat)
        x = run_layers(ViTBlock, [block] * (self.depth - 1), x, mask, **run)
        last = rematerialised(ViTBlock, self.remat)(
            **block, qkv=True, first=first, name=f"blocks_{self.depth - 1}"
        )
        return last(x, mask)

    def match_logits(self, fused: Fused) -> Array:
        """`[B,2]` f32; column 1 = the text describes the image."""
        return self.itm_head(fused.pooled)

    def mlm_logits(self, states: Array) -> Array:
        """States `[...,D]` of text -> vocabulary logits `[...,V]` f32."""
        return self.mlm_head(states, self.embeddings.word)

    def class_logits(self, pooled: tuple[Array, ...], *, train: bool = False) -> Array:
        """`[B,A]` f32 from `Fused.pooled` of each of `images` images; `train` changes nothing.

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
            self.match_logits(fused)
            self.mlm_logits(encoded[0].record[:, 0, :1])
            if self.classes is not None:
                self.class_logits((fused.pooled,) * self.images)
        return fused
