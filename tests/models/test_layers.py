"""Layers compute what they say, keep float32 where it matters, and a stack of scanned layers converts to single ones
and back inside any tree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec
from oracles import draw, lengths_mask, seeded

from jaxvl.models.initial import normal, torch_uniform
from jaxvl.models.layers import (
    MLP,
    Attention,
    Embedding,
    LayerNorm,
    attend,
    equal_runs,
    rematerialised,
    run_layers,
    stack_layers,
    unit_columns,
    unstack_layers,
)

X = draw(3, 5, 16)


class Stack(nn.Module):
    """MLPs of given sizes, one after the other."""

    hidden: tuple[int, ...]
    scan: bool = False
    remat: str | None = None

    @nn.compact
    def __call__(self, x):
        kwargs = [dict(hidden=h) for h in self.hidden]
        return run_layers(MLP, kwargs, x, name="mlp", scan=self.scan, remat=self.remat)


def test_attention_equals_numpy():
    q, k, v = draw(2, 3, 2, 4), draw(2, 5, 2, 4, seed=1), draw(2, 5, 2, 4, seed=2)
    mask = lengths_mask(5, 5, 2)[:, None, None]
    logits = np.where(mask, np.einsum("blhk,bshk->bhls", q, k) / 2, -np.inf)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    want = np.einsum("bhls,bshk->blhk", probs / probs.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(attend(q, k, v, mask), want, atol=1e-5)


def test_masked_keys_get_exactly_no_attention():
    q, k, v = draw(1, 3, 1, 4), draw(1, 4, 1, 4, seed=1), draw(1, 4, 1, 4, seed=2)
    mask = lengths_mask(4, 2)[:, None, None]
    changed = np.where(mask.reshape(1, 4, 1, 1), v, np.float32(1e3))
    np.testing.assert_array_equal(attend(q, k, v, mask), attend(q, k, changed, mask))


def test_kv_index_equals_gathered_inputs_with_keys_computed_once():
    module, index = Attention(2), np.array([1, 0, 1])
    images = draw(2, 7, 16, seed=1)
    params = {"params": seeded(module, X, X)}
    got = module.apply(params, X, images, kv_index=index)
    np.testing.assert_allclose(got, module.apply(params, X, images[index]), atol=1e-5)
    text = str(jax.make_jaxpr(lambda x, i: module.apply(params, x, i, kv_index=index))(X, images))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert sum("f32[2,7,16]" in line for line in products) == 2


def test_layer_norm_survives_a_large_mean():
    x = draw(4, 64) + 1e4
    centred = x.astype(np.float64) - x.astype(np.float64).mean(-1, keepdims=True)
    want = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True))
    module = LayerNorm(1e-12)
    got = module.apply(module.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(got, want, atol=5e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types(dtype):
    table = Embedding(7, 16, dtype=dtype)
    params = table.init(jax.random.key(0), jnp.arange(3))
    assert table.apply(params, jnp.arange(3)).dtype == dtype
    assert table.apply(params, X, method="attend").dtype == jnp.float32
    for module, args in ((Attention(2, dtype=dtype), (X, X)), (LayerNorm(1e-6, dtype=dtype), (X,))):
        out, variables = module.init_with_output(jax.random.key(0), *args)
        assert out.dtype == dtype
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))


def test_softmax_is_float32_under_bfloat16():
    q = jnp.ones((1, 1, 1, 8), jnp.bfloat16)
    jaxpr = str(jax.make_jaxpr(lambda q: attend(q, q, q, None))(q))
    exps = [line for line in jaxpr.splitlines() if "= exp" in line]
    assert exps and all("f32" in line for line in exps)


def test_torch_uniform_has_the_bounds_of_fan_in():
    x = torch_uniform(16)(jax.random.key(0), (16, 400))
    assert 0.24 < x.max() <= 0.25 and -0.25 <= x.min() < -0.24


@pytest.mark.parametrize(("inputs", "deviation"), [(3072, 0.02), (768, 0.02), (48, 0.08)])
def test_kernels_are_berts_and_narrow_ones_keep_its_gain(inputs, deviation):
    kernel = normal(jax.random.key(0), (inputs, 64))
    assert abs(np.std(kernel) / deviation - 1) < 0.05


@pytest.mark.parametrize(("inputs", "deviation"), [(768, 0.02), (32, 0.25)])
def test_queries_and_keys_of_narrow_layers_start_selective(inputs, deviation):
    x = draw(1, 2, inputs)
    params = nn.meta.unbox(Attention(2).init(jax.random.key(0), x, x)["params"])
    for name in ("query", "key"):
        assert abs(np.std(params[name]["kernel"]) / deviation - 1) < 0.1
    assert abs(np.std(params["value"]["kernel"]) / (0.02 * max(1, 768 / inputs) ** 0.5) - 1) < 0.1


def test_unit_columns():
    queue = unit_columns(jax.random.key(0), 8, 32)
    np.testing.assert_allclose(np.linalg.norm(queue.unbox(), axis=0), np.ones(32), rtol=1e-6)
    assert queue.names == ("feat", "batch") and queue.unbox().shape == (8, 32)


def test_equal_runs():
    assert equal_runs(["a", "a", "b", "a"]) == [(0, 2), (2, 3), (3, 4)]
    assert equal_runs([]) == []


@pytest.mark.parametrize("remat", [None, "full"])
def test_scan_equals_unrolled_over_runs_of_equal_layers(remat):
    unrolled, scanned = Stack((8, 8, 12)), Stack((8, 8, 12), scan=True, remat=remat)
    params = seeded(unrolled, X)
    stacked = stack_layers(params, seeded(scanned, X))
    assert set(params) == {"mlp_0", "mlp_1", "mlp_2"} and set(stacked) == {"mlp_0_2", "mlp_2_3"}

    def grad(module, params):
        return jax.jit(jax.grad(lambda p: module.apply({"params": p}, X).sum()))(params)

    want, got = grad(unrolled, params), unstack_layers(grad(scanned, stacked))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), got, want)


def test_scanned_layers_draw_their_own_dropout():
    class Drops(nn.Module):
        @nn.compact
        def __call__(self, x):
            kwargs = [dict(rate=0.5, deterministic=False)] * 2
            return run_layers(nn.Dropout, kwargs, x, name="drop", scan=True, remat=None)

    y = Drops().apply({}, jnp.ones(4000), rngs={"dropout": jax.random.key(0)})
    assert abs((y > 0).mean() - 0.25) < 0.05  # one mask for both layers would leave half


@pytest.mark.parametrize("scan", [False, True])
def test_remat_recomputes_more_the_less_it_keeps(scan):
    """The compiled gradient, after common subexpressions were merged, has more matrix products."""

    def products(remat):
        module = Stack((8, 8), scan=scan, remat=remat)
        params = seeded(module, X)
        grad = jax.jit(jax.grad(lambda p: jnp.square(module.apply({"params": p}, X)).sum()))
        lowered = grad.lower(params)
        return lowered.as_text().count("dot_general"), lowered.compile().as_text().count(" dot(")

    none, names, full = products(None), products("names"), products("full")
    assert none[0] <= names[0] < full[0]
    assert none[1] <= names[1] < full[1]


def test_unknown_remat_is_refused():
    with pytest.raises(ValueError, match=r"remat='some': expected None or one of \['full', 'names'\]"):
        rematerialised(MLP, "some")


@struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any
    nothing: None = None


def states() -> tuple[State, State]:
    """The same train state unrolled and scanned, with an optimiser whose states hold dicts."""
    mask = {f"mlp_{i}": {"fc1": {"kernel": True, "bias": False}, "fc2": True} for i in range(3)}
    tx = optax.MultiSteps(
        optax.chain(optax.clip(1.0), optax.adamw(1e-3), optax.masked(optax.trace(0.9), mask)),
        every_k_schedule=2,
    )
    params = seeded(Stack((8, 8, 12)), X)
    stacked = stack_layers(params, seeded(Stack((8, 8, 12), scan=True), X))
    scanned_tx = optax.MultiSteps(
        optax.chain(optax.clip(1.0), optax.adamw(1e-3), optax.masked(optax.trace(0.9), stacked_mask(mask))),
        every_k_schedule=2,
    )
    return State(1, params, tx.init(params)), State(1, stacked, scanned_tx.init(stacked))


def stacked_mask(mask: dict) -> dict:
    return {"mlp_0_2": mask["mlp_0"], "mlp_2_3": mask["mlp_2"]}


def test_whole_train_state_converts_both_ways():
    unrolled, scanned = states()
    assert jax.tree.structure(unstack_layers(scanned)) == jax.tree.structure(unrolled)
    assert jax.tree.structure(stack_layers(unrolled, scanned)) == jax.tree.structure(scanned)
    back = unstack_layers(stack_layers(unrolled, jax.eval_shape(lambda: scanned)))
    jax.tree.map(np.testing.assert_array_equal, back, unrolled)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(unrolled), unrolled)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(unrolled, unrolled), unrolled)


def test_conversion_keeps_numpy_and_traces():
    stacked = stack_layers(seeded(Stack((8, 8)), X), {"mlp_0_2": None})
    assert isinstance(stacked["mlp_0_2"]["fc1"]["kernel"], np.ndarray)
    traced = jax.jit(unstack_layers)(stacked)
    jax.tree.map(np.testing.assert_array_equal, traced, unstack_layers(stacked))


def test_abstract_layers_keep_the_sharding_of_the_stack():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
    leaf = jax.ShapeDtypeStruct((2, 16, 4), jnp.float32, sharding=sharding)
    got = unstack_layers({"mlp_4_6": {"kernel": leaf}})["mlp_5"]["kernel"]
    assert got.shape == (16, 4) and got.sharding.spec == PartitionSpec("data")


def test_missing_layers_and_other_structures_are_refused():
    with pytest.raises(KeyError, match=r"cannot build the stack 'mlp_0_2': no mlp_1 among"):
        stack_layers({"mlp_0": {}}, {"mlp_0_2": {}})
    with pytest.raises(ValueError, match="tuple does not match"):
        stack_layers((1, 2), (1, 2, 3))
    with pytest.raises(ValueError, match="a dict does not match tuple"):
        stack_layers({"a": 1}, (1,))
