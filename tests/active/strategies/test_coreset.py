"""Greedy k-center: its bound, its steps, its start."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from strategy_fakes import Predict, labelled, pool

from jaxvl.active.strategies.coreset import (
    Coreset,
    amortised,
    k_center,
    nearest,
    principal,
    squared_within,
)


def distances(x, y):
    return ((x[:, None] - y[None]) ** 2).sum(-1)


def greedy(x, centres, k):
    """Step by step, without memory."""
    chosen = []
    for _ in range(k):
        seen = np.concatenate([centres, x[chosen]])
        left = [-1.0 if i in chosen else distances(x[i : i + 1], seen).min() for i in range(len(x))]
        chosen.append(int(np.argmax(left)))
    return chosen


def test_the_radius_is_at_most_twice_the_best_one():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, k = rng.integers(5, 13), rng.integers(1, 5)
        x, known = rng.standard_normal((n, 3)), rng.standard_normal((2, 3))
        rows = k_center(nearest(x, known), squared_within(x), np.arange(n), k)

        def radius(chosen, x=x, known=known):
            return np.sqrt(distances(x, np.concatenate([known, x[list(chosen)]])).min(1).max())

        assert radius(rows) <= 2 * min(radius(c) for c in combinations(range(n), k)) + 1e-9


def test_it_takes_the_steps_of_a_naive_implementation():
    rng = np.random.default_rng(1)
    for _ in range(20):
        x, known = rng.standard_normal((30, 4)), rng.standard_normal((5, 4))
        rows = k_center(nearest(x, known), squared_within(x), np.arange(30), 12)
        assert rows.tolist() == greedy(x, known, 12)


def test_equal_images_are_taken_by_id_and_each_once():
    x = np.zeros((4, 2))
    assert k_center(nearest(x, x[:1]), squared_within(x), np.array([5, 3, 9, 1]), 4).tolist() == [3, 1, 0, 2]


def test_without_labelled_images_the_first_is_that_of_the_smallest_id():
    x = np.array([[0.0], [1], [5]])
    rows = k_center(nearest(x, x[:0]), squared_within(x), np.array([7, 2, 4]), 3)
    assert rows.tolist() == [1, 2, 0]


@pytest.mark.parametrize("feature", ["fused", "vision"])
def test_embeddings_with_a_large_common_part_lose_no_digits(feature):
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((12, 6)), rng.standard_normal((4, 6))
    both = np.concatenate([x, y]).astype(np.float32) + np.float32(1000)
    rows = dict(zip([*pool().ids.tolist(), *labelled().ids.tolist()], both, strict=True))
    name = {"fused": "task__embed", "vision": "task__vision"}[feature]
    found = Coreset(feature)(Predict(**{name: rows}), pool(), labelled(), 6, np.random.default_rng(0))
    exact = both.astype(np.float64)
    assert found.rows.tolist() == greedy(exact[:12], exact[12:], 6)
    np.testing.assert_allclose(
        found.notes["distance"] ** 2, distances(exact[:12], exact[12:]).min(1), rtol=1e-3
    )


def test_distances_renewed_after_every_image_are_k_center_and_seldom_are_the_steps_by_hand():
    rng = np.random.default_rng(3)
    x, known, ids = rng.standard_normal((30, 4)), rng.standard_normal((5, 4)), rng.permutation(30)
    start = nearest(x, known)
    every = amortised(start, lambda at: nearest(x, x[at]), ids, 12, refreshes=99)
    assert every.tolist() == k_center(start, squared_within(x), ids, 12).tolist()
    chosen, rounds = [], 5  # of 12: ends at 2, 5, 7, 10, 12
    for end in (2, 5, 7, 10, 12):
        far = distances(x, np.concatenate([known, x[chosen]])).min(1)
        left = [i for i in np.argsort(-far, kind="stable").tolist() if i not in chosen]
        chosen += left[: end - len(chosen)]
    got = amortised(start, lambda at: nearest(x, x[at]), ids, 12, refreshes=rounds)
    assert got.tolist() == chosen != every.tolist()
    assert amortised(np.ones(4), None, np.array([5, 3, 9, 1]), 3, refreshes=1).tolist() == [3, 1, 0]


def test_principal_components_are_those_of_the_singular_values_and_all_of_them_keep_distances():
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((40, 6)) * [5, 4, 3, 2, 1, 0.5] + 3, rng.standard_normal((9, 6))
    both = np.concatenate([x, y])
    u, s, _ = np.linalg.svd(both - both.mean(0), full_matrices=False)
    a, b = principal(x, y, most=2)
    np.testing.assert_allclose(np.abs(np.concatenate([a, b])), np.abs(u[:, :2] * s[:2]), atol=1e-4)
    a, b = principal(x, y, most=32)
    np.testing.assert_allclose(distances(a, b), distances(x, y), rtol=1e-3)


def test_the_approximation_is_an_option_of_the_strategy():
    rng = np.random.default_rng(5)
    both = rng.standard_normal((16, 6))
    rows = dict(zip([*pool().ids.tolist(), *labelled().ids.tolist()], both, strict=True))
    predict, generator = Predict(task__embed=rows), np.random.default_rng(0)
    exact = Coreset()(predict, pool(), labelled(), 6, generator)
    same = Coreset(pca=6, refreshes=6)(predict, pool(), labelled(), 6, generator)
    assert same.rows.tolist() == exact.rows.tolist()
    few = Coreset(pca=1, refreshes=1)(predict, pool(), labelled(), 6, generator)
    line = principal(both[:12] - both[:12].mean(0), both[12:] - both[:12].mean(0), most=1)
    far = nearest(*line)
    assert few.rows.tolist() == np.argsort(-far, kind="stable")[:6].tolist()
    with pytest.raises(ValueError, match="coreset.pca=0"):
        Coreset(pca=0)


def test_unknown_features_and_diverged_models_are_refused():
    with pytest.raises(ValueError, match="coreset.feature='language'.*fused, vision"):
        Coreset("language")
    rows = {int(i): np.full(6, np.nan) for i in [*pool().ids, *labelled().ids]}
    with pytest.raises(ValueError, match="task/embed is not finite"):
        Coreset()(Predict(task__embed=rows), pool(), labelled(), 2, np.random.default_rng(0))
