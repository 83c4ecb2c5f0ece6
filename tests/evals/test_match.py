"""Matching accuracy on tables: true pairs, random and hardest wrong images."""

from __future__ import annotations

import numpy as np
import pytest
from caption_world import Predict, source

from jaxvl.evals import EVALS
from jaxvl.evals.match import MatchEval, hardest_others, random_others

OWN = np.repeat(np.eye(3), 2, axis=1)  # image i, captions 2 i and 2 i + 1


def test_a_perfect_head_scores_100_and_an_inverted_one_0():
    for sign, value in ((1, 100.0), (-1, 0.0)):
        found = MatchEval()(Predict(similarity=OWN, match=sign * (OWN * 2 - 1)), source())
        assert found == dict.fromkeys(
            ("accuracy", "accuracy/positive", "accuracy/random", "accuracy/hard"), value
        )


def test_a_head_that_always_agrees_scores_half():
    found = MatchEval(negatives=("random",))(Predict(similarity=OWN, match=np.ones((3, 6))), source())
    assert found == {"accuracy": 50.0, "accuracy/positive": 100.0, "accuracy/random": 0.0}


def test_hard_negatives_are_the_most_similar_wrong_images():
    similarity = OWN + np.array([[0, 0, 0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    fooled = OWN * 2 - 1
    fooled[0, 2:] = 1.0  # image 0 is accepted with the captions of the others, to which it is most similar
    found = MatchEval(negatives=("hard",))(Predict(similarity=similarity, match=fooled), source())
    assert found["accuracy/positive"] == 100.0
    assert found["accuracy/hard"] == pytest.approx(100 * 2 / 6)
    assert found["accuracy"] == pytest.approx(100 * (1 + 1 / 3) / 2)


def test_random_others_are_uniform_over_the_other_images():
    own = np.repeat(np.arange(4), 3000)
    drawn = random_others(own, count=4, seed=0)
    assert not (drawn == own).any()
    counts = np.bincount(drawn[own == 1], minlength=4)
    assert (abs(counts[[0, 2, 3]] - 1000) < 150).all()


def test_the_hardest_other_ignores_the_own_column():
    np.testing.assert_array_equal(
        hardest_others(np.array([[9.0, 1, 2], [0, 9, -1]]), own=np.array([0, 1])), [2, 0]
    )


def test_wrong_negatives_are_named_and_the_evaluator_is_registered():
    with pytest.raises(ValueError, match="'random' and 'hard'"):
        MatchEval(negatives=("soft",))
    assert EVALS["match"] is MatchEval


def test_a_head_at_chance_is_said_once_it_should_have_learnt():
    check = MatchEval(negatives=("random",)).alarm
    assert check({"accuracy": 51.0}, share=0.1) is None and check({"accuracy": 55.0}, share=1.0) is None
    assert "51.0 % after 20 % of the updates" in check({"accuracy": 51.0}, share=0.2)
