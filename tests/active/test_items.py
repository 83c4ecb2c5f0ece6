"""Items of a pool: what is kept of a question, and the answer type that its opening phrase stands for."""

from __future__ import annotations

import pytest

from jaxvl.active.bank import KINDS
from jaxvl.active.items import QA, Questions, opening_kinds
from jaxvl.active.oracle import Oracle, OracleError

LABELLED = [
    dict(question=q, answer_type=t)
    for q, t in (
        ("Is it red?", "yes/no"), ("Is it a cat or a dog?", "other"), ("Is it big?", "yes/no"), ("How many?", "number"),
        ("How is it?", "other"), ("How many cats?", "number"), ("What number is on it?", "number"),
        ("What is it?", "other"),
    )
]  # fmt: skip


def record(item, **more):
    return dict(question_id=item, image_id=item // 10, question=f"is it {item}?", answers=["a"], **more)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Is it a dog?", "other"),  # "is it a" is longer than "is it", which is mostly yes/no
        ("IS IT, wet", "yes/no"),
        ("How many dogs, then?", "number"),
        ("How come?", "number"),  # two of three that begin with "how"
        ("What for?", "other"),  # one each: other is first
        ("Who?", "other"),  # nothing in common: of all eight three are other, three numbers
        ("", "other"),
    ],
)
def test_the_longest_common_opening_decides_by_majority(question, kind):
    assert KINDS[opening_kinds([question], LABELLED)[0]] == kind


def test_no_more_than_four_words_are_an_opening():
    one = [dict(question="is it a very big cat", answer_type="yes/no")]
    same_five = [dict(question="is it a very small cat", answer_type="number")] * 2
    assert opening_kinds(["is it a very big cat"], [*one, *same_five]) == KINDS.index("number")


def test_of_a_question_image_and_words_are_kept_and_nothing_else():
    found = Questions([record(31), record(7)])
    assert found.ids.tolist() == [7, 31] and found.image_ids.tolist() == [0, 3]
    assert found.line(31) == {"question_id": 31, "image_id": 3, "question": "is it 31?"}
    assert not {k for k in vars(found) if k not in ("ids", "image_ids", "texts")}
    with pytest.raises(ValueError, match="question 8 is not in the pool of 2"):
        found.at([7, 8])


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(1), record(1)], "question_id 1 occurs twice"),
        ([record(1), {**record(2), "question": ""}], "example 1 .* no 'question'"),
        ([dict(image_id=1, image="a.jpg")], r"a\.jpg.* no 'question_id'"),
    ],
)
def test_a_pool_whose_questions_cannot_be_told_apart_or_asked_is_refused(records, message):
    with pytest.raises(ValueError, match=message):
        Questions(records)


def test_the_oracle_reveals_one_question_and_not_its_neighbours():
    oracle = Oracle([record(10), record(11), record(20)], unit=QA)
    assert [r["question_id"] for r in oracle.label([11], selected={11})] == [11]
    with pytest.raises(OracleError, match="question 11 is labelled already"):
        oracle.label([11], selected={11})
    with pytest.raises(OracleError, match="question 10 was not selected"):
        oracle.label([10], selected={11})
    assert [r["question_id"] for r in oracle.restore([11, 20])] == [11, 20]
