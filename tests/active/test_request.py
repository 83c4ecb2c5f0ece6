"""From pairs to scores of images, on numbers that can be added by hand; what counts as a match; what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.active.request import AGG, TOP, Request, best, collect, limit, matched


def request(**kwargs):
    given = dict(images=None, text=np.ones((2, 3), np.int32), kinds=np.array([0, 1]), rates=np.ones((2, 4)))
    return Request(**{**given, **kwargs})


def scored(values, image, *, rows, rate=None, strength=None, **kwargs):
    """`collect` for pairs of uncertainty `values`; pattern = position within the image."""
    image, values = np.array(image), np.array(values, np.float32)
    pattern = np.concatenate([np.arange(n) for n in np.bincount(image, minlength=rows)])
    rate = np.ones(len(values)) if rate is None else np.array(rate)
    pair = {
        "f": values,
        "p_max": 1 - values,
        "answer": np.arange(len(values)),
        "rate": rate,
        "value": values * rate,
    }
    strength = np.zeros((rows, 20), np.float32) if strength is None else strength
    return collect(request(**kwargs), image, pattern, pair, strength)


def test_the_hand_example_two_patterns_with_balance():
    found = scored([0.6, 0.4], [0, 0], rows=1, rate=[0.5, 1.0])
    assert found["score"] == pytest.approx(0.7, rel=1e-6)
    assert (found["n_match"][0], found["sum_rate"][0]) == (2, 1.5)
    assert found["sum_f"] == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(("agg", "top_k"), [*((agg, 8) for agg in AGG), ("topk_mean", 3)])
def test_aggregations_by_a_loop_over_images(agg, top_k):
    rng = np.random.default_rng(0)
    image = np.repeat([0, 1, 3], [12, 3, 1])  # image 2 has no match
    values = rng.random(len(image)).astype(np.float32)
    found = scored(values, image, rows=4, agg=agg, top_k=top_k,
                   k_max=20 if agg == "sum_capped" else None)["score"]  # fmt: skip
    for i in range(4):
        own = np.sort(values[image == i])[::-1].astype(np.float64)
        best = own[:top_k].mean() if len(own) else 0.0
        want = {"mean": own.mean() if len(own) else 0.0, "topk_mean": best}.get(agg, own.sum())
        assert found[i] == pytest.approx(want, rel=1e-12)


def test_contributors_come_best_first_with_all_that_is_known_of_them():
    strength = np.zeros((1, 20), np.float32)
    strength[0, 4] = np.log(3.0)  # a probability of 3/4
    found = scored([0.1, 0.5, 0.3, 0.5, 0.9, 0.2], [0] * 6, rows=1, strength=strength)
    assert found["top_pattern"][0].tolist() == [4, 1, 3, 2, 5]  # equal values in the order of the patterns
    np.testing.assert_allclose(found["top_uncertainty"][0], [0.9, 0.5, 0.5, 0.3, 0.2])
    np.testing.assert_allclose(found["top_match"][0, :2], [0.75, 0.5])
    np.testing.assert_allclose(found["top_p_max"][0, 0], 0.1, rtol=1e-6)
    assert found["top_answer"][0, 0] == 4


def test_places_without_a_contributor_are_minus_one():
    found = scored([0.5], [1], rows=2)
    assert found["score"][0] == 0 and (found["top_pattern"][0] == -1).all()
    assert found["top_pattern"].shape == (2, TOP) and found["top_pattern"][1].tolist() == [0, -1, -1, -1, -1]


def test_a_match_of_huge_strength_is_a_probability_without_overflow():
    strength = np.full((1, 20), -5000.0, np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert scored([0.5], [0], rows=1, strength=strength)["top_match"][0, 0] == 0


def test_the_critic_matches_above_its_probability_and_cosines_above_theirs():
    strength = np.array([[-0.1, 0.0, 0.1, 0.7, 2.0]])
    rows = lambda **kw: matched(request(min_k=0, **kw), strength)[0].tolist()  # noqa: E731
    assert rows() == [False, False, True, True, True]
    assert rows(threshold=0.75) == [False, False, False, False, True]  # log 3 = 1.10
    assert rows(match="contrast", threshold=0.1) == [False, False, False, True, True]
    assert rows(match="all") == [True] * 5
    assert limit(request(threshold=0.75)) == pytest.approx(np.log(3))


def test_without_a_match_the_best_pattern_counts_and_only_there():
    strength = np.array([[-3.0, -1.0, -2.0], [1.0, -1.0, -1.0]])
    assert matched(request(), strength).tolist() == [[False, True, False], [True, False, False]]
    assert matched(request(min_k=2), strength).tolist() == [[False, True, True], [True, True, False]]
    assert matched(request(min_k=0), strength).sum(1).tolist() == [0, 1]


def test_at_most_k_max_patterns_count_the_best_ones():
    strength = np.array([[1.0, 3.0, 2.0], [-1.0, 1.0, -1.0]])
    found = matched(request(k_max=2), strength)
    assert found.tolist() == [[False, True, True], [False, True, False]]


def test_best_takes_equal_ones_in_the_order_of_the_patterns():
    assert best(np.zeros((2, 4)), 2).tolist() == [[True, True, False, False]] * 2
    assert best(np.array([[1.0, 2.0]]), 5).all()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(match="cosine"), "match='cosine': expected one of"),
        (dict(agg="max"), "agg='max'"),
        (dict(uncertainty="bald"), "uncertainty='bald'"),
        (dict(prune="some"), "prune='some'"),
        (dict(threshold=1.5), "threshold=1.5: expected a probability"),
        (dict(min_k=-1), "min_k=-1: expected at least 0"),
        (dict(k_max=0), "k_max=0: expected at least 1"),
        (dict(budget=0), "budget=0"),
        (dict(k_max=1, min_k=2), "k_max=1 is below min_k=2"),
        (dict(match="all", k_max=3), "match='all' ranks none"),
        (dict(agg="sum_capped"), "needs k_max"),
        (dict(prune="exact", rates=np.full((2, 4), 1.1)), r"balance factors in \[0, 1\]"),
        (dict(text=np.zeros((0, 3), np.int32), kinds=np.zeros(0, int)), "at least one pattern"),
        (dict(kinds=np.array([0, 2])), "a row for every number in `kinds`"),
        (dict(kinds=np.array([0])), r"with kinds \[1\]"),
    ],
)
def test_bad_requests_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        request(**wrong)
