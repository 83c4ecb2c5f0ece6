"""VQA accuracy by answer type, the results file of the evaluation server, and the majority baseline."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jaxvl.evals import EVALS, MajorityBaseline, VQAEval

ANSWERS = ["yes", "no", "2", "a cat"]


class Questions:
    """A source of annotations; rows are not read."""

    def __init__(self, *annotations: dict):
        self.annotations = [{"question_id": 100 + i, **a} for i, a in enumerate(annotations)]

    def __len__(self) -> int:
        return len(self.annotations)

    def annotation(self, i: int) -> dict:
        return self.annotations[i]


def predict(*best: int):
    rows = np.stack([np.array(best), np.zeros(len(best), int)], axis=1)
    return lambda name, source: {"index": rows, "score": np.ones(rows.shape)} if name == "answer" else None


THREE = Questions(
    {"answers": ["yes"] * 3 + ["no"] * 7, "answer_type": "yes/no"},
    {"answers": ["two"] * 5 + ["3"] * 5, "answer_type": "number"},
    {"answers": ["cat"], "answer_type": "other"},
)


def test_accuracy_overall_and_by_type_in_percent():
    found = VQAEval(ANSWERS)(predict(0, 2, 3), THREE)
    assert found == pytest.approx(
        {
            "accuracy": (90 + 100 + 100) / 3,
            "accuracy/yes_no": 90.0,
            "accuracy/number": 100.0,
            "accuracy/other": 100.0,
        }
    )


def test_results_are_the_servers_rows_and_unanswered_questions_are_not_scored(tmp_path):
    path = tmp_path / "vqa" / "results.json"
    source = Questions({"answers": []}, {"answers": ["no"] * 10}, {})
    found = VQAEval(ANSWERS, results=path)(predict(3, 1, 0), source)
    assert json.loads(path.read_text()) == [
        {"question_id": 100, "answer": "a cat"},
        {"question_id": 101, "answer": "no"},
        {"question_id": 102, "answer": "yes"},
    ]
    assert found == {"accuracy": 100.0}
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_failed_evaluation_leaves_the_earlier_results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="question_id 7 occurs more than once"):
        VQAEval(ANSWERS, results=path)(predict(0, 0), Questions({"question_id": 7}, {"question_id": 7}))
    assert path.read_text() == "[]"


def test_nothing_to_score_and_an_index_outside_the_list_are_errors():
    with pytest.raises(ValueError, match="nothing to score"):
        VQAEval(ANSWERS)(predict(0), Questions({"answers": []}))
    with pytest.raises(ValueError, match="answer 9 of a list of 4"):
        VQAEval(ANSWERS)(predict(9), Questions({"answers": ["no"] * 10}))


def test_majority_answers_the_most_frequent_overall_and_by_type():
    train = Questions(
        {"answers": ["yes"] * 10, "answer_type": "yes/no"},
        {"answers": ["yes"] * 10, "answer_type": "yes/no"},
        {"answers": ["2"] * 10, "answer_type": "number"},
    )
    found = MajorityBaseline(train)(lambda name, source: pytest.fail("no prediction is needed"), THREE)
    assert found["accuracy"] == pytest.approx(90 / 3)
    assert found["accuracy/number"] == 0.0
    assert found["by_type/accuracy"] == pytest.approx((90 + 100 + 0) / 3)
    assert found["by_type/accuracy/number"] == 100.0


def test_the_variant_reaches_the_metric():
    source = Questions({"answers": ["cat"] * 10})
    for variant, value in (("official", 0.0), ("openvqa", 100.0)):
        assert VQAEval(["Cat."], variant=variant)(predict(0), source)["accuracy"] == value


def test_the_evaluators_are_registered():
    assert EVALS["vqa"] is VQAEval
    assert EVALS["majority"] is MajorityBaseline
