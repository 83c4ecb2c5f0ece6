"""Every option of the hypergraph trains: gradients are finite and reach the branch, on the selected layers alone."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from oracles import draw, lengths_mask, seeded

from jaxvl.models.fusion import FusionEncoder
from jaxvl.models.layers import unstack_layers

WIDTH, L, P = 16, 5, 10
SMALL = dict(grid=2, k_v=4, k_t=2, knn_k=5, iters=1)
TEXT, MASK = draw(3, L, WIDTH), lengths_mask(L, 5, 3, 1)
IMAGE, INDEX = draw(2, P, WIDTH, seed=1), np.array([0, 1, 0])
DATA = (TEXT, MASK, IMAGE, INDEX)


def encoder(hypergraph: dict[str, Any] | None, depth: int = 1, **kwargs: Any) -> FusionEncoder:
    options = None if hypergraph is None else SMALL | hypergraph
    return FusionEncoder(depth, heads=2, mlp=24, hypergraph=options, **kwargs)


UNOPTIMISED = {"xla_backend_optimization_level": 0}  # the tests wait for the compiler, not for the arithmetic


def gradient(model: FusionEncoder, params: dict) -> dict:
    """Of a fixed random function of the valid outputs."""
    direction = draw(*TEXT.shape, seed=3) * MASK[..., None]
    loss = lambda p: (model.apply({"params": p}, *DATA) * direction).sum()  # noqa: E731
    return jax.jit(jax.grad(loss), compiler_options=UNOPTIMISED)(params)


# Every value of mode, norm, fusion and layout meets every value of the other three; the rest ride along.
COVERING = [
    ("cluster_knn", "hgnn", "xattn", "cross", dict(scope="visual", weights="content")),
    ("cluster_knn", "paper", "branch", "concat", dict(scope="visual", residual=None)),
    ("cluster_knn", "hgnn_plus", "gate", "visual_pre", dict(init="farthest")),
    ("cluster", "hgnn", "branch", "visual_pre", dict(weights="slot")),
    ("cluster", "paper", "gate", "cross", dict(incidence="prob", incidence_grad="pass", weights="slot")),
    ("cluster", "hgnn_plus", "xattn", "concat", dict(adjacent=2, mlp_ratio=0.5)),
    ("knn_node", "hgnn", "gate", "concat", dict(incidence="prob", incidence_grad="pass")),
    ("knn_node", "paper", "xattn", "visual_pre", dict(residual=None, fusion_init="normal")),
    ("knn_node", "hgnn_plus", "branch", "cross", dict(ffn_placement="in_branch", theta_bias="zeros")),
    ("cluster+knn_node", "hgnn", "xattn", "concat", dict(incidence="prob", knn_quota="joint")),
    ("cluster+knn_node", "paper", "branch", "visual_pre", dict(theta_bias="zeros")),
    ("cluster+knn_node", "hgnn_plus", "gate", "cross", dict(visual_update="residual", weights="content")),
]


@pytest.mark.parametrize(("mode", "norm", "fusion", "layout", "rest"), COVERING)
def test_every_option_has_finite_gradients(mode, norm, fusion, layout, rest):
    model = encoder(dict(mode=mode, norm=norm, fusion=fusion, layout=layout) | rest)
    found = gradient(model, seeded(model, *DATA))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(found))
    branch = jax.tree.leaves(found["layers_0"]["hypergraph"])
    assert all(np.asarray(g).any() for g in branch)


def test_pairs_of_options_above_are_complete():
    for a in range(4):
        for b in range(a):
            values = [{row[i] for row in COVERING} for i in (a, b)]
            assert len({(row[a], row[b]) for row in COVERING}) == len(values[0]) * len(values[1])


SUBSETS = [(), (1,), (1, 3), (1, 3, 5), (1, 3, 4, 5), (1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6)]


@pytest.mark.parametrize("layers", SUBSETS)
def test_only_selected_layers_own_a_hypergraph(layers):
    """The seven rows of table 5 of the paper; a gradient step is traced."""
    model = encoder(dict(layers=layers), depth=6, scan=True)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *DATA))["params"]
    step = jax.grad(lambda p: model.apply({"params": p}, *DATA).sum())
    assert jax.tree.structure(jax.eval_shape(step, shapes)) == jax.tree.structure(shapes)
    params = unstack_layers(shapes)
    owners = [i for i in range(1, 7) if {"hypergraph", "hg_fusion"} & set(params[f"layers_{i - 1}"])]
    assert tuple(owners) == layers and len(params) == 6


def test_selected_layers_take_a_gradient_step_between_others():
    model = encoder(dict(layers=(1, 3), mode="cluster", fusion="gate"), depth=3)
    found = gradient(model, seeded(model, *DATA))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(found))
    assert ["hypergraph" in found[f"layers_{i}"] for i in range(3)] == [True, False, True]
    assert all(np.asarray(found[f"layers_{i}"]["hypergraph"]["theta"]["kernel"]).any() for i in (0, 2))


def test_last_layer_has_no_visual_update_because_nobody_would_read_it():
    model = encoder(dict(visual_update="residual"), depth=2)
    params = jax.eval_shape(model.init, jax.random.key(0), *DATA)["params"]
    assert ["visual_update" in params[f"layers_{i}"] for i in range(2)] == [True, False]
