"""Vectors as sources: units of the labelled images, and labelled rows beside unlabelled ones."""

from __future__ import annotations

import numpy as np
import pytest
from strategy_fakes import Predict, labelled, pool

from jaxvl.active.strategies.learning_loss import LearningLoss
from jaxvl.active.strategies.vectors import Beside, Vectors, states


def table(n, start=0):
    ids = np.arange(start, start + n)
    return Vectors(ids, {"state": ids[:, None].astype(np.float32)})


def test_states_are_in_units_of_the_labelled_images_whatever_the_pool_is():
    images, known = pool(12), labelled(4)
    found, fewer = states(Predict(), images, known), states(Predict(), images.subset([3, 5]), known)
    np.testing.assert_allclose(found.labelled.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.labelled.std(0), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.pool[[3, 5]], fewer.pool)
    raw = Predict()("task/vision", known), Predict()("task/vision", images)
    np.testing.assert_allclose(found.pool, (raw[1] - raw[0].mean(0)) / raw[0].std(0), rtol=1e-4, atol=1e-5)


def test_features_that_labelled_images_hardly_have_stay_small_and_constant_ones_finite():
    known = {int(i): np.array([i % 2, 1e-9 * (i % 2), 7.0]) for i in labelled().ids}
    found = states(Predict(task__vision={**known, 5: np.array([1.0, 1.0, 8.0])}), _only(5), labelled())
    assert np.isfinite(found.pool).all() and np.abs(found.pool).max() < 100
    alike = Predict(task__vision={i: np.full(3, 2.0) for i in [5, *labelled().ids.tolist()]})
    np.testing.assert_array_equal(states(alike, _only(5), labelled()).pool, np.zeros((1, 3)))


def _only(image_id):
    images = pool(1)
    images.ids = np.array([image_id])
    return images


@pytest.mark.parametrize(("n", "m"), [(3, 5), (5, 3)])
def test_an_epoch_shows_each_row_of_the_larger_set(n, m):
    both = Beside(table(m, start=100), table(n))
    assert len(both) == 5
    rows = [both[i] for i in range(5)]
    assert {int(r["image_id"]) for r in rows} == set(range(100, 100 + m))
    assert {int(r["pool_image_id"]) for r in rows} == set(range(n))
    assert all(r["state"][0] == r["image_id"] and r["pool_state"][0] == r["pool_image_id"] for r in rows)
    with pytest.raises(IndexError, match="row 5 of a source with 5 rows"):
        both[5]


def test_in_training_any_labelled_row_may_stand_beside_an_unlabelled_one():
    both, rng = Beside(table(4, start=100), table(3)), np.random.default_rng(0)
    drawn = [both.augmented(2, rng) for _ in range(400)]
    assert {int(r["pool_image_id"]) for r in drawn} == {2}
    counts = np.bincount([int(r["image_id"]) - 100 for r in drawn], minlength=4)
    assert counts.min() > 70  # 100 expected, deviation 9


def test_arrays_of_other_lengths_are_refused_and_shared_ones_looked_up():
    with pytest.raises(ValueError, match="rows for 2 images"):
        Vectors(np.arange(2), {"state": np.zeros((3, 1))})
    source = Vectors(np.array([7, 7, 9]), {}, shared={"x": (np.array([10.0, 20.0]), np.array([1, 1, 0]))})
    assert [float(source[i]["x"]) for i in range(3)] == [20, 20, 10]


def test_learning_loss_takes_the_largest_expected_losses_of_its_own_stage():
    images, other = pool(6), LearningLoss(stage="ranker")
    expected = {int(i): float(n) for n, i in enumerate(images.ids)}
    found = LearningLoss()(Predict(ll__loss=expected), images, labelled(), 2, np.random.default_rng(0))
    assert found.rows.tolist() == [5, 4] and found.score.tolist() == [0, 1, 2, 3, 4, 5]
    assert LearningLoss().needs == ("ll",) and other.needs == ("ranker",)
    known = labelled()
    assert other.data("ranker", Predict(), images, known, np.random.default_rng(0)) is known.questions
