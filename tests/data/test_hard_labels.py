"""Proves what human answers say about classes: specification 2.4 by hand, and agreement with the format of ViLT."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.data.hard_labels import AnswerClasses, strict_min_count

CLASSES = AnswerClasses(["yes", "no", "2", "red", "dark red", "T-shirt"], max_labels=4)


def record(*answers, **more):
    return {"answers": list(answers), **more}


@pytest.mark.parametrize(("count", "score"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (7, 1.0)])
def test_scores_are_the_expected_official_accuracy_of_giving_that_answer(count, score):
    found = CLASSES.targets(record(*["red"] * count, *["unheard of"] * (10 - count)))
    assert found.label.tolist() == [3, 6, 6, 6]
    np.testing.assert_allclose(found.score, [score, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.share, [1, 0, 0, 0])


def test_labels_come_most_frequent_first_and_shares_are_over_classes():
    found = CLASSES.targets(record(*["Two"] * 3, *["the dark red"] * 5, "no", "pink"))
    assert found.label.tolist() == [4, 2, 1, 6] and found.hard == 4
    np.testing.assert_allclose(found.score, [1, 0.9, 0.3, 0], atol=1e-6)
    np.testing.assert_allclose(found.share, np.array([5, 3, 1, 0]) / 9, atol=1e-6)


def test_few_annotators_give_their_share():
    found = CLASSES.targets(record("yes", "no", "yes"))
    np.testing.assert_allclose(found.score[:2], [2 / 3, 1 / 3], atol=1e-6)


def test_more_classes_than_slots_keep_the_most_frequent():
    small = AnswerClasses(["a1", "b1", "c1"], max_labels=2)
    found = small.targets(record("c1", "b1", "b1", "a1", "a1", "a1"))
    assert found.label.tolist() == [0, 1] and found.share.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("answers", "more", "hard"),
    [
        (["red"] * 6 + ["yes"] * 4, {}, 3),
        (["pink"] * 6 + ["Red."] * 3 + ["yes"], {}, 3),  # the consensus is no class: the next that is one
        (["pink"] * 10, {}, -1),
        ([], {}, -1),
        (["red"] * 5 + ["no"] * 5, {}, 1),  # a tie goes by the string
        (["red"] * 5 + ["no"] * 5, {"multiple_choice_answer": "red"}, 3),
        (["red"] * 5 + ["no"] * 5, {"multiple_choice_answer": "pink"}, 1),
        (["t-shirt"], {}, 5),  # its normal form is that of the class
    ],
)
def test_hard_labels(answers, more, hard):
    assert CLASSES.hard(record(*answers, **more)) == hard
    assert CLASSES.targets(record(*answers, **more)).hard == hard


def test_a_class_as_it_is_written_goes_before_one_of_that_normal_form():
    classes = AnswerClasses(["T-shirt", "t shirt"])
    assert classes.place("t-shirt") == 1 == classes.place("the t shirt")


def test_classes_are_distinct():
    with pytest.raises(ValueError, match="2 answers, 1 distinct"):
        AnswerClasses(["a", "a"])


def test_fewer_labels_ask_less_of_a_class():
    assert [strict_min_count(f) for f in (0.02, 0.2, 0.3, 0.5, 1.0)] == [2, 2, 3, 5, 9]
    with pytest.raises(ValueError, match="fraction"):
        strict_min_count(0)
