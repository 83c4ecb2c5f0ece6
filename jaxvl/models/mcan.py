"""MCAN (Yu et al., "Deep Modular Co-Attention Networks", CVPR 2019; `MILVLG/openvqa`), and a loss network for it.

Words go through an LSTM and self-attention, regions through self-attention that the words guide; each side is pooled to
one vector, and their normalised sum is classified. The defaults are those of MCAN-small.

Shape legend: `B` images, `T` texts, `P` pairs, `R` regions, `L` words, `F` feature width, `D` width, `C` classes,
`V` vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.layers import VOCABULARY, Dtype, Embedding
from jaxvl.models.mcan_layers import LSTM, SA, SGA, AttFlat, UnbiasedNorm, linear, masked_mean

words_init = nn.initializers.normal(1.0)  # PyTorch's for embeddings
HEAD_WIDTH = 128  # of the loss network


class MCANOutput(NamedTuple):
    """What MCAN makes of `P` pairs.

    Attributes:
      logits: `[P,C]` f32, of independent answers.
      fused: `[P,flat]`, what the classifier reads.
      image, language: `[P,flat]`, the pooled regions and words.
      taps: three `[P,D]` f32, means over the regions after a third, two thirds and all of the decoder.
    """

    logits: Array
    fused: Array
    image: Array
    language: Array
    taps: tuple[Array, ...]


class MCAN(nn.Module):
    """See the module.

    Attributes:
      words: size `V` of the vocabulary, PAD included.
      classes: `C`, answers.
      feat_dim, width, heads, mlp, depth, flat, flat_mlp, word_dim: sizes.
      dropout: everywhere.
      masks: "each" row of a batch has dropout masks of its own, or one is "shared" by all (`mcan_layers`).
      dtype: type of the computation; parameters, norms, softmax and logits are float32.
    """

    words: int
    classes: int
    feat_dim: int = 2048
    width: int = 512
    heads: int = 8
    mlp: int = 2048
    depth: int = 6
    flat: int = 1024
    flat_mlp: int = 512
    dropout: float = 0.1
    word_dim: int = 300
    masks: str = "each"
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        if self.depth < 1:
            raise ValueError(f"model.depth={self.depth}: must be at least 1")
        kw: dict[str, Any] = dict(dropout=self.dropout, masks=self.masks, dtype=self.dtype)
        block: dict[str, Any] = dict(width=self.width, heads=self.heads, mlp=self.mlp, **kw)
        pool: dict[str, Any] = dict(width=self.width, hidden=self.flat_mlp, features=self.flat, **kw)
        self.word_embedding = Embedding(self.words, self.word_dim, dtype=self.dtype, init_table=words_init)
        self.lstm = LSTM(self.word_dim, self.width, dtype=self.dtype)
        self.image_proj = linear(self.feat_dim, self.width, dtype=self.dtype)
        self.encoder = [SA(**block) for _ in range(self.depth)]
        self.decoder = [SGA(**block) for _ in range(self.depth)]
        self.flat_image, self.flat_text = AttFlat(**pool), AttFlat(**pool)
        self.norm = UnbiasedNorm(dtype=self.dtype)
        self.class_head = linear(self.flat, self.classes, VOCABULARY, dtype=self.dtype, out_dtype=jnp.float32)

    def encode_text(self, text: Array, text_mask: Array, *, train: bool = False) -> Array:
        """Words after all self-attention; it depends on nothing but the text.

        Args:
          text: word ids `[T,L]` i32, padding behind.
          text_mask: `[T,L]` bool, True = word.
          train: whether dropout is active.

        Returns:
          `[T,L,D]`.
        """
        y = self.lstm(self.word_embedding(text))
        for layer in self.encoder:
            y = layer(y, text_mask, train=train)
        return y

    def answer(
        self,
        regions: Array,
        region_mask: Array,
        text_states: Array,
        text_mask: Array,
        *,
        image_index: Array | None = None,
        text_index: Array | None = None,
        train: bool = False,
    ) -> MCANOutput:
        """Pairs of images and texts.

        With the indices, what depends on one side only (projection and first self-attention of regions; keys, values
        and pooling of the words) is computed once for it, however many pairs it is in.

        Args:
          regions: features `[B,R,F]`.
          region_mask: `[B,R]` bool, True = region.
          text_states: `[T,L,D]` of `encode_text`.
          text_mask: `[T,L]` bool, True = word.
          image_index: `[P]` i32, the image of each pair; None = pair `p` has image `p`.
          text_index: `[P]` i32, the text of each pair; None = pair `p` has text `p`.
          train: whether dropout is active.
        """
        x, depth = self.decoder[0].look(self.image_proj(regions), region_mask, train=train), self.depth
        x, mask = _rows(x, image_index), _rows(region_mask, image_index)
        y_mask = _rows(text_mask, text_index)
        states = []
        for i, layer in enumerate(self.decoder):
            x = layer.look(x, mask, train=train) if i else x
            seen = jax.tree.map(lambda part: _rows(part, text_index), layer.guidance(text_states))
            x = layer.follow(x, seen, y_mask, train=train)
            states.append(x)
        image = self.flat_image(x, mask, train=train)
        language = _rows(self.flat_text(text_states, text_mask, train=train), text_index)
        fused = self.norm(language + image)
        taps = tuple(masked_mean(states[math.ceil(depth * k / 3) - 1], mask) for k in (1, 2, 3))
        return MCANOutput(self.class_head(fused), fused, image, language, taps)

    def __call__(
        self, regions: Array, region_mask: Array, text: Array, text_mask: Array, *, train: bool = False
    ) -> MCANOutput:
        """Image `i` with text `i`: `answer` of `encode_text`."""
        states = self.encode_text(text, text_mask, train=train)
        return self.answer(regions, region_mask, states, text_mask, train=train)

    @nn.nowrap
    def loss_net(self) -> LossNet:
        """The loss network that fits this model; its parameters are its own."""
        return LossNet(self.width, self.flat)


class LossNet(nn.Module):
    """Predicts the loss of a pair from MCAN's states (Yoo and Kweon, "Learning Loss for Active Learning", CVPR 2019).

    Each of the taps and the fused vector goes through a layer of 128 with ReLU, all of them together through one unit.
    """

    width: int
    flat: int
    taps: int = 3

    def setup(self) -> None:
        inputs = (self.width,) * self.taps + (self.flat,)
        self.tap = [linear(size, HEAD_WIDTH) for size in inputs]
        self.out = linear(HEAD_WIDTH * len(inputs), 1)

    def __call__(self, taps: tuple[Array, ...], fused: Array) -> Array:
        """Taps `[P,width]` and `fused [P,flat]` -> `[P]` f32."""
        parts = [nn.relu(layer(x)) for layer, x in zip(self.tap, (*taps, fused), strict=True)]
        return self.out(jnp.concatenate(parts, axis=-1))[:, 0]


def _rows(x: Array, index: Array | None) -> Array:
    return x if index is None else jnp.take(x, index, axis=0)
