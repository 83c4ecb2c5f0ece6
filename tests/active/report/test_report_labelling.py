"""What reports say of people's labels: rounds are put together, and what is doubtful is written out."""

from __future__ import annotations

import pytest
from fake_runs import FakeRun

from jaxvl.active.folder import QUALITY
from jaxvl.active.report import labelling
from jaxvl.atomic import write_json


def one(agreement, compared, gold=0, accuracy=None, **more):
    flagged = [{"image_id": 7, "question": "Why <b>?", "agreement": 0.2, "answers": ["a", "b"]}]
    anna = {"answers": 5, "compared": compared, "agreement": agreement, "gold": gold, "accuracy": accuracy}
    return {
        "questions": 5, "compared": compared, "agreement": agreement, "flagged": flagged, "outside": {"gnu": 2},
        "taken_over": 1, "annotators": {"anna": anna}, **more,
    }  # fmt: skip


def test_means_of_rounds_are_weighted_by_what_they_are_over():
    got = labelling.combined([one(0.5, 1), one(0.8, 2, gold=4, accuracy=0.75)])
    assert got["annotators"]["anna"] == {
        "answers": 10, "compared": 3, "agreement": pytest.approx(0.7), "gold": 4, "accuracy": 0.75,
    }  # fmt: skip
    assert got["outside"] == {"gnu": 4} and len(got["flagged"]) == 2 and got["taken_over"] == 2


def test_remarks_name_the_doubtful_questions_and_the_answers_that_cannot_be_given():
    said = "\n".join(labelling.remarks(labelling.combined([one(0.5, 1)])))
    assert (
        "image 7: Why <b>? 20 % (a, b)" in said
        and "answers that the model cannot give, to 2 of the questions: gnu (2)" in said
    )
    assert "gnu (2)" in said


def test_the_page_has_a_section_only_where_people_labelled(tmp_path):
    run = FakeRun("<i>", 0, root=tmp_path, rounds=2)
    assert labelling.parts([run]) == []
    write_json(run.folder(0) / QUALITY, one(0.5, 1, gold=4, accuracy=0.75))
    text = "\n".join(labelling.parts([run]))
    assert (
        "<td>anna</td>" in text
        and "&lt;i&gt;, repeat 0" in text
        and "75 %" in text
        and "Why &lt;b&gt;?" in text
        and "gnu (2)" in text
    )
