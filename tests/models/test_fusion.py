"""A fresh hypergraph changes nothing, the cheap order of fusion attention equals the plain one, and neither padding,
repeated images, scanned nor rematerialised layers change the function."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from oracles import draw, lengths_mask, seeded

from jaxvl.models.fusion import FusionEncoder
from jaxvl.models.hypergraph_modules import attend_nodes
from jaxvl.models.layers import Attention, attend, stack_layers

WIDTH, L, P = 16, 5, 10
SMALL = dict(grid=2, k_v=4, k_t=2, knn_k=5, iters=1)
TEXT, MASK = draw(3, L, WIDTH), lengths_mask(L, 5, 3, 1)
IMAGE, INDEX = draw(2, P, WIDTH, seed=1), np.array([0, 1, 0])
DATA = (TEXT, MASK, IMAGE, INDEX)


def encoder(hypergraph: dict[str, Any] | None, depth: int = 1, **kwargs: Any) -> FusionEncoder:
    options = None if hypergraph is None else SMALL | hypergraph
    return FusionEncoder(depth, heads=2, mlp=24, hypergraph=options, **kwargs)


UNOPTIMISED = {"xla_backend_optimization_level": 0}  # the tests wait for the compiler, not for the arithmetic


def quick(f: Callable, *args: Any) -> Any:
    """`f(*args)`, compiled."""
    return jax.jit(f, compiler_options=UNOPTIMISED)(*args)


def output(model: FusionEncoder, params: dict, *data: Any, **kwargs: Any) -> np.ndarray:
    return np.asarray(
        quick(lambda p, *data: model.apply({"params": p}, *data, **kwargs), params, *(data or DATA))
    )


BRANCH = {"hypergraph", "hg_fusion", "hg_ffn", "visual_update"}
FRESH = {
    "default": encoder(dict()),
    "branch": encoder(dict(fusion="branch", weights="content")),
    "gate": encoder(dict(fusion="gate", theta_bias="zeros", weights="slot")),
    "visual_pre": encoder(dict(layout="visual_pre")),
    "in_branch": encoder(dict(ffn_placement="in_branch")),
    "visual_update": encoder(dict(visual_update="residual", mode="cluster", fusion="gate"), depth=2),
}


@cache
def fresh(name: str) -> dict:
    """Newly initialised parameters of `FRESH[name]`."""
    return nn.unbox(quick(FRESH[name].init, jax.random.key(0), *DATA))["params"]


@pytest.mark.parametrize("name", FRESH)
def test_fresh_hypergraph_changes_no_bit_even_with_dropout(name):
    model = FRESH[name]
    params = fresh(name)
    albef = unflatten_dict({k: v for k, v in flatten_dict(params).items() if not set(k) & BRANCH})
    train = dict(train=True, rngs={"dropout": jax.random.key(1)})
    plain = encoder(None, depth=model.depth)
    assert jax.tree.structure(albef) == jax.tree.structure(seeded(plain, *DATA))
    np.testing.assert_array_equal(output(model, params, **train), output(plain, albef, **train))


def asleep(gradients: dict) -> set[str]:
    """`module/parameter` in the branches of layer 0 whose gradient is exactly zero."""
    flat = flatten_dict(gradients["layers_0"], sep="/")
    return {k for k, g in flat.items() if k.split("/")[0] in BRANCH and not np.asarray(g).any()}


@pytest.mark.parametrize("name", FRESH)
def test_branch_wakes_up_in_two_steps(name):
    model = FRESH[name]
    direction = draw(*TEXT.shape, seed=3) * MASK[..., None]
    loss = lambda p: (model.apply({"params": p}, *DATA) * direction).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss), compiler_options=UNOPTIMISED)
    params = fresh(name)
    names = {k for k in flatten_dict(params["layers_0"], sep="/") if k.split("/")[0] in BRANCH}
    first = gradient(params)
    if name == "default":
        assert names - asleep(first) == {"hg_fusion/out/kernel", "hg_fusion/out/bias"}
    second = jax.tree.map(lambda p, g: p - 0.1 * g, params, first)
    assert asleep(gradient(second)) == names & {"hg_fusion/key/bias"}


def test_fresh_concatenated_layout_ignores_the_hypergraph_and_has_no_cross_attention():
    model = encoder(dict(layout="concat"))
    params = seeded(model, *DATA)
    params["layers_0"]["hg_fusion"]["out"] = jax.tree.map(
        np.zeros_like, params["layers_0"]["hg_fusion"]["out"]
    )
    other = params | {
        "layers_0": params["layers_0"]
        | {"hypergraph": jax.tree.map(lambda x: x + 0.3, params["layers_0"]["hypergraph"])}
    }
    np.testing.assert_array_equal(output(model, params), output(model, other))
    assert "cross_attention" not in params["layers_0"]


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


def test_both_orders_equal_plain_attention_under_dropout_and_in_their_gradients():
    given = attention_inputs()
    keep = 2.0 * (np.random.default_rng(0).random((3, 4, L, 30)) < 0.5)
    kernels = {k: jnp.asarray(v["kernel"]) for k, v in given["params"].items()}
    bias, mask = given["params"]["value"]["bias"], given["mask"]
    heads = lambda x: x.reshape(*x.shape[:2], 4, 4)  # noqa: E731
    drop = lambda x: x * keep  # noqa: E731

    def loss(p, f, absorb):
        q = heads(TEXT @ p["query"])
        if absorb is None:
            ctx = attend(
                q, heads(f @ p["key"]), heads(f @ p["value"] + bias), mask[:, None, None], dropout=drop
            )
        else:
            pair = (p["key"], p["value"])
            ctx, _ = attend_nodes(q, f, pair, bias, mask, absorb=absorb, dropout=drop)
        return jnp.sin(ctx).sum()

    with jax.default_matmul_precision("highest"):
        results = [
            jax.value_and_grad(loss, (0, 1))(kernels, given["f"], absorb) for absorb in (None, True, False)
        ]
    for plain, *ours in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours[0], plain, atol=3e-5)
        np.testing.assert_allclose(ours[1], plain, atol=3e-5)


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


VARIANTS = {
    "albef": None,
    "default": dict(),
    "visual scope": dict(scope="visual"),
    "branch": dict(fusion="branch"),
    "concat": dict(layout="concat"),
    "visual_pre": dict(layout="visual_pre"),
    "visual_update": dict(visual_update="residual"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_neither_padding_nor_repeated_images_change_a_valid_output(name):
    model = encoder(VARIANTS[name])
    params = seeded(model, *DATA)
    filled = np.where(MASK[..., None], TEXT, 1e3).astype(np.float32)
    longer = np.concatenate([filled, draw(3, 4, WIDTH, seed=5)], 1)
    mask = np.concatenate([MASK, np.zeros((3, 4), bool)], 1)
    padded = output(model, params, longer, mask, IMAGE[INDEX], None)
    np.testing.assert_allclose(padded[:, :L][MASK], output(model, params)[MASK], atol=2e-5)


@pytest.mark.parametrize(
    "options", [dict(), dict(layers=(1, 3), scope="visual"), dict(visual_update="residual")], ids=str
)
def test_scanned_and_rematerialised_layers_are_the_same_function(options):
    plain, scanned = encoder(options, depth=3), encoder(options, depth=3, scan=True, remat="full")
    params = seeded(plain, *DATA)
    stacked = stack_layers(params, nn.unbox(jax.eval_shape(scanned.init, jax.random.key(0), *DATA))["params"])
    np.testing.assert_allclose(output(scanned, stacked), output(plain, params), atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_diagnostics_are_left_only_when_asked_for(scan):
    model = encoder(dict(layers=(2,)), depth=2, scan=scan)
    params = seeded(model, *DATA)
    assert set(jax.eval_shape(model.init, jax.random.key(0), *DATA)) == {"params"}
    _, left = quick(partial(model.apply, mutable=["diagnostics"]), {"params": params}, *DATA)
    ((layer, found),) = left["diagnostics"].items()
    values = {**found["hypergraph"], **found["hg_fusion"]}
    assert layer == ("layers_1_2" if scan else "layers_1") and len(values) == 10
    assert {v.shape for v in values.values()} == {(1, 3) if scan else (3,)}
    assert (values["visual_mass"] > 0).all() and (values["visual_mass"] < 1).all()
    assert (values["update_ratio"] > 0).all()


def primitives(f: Callable, *args: Any) -> list[tuple[str, tuple[int, ...]]]:
    """(primitive, output shape) of everything in the program of `f`."""
    found = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            found.extend((equation.primitive.name, v.aval.shape) for v in equation.outvars)
            for inner in jax.core.jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(f)(*args).jaxpr)
    return found


@pytest.mark.parametrize("scope", ["both", "visual"])
def test_what_depends_on_the_image_alone_is_computed_once_per_image(scope):
    model = encoder(dict(scope=scope))
    data = (jnp.tile(TEXT, (2, 1, 1)), jnp.tile(MASK, (2, 1)), IMAGE, jnp.tile(INDEX, 2))  # 6 texts, 2 images
    found = primitives(partial(model.apply, {"params": seeded(model, *data)}), *data)
    assert ("rsqrt", (2, P, 1)) in found and ("rsqrt", (6, P, 1)) not in found  # features
    assert found.count(("dot_general", (2, P, WIDTH))) == 2  # keys and values of cross attention
    centres = [shape for name, shape in found if name == "dot_general" and shape[1:] == (4, WIDTH)]
    # one product moves the centres, two belong to the convolution of the rows of text
    assert centres == ([(2, 4, WIDTH)] if scope == "visual" else [(6, 4, WIDTH)]) + 2 * [(6, 4, WIDTH)]


def test_clustering_of_the_image_alone_runs_once_for_all_layers():
    counts = []
    for depth in (1, 4):
        model = encoder(dict(scope="visual"), depth=depth)
        found = primitives(partial(model.apply, {"params": seeded(model, *DATA)}), *DATA)
        counts.append(found.count(("dot_general", (2, 4, WIDTH))))
    assert counts == [1, 1]


def test_no_scatter_and_nothing_of_nodes_by_nodes_in_a_default_layer():
    model = encoder({})
    data = (draw(2, 7, WIDTH), np.ones((2, 7), bool), IMAGE)
    step = jax.grad(lambda p: model.apply({"params": p}, *data).sum())
    shapes = [shape for _, shape in primitives(step, seeded(model, *data))]
    nodes = 7 + P
    assert any(nodes in shape for shape in shapes) and not [s for s in shapes if s.count(nodes) > 1]
    assert "scatter" not in jax.jit(step).lower(seeded(model, *data)).as_text()


def test_low_precision_stays_near_full_precision():
    params = seeded(encoder({}), *DATA)
    full, low = (output(encoder({}, dtype=d), params) for d in (jnp.float32, jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    assert abs(full - low.astype(np.float32)).mean() < 0.05


@pytest.mark.parametrize(("options", "expected"), [({}, 4_136_448), ({"mlp_ratio": 4.0}, 7_677_696)], ids=str)
def test_parameters_of_a_layer_at_the_size_of_the_paper(options, expected):
    data = tuple(jnp.zeros(s) for s in ((1, 25, 768), (1, 25), (1, 257, 768)))
    tree = jax.eval_shape(FusionEncoder(1, 12, 3072, hypergraph=options).init, jax.random.key(0), *data)[
        "params"
    ]
    branch = [tree["layers_0"][name] for name in ("hypergraph", "hg_fusion")]
    assert sum(x.size for x in jax.tree.leaves(branch)) == expected


@pytest.mark.parametrize("images", [IMAGE, IMAGE[:1]])
def test_rows_that_do_not_match_are_refused(images):
    with pytest.raises(ValueError, match="give image_index"):
        encoder(None).init(jax.random.key(0), TEXT, MASK, images)


def test_misspelled_option_is_refused_by_name():
    with pytest.raises(ValueError, match="hypergraph.fuson; did you mean 'fusion'"):
        encoder(dict(fuson="gate")).init(jax.random.key(0), *DATA)
