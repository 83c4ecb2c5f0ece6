"""VQME: the critic of all pairs against explicit concatenation, without its hidden layer in memory; sides; sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import draw, lengths_mask, seeded

from jaxvl.models.pair_blocks import Block, Pool
from jaxvl.models.vqme import CRITICS, VQME

SIZES = dict(words=11, feat_dim=5, width=8, heads=2, critic_width=6, project=3, word_dim=4)
R_MASK, L_MASK = lengths_mask(4, 4, 2, 1), lengths_mask(5, 2, 5, 3)
REGIONS = draw(3, 4, 5) * R_MASK[..., None]
TEXT = np.where(L_MASK, np.random.default_rng(0).integers(3, 11, (3, 5)), 0).astype(np.int32)
V, S = draw(4, 8, seed=1), draw(7, 8, seed=2)


def made(**kwargs):
    model = VQME(**{**SIZES, **kwargs})
    return model, seeded(model, REGIONS, R_MASK, TEXT, L_MASK)


def run(model, params, *args, **kwargs):
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda p, *a: model.apply({"params": p}, *a, **kwargs))(params, *args)


def concatenated(p, v, s, critic):
    """The critic of one pair from `[v; s]`."""
    relu = lambda x: np.maximum(x, 0)  # noqa: E731
    if critic == "separable":
        a, b = (
            relu(x @ p[f"{side}_factor_0"]["kernel"] + p[f"{side}_factor_0"]["bias"]) @ p[f"{side}_factor_1"]["kernel"]
            + p[f"{side}_factor_1"]["bias"]
            for side, x in (("image", v), ("text", s))
        )  # fmt: skip
        return a @ b + p["critic_offset"][0]
    if critic == "cosine":
        z, w = (
            relu(x @ p[f"{side}_head_0"]["kernel"] + p[f"{side}_head_0"]["bias"]) @ p[f"{side}_head_1"]["kernel"]
            + p[f"{side}_head_1"]["bias"]
            for side, x in (("image", v), ("text", s))
        )  # fmt: skip
        cosine = z @ w / np.linalg.norm(z) / np.linalg.norm(w)
        return p["critic_weight"][0] * cosine + p["critic_offset"][0]
    both = np.concatenate([p["image_side"]["kernel"], p["text_side"]["kernel"]])
    hidden = relu(np.concatenate([v, s]) @ both + p["text_side"]["bias"])
    if critic == "concat2":
        hidden = relu(hidden @ p["second"]["kernel"] + p["second"]["bias"])
    return hidden @ p["critic_weight"] + p["critic_offset"][0]


@pytest.mark.parametrize("critic", CRITICS)
def test_all_pairs_are_an_mlp_on_each_concatenated_pair(critic):
    model, params = made(critic=critic)
    a, b = run(model, params, V, method="critic_image"), run(model, params, S, method="critic_text")
    want = np.array([[concatenated(params, v, s, critic) for s in S] for v in V])
    np.testing.assert_allclose(run(model, params, a, b, method="critic_all"), want, atol=1e-5)
    i, q = np.array([0, 3, 1]), np.array([6, 0, 2])
    np.testing.assert_allclose(run(model, params, a[i], b[q], method="critic_pairs"), want[i, q], atol=1e-5)


@pytest.mark.parametrize("critic", CRITICS)
def test_rescaled_parameters_scale_and_shift_the_critic_and_nothing_else(critic):
    model, params = made(critic=critic)
    other = model.rescaled(params, scale=2.5, shift=-0.7)
    one, two = (run(model, p, REGIONS, R_MASK, TEXT, L_MASK) for p in (params, other))
    np.testing.assert_allclose(two["match"], 2.5 * one["match"] - 0.7, atol=1e-4)
    np.testing.assert_allclose(two["z"], one["z"], atol=1e-6)
    assert np.abs(one["match"]).max() > 1e-3


def test_the_hidden_layer_of_all_pairs_is_never_an_array():
    model = VQME(**{**SIZES, "critic_width": 512})
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), REGIONS, R_MASK, TEXT, L_MASK))
    sides = jax.ShapeDtypeStruct((256, 512), jnp.float32), jax.ShapeDtypeStruct((128, 512), jnp.float32)
    compiled = (
        jax.jit(lambda p, a, b: model.apply(p, a, b, method="critic_all")).lower(params, *sides).compile()
    )
    dense = 256 * 128 * 512 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 0.05 * dense


def test_a_pair_is_its_two_sides():
    model, params = made()
    out = run(model, params, REGIONS, R_MASK, TEXT, L_MASK)
    v = run(model, params, REGIONS, R_MASK, method="encode_image")
    s = run(model, params, TEXT, L_MASK, method="encode_text")
    for name, method, side in (("a", "critic_image", v), ("b", "critic_text", s), ("z", "project_image", v),
                               ("w", "project_text", s)):  # fmt: skip
        np.testing.assert_allclose(out[name], run(model, params, side, method=method), atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(out["z"], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(out["w"], axis=1), 1, atol=1e-5)
    table = run(model, params, out["a"], out["b"], method="critic_all")
    np.testing.assert_allclose(out["match"], jnp.diagonal(table), atol=1e-5)


@pytest.mark.parametrize(
    "kwargs", [{}, dict(block="mcan_sa", layers=2), dict(block="attn_only", pool="mean")]
)
def test_padding_and_the_order_of_regions_change_nothing_and_words_have_an_order(kwargs):
    model, params = made(**kwargs)
    order = np.array([2, 0, 3, 1])
    loud = np.where(R_MASK[..., None], REGIONS, 9.0)
    v = run(model, params, REGIONS, R_MASK, method="encode_image")
    np.testing.assert_allclose(run(model, params, loud, R_MASK, method="encode_image"), v, atol=1e-5)
    turned = run(model, params, REGIONS[:, order], R_MASK[:, order], method="encode_image")
    np.testing.assert_allclose(turned, v, atol=1e-5)
    s = run(model, params, TEXT, L_MASK, method="encode_text")
    other = np.where(L_MASK, TEXT, 7)
    np.testing.assert_allclose(run(model, params, other, L_MASK, method="encode_text"), s, atol=1e-5)
    back = run(model, params, TEXT[:, ::-1], L_MASK[:, ::-1], method="encode_text")
    assert np.abs(back - s).max() > 1e-3


def test_the_plain_block_is_the_paper_s_attention_and_the_default_adds_residual_and_norm():
    x, mask = draw(2, 3, 8), lengths_mask(3, 3, 2)
    alone, residual = (Block(8, 2, kind) for kind in ("attn_only", "residual"))
    params = seeded(residual, x, mask)
    p = params["attn"]
    q, k, v = ((x @ p[n]["kernel"] + p[n]["bias"]).reshape(2, 3, 2, 4) for n in ("query", "key", "value"))
    logits = np.where(mask[:, None, None], np.einsum("blhk,bshk->bhls", q, k) / 2, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    found = np.einsum("bhls,bshk->blhk", weights / weights.sum(-1, keepdims=True), v).reshape(2, 3, 8)
    found = found @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(run(alone, {"attn": p}, x, mask), found, atol=1e-5)
    y = x + found
    norm = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    want = norm * params["norm"]["scale"] + params["norm"]["bias"]
    np.testing.assert_allclose(run(residual, params, x, mask), want, atol=1e-5)
    mean = Pool(8, "mean").apply({}, x, mask)
    np.testing.assert_allclose(mean, [x[0].mean(0), x[1, :2].mean(0)], atol=1e-6)


def test_a_learned_temperature_starts_at_tau_has_a_gradient_and_stays_in_its_bounds():
    model = VQME(**SIZES, tau=0.1, learn_tau=(0.05, 0.5))
    init = jax.jit(lambda k: nn.unbox(model.init(k, REGIONS, R_MASK, TEXT, L_MASK)))
    params = init(jax.random.key(0))["params"]
    tau = lambda x: model.apply({"params": {**params, "log_tau": x}}, method="temperature")  # noqa: E731
    value, slope = jax.value_and_grad(lambda x: tau(x))(params["log_tau"])
    np.testing.assert_allclose([value, slope[0]], [0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose([tau(jnp.array([9.0])), tau(jnp.array([-9.0]))], [0.5, 0.05], rtol=1e-6)
    fixed, plain = made()
    assert "log_tau" not in plain and run(fixed, plain, method="temperature") == np.float32(0.1)


def test_parameters_at_paper_size():
    ids, mask = np.zeros((1, 14), np.int32), np.ones((1, 14), bool)
    args = np.zeros((1, 36, 2048), np.float32), np.ones((1, 36), bool), ids, mask
    shapes = jax.eval_shape(VQME(words=1000).init, jax.random.key(0), *args)
    count = sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)))
    linear = lambda i, o: i * o + o  # noqa: E731
    block = 4 * linear(512, 512) + 2 * 512
    flat = 2 * linear(512, 512) + linear(512, 1)
    lstm, critic = 1_667_072, 512 * 512 + linear(512, 512) + 512 + 1
    heads = 2 * (linear(512, 512) + linear(512, 128))
    assert count == 300_000 + lstm + linear(2048, 512) + 2 * block + 2 * flat + critic + heads


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(critic="mlp"), "model.critic='mlp'"),
        (dict(block="sa"), "model.block='sa'"),
        (dict(pool="max"), "model.pool='max'"),
        (dict(tau=0.0), "model.tau=0.0"),
        (dict(tau=0.1, learn_tau=(0.2, 1.0)), "around tau=0.1"),
    ],
)
def test_wrong_options_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(VQME(**SIZES, **kwargs).init, jax.random.key(0), REGIONS, R_MASK, TEXT, L_MASK)
