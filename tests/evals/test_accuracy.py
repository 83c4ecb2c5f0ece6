"""Accuracy of classes by hand-made tables: groups, consistency of sentences, soft scores, the majority baseline."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.evals import EVALS
from jaxvl.evals.accuracy import AccuracyEval, MajorityClass


class Annotated:
    """A source of annotations; rows are not read."""

    def __init__(self, *annotations: dict):
        self.annotations = annotations

    def __len__(self) -> int:
        return len(self.annotations)

    def annotation(self, i: int) -> dict:
        return self.annotations[i]


def predict(*classes: int):
    return lambda name, source: np.array(classes) if name == "class" else None


def row(label: int, kind: str, group: str) -> dict:
    return {"label": label, "label_name": str(bool(label)), "statement_type": kind, "sentence_group": group}


PAIRS = Annotated(row(1, "count", "a"), row(0, "count", "a"), row(1, "left of", "b"), row(1, "count", "b"))


def test_accuracy_overall_by_group_and_consistency():
    assert AccuracyEval()(predict(1, 0, 0, 1), PAIRS) == pytest.approx(
        {
            "accuracy": 75.0,
            "accuracy/true": 200 / 3,
            "accuracy/false": 100.0,
            "accuracy/count": 100.0,
            "accuracy/left_of": 0.0,
            "consistency": 50.0,
        }
    )


def test_groups_can_be_chosen_and_flags_are_groups():
    source = Annotated({"label": 1, "heldout": True}, {"label": 1, "heldout": False})
    found = AccuracyEval(groups=("heldout",))(predict(0, 1), source)
    assert found == {"accuracy": 50.0, "accuracy/heldout": 0.0}


def test_examples_without_a_label_are_not_scored():
    source = Annotated({"label": 2, "label_name": "entailment"}, {"label": None, "label_name": None})
    assert AccuracyEval()(predict(2, 0), source)["accuracy"] == 100.0
    with pytest.raises(ValueError, match="no example has a label: nothing to score"):
        AccuracyEval()(predict(0), Annotated({"label": None}))
    with pytest.raises(ValueError, match=r"the predictor 'class' gave \(2,\) for 1 examples"):
        AccuracyEval()(predict(0, 1), Annotated({"label": 1}))


def test_scored_answers_count_their_score():
    source = Annotated(
        {"scores": {"yes": 0.6, "no": 1.0}, "answer_type": "yes/no"}, {"scores": {"red": 0.3}}, {"scores": {}}
    )
    found = AccuracyEval(["red", "yes"])(predict(1, 1, 0), source)
    assert found == pytest.approx({"accuracy": 30.0, "accuracy/yes_no": 60.0})
    with pytest.raises(ValueError, match="needs the answers of the classes"):
        AccuracyEval()(predict(1, 1, 0), source)


def test_scored_answers_also_count_for_the_official_accuracy():
    source = Annotated({"scores": {"yes": 0.6}, "answer_type": "yes/no"}, {"answers": ["no"] * 10})
    first = lambda name, source: {"index": np.array([[1], [0]])} if name == "answer" else None  # noqa: E731
    assert EVALS["vqa"](["no", "yes"])(first, source)["accuracy"] == pytest.approx(80.0)


def test_the_majority_class_is_that_of_training():
    train = Annotated({"label": 2}, {"label": 0}, {"label": 2}, {"label": None})
    found = MajorityClass(train)(lambda *a: pytest.fail("no prediction is needed"), PAIRS)
    assert found["accuracy"] == 0.0 and found["consistency"] == 0.0
    assert MajorityClass(Annotated({"label": 1}, {"label": 0}, {"label": 1}))(None, PAIRS)["accuracy"] == 75.0
    assert MajorityClass(Annotated({"label": 1}, {"label": 0})).label == 0
    with pytest.raises(ValueError, match="needs labelled training examples"):
        MajorityClass(Annotated({"label": None}))


def test_the_majority_of_scored_answers_has_the_largest_sum():
    train = Annotated({"scores": {"a": 1.0, "b": 0.6}}, {"scores": {"b": 0.6, "outside": 9.0}})
    assert MajorityClass(train, answers=["a", "b"]).label == 1


def test_the_evaluators_are_registered():
    assert EVALS["accuracy"] is AccuracyEval and EVALS["majority_class"] is MajorityClass
