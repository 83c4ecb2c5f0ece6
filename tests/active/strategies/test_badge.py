"""BADGE: distances of gradients that are never formed, and D^2 sampling."""

from __future__ import annotations

import numpy as np
import pytest
from strategy_fakes import ASKED, J, Predict, Provider, labelled, pool

from jaxvl.active.strategies.badge import BADGE, gradients, k_means_plus_plus
from jaxvl.active.strategies.coreset import squared_within
from jaxvl.data.region_source import RegionImages


def plus_plus(x, k, seed=0, ids=None, **kwargs):
    norms = (x * x).sum(1)
    ids = np.arange(len(x)) if ids is None else ids
    rng = np.random.default_rng(seed)
    return k_means_plus_plus(norms, squared_within(x), k, ids=ids, rng=rng, **kwargs).tolist()


def test_distances_are_those_of_explicit_outer_products():
    rng = np.random.default_rng(0)
    p, h = rng.dirichlet(np.ones(5), 8).astype(np.float32), rng.standard_normal((8, 3), np.float32)
    e = p - np.eye(5)[p.argmax(1)]
    g = np.einsum("nc,nf->ncf", e, h).reshape(8, -1)
    norms, distance_to = gradients(p, h)
    np.testing.assert_allclose(norms, (g * g).sum(1), atol=1e-4)
    for i in range(8):
        np.testing.assert_allclose(distance_to(i), ((g - g[i]) ** 2).sum(1), atol=1e-4)


def test_the_first_is_the_longest_and_of_equals_the_one_with_the_smaller_id():
    x = np.array([[1.0, 0], [0, 2], [2, 0], [0, 1]])
    assert plus_plus(x, 1, ids=np.array([0, 9, 4, 1])) == [2]


def test_the_second_is_drawn_in_proportion_to_the_squared_distance():
    x = np.array([[4.0, 0], [3, 0], [3, np.sqrt(2)]])  # squared distances from the first: 0, 1, 3
    seconds = [plus_plus(x, 2, seed)[1] for seed in range(2000)]
    np.testing.assert_allclose(np.bincount(seconds, minlength=3) / 2000, [0, 0.25, 0.75], atol=0.035)


def test_all_chosen_rows_count_as_centres():
    x = np.array([[4.0, 0], [-3, 0], [-3, 0], [0, 3]])
    for seed in range(20):
        assert set(plus_plus(x, 3, seed)) in ({0, 1, 3}, {0, 2, 3})  # never both copies


def test_copies_are_taken_only_when_nothing_else_is_left_and_never_twice():
    x = np.array([[1.0, 1], [1, 1], [1, 1], [0, 0.5]])
    found = plus_plus(x, 4)
    assert found[:2] == [0, 3] and sorted(found) == [0, 1, 2, 3]


def test_of_a_group_one_is_taken_and_closed_rows_never():
    x = np.random.default_rng(3).standard_normal((9, 4))
    norms, groups = (x * x).sum(1), np.arange(9) // 3
    norms[[0, 1, 2, 4]] = -1
    for seed in range(30):
        rng = np.random.default_rng(seed)
        rows = k_means_plus_plus(norms, squared_within(x), 2, ids=np.arange(9), rng=rng, groups=groups)
        assert sorted(groups[rows]) == [1, 2] and 4 not in rows
    with pytest.raises(ValueError, match="3 images of 2"):
        k_means_plus_plus(norms, squared_within(x), 3, ids=np.arange(9), rng=rng, groups=groups)


def test_pairs_give_images_by_their_longest_gradient_and_padding_none():
    ids, rng = [3, 1, 2], np.random.default_rng(0)
    images = RegionImages(Provider(), ids, asked=ASKED * [[1], [1], [0]], asked_kinds=np.arange(J))
    flat = {i: np.full((J, 5), 0.2) for i in ids}
    states = {i: np.ones((J, 2)) for i in ids}
    states[2] = np.array([[1, 1], [5, 0], [99, 99]])  # the question that is not asked has the longest

    def predict(name, source):
        rows = np.stack([(flat if name == "task/probs" else states)[int(i)] for i in source.ids])
        return rows if name == "task/probs" else {"fused": rows}

    found = BADGE("pair")(predict, images, None, 3, rng)
    assert found.rows[0] == 2 and sorted(found.rows.tolist()) == [0, 1, 2]
    assert found.notes["norm"][2] == pytest.approx(np.sqrt(0.8 * 25))  # |p - onehot|^2 = 0.8


def test_pair_unit_keeps_the_contract():
    first, again = (
        BADGE("pair")(Predict(), pool(), labelled(), 7, np.random.default_rng(1)).rows for _ in range(2)
    )
    assert len(set(first.tolist())) == 7 and first.tolist() == again.tolist()
    with pytest.raises(ValueError, match="badge.unit='qa'"):
        BADGE("qa")
