"""Every strategy, and CCRL's ablations: k distinct images, the same for the same seed, from predictions alone."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from strategy_fakes import Predict, labelled, pool
from tiny_run import ROOT, config_file

from jaxvl.active.strategies import STRATEGIES
from jaxvl.active.strategies.base import Strategy
from jaxvl.config import make

ABLATIONS = ("ccrl_a", "ccrl_b", "ccrl_ab", "ccrl_mi", "ccrl_cl", "match_all", "count_only")
OPTIONS = config_file(ROOT / "configs/ccrl.py").get_config("scale=tiny").active.strategies
MADE = STRATEGIES | {name: partial(make, STRATEGIES, "strategy", OPTIONS[name]) for name in ABLATIONS}
CASES = [(12, 5), (12, 1), (6, 6), (1, 1)]


def select(name, n, k, *, seed=0, order=slice(None), predict=None):
    images, labels, rng = pool(n, order=order), labelled(), np.random.default_rng(seed)
    return MADE[name]()(predict or Predict(), images, labels, k, rng)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(("n", "k"), CASES)
def test_a_selection_is_k_distinct_positions_with_a_score_and_notes_for_each_image(name, n, k):
    found = select(name, n, k)
    assert found.rows.shape == (k,) and np.issubdtype(found.rows.dtype, np.integer)
    assert len(set(found.rows.tolist())) == k and set(found.rows.tolist()) <= set(range(n))
    assert all(len(note) == n for note in found.notes.values())
    if found.score is not None:
        assert found.score.shape == (n,)
        ranked = found.score[found.rows]
        assert (np.diff(ranked) <= 0).all() and ranked.min() >= np.delete(found.score, found.rows).max(
            initial=-np.inf
        )


@pytest.mark.parametrize("name", MADE)
def test_the_generator_is_the_only_randomness_and_scores_know_no_positions(name):
    first, again = select(name, 12, 5, seed=3), select(name, 12, 5, seed=3)
    np.testing.assert_array_equal(first.rows, again.rows)
    if first.score is not None:
        turned = select(name, 12, 5, seed=4, order=slice(None, None, -1))
        assert pool(12, order=slice(None, None, -1)).ids[turned.rows].tolist() == (
            pool(12).ids[first.rows].tolist()
        )


@pytest.mark.parametrize("name", MADE)
def test_more_images_than_there_are_cannot_be_chosen(name):
    with pytest.raises(ValueError, match="4 images of 3 were asked for"):
        select(name, 3, 4)


@pytest.mark.parametrize("name", MADE)
def test_samplers_have_data_to_train_on(name):
    strategy = MADE[name]()
    assert isinstance(strategy, Strategy)
    for stage in strategy.needs:
        source = strategy.data(stage, Predict(), pool(), labelled(), np.random.default_rng(0))
        row = source[len(source) - 1]
        assert len(source) > 0 and row and all(isinstance(v, (np.ndarray, np.generic)) for v in row.values())


def test_strategies_see_no_questions_of_unlabelled_images():
    with pytest.raises(AssertionError, match="questions"):
        pool().questions  # noqa: B018  the fake refuses, so the tests above would have failed
    assert set(pool().annotation(0)) == {"image_id"}
