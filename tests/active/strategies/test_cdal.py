"""CDAL: a symmetric divergence over shared answer types, and k-center under it."""

from __future__ import annotations

import numpy as np
from strategy_fakes import Predict, labelled, pool

from jaxvl.active.strategies.cdal import CDAL, FLOOR, contextual_diversity, mixtures


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
