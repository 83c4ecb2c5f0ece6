"""A fresh hypergraph changes nothing, unselected layers are ALBEF's, every option trains, the cheap order of fusion
attention equals the plain one, and what depends on the image alone is computed once per image."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from oracles import draw, lengths_mask, seeded

from jaxvl.models.fusion import FusionEncoder
from jaxvl.models.hypergraph_modules import NodeAttention, attend_nodes
from jaxvl.models.layers import Attention, stack_layers, unstack_layers

WIDTH, L, P = 16, 5, 10
SMALL = dict(grid=2, k_v=4, k_t=2, knn_k=5, iters=1)
TEXT, MASK = draw(3, L, WIDTH), lengths_mask(L, 5, 3, 1)
IMAGE, INDEX = draw(2, P, WIDTH, seed=1), np.array([0, 1, 0])
DATA = (TEXT, MASK, IMAGE, INDEX)
BRANCH = ("hypergraph", "hg_fusion", "hg_ffn", "visual_update")


def encoder(hypergraph: dict[str, Any] | None, depth: int = 2, **kwargs: Any) -> FusionEncoder:
    options = None if hypergraph is None else SMALL | hypergraph
    return FusionEncoder(depth, heads=2, mlp=24, hypergraph=options, **kwargs)


def fresh(model: FusionEncoder) -> dict:
    """Newly initialised parameters."""
    return nn.unbox(jax.jit(model.init)(jax.random.key(0), *DATA))["params"]


def output(model: FusionEncoder, params: dict, *data: Any, **kwargs: Any) -> np.ndarray:
    run = jax.jit(lambda p, *data: model.apply({"params": p}, *data, **kwargs))
    return np.asarray(run(params, *(data or DATA)))


def step_gradient(model: FusionEncoder):
    """Jitted gradient of a fixed random function of the valid outputs."""
    direction = draw(*TEXT.shape, seed=3) * MASK[..., None]
    return jax.jit(jax.grad(lambda p: (model.apply({"params": p}, *DATA) * direction).sum()))


def without_branch(params: dict) -> dict:
    return unflatten_dict({k: v for k, v in flatten_dict(params).items() if not set(k) & set(BRANCH)})


FRESH = [
    dict(),
    dict(fusion="branch"),
    dict(fusion="gate"),
    dict(layout="visual_pre"),
    dict(visual_update="residual"),
    dict(ffn_placement="in_branch"),
]


@pytest.mark.parametrize("options", FRESH, ids=str)
def test_fresh_hypergraph_changes_no_bit_with_dropout_or_without(options):
    model, plain = encoder(options), encoder(None)
    params = fresh(model)
    albef = without_branch(params)
    assert jax.tree.structure(albef) == jax.tree.structure(fresh(plain))
    for train in ({}, dict(train=True, rngs={"dropout": jax.random.key(1)})):
        np.testing.assert_array_equal(output(model, params, **train), output(plain, albef, **train))


def test_fresh_concatenated_layout_ignores_the_hypergraph():
    model = encoder(dict(layout="concat"))
    params = fresh(model)
    other = jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.3 if "hypergraph" in jax.tree_util.keystr(path) else x, params
    )
    np.testing.assert_array_equal(output(model, params), output(model, other))
    assert "cross_attention" not in params["layers_0"]


def test_normal_initialisation_does_change_the_output():
    model = encoder(dict(fusion_init="normal"))
    params = fresh(model)
    assert abs(output(model, params) - output(encoder(None), without_branch(params))).max() > 1e-3


def zero_gradients(gradients: dict) -> set[str]:
    """`module/parameter` in the branches of layer 0 whose gradient is exactly zero."""
    flat = flatten_dict(gradients["layers_0"], sep="/")
    return {k for k, g in flat.items() if k.split("/")[0] in BRANCH and not np.asarray(g).any()}


@pytest.mark.parametrize("options", FRESH, ids=str)
def test_branch_wakes_up_in_two_steps(options):
    model = encoder(options | dict(theta_bias="zeros", weights="slot"))
    params, gradient = fresh(model), step_gradient(model)
    names = {k for k in flatten_dict(params["layers_0"], sep="/") if k.split("/")[0] in BRANCH}
    first = gradient(params)
    awake = names - zero_gradients(first)
    if options == {}:
        assert awake == {"hg_fusion/out/kernel", "hg_fusion/out/bias"}
    second = jax.tree.map(lambda p, g: p - 0.1 * g, params, first)
    assert zero_gradients(gradient(second)) == names & {"hg_fusion/key/bias"}


@pytest.mark.parametrize(
    "layers", [(), (1,), (1, 3), (1, 3, 5), (1, 3, 4, 5), (1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6)]
)
def test_only_selected_layers_own_a_hypergraph_and_all_subsets_of_table_5_train(layers):
    model = encoder(dict(layers=layers), depth=6, scan=True)  # as few bodies to compile as there are runs
    params = unstack_layers(fresh(model))
    owners = {
        int(name.split("_")[1]) + 1 for name, p in params.items() if "hypergraph" in p and "hg_fusion" in p
    }
    assert owners == set(layers) and len(params) == 6
    stacked = fresh(model)
    gradients = unstack_layers(step_gradient(model)(stacked))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert all(np.asarray(gradients[f"layers_{i - 1}"]["hg_fusion"]["out"]["kernel"]).any() for i in layers)


# Every value of mode, norm, fusion and layout meets every value of the other three.
COVERING = [
    ("cluster_knn", "hgnn", "xattn", "cross"),
    ("cluster_knn", "paper", "branch", "concat"),
    ("cluster_knn", "hgnn_plus", "gate", "visual_pre"),
    ("cluster", "hgnn", "branch", "visual_pre"),
    ("cluster", "paper", "gate", "cross"),
    ("cluster", "hgnn_plus", "xattn", "concat"),
    ("knn_node", "hgnn", "gate", "concat"),
    ("knn_node", "paper", "xattn", "visual_pre"),
    ("knn_node", "hgnn_plus", "branch", "cross"),
    ("cluster+knn_node", "hgnn", "xattn", "concat"),
    ("cluster+knn_node", "paper", "branch", "visual_pre"),
    ("cluster+knn_node", "hgnn_plus", "gate", "cross"),
]


@pytest.mark.parametrize(("mode", "norm", "fusion", "layout"), COVERING)
def test_every_mode_norm_fusion_and_layout_has_finite_gradients(mode, norm, fusion, layout):
    options = dict(mode=mode, norm=norm, fusion=fusion, layout=layout, fusion_init="normal", incidence="prob")
    model = encoder(options | dict(incidence_grad="pass"), depth=1)
    params = seeded(model, *DATA)
    gradients = step_gradient(model)(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert np.asarray(gradients["layers_0"]["hypergraph"]["theta"]["kernel"]).any()


def test_pairs_of_options_above_are_complete():
    for a in range(4):
        for b in range(a):
            values = [{row[i] for row in COVERING} for i in (a, b)]
            assert len({(row[a], row[b]) for row in COVERING}) == len(values[0]) * len(values[1])


@pytest.mark.parametrize(
    "options",
    [
        dict(scope="visual", weights="content"),
        dict(init="farthest", knn_quota="joint", adjacent=2),
        dict(residual=None, mlp_ratio=0.5),
        dict(visual_update="residual", fusion="branch", layers=(1,)),
        dict(scope="visual", incidence="prob", incidence_grad="pass", visual_update="residual"),
    ],
    ids=str,
)
def test_remaining_options_train(options):
    model = encoder(options | dict(fusion_init="normal"))
    gradients = step_gradient(model)(seeded(model, *DATA))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert all(np.asarray(g).any() for g in jax.tree.leaves(gradients["layers_0"]["hypergraph"]))


def attention_inputs() -> dict[str, Any]:
    names = ("query", "key", "value", "out")
    kernels = {
        n: dict(kernel=0.3 * draw(WIDTH, WIDTH, seed=i), bias=draw(WIDTH, seed=9 + i))
        for i, n in enumerate(names)
    }
    return dict(params=kernels, x=TEXT, f=draw(3, 30, WIDTH, seed=7), mask=lengths_mask(30, 30, 21, 26))


@pytest.mark.parametrize("absorb", [True, False, None])
def test_either_order_of_fusion_attention_equals_plain_attention(absorb):
    given = attention_inputs()
    p, (x, f, mask) = given["params"], (given["x"], given["f"], given["mask"])
    with jax.default_matmul_precision("highest"):
        plain = Attention(4).apply({"params": p}, x, f, mask[:, None, None])
        q = (x @ p["query"]["kernel"] + p["query"]["bias"]).reshape(3, L, 4, 4)
        kernels = (jnp.asarray(p["key"]["kernel"]), jnp.asarray(p["value"]["kernel"]))
        ctx, probs = attend_nodes(q, f, kernels, p["value"]["bias"], mask, absorb=absorb)
    np.testing.assert_allclose(ctx @ p["out"]["kernel"] + p["out"]["bias"], plain, atol=1e-5)
    np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-5)
    assert not np.asarray(probs)[~np.broadcast_to(mask[:, None, None], probs.shape)].any()


def test_both_orders_agree_under_dropout_and_in_their_gradients():
    given = attention_inputs()
    keep = 2.0 * (np.random.default_rng(0).random((3, 4, L, 30)) < 0.5)
    p = {k: jnp.asarray(v["kernel"]) for k, v in given["params"].items()}

    def loss(p, f, absorb):
        q = (TEXT @ p["query"]).reshape(3, L, 4, 4)
        bias = given["params"]["value"]["bias"]
        ctx, _ = attend_nodes(
            q, f, (p["key"], p["value"]), bias, given["mask"], absorb=absorb, dropout=lambda x: x * keep
        )
        return jnp.sin(ctx).sum()

    with jax.default_matmul_precision("highest"):
        ours, theirs = (jax.value_and_grad(loss, (0, 1))(p, given["f"], absorb) for absorb in (True, False))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


def flops(queries: int, nodes: int, absorb: bool | None) -> float:
    q, f = jnp.zeros((1, queries, 12, 64)), jnp.zeros((1, nodes, 768))
    k, bias, mask = jnp.zeros((768, 768)), jnp.zeros(768), jnp.ones((1, nodes), bool)
    step = jax.jit(partial(attend_nodes, absorb=absorb))
    return step.lower(q, f, (k, k), bias, mask).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(("queries", "nodes"), [(25, 282), (282, 282)])
def test_cheaper_order_of_fusion_attention_is_chosen_by_shape(queries, nodes):
    absorbed, projected = flops(queries, nodes, True), flops(queries, nodes, False)
    assert flops(queries, nodes, None) == min(absorbed, projected)
    assert (absorbed < 0.6 * projected) == (queries == 25)


VARIANTS = [
    None,
    dict(),
    dict(scope="visual"),
    dict(fusion="branch"),
    dict(layout="concat"),
    dict(layout="visual_pre"),
    dict(visual_update="residual"),
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_image_index_equals_repeated_images(options):
    model = encoder(options and options | dict(fusion_init="normal"))
    params = seeded(model, *DATA)
    np.testing.assert_allclose(
        output(model, params), output(model, params, TEXT, MASK, IMAGE[INDEX], None), atol=1e-5
    )


@pytest.mark.parametrize("options", [dict(), dict(scope="visual")], ids=str)
def test_clustering_of_the_image_sees_one_row_per_image(options):
    """Node features of images have `B` rows, not one per text; 6 texts on 2 images make the two tell apart."""
    model = encoder(options, depth=1)
    data = (jnp.tile(TEXT, (2, 1, 1)), jnp.tile(MASK, (2, 1)), IMAGE, jnp.tile(INDEX, 2))
    params = fresh(model)
    found = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            found.extend((equation.primitive.name, v.aval.shape) for v in equation.outvars)
            for inner in jax.core.jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(partial(model.apply, {"params": params}))(*data).jaxpr)
    assert ("rsqrt", (2, P, 1)) in found and ("rsqrt", (6, P, 1)) not in found
    keys = [shape for name, shape in found if name == "dot_general" and shape == (2, P, WIDTH)]
    assert len(keys) == 2  # key and value of cross attention


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_padding_changes_no_valid_output(options):
    model = encoder(options and options | dict(fusion_init="normal"))
    params = seeded(model, *DATA)
    plain = output(model, params)
    filled = np.where(MASK[..., None], TEXT, 1e3).astype(np.float32)
    longer = np.concatenate([filled, draw(3, 4, WIDTH, seed=5)], 1)
    mask = np.concatenate([MASK, np.zeros((3, 4), bool)], 1)
    padded = output(model, params, longer, mask, IMAGE, INDEX)
    np.testing.assert_allclose(padded[:, :L][MASK], plain[MASK], atol=2e-5)


@pytest.mark.parametrize("options", [*VARIANTS[1:], dict(layers=(1, 3))], ids=str)
def test_scanned_and_rematerialised_layers_are_the_same_function(options):
    plain = encoder(options | dict(fusion_init="normal"), depth=3)
    params = seeded(plain, *DATA)
    scanned = encoder(options | dict(fusion_init="normal"), depth=3, scan=True, remat="full")
    stacked = stack_layers(params, nn.unbox(jax.eval_shape(scanned.init, jax.random.key(0), *DATA))["params"])
    np.testing.assert_allclose(output(scanned, stacked), output(plain, params), atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_diagnostics_are_left_only_when_asked_for(scan):
    model = encoder(dict(fusion_init="normal", layers=(2, 3)), depth=3, scan=scan)
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(0), *DATA))
    assert set(variables) == {"params"}
    _, left = jax.jit(partial(model.apply, mutable=["diagnostics"]))(variables, *DATA)
    (found,) = [v for k, v in left["diagnostics"].items() if k in ("layers_1_3", "layers_1")]
    values = {**found["hypergraph"], **found["hg_fusion"]}
    shape = (2, 3) if scan else (3,)
    assert {k: v.shape for k, v in values.items()} == dict.fromkeys(values, shape)
    assert len(values) == 10 and "layers_0" not in left["diagnostics"]
    assert ((values["visual_mass"] > 0) & (values["visual_mass"] < 1)).all() and (
        values["update_ratio"] > 0
    ).all()


def test_visual_update_reaches_later_layers_and_the_last_layer_has_none():
    model = encoder(dict(visual_update="residual"), depth=3)
    params = seeded(model, *DATA)
    assert [("visual_update" in params[f"layers_{i}"]) for i in range(3)] == [True, True, False]
    gradients = step_gradient(model)(params)
    assert np.asarray(gradients["layers_1"]["visual_update"]["kernel"]).any()


def test_low_precision_stays_near_full_precision():
    params = seeded(encoder({}), *DATA)
    full, low = (output(encoder({}, dtype=d), params) for d in (jnp.float32, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    assert abs(full - low.astype(np.float32)).mean() < 0.05


def test_no_scatter_and_nothing_of_nodes_by_nodes_in_a_default_layer():
    model = encoder({}, depth=1)
    params = fresh(model)
    data = (draw(2, 7, WIDTH), np.ones((2, 7), bool), IMAGE)
    text = jax.jit(jax.grad(lambda p: model.apply({"params": p}, *data).sum())).lower(params).as_text()
    assert "x17x16x" in text and "17x17" not in text  # 10 visual nodes and 7 words, width 16
    assert "scatter" not in text


def test_parameters_of_a_layer_at_the_size_of_the_paper():
    data = tuple(jnp.zeros(s) for s in ((1, 25, 768), (1, 25), (1, 257, 768)))
    shapes = {}
    for name, hypergraph in (("default", {}), ("wide", {"mlp_ratio": 4.0}), ("none", None)):
        model = FusionEncoder(6, heads=12, mlp=3072, hypergraph=hypergraph)
        tree = jax.eval_shape(model.init, jax.random.key(0), *data)
        shapes[name] = sum(x.size for x in jax.tree.leaves(tree))
    assert shapes["default"] - shapes["none"] == 24_818_688
    assert shapes["wide"] - shapes["none"] == 46_066_176


@pytest.mark.parametrize("images", [IMAGE, IMAGE[:1]])
def test_rows_that_do_not_match_are_refused(images):
    with pytest.raises(ValueError, match="give image_index"):
        encoder(None).init(jax.random.key(0), TEXT, MASK, images)


def test_misspelled_option_is_refused_by_name():
    with pytest.raises(ValueError, match="hypergraph.fuson; did you mean 'fusion'"):
        encoder(dict(fuson="gate")).init(jax.random.key(0), *DATA)


def test_node_attention_never_uses_a_key_bias():
    module = NodeAttention(2, P, out_init=nn.initializers.normal(0.02))
    args = (TEXT, IMAGE[INDEX], MASK, np.ones((3, P), bool))
    params = seeded(module, *args)
    gradient = jax.grad(lambda p: module.apply({"params": p}, *args).sum())(params)
    assert not np.asarray(gradient["key"]["bias"]).any() and np.asarray(gradient["key"]["kernel"]).any()
