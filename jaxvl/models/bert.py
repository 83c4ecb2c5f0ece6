"""BERT's post-norm layers, text encoder, masked-language-model head and answer decoder (Devlin et al., 2019).

Shape legend: `B` batch, `N` answers of a question, `L` text length, `S` length of what cross attention reads,
`D` width, `V` vocabulary. Layer norms use BERT's eps 1e-12; GELU is the exact one.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.initial import zeros
from jaxvl.models.layers import (
    MLP,
    VOCABULARY,
    WHOLE,
    Attention,
    Dense,
    Dtype,
    Embedding,
    LayerNorm,
    batch_major,
    gelu,
    logical,
    run_layers,
)

EPS = 1e-12


def padding_mask(text_mask: Array) -> Array:
    """`text_mask [B,L]` bool, True = token -> attention mask `[B,1,1,L]`."""
    return text_mask[:, None, None, :]


def causal_mask(length: int) -> Array:
    """Attention mask `[1,1,length,length]`: a position sees itself and what precedes it."""
    return jnp.tril(jnp.ones((length, length), bool))[None, None]


class BertAttention(nn.Module):
    """`LN(x + Drop(Attention(x, x_kv)))`; owns `query`, `key`, `value`, `out`, `norm`."""

    heads: int
    dropout: float = 0.1
    attn_dropout: float = 0.1
    train: bool = False
    dtype: Dtype = jnp.float32
    eps: float = EPS

    def setup(self) -> None:
        self.attention = Attention(self.heads, dropout=self.attn_dropout, train=self.train, dtype=self.dtype)
        nn.share_scope(self, self.attention)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)
        self.norm = LayerNorm(self.eps, dtype=self.dtype)

    def __call__(
        self, x_bld: Array, x_kv: Array, mask: Array | None = None, kv_index: Array | None = None
    ) -> Array:
        """`x_bld [B,L,D]`, `x_kv [B',S,D']` -> `[B,L,D]`; `mask` and `kv_index` as in `Attention`."""
        return self.norm(x_bld + self.drop(self.attention(x_bld, x_kv, mask, kv_index)))

    def queries(self, x_bld: Array) -> Array:
        """`[B,L,D] -> [B,L,H,K]`."""
        return self.attention.queries(x_bld)

    def keys_values(self, x_kv: Array) -> tuple[Array, Array]:
        """`[B,S,D] -> ([B,S,H,K], [B,S,H,K])`."""
        return self.attention.keys_values(x_kv)

    def update(
        self, x_bld: Array, q_blhk: Array, k_bshk: Array, v_bshk: Array, mask: Array | None = None
    ) -> Array:
        """A call whose queries, keys and values are there already: `LN(x + Drop(mix(q, k, v)))`."""
        return self.norm(x_bld + self.drop(self.attention.mix(q_blhk, k_bshk, v_bshk, mask)))


class FeedForward(nn.Module):
    """`LN(x + Drop(down(gelu(up(x)))))` with `mlp` hidden units; owns `up`, `down`, `norm`."""

    mlp: int
    dropout: float = 0.1
    train: bool = False
    dtype: Dtype = jnp.float32
    eps: float = EPS

    def setup(self) -> None:
        self.body = MLP(self.mlp, names=("up", "down"), dtype=self.dtype)
        nn.share_scope(self, self.body)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)
        self.norm = LayerNorm(self.eps, dtype=self.dtype)

    def __call__(self, x: Array) -> Array:
        """`x [..., D] -> [..., D]`."""
        return self.norm(x + self.drop(self.body(x)))


class Embeddings(nn.Module):
    """Word + position + token type 0, layer norm, dropout: `ids [...,L] -> [...,L,D]`.

    With `pad` the positions are RoBERTa's: words are counted from `pad + 1`, padding has position `pad`. With
    `shared` a learnt vector that all tokens share comes on top (ViLT). `types` is the number of token types.
    """

    vocab_size: int
    width: int
    max_positions: int = 512
    dropout: float = 0.1
    dtype: Dtype = jnp.float32
    eps: float = EPS
    types: int = 2
    pad: int | None = None
    shared: bool = False

    def setup(self) -> None:
        self.word = Embedding(self.vocab_size, self.width, axis="vocab", dtype=self.dtype)
        self.position = Embedding(self.max_positions, self.width, dtype=self.dtype)
        self.token_type = Embedding(self.types, self.width, dtype=self.dtype)
        self.norm = LayerNorm(self.eps, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)
        self.modality = Embedding(1, self.width, dtype=self.dtype) if self.shared else None

    def __call__(self, ids: Array, mask: Array | None = None, *, train: bool = False) -> Array:
        """`mask [...,L]` bool, True = token, is needed with `pad`.

        Raises:
          ValueError: the text is longer than the position table.
        """
        length, first = ids.shape[-1], 0 if self.pad is None else self.pad + 1
        if length > self.max_positions - first:
            less = f", of which the first {first} are for padding" if first else ""
            raise ValueError(
                f"text of length {length} exceeds max_positions={self.max_positions}{less}: shorten the text "
                "or build the model with more positions"
            )
        positions = jnp.arange(length)
        if self.pad is not None:
            assert mask is not None
            positions = jnp.cumsum(mask, axis=-1, dtype=jnp.int32) * mask + self.pad
        types = jnp.zeros((length,), jnp.int32)
        x = self.word(ids) + self.position(positions) + self.token_type(types)
        x = self.drop(self.norm(x), deterministic=not train)
        return batch_major(x if self.modality is None else x + self.modality(types))


class BertLayer(nn.Module):
    """Self-attention and feed-forward; owns `attention`, `ffn`.

    With `qkv` it returns its queries, keys and values besides.
    """

    heads: int
    mlp: int
    dropout: float = 0.1
    attn_dropout: float = 0.1
    train: bool = False
    dtype: Dtype = jnp.float32
    eps: float = EPS
    qkv: bool = False

    @nn.compact
    def __call__(self, x_bld: Array, mask: Array | None = None) -> Any:
        """`x_bld [B,L,D]`, `mask` broadcastable to `[B,H,L,L]` -> `[B,L,D]`; `qkv`: and three of `[B,L,H,K]`."""
        kw: dict[str, Any] = dict(dropout=self.dropout, train=self.train, dtype=self.dtype, eps=self.eps)
        attention = BertAttention(self.heads, attn_dropout=self.attn_dropout, name="attention", **kw)
        qkv = attention.queries(x_bld), *attention.keys_values(x_bld)
        x_bld = attention.update(x_bld, *qkv, mask)
        x_bld = batch_major(FeedForward(self.mlp, name="ffn", **kw)(x_bld))
        return (x_bld, qkv) if self.qkv else x_bld


class DecoderLayer(nn.Module):
    """Causal self-attention, cross attention, feed-forward; owns `attention`, `cross_attention`, `ffn`.

    The `N` answers of a question attend to themselves one by one but query the question together, so that
    its keys and values are computed once.
    """

    heads: int
    mlp: int
    dropout: float = 0.1
    attn_dropout: float = 0.1
    train: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x_bnld: Array, states_bsd: Array, states_mask: Array) -> Array:
        """`x_bnld [B,N,L,D]`, `states_bsd [B,S,D]`, `states_mask [B,1,1,S]` -> `[B,N,L,D]`."""
        batch, answers, length, width = x_bnld.shape
        kw: dict[str, Any] = dict(dropout=self.dropout, train=self.train, dtype=self.dtype)
        own = BertAttention(self.heads, attn_dropout=self.attn_dropout, name="attention", **kw)
        cross = BertAttention(self.heads, attn_dropout=self.attn_dropout, name="cross_attention", **kw)
        x = x_bnld.reshape(batch * answers, length, width)
        x = own(x, x, causal_mask(length)).reshape(batch, answers * length, width)
        x = FeedForward(self.mlp, name="ffn", **kw)(cross(x, states_bsd, states_mask))
        return batch_major(x.reshape(x_bnld.shape))


class MLMHead(nn.Module):
    """Vocabulary logits from hidden states; owns `dense`, `norm`, `bias`, and `decoder` unless `tied` to the words."""

    dtype: Dtype = jnp.float32
    eps: float = EPS
    tied: bool = True

    @nn.compact
    def __call__(self, x: Array, word: Embedding) -> Array:
        """`x [...,D]`, table `word` of `V` rows -> float32 logits `[...,V]`."""
        x = gelu(Dense(x.shape[-1], WHOLE, dtype=self.dtype, name="dense")(x))
        x = LayerNorm(self.eps, dtype=self.dtype, name="norm")(x)
        bias = self.param("bias", logical(zeros, word.axis), (word.size,), jnp.float32)
        if self.tied:
            return word.attend(x) + bias
        kw: dict[str, Any] = dict(use_bias=False, dtype=self.dtype, out_dtype=jnp.float32, name="decoder")
        return Dense(word.size, VOCABULARY, **kw)(x) + bias


class TextEncoder(nn.Module):
    """Embeddings and `depth` layers; owns `embeddings`, `layers_i`."""

    vocab_size: int
    width: int
    depth: int
    heads: int
    mlp: int
    max_positions: int = 512
    dropout: float = 0.1
    attn_dropout: float = 0.1
    dtype: Dtype = jnp.float32
    remat: str | None = None
    scan: bool = False

    def setup(self) -> None:
        self.embeddings = Embeddings(
            self.vocab_size, self.width, self.max_positions, dropout=self.dropout, dtype=self.dtype
        )

    @nn.compact
    def __call__(self, text: Array, text_mask: Array, *, train: bool = False) -> Array:
        """`text [B,L]` i32, `text_mask [B,L]` bool (True = token) -> states `[B,L,D]`."""
        layer = _layer_kwargs(self, train)
        x_bld = self.embeddings(text, train=train)
        mask = padding_mask(text_mask)
        return run_layers(
            BertLayer, [layer] * self.depth, x_bld, mask, name="layers", scan=self.scan, remat=self.remat
        )


class Decoder(nn.Module):
    """Causal language model over answers that reads question states.

    Owns `embeddings`, `layers_i`, `mlm_head`.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    mlp: int
    max_positions: int = 512
    dropout: float = 0.1
    attn_dropout: float = 0.1
    dtype: Dtype = jnp.float32
    remat: str | None = None
    scan: bool = False

    def setup(self) -> None:
        self.embeddings = Embeddings(
            self.vocab_size, self.width, self.max_positions, dropout=self.dropout, dtype=self.dtype
        )
        self.mlm_head = MLMHead(dtype=self.dtype)

    @nn.compact
    def __call__(self, answer: Array, states: Array, states_mask: Array, *, train: bool = False) -> Array:
        """Logits of the next token at every position.

        Answers are padded on the right; causality keeps padding out of every valid position, so no answer
        mask is needed.

        Args:
          answer: ids `[B,N,L]` i32.
          states: question states `[B,S,D]`, read by all `N` answers of a question.
          states_mask: `[B,S]` bool, True = token.
          train: whether dropout is active.

        Returns:
          float32 `[B,N,L,V]`.
        """
        layer = _layer_kwargs(self, train)
        x_bnld = run_layers(
            DecoderLayer,
            [layer] * self.depth,
            self.embeddings(answer, train=train),
            states,
            padding_mask(states_mask),
            name="layers",
            scan=self.scan,
            remat=self.remat,
        )
        return self.mlm_head(x_bnld, self.embeddings.word)


def _layer_kwargs(encoder: TextEncoder | Decoder, train: bool) -> dict[str, Any]:
    names = ("heads", "mlp", "dropout", "attn_dropout", "dtype")
    return {name: getattr(encoder, name) for name in names} | {"train": train}
