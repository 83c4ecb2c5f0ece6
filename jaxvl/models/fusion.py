"""Multimodal encoder of Hyper-ALBEF: ALBEF's fusion layers with a hypergraph branch beside them.

Without a hypergraph a layer is ALBEF's (Li J. et al., 2021): self-attention over text, cross attention to the
image, feed-forward, all post-norm. A selected layer convolves a hypergraph over image and text nodes in parallel
with the two attentions, and its output is fused into theirs before the feed-forward (equations 3-9). With the
default zero-initialised fusion a fresh hypergraph changes nothing, so that any ALBEF checkpoint can be continued.

While the layers run with a mutable collection "diagnostics", selected ones leave per-row statistics there
(`hypergraph.statistics`; `update_ratio`, the norm of what fusion adds over that of the attention branch, below
1e-3 late in training = a dead branch; `visual_mass`, the share of fusion attention that falls on the image).

Shape legend: `M` rows of text, `B` images, `P` visual nodes, `L` text length, `N = P + L` nodes, `D` width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.bert import BertAttention, FeedForward, padding_mask
from jaxvl.models.hypergraph import Hypergraph, HypergraphOptions, VisualNodes, build, visual_nodes
from jaxvl.models.hypergraph_modules import FUSIONS, HypergraphConv, ResidualFeedForward
from jaxvl.models.initial import Init, normal, zeros
from jaxvl.models.layers import WHOLE, Dense, Dtype, batch_major, run_layers


class FusionBlock(nn.Module):
    """Fields and parts that the layers of all layouts share; `hypergraph=None` is a layer without hypergraph."""

    heads: int
    mlp: int
    visuals: int
    hypergraph: HypergraphOptions | None = None
    dropout: float = 0.1
    attn_dropout: float = 0.1
    train: bool = False
    dtype: Dtype = jnp.float32

    def _attend(self, text: Array, mask: Array, image: Array, image_index: Array | None) -> Array:
        a = self._attention("attention")(text, text, padding_mask(mask))
        return self._attention("cross_attention")(a, image, None, image_index)

    def _nodes(
        self, text: Array, mask: Array, v: Array, visual: VisualNodes, *, first: int = 0
    ) -> tuple[Array, Array]:
        """`F_hg` of the nodes `first..N-1` and the mask of these."""
        assert self.hypergraph is not None
        graph = build(visual, text, mask, options=self.hypergraph)
        x = jnp.concatenate([v.astype(self.dtype), text.astype(self.dtype)], 1)
        f = self._convolution(normal)(x, graph, visuals=self.visuals, first=first)
        return f, graph.mask_bn[:, first:]

    def _fused(self, fa: Array, query_mask: Array, f: Array, node_mask: Array) -> Array:
        """Fusion and feed-forward in the order of `ffn_placement`."""
        options = self.hypergraph
        assert options is not None
        fuse = FUSIONS[options.fusion](
            self.heads,
            self.visuals,
            out_init=zeros if options.fusion_init == "zero" else normal,
            attn_dropout=self.attn_dropout,
            name="hg_fusion",
            **self._common(),
        )
        if options.ffn_placement == "after":
            return self._feed(fa + fuse(fa, f, query_mask, node_mask))
        fa = self._feed(fa)
        x = fa + fuse(fa, f, query_mask, node_mask)
        return batch_major(x + ResidualFeedForward(self.mlp, name="hg_ffn", **self._common())(x))

    def _common(self) -> dict[str, Any]:
        return dict(dropout=self.dropout, train=self.train, dtype=self.dtype)

    def _attention(self, name: str) -> BertAttention:
        return BertAttention(self.heads, attn_dropout=self.attn_dropout, name=name, **self._common())

    def _feed(self, x: Array) -> Array:
        return batch_major(FeedForward(self.mlp, name="ffn", **self._common())(x))

    def _convolution(self, out_init: Init) -> HypergraphConv:
        assert self.hypergraph is not None
        return HypergraphConv(self.hypergraph, out_init=out_init, name="hypergraph", **self._common())


class FusionLayer(FusionBlock):
    """One layer of layout "cross"; the carry is the text.

    Owns `attention`, `cross_attention`, `ffn`; with `hypergraph` also `hypergraph`, `hg_fusion` and, with
    `ffn_placement="in_branch"`, `hg_ffn`.
    """

    @nn.compact
    def __call__(
        self,
        text: Array,
        mask: Array,
        image: Array,
        image_index: Array | None,
        nodes: tuple[Array, VisualNodes] | None,
    ) -> Array:
        """`text [M,L,D]`, `mask [M,L]`, `image [B,P,D]`; `nodes` are the `M` rows that the hypergraph sees of it."""
        fa = self._attend(text, mask, image, image_index)
        if self.hypergraph is None or nodes is None:
            return self._feed(fa)
        first = 0 if self.hypergraph.fusion == "xattn" else self.visuals
        return self._fused(fa, mask, *self._nodes(text, mask, *nodes, first=first))


class VisualPreLayer(FusionBlock):
    """One layer of layout "visual_pre": cross attention reads the convolved image; the carry is the text.

    Owns `attention`, `cross_attention`, `ffn` and, with `hypergraph`, `hypergraph`.
    """

    @nn.compact
    def __call__(
        self, text: Array, mask: Array, image: Array, image_index: Array | None, graph: Hypergraph
    ) -> Array:
        """`text [M,L,D]`, `mask [M,L]`, `image [B,P,D]` and its hypergraph, the same for all layers."""
        if self.hypergraph is not None:
            out_init = zeros if self.hypergraph.fusion_init == "zero" else normal
            image = self._convolution(out_init)(image, graph, visuals=self.visuals)
        return self._feed(self._attend(text, mask, image, image_index))


class UpdatingFusionLayer(FusionBlock):
    """Layout "cross" with `visual_update="residual"`; the carry is (text, image), one image row per text row.

    Owns `visual_update` besides; the last layer, whose image nobody reads, has `last=True` and does not.
    """

    last: bool = False

    @nn.compact
    def __call__(self, carry: tuple[Array, Array], mask: Array) -> tuple[Array, Array]:
        """`(text [M,L,D], image [M,P,D]), mask [M,L]` -> the same."""
        text, image = carry
        fa = self._attend(text, mask, image, None)
        options = self.hypergraph
        if options is None:
            return self._feed(fa), image
        f, node_mask = self._nodes(text, mask, image, visual_nodes(image, options=options))
        if not self.last:
            project = Dense(image.shape[-1], WHOLE, kernel_init=zeros, dtype=self.dtype, name="visual_update")
            image = image + project(f[:, : self.visuals])
        if options.fusion != "xattn":
            f, node_mask = f[:, self.visuals :], mask
        return self._fused(fa, mask, f, node_mask), image


class ConcatLayer(FusionBlock):
    """Layout "concat"; the carry is image and text in one sequence. Owns no `cross_attention`."""

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """`x [M,N,D]`, `mask [M,N]` -> `[M,N,D]`."""
        fa = self._attention("attention")(x, x, padding_mask(mask))
        if self.hypergraph is None:
            return self._feed(fa)
        v, text = x[:, : self.visuals], x[:, self.visuals :]
        visual = visual_nodes(v, options=self.hypergraph)
        return self._fused(fa, mask, *self._nodes(text, mask[:, self.visuals :], v, visual))


class FusionEncoder(nn.Module):
    """`depth` fusion layers `layers_i`, on those of `hypergraph["layers"]` with a hypergraph (default: on all).

    `hypergraph` is a mapping of `HypergraphOptions`; None, or no layers, is ALBEF.
    """

    depth: int
    heads: int
    mlp: int
    dropout: float = 0.1
    attn_dropout: float = 0.1
    hypergraph: Mapping[str, Any] | None = None
    dtype: Dtype = jnp.float32
    remat: str | None = None
    scan: bool = False

    @nn.compact
    def __call__(
        self,
        text_states: Array,
        text_mask: Array,
        image_states: Array,
        image_index: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Text states that have seen their image.

        What depends on the image alone (keys and values of cross attention, clustering of the image) is computed
        once per image, then gathered for the rows of text.

        Args:
          text_states: `[M,L,D]`.
          text_mask: `[M,L]` bool, True = token.
          image_states: `[B,P,D]`.
          image_index: `[M]` i32, the image that each row of text looks at; None = row `i` looks at image `i`.
          train: whether dropout is active.

        Returns:
          `[M,L,D]`.

        Raises:
          ValueError: invalid `hypergraph` mapping, or rows of text and images that do not match.
        """
        options = HypergraphOptions.parse(self.hypergraph, depth=self.depth)
        rows = len(text_states) if image_index is None else len(image_index)
        if rows != len(text_states) or (image_index is None and rows != len(image_states)):
            raise ValueError(
                f"{len(text_states)} rows of text and {len(image_states)} images: give image_index, one per row of text"
            )
        text, image = text_states.astype(self.dtype), image_states.astype(self.dtype)
        mask = text_mask.astype(bool)
        kwargs = self._layers(options, train, visuals=image.shape[1])
        if options is None:
            return self._run(FusionLayer, kwargs, text, mask, image, image_index, None)
        if options.layout == "visual_pre":
            graph = _visual_graph(image, options)
            return self._run(VisualPreLayer, kwargs, text, mask, image, image_index, graph)
        if options.layout == "cross" and options.visual_update is None:
            nodes = _rows((image, visual_nodes(image, options=options)), image_index)
            return self._run(FusionLayer, kwargs, text, mask, image, image_index, nodes)
        image = _rows(image, image_index)
        if options.visual_update is not None:
            kwargs[-1] |= {"last": True}
            return self._run(UpdatingFusionLayer, kwargs, (text, image), mask)[0]
        everything = jnp.concatenate([jnp.ones(image.shape[:2], bool), mask], 1)
        x = self._run(ConcatLayer, kwargs, jnp.concatenate([image, text], 1), everything)
        return x[:, image.shape[1] :]

    def _layers(
        self, options: HypergraphOptions | None, train: bool, *, visuals: int
    ) -> list[dict[str, Any]]:
        names = ("heads", "mlp", "dropout", "attn_dropout", "dtype")
        common = {name: getattr(self, name) for name in names} | {"train": train, "visuals": visuals}
        selected = () if options is None else options.layers
        return [common | {"hypergraph": options if i + 1 in selected else None} for i in range(self.depth)]

    def _run(self, block: type[nn.Module], kwargs: list[dict[str, Any]], carry: Any, *args: Any) -> Any:
        return run_layers(block, kwargs, carry, *args, name="layers", scan=self.scan, remat=self.remat)


def _visual_graph(image: Array, options: HypergraphOptions) -> Hypergraph:
    """Hypergraph of the image alone."""
    words = image[:, :0]
    return build(
        visual_nodes(image, options=options), words, jnp.ones(words.shape[:2], bool), options=options
    )


def _rows(tree: Any, index: Array | None) -> Any:
    return tree if index is None else jax.tree.map(lambda x: jnp.take(x, index, axis=0), tree)
