"""How good labels are: agreement, known answers, answers nobody can learn, suggestions taken over."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.active.human import quality


def record(answers, names=None, image_id=1, question="Who?"):
    names = {"annotators": names} if names else {}
    return {"image_id": image_id, "question": question, "answers": answers, "answer_type": "other", **names}


def test_agreement_is_in_normal_form_and_of_the_others():
    got = quality.agreement([record(["Two", "2", "three", "2."], ["a", "b", "c", "a#2"])])
    assert got.questions == {(1, "Who?"): 0.75}
    assert got.annotators == {"a": pytest.approx(2 / 3), "b": pytest.approx(2 / 3), "c": 0}


def test_questions_that_few_agree_on_are_flagged_worst_first():
    records = [
        record(list("abcd"), question="Why?"), record(list("aabcdefg"), question="When?"), record(["a", "a"]),
        record(["x"], question="alone"),
    ]  # fmt: skip
    got = quality.agreement(records)
    assert got.flagged == [(1, "When?"), (1, "Why?")] and (1, "alone") not in got.questions


def test_annotators_are_judged_by_the_official_accuracy():
    truth = [record(["dog"] * 6 + ["cat"] * 2 + ["pig"] * 2, question="What animal?")]
    given = [record(["dog", "cat", "cow"], ["anna", "ben", "cem"], question="what animal")]
    got = quality.gold_accuracy(given, truth)
    assert got == {"anna": pytest.approx(1), "ben": pytest.approx(0.6), "cem": 0}
    assert quality.gold_accuracy([record(["x"], ["a"], question="Another?")], truth) == {}


def test_nobody_is_judged_by_answers_of_her_own():
    truth = [record(["dog", "cat"], ["anna", "ben"], question="What animal?")]
    given = [record(["dog", "dog"], ["anna", "cem"], question="What animal?")]
    assert quality.gold_accuracy(given, truth) == {"anna": 0, "cem": pytest.approx(0.5)}


def test_a_summary_counts_what_its_means_are_over_and_lists_what_is_doubtful():
    records = [
        record(list("abcd"), ["x", "y", "z", "w"], question="Why?"), record(["gnu"], ["x"], question="When?")
    ]  # fmt: skip
    truth, gold = [record(["a"], ["y"], image_id=9)], [record(["a"], ["x"], image_id=9)]
    got = quality.summary(records, gold, truth, selection=[], answers=list("abcd"))
    assert got["annotators"]["x"] == {
        "answers": 2,
        "compared": 1,
        "agreement": 0.0,
        "gold": 1,
        "accuracy": 1.0,
    }
    assert got["flagged"] == [{"image_id": 1, "question": "Why?", "agreement": 0.25, "answers": list("abcd")}]
    assert got["outside"] == {"gnu": 1} and got["questions"] == 2 and got["compared"] == 1


def test_gold_is_a_share_of_the_batch_without_repetition():
    ids = quality.choose_gold(range(100), batch=40, share=0.1, rng=np.random.default_rng(0))
    assert len(set(ids)) == 4 and set(ids) <= set(range(100))
    assert len(quality.choose_gold([1, 2], batch=40, share=0.5, rng=np.random.default_rng(0))) == 2
    with pytest.raises(ValueError, match="between 0 and 1"):
        quality.choose_gold([1], batch=1, share=5, rng=np.random.default_rng(0))


def test_answers_outside_the_list_are_counted():
    records = [
        record(["the zebra"]),
        record(["Zebra"], question="b"),
        record(["yes"]),
        record(["gnu"], question="c"),
    ]
    assert quality.outside(records, ["Yes"]) == {"zebra": 2, "gnu": 1}


def test_suggestions_that_were_taken_over_are_found():
    selection = [{"image_id": 1, "contributors": [{"question": "Who is it?"}]}, {"image_id": 2}]
    records = [record(["a"], question="who is it"), record(["a"], question="Why?"), record(["a"], image_id=2)]
    assert quality.taken_over(records, selection) == {1: ["who is it"]}


def test_duplicates_are_grouped():
    assert quality.duplicates({5: "x", 3: "x", 4: "y", 9: "z", 8: "z"}) == [[3, 5], [8, 9]]
