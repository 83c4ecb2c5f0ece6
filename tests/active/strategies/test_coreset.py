"""Greedy k-center: its bound, its steps, its start."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from strategy_fakes import Predict, labelled, pool

from jaxvl.active.strategies.coreset import Coreset, k_center, nearest, squared_within


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


def test_unknown_features_and_diverged_models_are_refused():
    with pytest.raises(ValueError, match="coreset.feature='language'.*fused, vision"):
        Coreset("language")
    rows = {int(i): np.full(6, np.nan) for i in [*pool().ids, *labelled().ids]}
    with pytest.raises(ValueError, match="task/embed is not finite"):
        Coreset()(Predict(task__embed=rows), pool(), labelled(), 2, np.random.default_rng(0))
