"""Modules of the hypergraph branch: convolution with its MLP, and the fusions that bring it to the text.

Shape legend: `M` rows of text, `N` nodes (the visual ones first), `Q` queries of a fusion (the text rows, or all
nodes with layout "concat"), `E` hyperedges, `D` width, `H` heads, `K` head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxvl.models.hypergraph import (
    Hypergraph,
    HypergraphOptions,
    content_weights,
    convolve,
    factors,
    statistics,
)
from jaxvl.models.initial import Init, normal, selective, zeros
from jaxvl.models.layers import MASKED, WHOLE, Axes, Dense, Dtype, LayerNorm, batch_major, gelu, logical

EPS = 1e-6  # layer norms of the hypergraph branch; BERT's own keep 1e-12
HEADS: Axes = ("embed", "heads")
SOFTPLUS_ONE = 0.5413248546129181  # softplus of it is 1


class Kernel(nn.Module):
    """Parameters of a `Dense`, for products that are cheaper, or only right, in another order."""

    features: int
    axes: Axes
    kernel_init: Init = normal
    use_bias: bool = True

    @nn.compact
    def __call__(self, inputs: int) -> tuple[Array, Array | None]:
        """`(kernel [inputs, features], bias [features] or None)`, float32."""
        shape = (inputs, self.features)
        kernel = self.param("kernel", logical(self.kernel_init, *self.axes), shape, jnp.float32)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", logical(zeros, self.axes[1]), (self.features,), jnp.float32)


class BranchMLP(nn.Module):
    """`x [..., D] -> [..., D]` through `hidden` GELU units; `out_init` initialises the second kernel."""

    hidden: int
    out_init: Init = normal
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = checkpoint_name(Dense(self.hidden, ("embed", "mlp"), dtype=self.dtype, name="fc1")(x), "mlp_pre")
        out = Dense(x.shape[-1], ("mlp", "embed"), kernel_init=self.out_init, dtype=self.dtype, name="fc2")
        return out(gelu(h))


class ResidualFeedForward(nn.Module):
    """`Drop(MLP(LN(x)))`, 0 at first; owns `norm`, `fc1`, `fc2`."""

    mlp: int
    dropout: float = 0.1
    train: bool = False
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.body = BranchMLP(self.mlp, zeros, dtype=self.dtype)
        nn.share_scope(self, self.body)
        self.norm = LayerNorm(EPS, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout, deterministic=not self.train)

    def __call__(self, x: Array) -> Array:
        """`x [...,D] -> [...,D]`."""
        return self.drop(self.body(self.norm(x)))


def sow(module: nn.Module, values: Mapping[str, Array]) -> None:
    """Leave `values`, one number per row, in the collection "diagnostics"."""
    for name, value in values.items():
        module.sow("diagnostics", name, value, init_fn=lambda: None, reduce_fn=lambda _, new: new)


def watched(module: nn.Module) -> bool:
    """Whether the caller collects diagnostics; `init`, to which everything is mutable, does not count."""
    return module.is_mutable_collection("diagnostics") and not module.is_initializing()


class HypergraphConv(nn.Module):
    """`F_hg` of equation 8: convolution, then an MLP, each with a residual unless `options.residual` is None.

    Owns `theta`, `norm`, `mlp/{fc1,fc2}` and, by `options.weights`, `slot_weight [E]` or `content_weight [D]`.
    """

    options: HypergraphOptions
    dropout: float = 0.1
    train: bool = False
    dtype: Dtype = jnp.float32
    out_init: Init = normal

    @nn.compact
    def __call__(self, x_mnd: Array, graph: Hypergraph, *, visuals: int, first: int = 0) -> Array:
        """States `[M,N-first,D]` of the nodes `first..N-1`, from `x_mnd [M,N,D]`, the first `visuals` visual."""
        options, width = self.options, x_mnd.shape[-1]
        x = jnp.where(graph.mask_bn[..., None], x_mnd.astype(self.dtype), 0)
        weights = self._weights(graph, width)
        if watched(self):
            sow(self, statistics(graph, visuals=visuals, weights_be=weights))
        biased = options.theta_bias is not None
        theta, bias = Kernel(width, WHOLE, self.out_init, biased, name="theta")(width)
        scaled = factors(graph.h_bne, weights_be=weights, norm=options.norm)
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        u = drop(convolve(x, scaled, theta, bias=bias, first=first))
        if options.residual is not None:
            u = x[:, first:] + u
        hidden = max(1, round(options.mlp_ratio * width))
        mlp = BranchMLP(hidden, self.out_init, dtype=self.dtype, name="mlp")
        out = nn.Dropout(self.dropout, deterministic=not self.train)(
            mlp(LayerNorm(EPS, dtype=self.dtype, name="norm")(u))
        )
        return batch_major(out if options.residual is None else u + out)

    def _weights(self, graph: Hypergraph, width: int) -> Array | None:
        if self.options.weights == "slot":
            init = logical(nn.initializers.constant(SOFTPLUS_ONE), None)
            slot = self.param("slot_weight", init, graph.h_bne.shape[-1:], jnp.float32)
            return jnp.broadcast_to(jax.nn.softplus(slot), (graph.h_bne.shape[0], graph.h_bne.shape[-1]))
        if self.options.weights == "content":
            direction = self.param("content_weight", logical(zeros, None), (width,), jnp.float32)
            return content_weights(graph, direction)
        return None


def attend_nodes(
    q_mqhk: Array,
    f_mnd: Array,
    kernels: tuple[Array, Array],
    value_bias: Array,
    mask_mn: Array,
    *,
    absorb: bool | None = None,
    dropout: Callable[[Array], Array] = lambda p: p,
) -> tuple[Array, Array]:
    """Attention whose keys and values are projections of `f_mnd`, in the cheaper of two equal orders.

    Projecting all nodes costs `2 N D^2` products; absorbing the key kernel into the queries, and applying the
    value kernel after the weighted sum, costs `2 Q (D^2 + H N D)`: less for few queries. A key bias would shift
    all logits of a query alike, which softmax ignores: there is none.

    Args:
      q_mqhk: projected queries `[M,Q,H,K]`.
      f_mnd: node states `[M,N,D]`.
      kernels: of key and value, `[D,HK]` each.
      value_bias: `[HK]`.
      mask_mn: bool, True = may be attended to.
      absorb: which order; None = the cheaper one.
      dropout: applied to the probabilities.

    Returns:
      context `[M,Q,HK]` in the type of `f_mnd`, probabilities `[M,H,Q,N]` float32 before dropout.
    """
    rows, queries, heads, dim = q_mqhk.shape
    nodes, width = f_mnd.shape[1:]
    if absorb is None:
        absorb = queries * (width + heads * nodes) < nodes * (width + queries)
    key_dhk, value_dhk = (k.astype(f_mnd.dtype).reshape(width, heads, dim) for k in kernels)
    q_mqhk = q_mqhk * dim**-0.5
    einsum = jnp.einsum
    if absorb:
        q_mqhd = einsum("mqhk,dhk->mqhd", q_mqhk, key_dhk)
        logits = einsum("mqhd,mnd->mhqn", q_mqhd, f_mnd, preferred_element_type=jnp.float32)
    else:
        k_mnhk = einsum("mnd,dhk->mnhk", f_mnd, key_dhk)
        logits = einsum("mqhk,mnhk->mhqn", q_mqhk, k_mnhk, preferred_element_type=jnp.float32)
    logits = jnp.where(mask_mn[:, None, None, :], logits, logits + MASKED)
    probs = jax.nn.softmax(logits, axis=-1)
    dropped = dropout(probs)
    total_mqh = dropped.sum(-1).swapaxes(
        1, 2
    )  # 1, except under dropout: what the value bias is multiplied with
    dropped = dropped.astype(f_mnd.dtype)
    if absorb:
        ctx = einsum("mqhd,dhk->mqhk", einsum("mhqn,mnd->mqhd", dropped, f_mnd), value_dhk)
    else:
        ctx = einsum("mhqn,mnhk->mqhk", dropped, einsum("mnd,dhk->mnhk", f_mnd, value_dhk))
    ctx = ctx + (total_mqh[..., None] * value_bias.reshape(heads, dim)).astype(ctx.dtype)
    return ctx.reshape(rows, queries, heads * dim), probs


class Fusion(nn.Module):
    """What a fusion adds to the attention branch; `__call__` of the subclasses.

    Each maps `(fa_mqd [M,Q,D], f_mnd, query_mask [M,Q], node_mask [M,N])` to an update `[M,Q,D]` that is 0 at
    first with `out_init=zeros`. `visuals` counts the visual nodes among `N`.
    """

    heads: int
    visuals: int
    out_init: Init = zeros
    dropout: float = 0.1
    attn_dropout: float = 0.1
    train: bool = False
    dtype: Dtype = jnp.float32

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)

    def _query(self, fa_mqd: Array) -> Array:
        normed = LayerNorm(EPS, dtype=self.dtype, name="norm")(fa_mqd)
        return self._heads(
            Dense(fa_mqd.shape[-1], HEADS, kernel_init=selective, dtype=self.dtype, name="query")(normed)
        )

    def _finish(self, update: Array, fa_mqd: Array, query_mask: Array) -> Array:
        if watched(self):
            sow(self, {"update_ratio": _norm(update, query_mask) / _norm(fa_mqd, query_mask)})
        return nn.Dropout(self.dropout, deterministic=not self.train)(update)


class NodeAttention(Fusion):
    """ "xattn": every token attends to all nodes; owns `norm`, `query`, `key`, `value`, `out`.

    `key/bias` is kept so that the parameters are those of an attention; its gradient is 0.
    """

    @nn.compact
    def __call__(self, fa_mqd: Array, f_mnd: Array, query_mask: Array, node_mask: Array) -> Array:
        """See `Fusion`."""
        width = fa_mqd.shape[-1]
        q = self._query(fa_mqd)
        key, _ = Kernel(width, HEADS, kernel_init=selective, name="key")(width)
        value, bias = Kernel(width, HEADS, name="value")(width)
        assert bias is not None
        drop = nn.Dropout(self.attn_dropout, deterministic=not self.train)
        ctx, probs = attend_nodes(q, f_mnd, (key, value), bias, node_mask, dropout=drop)
        if watched(self):
            mass = probs[..., : self.visuals].sum(-1).mean(1)
            count = jnp.maximum(query_mask.sum(-1), 1)
            sow(self, {"visual_mass": jnp.where(query_mask, mass, 0).sum(-1) / count})
        out = Dense(width, ("heads", "embed"), kernel_init=self.out_init, dtype=self.dtype, name="out")(ctx)
        return self._finish(checkpoint_name(out, "attn_out"), fa_mqd, query_mask)


class BranchAttention(Fusion):
    """ "branch": every token and head weighs the two branches at its own position; parameters as `NodeAttention`."""

    @nn.compact
    def __call__(self, fa_mqd: Array, f_mnd: Array, query_mask: Array, node_mask: Array) -> Array:
        """See `Fusion`; `f_mnd` must have the rows of `fa_mqd`."""
        width = fa_mqd.shape[-1]
        q = self._query(fa_mqd)
        key, _ = Kernel(width, HEADS, kernel_init=selective, name="key")(
            width
        )  # as above, a key bias has no effect
        pair = jnp.stack([fa_mqd, f_mnd], 2)
        k, v = pair @ key.astype(self.dtype), Dense(width, HEADS, dtype=self.dtype, name="value")(pair)
        scale = q.shape[-1] ** -0.5
        logits = jnp.einsum("mqhk,mqjhk->mqhj", q * scale, self._heads(k), preferred_element_type=jnp.float32)
        beta = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        ctx = jnp.einsum("mqhj,mqjhk->mqhk", beta, self._heads(v)).reshape(fa_mqd.shape)
        out = Dense(width, ("heads", "embed"), kernel_init=self.out_init, dtype=self.dtype, name="out")(ctx)
        return self._finish(checkpoint_name(out, "attn_out"), fa_mqd, query_mask)


class Gate(Fusion):
    """ "gate": `sigmoid(W_g [F_A; F_hg] + b_g) * (W_o F_hg + b_o)`; owns `gate`, `out`."""

    @nn.compact
    def __call__(self, fa_mqd: Array, f_mnd: Array, query_mask: Array, node_mask: Array) -> Array:
        """See `Fusion`; `f_mnd` must have the rows of `fa_mqd`."""
        width = fa_mqd.shape[-1]
        both = jnp.concatenate([fa_mqd, f_mnd], -1)
        gate = jax.nn.sigmoid(Dense(width, WHOLE, dtype=self.dtype, name="gate")(both))
        out = Dense(width, WHOLE, kernel_init=self.out_init, dtype=self.dtype, name="out")(f_mnd)
        return self._finish(gate * out, fa_mqd, query_mask)


FUSIONS: Mapping[str, type[Fusion]] = {"xattn": NodeAttention, "branch": BranchAttention, "gate": Gate}


def _norm(x: Array, mask: Array) -> Array:
    """Euclidean norm `[M]` over the valid rows of `x [M,Q,D]`, never 0."""
    square = jnp.square(x.astype(jnp.float32)).sum(-1)
    return jnp.sqrt(jnp.maximum(jnp.where(mask, square, 0).sum(-1), 1e-12))
