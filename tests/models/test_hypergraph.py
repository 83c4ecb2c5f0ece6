"""The convolution equals the printed formula in float64 and its closed forms, and hyperedges are those of a slow
reference written with loops; no gradient flows through the incidence unless asked for; wrong options are refused."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import draw, lengths_mask

from jaxvl.models.hypergraph import (
    NORMS,
    HyperedgeOptions,
    Hypergraph,
    HypergraphOptions,
    build,
    content_weights,
    convolve,
    degrees,
    factors,
    features,
    statistics,
    visual_nodes,
)
from jaxvl.models.hypergraph_build import closeness, grid_centres, lloyd

SMALL = dict(grid=2, k_v=4, k_t=2, knn_k=5)
V, T = draw(3, 17, 12), draw(3, 6, 12, seed=1)
MASK = lengths_mask(6, 6, 4, 1)


@partial(jax.jit, static_argnames="options")
def made(v, t, mask, options: HyperedgeOptions) -> Hypergraph:
    return build(visual_nodes(v, options=options), t, mask, options=options)


def dense(h: np.ndarray, w: np.ndarray, norm: str) -> np.ndarray:
    """`D_v^a H W D_e^-1 H^T D_v^b` in float64 for one example without empty nodes or hyperedges."""
    h, w = h.astype(np.float64), w.astype(np.float64)
    outer, inner = {"hgnn": (-0.5, -0.5), "paper": (0.5, 0.5), "hgnn_plus": (-1, 0)}[norm]
    d_v, d_e = h @ w, h.sum(0)
    return np.diag(d_v**outer) @ h @ np.diag(w / d_e) @ h.T @ np.diag(d_v**inner)


def adjacency(h: np.ndarray, w: np.ndarray | None = None, norm: str = "hgnn") -> np.ndarray:
    """What `convolve` multiplies with."""
    weights = None if w is None else jnp.asarray(w, jnp.float32)[None]
    scaled = factors(jnp.asarray(h, jnp.float32)[None], weights_be=weights, norm=norm)
    return np.asarray(convolve(jnp.eye(len(h))[None], scaled)[0])


def random_incidence(nodes: int = 282, edges: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    h = rng.random((nodes, edges)) < 0.1
    h[np.arange(nodes), rng.integers(0, edges, nodes)] = True
    return h.astype(np.float32)


TOY = np.array([[1, 0, 0], [1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 1]], np.float32)
TOY_WEIGHTS = np.array([1, 2, 0.5], np.float32)


def test_degrees_of_a_hypergraph_small_enough_to_count():
    d_v, d_e = degrees(TOY[None], TOY_WEIGHTS[None])
    np.testing.assert_array_equal(d_v[0], [1, 1.5, 3, 2.5, 0.5, 0.5])
    np.testing.assert_array_equal(d_e[0], [3, 2, 4])


@pytest.mark.parametrize(("norm", "largest"), [("hgnn", 1.0), ("paper", 6.341554), ("hgnn_plus", 1.0)])
def test_largest_eigenvalue_of_the_small_hypergraph(norm, largest):
    eigenvalues = np.linalg.eigvals(adjacency(TOY, TOY_WEIGHTS, norm).astype(np.float64))
    assert abs(eigenvalues.real.max() - largest) < 2e-6 and abs(eigenvalues.imag).max() < 1e-6
    assert eigenvalues.real.min() > -1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_convolution_equals_the_dense_formula_in_float64(norm):
    h, w = random_incidence(), np.random.default_rng(1).uniform(0.2, 3, 16)
    x, theta, bias = draw(1, 282, 24), draw(24, 20, seed=2), draw(20, seed=3)
    scaled = factors(h[None], weights_be=jnp.asarray(w, jnp.float32)[None], norm=norm)
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(convolve(x, scaled, theta, bias=bias))[0]
    expected = dense(h, w, norm) @ (x[0].astype(np.float64) @ theta + bias)
    assert np.abs(ours - expected).max() / np.abs(expected).max() < 1e-6
    tail = convolve(x, scaled, theta, bias=bias, first=257)
    np.testing.assert_allclose(tail[0], ours[257:], rtol=1e-5, atol=1e-6)


def test_square_root_of_degree_and_constants_are_fixed_points():
    h, w = random_incidence(), np.random.default_rng(1).uniform(0.2, 3, 16)
    root = np.sqrt(h @ w)
    np.testing.assert_allclose(adjacency(h, w, "hgnn") @ root, root, rtol=1e-5)
    np.testing.assert_allclose(adjacency(h, w, "hgnn_plus").sum(1), 1, rtol=1e-5)


def test_disjoint_clusters_average_their_members_under_both_symmetric_norms():
    owner = np.random.default_rng(0).integers(0, 4, 30)
    h = np.eye(4, dtype=np.float32)[owner]
    x = draw(1, 30, 5)
    hgnn, paper = (convolve(x, factors(h[None], norm=norm)) for norm in ("hgnn", "paper"))
    np.testing.assert_array_equal(hgnn, paper)
    means = np.stack([x[0, owner == e].mean(0) for e in range(4)])
    np.testing.assert_allclose(hgnn[0], means[owner], atol=1e-6)


def test_one_hyperedge_around_everything_gives_the_global_mean():
    x = draw(1, 30, 5)
    mean = np.broadcast_to(x.mean(1, keepdims=True), x.shape)
    np.testing.assert_allclose(convolve(x, factors(np.ones((1, 30, 1)))), mean, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_empty_nodes_and_hyperedges_stay_zero_with_finite_gradients(norm):
    h = random_incidence(8, 3)
    h[5], h[:, 2] = 0, 0

    def output(h, w):
        return convolve(draw(1, 8, 4), factors(h, weights_be=w, norm=norm))

    y, back = jax.vjp(output, h[None], np.ones((1, 3), np.float32))
    assert not np.asarray(y)[0, 5].any()
    assert all(np.isfinite(g).all() for g in back(y))


def slow_centres(phi: np.ndarray, valid: np.ndarray, centre: np.ndarray, iters: int) -> np.ndarray:
    centre = centre.copy()
    for _ in range(iters):
        owner = (phi @ centre.T).argmax(1)
        for e in range(len(centre)):
            members = phi[valid & (owner == e)]
            if len(members):
                centre[e] = members.sum(0) / max(np.linalg.norm(members.sum(0)), 1e-6)
    return centre


def slow_incidence(phi: np.ndarray, valid: np.ndarray, visuals: int, o: HyperedgeOptions) -> np.ndarray:
    """Hyperedges of one example by loops."""
    side = int(np.sqrt(visuals - 1))
    ticks = [int((i + 0.5) * side / o.grid) for i in range(o.grid)]
    seeds = phi[[1 + r * side + c for r in ticks for c in ticks]]
    seen = valid & (np.arange(len(phi)) < visuals) if o.scope == "visual" else valid
    score = phi @ slow_centres(phi, seen, seeds, o.iters).T
    edges = [np.zeros(score.shape, bool)] if o.has_clusters else []
    groups = [(valid, o.knn_k)]
    if o.knn_quota == "modality":
        first = np.arange(len(phi)) < visuals
        groups = [(valid & first, o.k_v), (valid & ~first, o.k_t)]
    if o.has_clusters:
        for n in np.flatnonzero(valid):
            edges[0][n, np.argsort(-score[n], kind="stable")[: o.adjacent]] = True
    if o.mode == "cluster_knn":
        for e in range(score.shape[1]):
            for group, k in groups:
                nodes = np.flatnonzero(group)
                edges[0][nodes[np.argsort(-score[nodes, e], kind="stable")[:k]], e] = True
    if o.mode.endswith("knn_node"):
        near = np.zeros((len(phi), len(phi)), bool)
        for e in np.flatnonzero(valid):
            nodes = np.flatnonzero(valid & (np.arange(len(phi)) != e))
            distance = np.linalg.norm(phi[nodes] - phi[e], axis=1).round(6)
            near[nodes[np.argsort(distance, kind="stable")[: o.knn_k - 1]], e] = near[e, e] = True
        edges.append(near)
    return np.concatenate(edges, 1)


@pytest.mark.parametrize(
    "change",
    [
        dict(),
        dict(mode="cluster"),
        dict(mode="cluster", adjacent=3),
        dict(mode="knn_node"),
        dict(mode="cluster+knn_node"),
        dict(knn_quota="joint"),
        dict(scope="visual"),
        dict(scope="visual", knn_quota="joint", iters=1),
    ],
    ids=str,
)
def test_hyperedges_equal_a_reference_with_loops(change):
    options = HyperedgeOptions(**SMALL | change)
    graph = made(V, T, MASK, options)
    for b in range(len(V)):
        valid = np.concatenate([np.ones(17, bool), MASK[b]])
        parts = [V[b], T[b][MASK[b]]]
        phi = np.zeros((23, 12))
        centred = [x - x.mean(0) for x in parts]
        phi[valid] = np.concatenate(
            [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) for x in centred]
        )
        np.testing.assert_allclose(graph.phi_bnd[b], phi, atol=1e-6)
        np.testing.assert_array_equal(graph.h_bne[b], slow_incidence(phi, valid, 17, options))


def test_clusters_of_the_image_alone_do_not_depend_on_the_text():
    options = HyperedgeOptions(**SMALL, scope="visual")
    graph, other = (made(V, t, MASK, options) for t in (T, 3 * T[::-1] + 1))
    np.testing.assert_array_equal(graph.h_bne[:, :17], other.h_bne[:, :17])
    assert (graph.h_bne[0, 17:] != other.h_bne[0, 17:]).any()


def test_image_without_text_has_a_hypergraph():
    graph = made(V, T[:, :0], MASK[:, :0], HyperedgeOptions(**SMALL))
    assert graph.h_bne.shape == (3, 17, 4) and (graph.h_bne.sum(-1) >= 1).all()


def test_cluster_without_members_keeps_its_centre():
    phi = jnp.array([[[1.0, 0], [0.8, 0.6]]])
    start = jnp.array([[[1.0, 0], [-1, 0]]])
    centre = lloyd(phi, jnp.ones((1, 2), bool), start, 3)
    np.testing.assert_array_equal(centre[0, 1], [-1, 0])
    np.testing.assert_allclose(centre[0, 0], np.array([3, 1]) / np.sqrt(10), rtol=1e-6)


def test_identical_nodes_take_the_lowest_index():
    v, t = np.ones((1, 17, 12), np.float32), np.ones((1, 3, 12), np.float32)
    h = made(v, t, np.ones((1, 3), bool), HyperedgeOptions(**SMALL)).h_bne[0]
    expected = np.zeros((20, 4))
    expected[:, 0], expected[:4], expected[17:19] = 1, 1, 1
    np.testing.assert_array_equal(h, expected)


def test_weights_by_distance_follow_the_formula_of_hgnn():
    square = np.random.default_rng(0).random((1, 6, 2)).astype(np.float32)
    valid = np.array([[True] * 5 + [False]])
    mean = np.sqrt(square[0, :5]).mean(0)
    expected = np.exp(-square[0] / (0.7 * mean) ** 2)
    np.testing.assert_allclose(closeness(square, valid, 0.7)[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(closeness(0 * square, valid, 0.7), np.ones((1, 6, 2)))


def test_weighted_incidence_has_the_members_of_the_binary_one():
    binary, weighted = (
        made(V, T, MASK, HyperedgeOptions(**SMALL, incidence=i)).h_bne for i in ("binary", "prob")
    )
    np.testing.assert_array_equal(weighted > 0, binary > 0)
    inside = np.asarray(weighted)[np.asarray(weighted) > 0]
    assert inside.min() < 0.9 and inside.max() <= 1
    assert (weighted.sum(1) > 0).all()


@pytest.mark.parametrize("incidence", ["binary", "prob"])
@pytest.mark.parametrize("mode", HyperedgeOptions.CHOICES["mode"])
def test_no_gradient_flows_through_the_incidence(mode, incidence):
    options = HyperedgeOptions(**SMALL, mode=mode, incidence=incidence)
    direction = draw(*jax.eval_shape(lambda: made(V, T, MASK, options)).h_bne.shape)
    gradients = jax.grad(lambda v, t: (made(v, t, MASK, options).h_bne * direction).sum(), (0, 1))(V, T)
    assert not any(np.asarray(g).any() for g in gradients)


@pytest.mark.parametrize(("mode", "scope"), [("cluster_knn", "visual"), ("knn_node", "both")])
def test_gradient_through_distances_equals_finite_differences(mode, scope):
    options = HyperedgeOptions(**SMALL, mode=mode, scope=scope, incidence="prob", incidence_grad="pass")
    image = visual_nodes(V, options=options)  # centres are constants: the text moves, they do not
    loss = jax.jit(lambda t: jnp.square(build(image, t, MASK, options=options).h_bne).sum())
    step = draw(*T.shape, seed=5)
    slope = (jax.grad(loss)(T) * step).sum()
    numeric = (loss(T + 1e-2 * step) - loss(T - 1e-2 * step)) / 2e-2
    assert abs(slope) > 1e-2
    np.testing.assert_allclose(slope, numeric, rtol=2e-2)


def test_gradient_of_convolution_equals_finite_differences():
    h = random_incidence(12, 3)[None]
    x, theta, step = draw(1, 12, 4), draw(4, 4, seed=1), draw(1, 12, 4, seed=2)

    def loss(x):
        return jnp.sin(convolve(x, factors(h), theta)).sum()

    slope = (jax.grad(loss)(x) * step).sum()
    numeric = (loss(x + 1e-2 * step) - loss(x - 1e-2 * step)) / 2e-2
    np.testing.assert_allclose(slope, numeric, rtol=1e-3)


def test_weights_from_content_are_one_at_first_and_follow_the_members():
    graph = made(V, T, MASK, HyperedgeOptions(**SMALL))
    np.testing.assert_array_equal(content_weights(graph, np.zeros(12, np.float32)), np.ones((3, 4)))
    u = draw(12, seed=4)
    h, phi = np.asarray(graph.h_bne[0]), np.asarray(graph.phi_bnd[0])
    mean = (h.T @ phi) / h.sum(0)[:, None]
    np.testing.assert_allclose(content_weights(graph, u)[0], 2 / (1 + np.exp(-mean @ u)), rtol=1e-5)


def test_statistics_of_a_hypergraph_small_enough_to_count():
    assigned = np.eye(3, dtype=bool)[[0, 0, 1, 1, 0, 2]]
    graph = Hypergraph(TOY[None], assigned[None], np.zeros((1, 6, 2)), np.ones((1, 6), bool))
    found = {k: float(v[0]) for k, v in statistics(graph, visuals=3).items()}
    share = np.array([3, 2, 1]) / 6
    assert found == pytest.approx(
        dict(
            node_degree_mean=1.5,
            node_degree_min=1,
            node_degree_max=2,
            edge_degree_mean=3,
            edge_degree_min=2,
            edge_degree_max=4,
            bimodal=2 / 3,
            assignment_entropy=-(share * np.log(share)).sum(),
        )
    )


def test_features_of_each_modality_are_centred_on_it():
    offset = features(V + 100 * draw(3, 1, 12, seed=7), np.ones((3, 17), bool))
    np.testing.assert_allclose(offset, features(V, np.ones((3, 17), bool)), atol=1e-4)


def test_first_centres_lie_in_the_middle_of_the_cells_of_the_grid():
    index = jnp.arange(257.0)[None, :, None]
    ticks = [2, 6, 10, 14]
    np.testing.assert_array_equal(
        grid_centres(index, 4)[0, :, 0], [1 + 16 * r + c for r in ticks for c in ticks]
    )


@pytest.mark.parametrize("nodes", [16, 11, 5])
def test_image_that_is_no_square_of_patches_is_refused(nodes):
    with pytest.raises(ValueError, match=f"got {nodes}.*init='farthest'"):
        grid_centres(jnp.zeros((1, nodes, 4)), 3)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (dict(kv=3), "unknown option hypergraph.kv; did you mean 'k_v'"),
        (dict(nrom="hgnn"), "did you mean 'norm'"),
        (dict(zzz=1), "known: adjacent, ffn_placement"),
        (dict(mode="cluster_kn"), r"hypergraph.mode='cluster_kn'.*did you mean 'cluster_knn'"),
        (dict(residual=False), "hypergraph.residual=False"),
        (dict(grid=0), "hypergraph.grid=0: expected a positive int"),
        (dict(k_v=2.5), "hypergraph.k_v=2.5"),
        (dict(mlp_ratio=-1), "hypergraph.mlp_ratio=-1"),
        (dict(layers=(0, 1)), r"\[0\] not in 1..6"),
        (dict(layers=(7,)), r"\[7\] not in 1..6"),
        (dict(layers=(1, 1)), "named twice"),
        (dict(layers=3), "expected a sequence"),
        (dict(adjacent=17), "only grid"),
        (dict(scope="visual", mode="knn_node"), "needs a mode with clusters"),
        (dict(incidence_grad="pass"), "needs incidence='prob'"),
        (dict(weights="slot", mode="knn_node"), "fixed number"),
        (dict(visual_update="residual", layout="concat"), "layout='cross'"),
        (dict(ffn_placement="in_branch", layout="visual_pre"), "needs a fusion"),
        (dict(residual=None, layout="visual_pre"), "never learns"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_by_name(mapping, message):
    with pytest.raises(ValueError, match=message):
        HypergraphOptions.parse(mapping, depth=6)


def test_no_mapping_or_no_layer_is_no_hypergraph_and_layers_default_to_all():
    assert HypergraphOptions.parse(None, depth=6) is None
    assert HypergraphOptions.parse({"layers": ()}, depth=6) is None
    assert HypergraphOptions.parse({}, depth=6) == HypergraphOptions()
    assert HypergraphOptions.parse({}, depth=2).layers == (1, 2)
    assert HypergraphOptions.parse({"layers": [3, 1]}, depth=6).layers == (1, 3)


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="did you mean 'hgnn'"):
        factors(np.ones((1, 2, 1)), norm="hgn")
