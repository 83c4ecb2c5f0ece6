"""CDAL: a symmetric divergence over shared answer types, and k-center under it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from strategy_fakes import Predict, labelled, pool

from jaxvl.active.strategies.cdal import CDAL, FLOOR, contextual_diversity, mixtures, sequences


def drawn(n, seed, there=True):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(6, 0.3), size=(n, 3))
    return p, (rng.random((n, 3)) < 0.6) if there is None else np.full((n, 3), there)


def by_hand(p, has_p, q, has_q):
    p, q = np.maximum(p, FLOOR), np.maximum(q, FLOOR)
    total = 0.0
    for kind in range(3):
        if has_p[kind] and has_q[kind]:
            total += 0.5 * (p[kind] * np.log(p[kind] / q[kind])).sum()
            total += 0.5 * (q[kind] * np.log(q[kind] / p[kind])).sum()
    return total


def test_products_of_matrices_give_the_sum_over_shared_types():
    (p, has_p), (q, has_q) = drawn(7, 0, None), drawn(5, 1, None)
    found = contextual_diversity(mixtures(p, has_p), mixtures(q, has_q))
    want = [[by_hand(p[i], has_p[i], q[j], has_q[j]) for j in range(5)] for i in range(7)]
    np.testing.assert_allclose(found, want, atol=1e-10)
    assert has_p.any() and not has_p.all()


def test_it_is_symmetric_and_zero_for_equal_mixtures_only():
    x = mixtures(*drawn(9, 2))
    d = contextual_diversity(x, x)
    np.testing.assert_allclose(d, d.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(d), 0, atol=1e-12)
    assert d[~np.eye(9, dtype=bool)].min() > 1e-3


def test_answers_without_probability_stay_finite():
    x = mixtures(np.eye(3, 6)[:, None].repeat(3, 1), np.ones((3, 3), bool))
    d = contextual_diversity(x, x)
    assert np.isfinite(d).all() and d[0, 1] > 3 * 18


def test_the_first_is_the_farthest_from_the_labelled_set_and_the_next_from_both():
    p = np.full((4, 3, 5), 0.05)
    for image, answer in enumerate((0, 1, 1, 2)):  # images 1 and 2 are alike
        p[image, :, answer] = 0.8
    p[3] = 0.15
    p[3, :, 2] = 0.4  # less extreme than 1 and 2
    known = np.full((3, 5), 0.05)
    known[:, 0] = 0.8
    rows = dict(zip(pool(4).ids.tolist(), p, strict=True)) | {int(i): known for i in labelled().ids}
    found = CDAL()(Predict(task__kind_mixture=rows), pool(4), labelled(), 3, np.random.default_rng(0))
    first = min((1, 2), key=lambda i: pool(4).ids[i])  # of equals the smaller id
    assert found.rows.tolist()[:2] == [first, 3]
    assert found.notes["distance"][0] < 1e-5 < found.notes["distance"][3]


def test_sequences_hold_each_image_once_with_the_diversity_and_distance_of_their_pairs():
    rng = np.random.default_rng(3)
    p, has = drawn(7, 4, None)
    embedded = rng.standard_normal((7, 5)).astype(np.float32)
    parts = np.array_split(rng.permutation(7), 2)
    found = sequences(mixtures(p, has), embedded, parts)
    assert found.there.tolist() == [[True] * 4, [True] * 3 + [False]]
    for i, at in enumerate(parts):
        for a, b in product(range(len(at)), repeat=2):
            want = by_hand(p[at[a]], has[at[a]], p[at[b]], has[at[b]])
            np.testing.assert_allclose(found.diversity[i, a, b], want, atol=1e-5)
            apart = ((embedded[at[a]] - embedded[at[b]]) ** 2).sum()
            np.testing.assert_allclose(found.squared[i, a, b], apart, atol=1e-4)
        seen = found.features[i, : len(at)]
        np.testing.assert_allclose(seen, (embedded[at] - embedded.mean(0)) / embedded.std(0), atol=1e-4)
    assert not found.features[1, 3].any() and not found.diversity[1, 3].any()


def test_the_policy_s_most_wanted_images_are_taken():
    asked = []

    def learned(name, source):
        if name == "pool/policy":
            asked.append(source)
            return np.where(source.there, np.abs(source.features).sum(-1) % 1, -1.0)
        return Predict()(name, source)

    strategy = CDAL("policy", {"length": 5, "epochs": 3})
    found = strategy(learned, pool(12), labelled(), 4, np.random.default_rng(0))
    (given,) = asked
    assert given.features.shape[:2] == (
        3,
        5,
    )  # `length`, whatever the size of the pool: one shape for all rounds
    assert given.there.tolist() == [[True] * 4 + [False]] * 3 and given.options.epochs == 3
    assert given.share == 4 / 12
    embedded = np.asarray(Predict()("task/embed", pool(12)), np.float32)
    seen = (embedded - embedded.mean(0)) / embedded.std(0)
    np.testing.assert_allclose(found.score, np.abs(seen).sum(-1) % 1, atol=1e-4)  # each image has its own
    assert found.rows.tolist() == np.argsort(-found.score)[:4].tolist()
    with pytest.raises(ValueError, match="cdal.form='rl'"):
        CDAL("rl")
    with pytest.raises(ValueError, match="cdal.policy.lr=0"):
        CDAL("policy", {"lr": 0})
