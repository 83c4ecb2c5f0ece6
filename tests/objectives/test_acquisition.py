"""Acquisition scores against hand values, their bounds, and sketches of outer products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.objectives import acquisition as A


def members(t, n, c, *, seed=0, alpha=0.3):
    return jnp.asarray(np.random.default_rng(seed).dirichlet(np.full(c, alpha), size=(t, n)), jnp.float32)


def test_probabilities_of_each_kind():
    z = np.array([[0.0, 1.0, -2.0]])
    s = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(A.probabilities(z, kind="softmax"), np.exp(z) / np.exp(z).sum(), atol=1e-6)
    np.testing.assert_allclose(A.probabilities(z, kind="bernoulli"), s, atol=1e-6)
    np.testing.assert_allclose(A.probabilities(z, kind="sigmoid_norm"), s / s.sum(), atol=1e-6)
    with pytest.raises(ValueError, match="prob='logit'.*softmax, sigmoid_norm, bernoulli"):
        A.probabilities(z, kind="logit")


@pytest.mark.parametrize("kind", ["softmax", "sigmoid_norm"])
def test_extreme_logits_still_give_distributions(kind):
    z = jnp.array([[-1e4, -1e4 + 1, -1e4], [1e4, 0, -1e4], [5, 5, 5]])
    p = A.probabilities(z.astype(jnp.bfloat16) if kind == "softmax" else z, kind=kind)
    assert p.dtype == jnp.float32
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(p[2], 1 / 3, atol=1e-6)


def test_scores_of_one_distribution_by_hand():
    p = jnp.array([[0.5, 0.3, 0.2], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(A.least_confidence(p), [0.5, 0, 2 / 3], atol=1e-6)
    np.testing.assert_allclose(A.entropy(p), [1.0296530, 0, np.log(3)], atol=1e-6)
    np.testing.assert_allclose(A.margin(p), [-0.2, -1, 0], atol=1e-6)
    np.testing.assert_allclose(A.margin(p[:, :1]), [-0.5, -1, -1 / 3], atol=1e-6)


def test_bald_by_hand_its_bounds_and_zero_where_passes_agree():
    sure = jnp.eye(3)[jnp.array([0, 1])][:, None]  # two members, certain of different answers
    np.testing.assert_allclose(A.bald(sure), [np.log(2)], atol=1e-6)
    np.testing.assert_allclose(A.mc_entropy(sure), [np.log(2)], atol=1e-6)
    p = members(4, 300, 6)
    np.testing.assert_allclose(A.bald(p[:1].repeat(4, 0)), 0, atol=1e-6)
    found, each = np.asarray(A.bald(p)), np.asarray(A.entropy(p))
    np.testing.assert_allclose(found, np.asarray(A.entropy(p.mean(0))) - each.mean(0), atol=1e-5)
    assert found.min() >= 0 and 0.1 < found.max() <= np.log(4) + 1e-6
    assert np.asarray(A.bald(members(8, 300, 3))).max() <= np.log(3) + 1e-6
    assert (A.bald(p) <= A.mc_entropy(p)).all()


def test_mocu_by_hand_and_zero_where_the_decision_is_the_same():
    sure = jnp.eye(4)[:, None]  # four members: K = 1 - 1/4
    np.testing.assert_allclose(A.mocu(sure), [0.25 * 0.75], atol=1e-6)
    same_best = jnp.array([[[0.9, 0.1]], [[0.6, 0.4]]])  # members differ, their decision does not
    np.testing.assert_allclose(A.mocu(same_best), [0], atol=1e-6)
    p = members(5, 300, 6)
    k = np.asarray(p.max(-1).mean(0) - p.mean(0).max(-1))
    np.testing.assert_allclose(A.mocu(p), (1 - k) * k, atol=1e-6)
    assert np.asarray(A.mocu(p)).min() >= 0


def test_sketch_is_the_hashed_sum_of_the_outer_product():
    rng = np.random.default_rng(0)
    a, b, hashes = (
        rng.standard_normal(5),
        rng.standard_normal(4),
        A.sketch_hashes(jax.random.key(0), (5, 4), 8),
    )
    want = np.zeros(8)
    for i in range(5):
        for j in range(4):
            bucket = (int(hashes.buckets[0][i]) + int(hashes.buckets[1][j])) % 8
            want[bucket] += float(hashes.signs[0][i] * hashes.signs[1][j]) * a[i] * b[j]
    np.testing.assert_allclose(A.tensor_sketch(jnp.asarray(a), jnp.asarray(b), hashes), want, atol=1e-5)
    assert set(np.asarray(hashes.signs[0])) | set(np.asarray(hashes.signs[1])) == {-1.0, 1.0}


def test_inner_products_of_sketches_are_unbiased():
    rng, dim = np.random.default_rng(1), 64
    e, h = rng.standard_normal((6, 30)), rng.standard_normal((6, 12))
    e -= e.mean(1, keepdims=True)
    sketch = jax.jit(
        lambda key: A.tensor_sketch(jnp.asarray(e), jnp.asarray(h), A.sketch_hashes(key, (30, 12), dim))
    )
    found = np.stack([np.asarray(sketch(k)) for k in jax.random.split(jax.random.key(2), 100)])
    mean = np.einsum("sid,sjd->ij", found, found) / 100
    exact = (e @ e.T) * (h @ h.T)
    norms = np.sqrt(np.diag(exact))
    off = ~np.eye(6, dtype=bool)
    bound = 3 * np.outer(norms, norms) / np.sqrt(100 * dim)
    assert (np.abs(mean - exact) < bound)[off].all()
    assert (np.abs(np.diag(mean) / np.diag(exact) - 1) < 0.1).all()


def test_sketches_have_the_leading_axes_of_their_factors_and_add_up():
    hashes = A.sketch_hashes(jax.random.key(0), (5, 4), 16)
    rng = np.random.default_rng(2)
    e, h = jnp.asarray(rng.random((2, 3, 5))), jnp.asarray(rng.random((2, 3, 4)))
    found = A.tensor_sketch(e, h, hashes)
    assert found.shape == (2, 3, 16) and found.dtype == jnp.float32
    np.testing.assert_allclose(found[1, 2], A.tensor_sketch(e[1, 2], h[1, 2], hashes), atol=1e-5)
    np.testing.assert_allclose(A.tensor_sketch(2 * e, h, hashes), 2 * found, atol=1e-5)


def test_mixtures_weight_questions_by_entropy_and_say_which_types_are_asked_for():
    p = members(1, 4, 5)[0].reshape(1, 4, 5)
    mixed, present = A.kind_mixture(p, jnp.array([0, 2, 0, -1]), 3)
    h = np.asarray(A.entropy(p))[0]
    want = (h[0] * p[0, 0] + h[2] * p[0, 2]) / (h[0] + h[2])
    np.testing.assert_allclose(mixed[0, 0], want, atol=1e-6)
    np.testing.assert_allclose(mixed[0, 2], p[0, 1], atol=1e-6)
    np.testing.assert_array_equal(mixed[0, 1], np.zeros(5))
    np.testing.assert_array_equal(present, [[True, False, True]])


def test_certain_answers_still_have_a_mixture_and_each_image_may_have_its_own_types():
    p = jnp.eye(3)[None, jnp.array([0, 1])].repeat(2, 0)
    mixed, present = A.kind_mixture(p, jnp.array([[0, 0], [1, -1]]), 2)
    np.testing.assert_allclose(mixed[0, 0], [0.5, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(mixed[1, 1], [1, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(present, [[True, False], [False, True]])
