"""Parts of MCAN against numpy: LSTM, its norm, attention, pooling; dropout shared by all rows; initial values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import draw, lengths_mask, seeded

from jaxvl.models.mcan_layers import FFN, LSTM, SA, SGA, AttFlat, MHAtt, UnbiasedNorm, masked_mean

X, Y, X_MASK, Y_MASK = (
    draw(3, 5, 8),
    draw(3, 4, 8, seed=1),
    lengths_mask(5, 5, 3, 1),
    lengths_mask(4, 2, 4, 1),
)


def run(module, params, *args, **kwargs):
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, *args, **kwargs)


def test_lstm_is_the_textbook_recurrence():
    x, module = draw(2, 4, 3), LSTM(3, 5)
    params = seeded(module, x)
    w, u = params["ih"], params["hh"]
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    h, c, want = np.zeros((2, 5)), np.zeros((2, 5)), []
    for t in range(4):
        i, f, g, o = np.split(x[:, t] @ w["kernel"] + w["bias"] + h @ u["kernel"] + u["bias"], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        want.append(h)
    np.testing.assert_allclose(run(module, params, x), np.stack(want, 1), atol=1e-6)


def test_norm_divides_by_the_unbiased_deviation_plus_eps():
    x, module = draw(4, 6), UnbiasedNorm(eps=0.5)
    params = seeded(module, x)
    want = params["scale"] * (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True, ddof=1) + 0.5)
    np.testing.assert_allclose(run(module, params, x), want + params["bias"], atol=1e-6)


def test_norm_of_equal_features_is_its_bias_with_a_finite_gradient():
    module, x = UnbiasedNorm(), jnp.full((2, 6), 3.0)
    params = seeded(module, x)
    value, grad = jax.value_and_grad(lambda x: run(module, params, x).sum())(x)
    np.testing.assert_allclose(value, 2 * params["bias"].sum(), rtol=1e-6)
    assert np.isfinite(grad).all()


def test_pooling_is_a_softmax_over_the_valid_positions():
    module = AttFlat(8, 6, 7)
    params = seeded(module, X, X_MASK)
    p = params["mlp"]
    hidden = np.maximum(X @ p["fc1"]["kernel"] + p["fc1"]["bias"], 0)
    logits = np.where(X_MASK, (hidden @ p["fc2"]["kernel"] + p["fc2"]["bias"])[..., 0], -np.inf)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    want = (weights[..., None] * X).sum(1) @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(run(module, params, X, X_MASK), want, atol=1e-5)


def test_what_is_masked_changes_nothing_and_a_row_without_anything_is_looked_at_evenly():
    module = MHAtt(8, 2)
    params = seeded(module, X, Y, Y_MASK)
    noise = np.where(Y_MASK[..., None], Y, 100 * draw(3, 4, 8, seed=5))
    np.testing.assert_allclose(
        run(module, params, X, Y, Y_MASK), run(module, params, X, noise, Y_MASK), atol=1e-6
    )
    none = run(module, params, X, Y, np.zeros((3, 4), bool))
    even = run(module, params, X, np.repeat(Y.mean(1, keepdims=True), 4, 1))  # equal keys: the mean value
    np.testing.assert_allclose(none, even, atol=1e-5)


def test_the_parts_of_guided_attention_make_up_the_whole():
    module = SGA(8, 2, 16)
    params = seeded(module, X, X_MASK, Y, Y_MASK)
    x = run(module, params, X, X_MASK, method="look")
    parts = run(module, params, x, run(module, params, Y, method="guidance"), Y_MASK, method="follow")
    np.testing.assert_array_equal(parts, run(module, params, X, X_MASK, Y, Y_MASK))


def test_shared_dropout_treats_all_rows_alike_and_own_dropout_does_not():
    x, mask = np.repeat(X[:1], 3, 0), np.ones((3, 5), bool)
    module = SA(8, 2, 16, dropout=0.5)
    params, rngs = seeded(module, x, mask), {"dropout": jax.random.key(1)}
    own = run(module, params, x, mask, train=True, rngs=rngs)
    shared = module.clone(masks="shared")
    got = run(shared, params, x, mask, train=True, rngs=rngs)
    assert np.abs(own[0] - own[1]).max() > 0.1
    np.testing.assert_allclose(got[1:], got[:2], atol=1e-6)
    one = run(shared, params, x[:1], mask[:1], train=True, rngs=rngs)  # whatever the batch
    np.testing.assert_allclose(got[:1], one, atol=1e-6)
    assert np.abs(got - run(module, params, x, mask)).max() > 0.1


@pytest.mark.parametrize("make", [lambda: FFN(8, 512), lambda: AttFlat(8, 512, 256), lambda: LSTM(8, 64)])
def test_initial_values_are_those_of_pytorch(make):
    """Kernels and biases alike U(-1/sqrt(inputs), 1/sqrt(inputs)); all of an LSTM by its hidden units."""
    args = (X, X_MASK) if isinstance(make(), AttFlat) else (X,)
    params = nn.unbox(make().init(jax.random.key(0), *args)["params"])
    layers = {k: v for k, v in {**params, **params.get("mlp", {})}.items() if "kernel" in v}
    assert len(layers) > 1
    for layer in layers.values():
        bound = (64 if isinstance(make(), LSTM) else layer["kernel"].shape[0]) ** -0.5
        for value in (layer["kernel"], layer["bias"]):
            assert np.abs(value).max() <= bound
            if value.size > 200:
                assert abs(value.std() / bound * 3**0.5 - 1) < 0.1


def test_mean_over_no_region_is_zero():
    mask = X_MASK & (np.arange(3) < 2)[:, None]
    want = np.stack([X[0].mean(0), X[1, :3].mean(0), np.zeros(8)])
    np.testing.assert_allclose(masked_mean(X, mask), want, atol=1e-6)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="width=8 is not a multiple of heads=3"):
        MHAtt(8, 3).init(jax.random.key(0), X, Y)
    with pytest.raises(ValueError, match="masks='all'"):
        FFN(8, 4, masks="all").init(jax.random.key(0), X)
