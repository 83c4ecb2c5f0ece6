"""Building blocks that own parameters: the only file that writes logical axis names.

Shape legend: `B` batch, `L` query length, `S` key length, `D` width, `H` heads, `K` head dim, `F` hidden.
Parameters are float32; `dtype` is the type of the computation. Normalisation statistics and softmax are
always float32. `train` is a field, not an argument, so that scanned and rematerialised layers see a constant.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jaxvl.models.initial import Init, normal, ones, selective, table, zeros
from jaxvl.models.stacks import stack_layers as stack_layers  # re-exported beside run_layers
from jaxvl.models.stacks import unstack_layers as unstack_layers

Axes = tuple[str | None, ...]
Dtype = Any

# The only axis names that other files need: kernels whose output stays whole, or is a contrastive feature, or
# logits of the vocabulary.
WHOLE: Axes = ("embed", None)
FEATURES: Axes = ("embed", "feat")
VOCABULARY: Axes = ("embed", "vocab")

MASKED = -1e4  # additive attention mask of BERT; exp underflows to exactly 0 in float32


def logical(init: Init, *axes: str | None) -> Callable[..., Any]:
    """`init` whose result is boxed with one logical axis name per dimension."""
    return nn.with_logical_partitioning(init, axes)


def batch_major(x: Array) -> Array:
    """Constrain `x [B, ...]` to be sharded over the batch axis and nothing else."""
    return nn.with_logical_constraint(x, ("batch",) + (None,) * (x.ndim - 1))


def gelu(x: Array) -> Array:
    """Exact (erf) GELU, as in BERT and timm's ViT."""
    return nn.gelu(x, approximate=False)


def quick_gelu(x: Array) -> Array:
    """`x sigmoid(1.702 x)`, the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"gelu": gelu, "quick_gelu": quick_gelu}


class Dense(nn.Module):
    """`x [..., I] -> [..., features]`; `axes` are the logical axes of the kernel `[I, features]`.

    With `out_dtype` the products of `dtype` numbers are summed and returned in that type.
    """

    features: int
    axes: Axes
    use_bias: bool = True
    kernel_init: Init = normal
    bias_init: Init = zeros
    dtype: Dtype = jnp.float32
    out_dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param(
            "kernel",
            logical(self.kernel_init, *self.axes),
            (x.shape[-1], self.features),
            jnp.float32,
        )
        y = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=self.out_dtype)
        if self.use_bias:
            bias = self.param(
                "bias",
                logical(self.bias_init, self.axes[1]),
                (self.features,),
                jnp.float32,
            )
            y = y + bias.astype(y.dtype)
        return y


def unit_columns(rng: Array, width: int, size: int) -> nn.LogicallyPartitioned:
    """Random unit columns `[width, size]` f32, boxed: a queue of embeddings, spread over the batch axis."""
    x = jax.random.normal(rng, (width, size), jnp.float32)
    return nn.LogicallyPartitioned(x / jnp.linalg.norm(x, axis=0, keepdims=True), ("feat", "batch"))


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis with two-pass float32 statistics; returns `dtype`."""

    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", logical(ones, None), shape, jnp.float32)
        bias = self.param("bias", logical(zeros, None), shape, jnp.float32)
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(self.dtype)


class Embedding(nn.Module):
    """Lookup table `[size, width]`; `axis` is the logical axis of its rows (the feature axis stays whole)."""

    size: int
    width: int
    axis: str | None = None
    dtype: Dtype = jnp.float32
    init_table: Init = table

    def setup(self) -> None:
        self.embedding = self.param(
            "embedding",
            logical(self.init_table, self.axis, None),
            (self.size, self.width),
            jnp.float32,
        )

    def __call__(self, ids: Array) -> Array:
        """`ids [...] i32 -> [..., width]`."""
        return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)

    def attend(self, x: Array) -> Array:
        """Tied decoder: `x [..., width] -> logits [..., size]`, float32 whatever `dtype` is."""
        table = self.embedding.astype(self.dtype)
        x = x.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)


class PatchEmbed(nn.Module):
    """Convolution of stride `patch`, as a matrix product over flattened patches; owns `kernel`, `bias`."""

    patch: int
    width: int
    use_bias: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """`image [B,H,W,C] -> [B,(H/patch)(W/patch),width]`, patches row by row."""
        batch, height, wide, channels = image.shape
        p = self.patch
        rows, cols = height // p, wide // p
        shape = (p, p, channels, self.width)
        kernel = self.param("kernel", logical(normal, None, None, None, "embed"), shape, jnp.float32)
        x = image.astype(self.dtype).reshape(batch, rows, p, cols, p, channels).swapaxes(2, 3)
        x = x.reshape(batch, rows * cols, p * p * channels)
        x = x @ kernel.reshape(-1, self.width).astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", logical(zeros, "embed"), (self.width,), jnp.float32)
            x = x + bias.astype(self.dtype)
        return x


def attend(
    q_blhk: Array,
    k_bshk: Array,
    v_bshk: Array,
    mask: Array | None,
    *,
    dropout: Callable[[Array], Array] = lambda p: p,
) -> Array:
    """Scaled dot-product attention, softmax in float32.

    Args:
      q_blhk: queries `[B,L,H,K]`.
      k_bshk: keys `[B,S,H,K]`.
      v_bshk: values `[B,S,H,K]`.
      mask: bool, broadcastable to `[B,H,L,S]`; True = may attend. None = everything.
      dropout: applied to the probabilities.

    Returns:
      `[B,L,H,K]` in the type of `v_bshk`.
    """
    q_blhk = q_blhk * q_blhk.shape[-1] ** -0.5
    logits = jnp.einsum("blhk,bshk->bhls", q_blhk, k_bshk, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, logits + MASKED)
    probs = dropout(jax.nn.softmax(logits, axis=-1)).astype(v_bshk.dtype)
    return jnp.einsum("bhls,bshk->blhk", probs, v_bshk)


class Attention(nn.Module):
    """Multi-head attention; owns `query`, `key`, `value`, `out`; head `h` has columns `hK..hK+K-1` of each.

    `kv_index [B] i32` picks, for each row of queries, the row of `x_kv` that it sees: keys and values of an
    image are then computed once however many texts look at it. `queries`, `keys_values` and `mix` are the parts
    of a call, for those who need what is in between.
    """

    heads: int
    dropout: float = 0.0
    train: bool = False
    dtype: Dtype = jnp.float32
    out_init: Init = normal

    def __call__(
        self, x_bld: Array, x_kv: Array, mask: Array | None = None, kv_index: Array | None = None
    ) -> Array:
        """`x_bld [B,L,D]`, `x_kv [B',S,D']`, `mask` broadcastable to `[B,H,L,S]` -> `[B,L,D]`."""
        q = self.queries(x_bld)
        k, v = self.keys_values(x_kv, x_bld.shape[-1])
        if kv_index is not None:
            k, v = jnp.take(k, kv_index, axis=0), jnp.take(v, kv_index, axis=0)
        return self.mix(q, k, v, mask)

    def queries(self, x_bld: Array) -> Array:
        """`[B,L,D] -> [B,L,H,K]` with `H K = D`; after the bias, before scaling."""
        return self._project("query", x_bld, x_bld.shape[-1])

    def keys_values(self, x_kv: Array, width: int | None = None) -> tuple[Array, Array]:
        """`[B,S,D'] -> ([B,S,H,K], [B,S,H,K])` with `H K = width`; None = `D'`."""
        width = x_kv.shape[-1] if width is None else width
        return self._project("key", x_kv, width), self._project("value", x_kv, width)

    def mix(self, q_blhk: Array, k_bshk: Array, v_bshk: Array, mask: Array | None = None) -> Array:
        """What the queries find, through `out`: `[B,L,D]`."""
        width = q_blhk.shape[-2] * q_blhk.shape[-1]
        ctx = attend(q_blhk, k_bshk, v_bshk, mask, dropout=self._part("Dropout_0", width))
        out = self._part("out", width)(ctx.reshape(*q_blhk.shape[:-2], width))
        return checkpoint_name(out, "attn_out")

    def _project(self, name: str, x: Array, width: int) -> Array:
        return self._part(name, width)(x).reshape(*x.shape[:-1], self.heads, width // self.heads)

    @nn.compact  # the one place that makes parts: a method makes those that it uses, with the width of its input
    def _part(self, name: str, width: int) -> nn.Module:
        if name == "Dropout_0":
            return nn.Dropout(self.dropout, deterministic=not self.train, name=name)
        init = {"value": normal, "out": self.out_init}.get(name, selective)
        axes: Axes = ("heads", "embed") if name == "out" else ("embed", "heads")
        return Dense(width, axes, kernel_init=init, dtype=self.dtype, name=name)


class MLP(nn.Module):
    """`x [..., D] -> [..., D]` through `hidden` units and exact GELU; `names` are those of the two layers.

    `act` is a key of `ACTIVATIONS`.
    """

    hidden: int
    names: tuple[str, str] = ("fc1", "fc2")
    dtype: Dtype = jnp.float32
    kernel_init: Init = normal
    act: str = "gelu"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kw: dict[str, Any] = dict(kernel_init=self.kernel_init, dtype=self.dtype)
        h = checkpoint_name(Dense(self.hidden, ("embed", "mlp"), name=self.names[0], **kw)(x), "mlp_pre")
        return Dense(x.shape[-1], ("mlp", "embed"), name=self.names[1], **kw)(ACTIVATIONS[self.act](h))


REMAT: Mapping[str, Any] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("attn_out", "mlp_pre"),
}


def rematerialised(
    block: type[nn.Module],
    remat: str | None,
    *,
    prevent_cse: bool = True,
    methods: Sequence[str] = ("__call__",),
) -> type[nn.Module]:
    """`block` whose activations are recomputed in the backward pass; `remat` is a key of `REMAT` or None.

    `prevent_cse=False` is for the body of a scan, where the compiler cannot merge the two computations. `methods` are
    those whose activations are; they must not call one another.
    """
    if remat is None:
        return block
    if remat not in REMAT:
        raise ValueError(f"remat={remat!r}: expected None or one of {sorted(REMAT)}")
    return nn.remat(block, policy=REMAT[remat], prevent_cse=prevent_cse, methods=list(methods))


def run_layers(
    block: type[nn.Module],
    kwargs: Sequence[Mapping[str, Any]],
    carry: Any,
    *args: Any,
    name: str,
    scan: bool,
    remat: str | None,
    states: list[Any] | None = None,
) -> Any:
    """Apply one `block` per entry of `kwargs` inside a compact method; it maps `(carry, *args) -> carry`.

    Unrolled, layer `i` owns the parameters `{name}_{i}`. Scanned, each run of equal kwargs `a..b-1` owns one
    stack `{name}_{a}_{b}` with a leading `layers` axis; `unstack_layers` and `stack_layers` convert. The carry
    after every layer is appended to `states`, if given.
    """
    block = rematerialised(block, remat, prevent_cse=not scan)
    if not scan:
        for i, kw in enumerate(kwargs):
            carry = block(**kw, name=f"{name}_{i}")(carry, *args)
            if states is not None:
                states.append(carry)
        return carry
    keep = states is not None
    for start, stop in equal_runs(kwargs):
        module = block(**kwargs[start], name=f"{name}_{start}_{stop}")
        body = nn.scan(
            lambda layer, x, *rest: _carry_and_state(layer(x, *rest), keep),
            variable_axes={"params": 0, "diagnostics": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast,) * len(args),
            length=stop - start,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        carry, each = body(module, carry, *args)
        if states is not None:
            states.extend(jax.tree.map(lambda x, i=i: x[i], each) for i in range(stop - start))
    return carry


def _carry_and_state(carry: Any, keep: bool) -> tuple[Any, Any]:
    return carry, carry if keep else None


def equal_runs(items: Sequence[Any]) -> list[tuple[int, int]]:
    """Half-open ranges of consecutive equal items: `[a, a, b] -> [(0, 2), (2, 3)]`."""
    cuts = [i for i in range(len(items)) if i == 0 or items[i] != items[i - 1]] + [len(items)]
    return list(itertools.pairwise(cuts))
