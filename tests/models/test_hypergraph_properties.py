"""What holds for every hypergraph: invariants of the incidence, equivariance to the order of nodes, indifference
to padding, and the same result in any batch, with or without compilation, on one device or eight."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from oracles import draw, lengths_mask

from jaxvl.models.hypergraph import (
    NORMS,
    HyperedgeOptions,
    Hypergraph,
    build,
    convolve,
    factors,
    visual_nodes,
)
from jaxvl.models.hypergraph_build import top

SMALL = dict(grid=2, k_v=4, k_t=2, knn_k=5)
MODES = HyperedgeOptions.CHOICES["mode"]
P, L, D = 17, 6, 12
V, T = draw(8, P, D), draw(8, L, D, seed=1)
MASK = lengths_mask(L, 6, 4, 1, 3, 6, 2, 5, 6)
THETA = draw(D, D, seed=2)
few = settings(max_examples=25, deadline=None, derandomize=True)


def graph_of(v, t, mask, options: HyperedgeOptions) -> Hypergraph:
    return build(visual_nodes(v, options=options), t, mask, options=options)


made = jax.jit(graph_of, static_argnames="options")


@few
@given(st.integers(0, 2**31), st.integers(1, 7), st.sampled_from([0, 1]))
def test_largest_are_those_of_a_stable_sort_with_ties_infinities_and_signed_zeros(seed, count, axis):
    pool = np.array([-np.inf, -3.5, -1e-30, -0.0, 0.0, 1e-30, 2, 2.0000002, 1e30, np.inf], np.float32)
    x = np.random.default_rng(seed).choice(pool, (7, 7))
    order = np.argsort(-x, axis=axis, kind="stable")
    rank = np.argsort(order, axis=axis)
    np.testing.assert_array_equal(top(x, count, axis=axis), rank < count)


def both(v, t, mask, options: HyperedgeOptions, norm: str = "hgnn") -> tuple[jax.Array, jax.Array]:
    """Incidence and convolved states."""
    graph = graph_of(v, t, mask, options)
    x = jnp.where(graph.mask_bn[..., None], jnp.concatenate([v, t], 1), 0)
    return graph.h_bne, convolve(x, factors(graph.h_bne, norm=norm), THETA)


jitted = jax.jit(both, static_argnames=("options", "norm"))


def drawn(seed: int, rows: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random states of random scale, and texts of random length from [CLS] alone to full."""
    rng = np.random.default_rng(seed)
    v, t = rng.standard_normal((rows, P, D)), rng.standard_normal((rows, L, D)) + 3
    lengths = rng.integers(1, L + 1, rows)
    v[0] = v[0, :1] if seed % 3 == 0 else v[0]  # at times an image without any contrast
    scale = np.float32(10.0 ** rng.integers(-2, 3))
    return (scale * v).astype(np.float32), (scale * t).astype(np.float32), lengths_mask(L, *lengths)


@few
@given(st.integers(0, 2**31), st.sampled_from(["grid", "farthest"]))
def test_clusters_with_neighbours_are_binary_cover_every_node_and_see_both_modalities(seed, init):
    v, t, mask = drawn(seed)
    h = np.asarray(made(v, t, mask, HyperedgeOptions(**SMALL, init=init)).h_bne)
    valid = np.concatenate([np.ones((len(v), P), bool), mask], 1)
    assert set(np.unique(h)) <= {0.0, 1.0} and h.shape == (4, P + L, 4)
    assert (h.sum(-1)[valid] >= 1).all() and not h[~valid].any()
    assert (h[:, :P].sum(1) >= SMALL["k_v"]).all()
    assert (h[:, P:].sum(1) >= np.minimum(SMALL["k_t"], mask.sum(1))[:, None]).all()


@few
@given(st.integers(0, 2**31), st.integers(1, 3))
def test_a_node_joins_exactly_as_many_clusters_as_asked(seed, adjacent):
    v, t, mask = drawn(seed)
    h = made(v, t, mask, HyperedgeOptions(**SMALL, mode="cluster", adjacent=adjacent)).h_bne
    valid = np.concatenate([np.ones((len(v), P), bool), mask], 1)
    np.testing.assert_array_equal(h.sum(-1), adjacent * valid)


@few
@given(st.integers(0, 2**31))
def test_a_hyperedge_of_a_node_holds_the_node_and_its_neighbours(seed):
    v, t, mask = drawn(seed)
    h = np.asarray(made(v, t, mask, HyperedgeOptions(**SMALL, mode="knn_node")).h_bne)
    valid = np.concatenate([np.ones((len(v), P), bool), mask], 1)
    np.testing.assert_array_equal(np.einsum("bnn->bn", h), valid)
    np.testing.assert_array_equal(h.sum(1), SMALL["knn_k"] * valid)
    assert not h[~valid].any()


@few
@given(st.integers(0, 2**31))
def test_weighted_incidence_stays_in_the_unit_interval(seed):
    h = np.asarray(made(*drawn(seed), HyperedgeOptions(**SMALL, incidence="prob")).h_bne)
    assert np.isfinite(h).all() and h.min() >= 0 and h.max() <= 1


@few
@given(st.integers(0, 2**31), st.sampled_from(sorted(NORMS)))
def test_convolution_is_equivariant_to_the_order_of_nodes(seed, norm):
    rng = np.random.default_rng(seed)
    h, x, order = (rng.random((1, 20, 5)) < 0.3).astype(np.float32), draw(1, 20, D), rng.permutation(20)
    plain = np.asarray(convolve(x, factors(h, norm=norm)))
    shuffled = convolve(x[:, order], factors(h[:, order], norm=norm))
    np.testing.assert_allclose(shuffled, plain[:, order], atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_words_may_come_in_any_order(mode):
    order = np.random.default_rng(0).permutation(L)
    h, y = jitted(V, T, MASK, HyperedgeOptions(**SMALL, mode=mode))
    h2, y2 = jitted(V, T[:, order], MASK[:, order], HyperedgeOptions(**SMALL, mode=mode))
    nodes = np.concatenate([np.arange(P), P + order])
    edges = slice(None) if mode.startswith("cluster") else nodes
    edges = np.concatenate([np.arange(4), 4 + nodes]) if mode == "cluster+knn_node" else edges
    np.testing.assert_array_equal(h2, h[:, nodes][:, :, edges])
    np.testing.assert_allclose(y2, y[:, nodes], atol=1e-5)


def test_with_farthest_centres_patches_may_come_in_any_order_too():
    rng = np.random.default_rng(0)
    visual, words = rng.permutation(P), rng.permutation(L)
    options = HyperedgeOptions(**SMALL, init="farthest")
    h, y = jitted(V, T, MASK, options)
    h2, y2 = jitted(V[:, visual], T[:, words], MASK[:, words], options)
    nodes = np.concatenate([visual, P + words])
    np.testing.assert_array_equal(h2, h[:, nodes])
    np.testing.assert_allclose(y2, y[:, nodes], atol=1e-5)


@pytest.mark.parametrize("fill", [1e3, np.nan, np.inf])
@pytest.mark.parametrize("mode", MODES)
def test_content_of_padding_changes_nothing(mode, fill):
    options = HyperedgeOptions(**SMALL, mode=mode)
    filled = np.where(MASK[..., None], T, np.float32(fill))
    for ours, theirs in zip(jitted(V, T, MASK, options), jitted(V, filled, MASK, options), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("change", [dict(mode=m) for m in MODES] + [dict(init="farthest")], ids=str)
def test_amount_of_padding_changes_nothing(change):
    options = HyperedgeOptions(**SMALL, **change)
    h, y = jitted(V, T, MASK, options)
    longer = np.concatenate([T, draw(8, 5, D, seed=9)], 1)
    h2, y2 = jitted(V, longer, np.concatenate([MASK, np.zeros((8, 5), bool)], 1), options)
    np.testing.assert_array_equal(h2[:, : P + L, : h.shape[2]], h)
    assert not h2[:, P + L :].any()
    np.testing.assert_allclose(y2[:, : P + L], y, atol=1e-6)


def test_gradient_is_finite_when_padding_holds_nan():
    filled = np.where(MASK[..., None], T, np.nan)
    loss = lambda t: both(V, t, MASK, HyperedgeOptions(**SMALL))[1].sum()  # noqa: E731
    gradient = np.asarray(jax.jit(jax.grad(loss))(filled))
    assert np.isfinite(gradient).all() and not gradient[~MASK].any()


@pytest.mark.parametrize("mode", MODES)
def test_incidence_is_the_same_alone_in_a_batch_and_in_another_run(mode):
    options = HyperedgeOptions(**SMALL, mode=mode)
    h = made(V, T, MASK, options).h_bne
    np.testing.assert_array_equal(made(V, T, MASK, options).h_bne, h)
    np.testing.assert_array_equal(made(V[:1], T[:1], MASK[:1], options).h_bne, h[:1])


def test_incidence_is_the_same_without_compilation():
    options = HyperedgeOptions(grid=2, mode="cluster", iters=1)
    h = made(V, T, MASK, options).h_bne
    np.testing.assert_array_equal(graph_of(V[:2], T[:2], MASK[:2], options).h_bne, h[:2])


@pytest.mark.parametrize(
    "change", [dict(), dict(mode="knn_node"), dict(init="farthest", adjacent=2)], ids=str
)
def test_eight_devices_agree_with_one_and_exchange_nothing(change):
    options = HyperedgeOptions(**SMALL, **change)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    over = NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(partial(both, options=options), in_shardings=over, out_shardings=over)
    compiled = step.lower(V, T, MASK).compile()
    text = compiled.as_text()
    assert mesh.size == 8
    assert not [op for op in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if op in text]
    spread = compiled(*jax.device_put((V, T, MASK), over))
    for ours, theirs in zip(spread, jitted(V, T, MASK, options), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_default_hypergraph_holds_nothing_of_nodes_by_nodes_and_no_scatter():
    def shapes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.shape for v in equation.outvars)
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from shapes(inner)

    step = jax.value_and_grad(lambda v, t: both(v, t, MASK, HyperedgeOptions(**SMALL))[1].sum(), (0, 1))
    found = list(shapes(jax.make_jaxpr(step)(V, T).jaxpr))
    assert any(P + L in shape for shape in found)  # and no other axis is 23 long
    assert not [shape for shape in found if shape.count(P + L) > 1]
    assert "scatter" not in jax.jit(step).lower(V, T).as_text()
