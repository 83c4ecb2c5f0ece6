"""Labels come once, for selected images only; records that cannot serve are named."""

from __future__ import annotations

import pytest

from jaxvl.active.oracle import Oracle, OracleError, records_of


def rows():
    return [
        dict(image_id=i, question="q", question_id=10 * i + k, answers=["a"], answer_type="other")
        for i in range(4)
        for k in range(2)
    ]


def test_a_label_is_all_questions_of_the_image_and_comes_once():
    oracle = Oracle(rows())
    assert [r["question_id"] for r in oracle.label([2, 0], selected={0, 2})] == [20, 21, 0, 1]
    with pytest.raises(OracleError, match="labelled already"):
        oracle.label([2], selected={2})


def test_unselected_and_unknown_images_are_refused():
    with pytest.raises(OracleError, match="not selected"):
        Oracle(rows()).label([1], selected={2})
    with pytest.raises(OracleError, match="not in the pool"):
        Oracle(rows()).label([9], selected={9})


def test_what_was_labelled_before_stays_labelled():
    oracle = Oracle(rows(), pool=range(6))
    assert len(oracle.restore([1, 5])) == 2  # image 5 has no question
    with pytest.raises(OracleError, match="already"):
        oracle.label([5], selected={5})


def test_a_record_without_answers_is_named():
    class Reader:
        def __len__(self):
            return 1

        def annotation(self, i):
            return dict(rows()[0], answers=[], image="a.jpg")

    with pytest.raises(OracleError, match=r"a\.jpg.*answers"):
        records_of(Reader())
