"""Ranking with ties, and what is refused before anything is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from strategy_fakes import ASKED, J, Predict, Provider, labelled, pool

from jaxvl.active.strategies.base import Strategy, finite, there, top
from jaxvl.active.strategies.ccrl import CCRL
from jaxvl.active.strategies.classics import Entropy, Margin, Random
from jaxvl.active.strategies.coreset import Coreset
from jaxvl.data.region_source import RegionImages


def test_equal_scores_are_ranked_by_image_id():
    assert top(np.array([1.0, 2, 1, 2, 1]), np.array([9, 8, 3, 7, 5]), 4).tolist() == [3, 1, 2, 4]


def test_scores_without_a_value_are_refused_and_the_image_is_named():
    with pytest.raises(ValueError, match="1 images are NaN.*image 8"):
        top(np.array([1.0, np.nan]), np.array([9, 8]), 1)
    with pytest.raises(ValueError, match=r"task/embed is not finite for 1 of 2.*image 9"):
        finite(np.array([[1.0, np.inf], [0, 0]]), name="task/embed", ids=np.array([9, 8]))


@pytest.mark.parametrize("k", [0, 3])
def test_no_images_or_too_many_are_refused(k):
    with pytest.raises(ValueError, match=f"{k} images of 2"):
        top(np.array([1.0, 2]), np.array([0, 1]), k)


def test_padding_is_told_from_questions_that_are_asked():
    text = np.stack([ASKED, np.where(np.arange(J)[:, None] == 1, 0, ASKED)])
    own = RegionImages(Provider(), [5, 6], asked=text, asked_kinds=np.zeros((2, J)))
    np.testing.assert_array_equal(there(own), [[True] * 3, [True, False, True]])
    shared = RegionImages(Provider(), [5, 6], asked=text[1], asked_kinds=np.zeros(J))
    np.testing.assert_array_equal(there(shared), [[True, False, True]] * 2)


def test_a_strategy_without_samplers_trains_none_and_others_get_the_labelled_questions():
    labels = labelled()
    assert Strategy().needs == ()
    assert Strategy().data("x", Predict(), pool(), labels, np.random.default_rng(0)) is labels.questions


def test_classics_take_the_largest_values_of_their_predictor():
    ids = pool(4).ids.tolist()
    values = dict(zip(ids, [0.1, 0.9, 0.5, 0.7], strict=True))
    predict = Predict(task__entropy=values, task__margin={i: -v for i, v in values.items()})
    rng = np.random.default_rng(0)
    assert Entropy()(predict, pool(4), labelled(), 2, rng).rows.tolist() == [1, 3]
    assert Margin()(predict, pool(4), labelled(), 2, rng).rows.tolist() == [0, 2]
    assert predict.calls == [("task/entropy", 4), ("task/margin", 4)]


def test_random_is_uniform_and_asks_no_model():
    rng, images, predict = np.random.default_rng(0), pool(10), Predict()
    picks = np.stack([Random()(predict, images, None, 3, rng).rows for _ in range(3000)])
    first, any_ = np.bincount(picks[:, 0], minlength=10), np.bincount(picks.ravel(), minlength=10)
    assert ((first - 300) ** 2 / 300).sum() < 27.9  # chi-square, 9 degrees of freedom, p = 0.001
    assert ((any_ - 900) ** 2 / (900 * 0.7)).sum() * 0.9 < 27.9  # drawn without replacement
    assert predict.calls == []


@pytest.mark.parametrize(
    ("strategy", "vectors"),
    [
        (CCRL(stage="vqme_mi"), "vqme_mi/image_state"),
        (CCRL(match="all"), "task/vision"),
        (Coreset(feature="fused"), "task/embed"),
        (Strategy(), "task/vision"),
    ],
)
def test_images_are_compared_in_the_space_that_a_strategy_works_in(strategy, vectors):
    assert strategy.vectors == vectors
    stage = vectors.partition("/")[0]
    assert stage == "task" or stage in strategy.needs
