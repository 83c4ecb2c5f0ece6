"""LL: the largest expected losses, of the whole pool or of a subset of it."""

from __future__ import annotations

import numpy as np
import pytest
from strategy_fakes import Predict, labelled, pool

from jaxvl.active.strategies.learning_loss import LearningLoss


def chosen(subset, budget=3, seed=0, n=12):
    images = pool(n)
    loss = dict(zip(images.ids.tolist(), np.random.default_rng(1).random(n), strict=True))
    found = LearningLoss(subset=subset)(
        Predict(ll__loss=loss), images, labelled(), budget, np.random.default_rng(seed)
    )
    return found, np.array([loss[i] for i in images.ids.tolist()])


@pytest.mark.parametrize("subset", [None, 12, 40])
def test_the_whole_pool_is_ranked_unless_a_smaller_subset_is_asked_for(subset):
    found, loss = chosen(subset)
    np.testing.assert_array_equal(found.rows, np.argsort(-loss)[:3])
    np.testing.assert_array_equal(found.score, loss)


def test_of_a_subset_only_its_images_have_scores_and_the_best_of_them_are_taken():
    found, loss = chosen(5)
    seen = np.flatnonzero(~np.isnan(found.score))
    assert len(seen) == 5
    np.testing.assert_array_equal(found.score[seen], loss[seen])
    np.testing.assert_array_equal(found.rows, seen[np.argsort(-loss[seen])][:3])
    others = {tuple(np.flatnonzero(~np.isnan(chosen(5, seed=s)[0].score))) for s in range(5)}
    assert len(others) > 1  # drawn by the key


def test_a_subset_is_never_smaller_than_what_is_chosen():
    assert len(set(chosen(2, budget=4)[0].rows.tolist())) == 4


def test_a_subset_of_nothing_is_refused():
    with pytest.raises(ValueError, match="ll.subset=0: expected a positive number"):
        LearningLoss(subset=0)
