"""Tasks without state take what they do from one place, and change only what they say."""

from __future__ import annotations

import pytest

from jaxvl.tasks.answer_uncertainty import AnswerUncertaintyTask
from jaxvl.tasks.batch_statistics import BatchNormTask
from jaxvl.tasks.question_match import QuestionMatchTask
from jaxvl.tasks.region_vqa import RegionVQATask
from jaxvl.tasks.stateless import Stateless
from jaxvl.tasks.teaching import TaughtTask


@pytest.mark.parametrize(
    ("task", "own"),
    [
        (AnswerUncertaintyTask, set()),
        (QuestionMatchTask, set()),
        (TaughtTask, set()),
        (RegionVQATask, {"start", "finish"}),  # a loss network counts its updates
        (BatchNormTask, {"start", "finish"}),
    ],
)
def test_a_task_overrides_only_the_steps_that_have_state(task, own):
    assert {n for n in ("start", "prepare", "finish") if getattr(task, n) is not getattr(Stateless, n)} == own


def test_nothing_starts_and_nothing_changes():
    task, extra = Stateless(), {"a": 1}
    assert task.start({"w": 0}, None) == {} and task.prepare({}, extra) is task.finish(extra, {}) is extra
