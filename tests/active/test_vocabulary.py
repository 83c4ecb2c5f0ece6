"""Words and answers that follow the labels: what is in them, what is listed as outside, and resumed runs agree."""

from __future__ import annotations

import numpy as np
import pytest
from active_world import world

from jaxvl.active import evalai
from jaxvl.active.folder import INITIAL, PHASES, RunFolder
from jaxvl.active.rounds import Run
from jaxvl.active.vocabulary import GREW, Scope, frequent, grown, summary
from jaxvl.atomic import read_json
from jaxvl.data.words import UNK, tokens

STRICT, GROW = Scope("strict", "strict", min_count=4), Scope(grow=True, min_count=4)
RECORDS = [{"answers": [a] * 3} for a in ("Red.", "blue", "red", "two", "red", "blue", "2", "")]


def drive(folder, scope, **kwargs):
    answers = {"answers": ["yes", "no"]} if scope.grow else {}
    one = world(folder, images=24, vocabulary=scope, **answers)
    with Run(one, method="entropy", repeat=0, folder=folder / "entropy" / "r0", say=lambda line: None) as run:
        return run.advance(**kwargs), run


def test_frequent_answers_are_counted_in_normal_form_and_by_the_labelled_share():
    assert frequent(RECORDS, fraction=0.1, min_count=9) == ["red", "blue", "2"]  # at least two
    assert frequent(RECORDS, fraction=0.3, min_count=9) == ["red"]  # at least three
    with pytest.raises(ValueError, match="no answer is given to 9 of the 8"):
        frequent(RECORDS, fraction=1.0, min_count=9)


def test_new_answers_are_those_that_are_frequent_and_no_candidates():
    assert grown(RECORDS, ["red", "yes"], fraction=0.1, min_count=9) == ["2", "blue"]
    assert grown(RECORDS, ["red", "yes"], fraction=0.4, min_count=9) == []


def test_answers_outside_are_counted_and_listed():
    found = summary(RECORDS, "abc", ["red"], before=None)
    same = summary(RECORDS, "abc", ["red"], before=found)
    more = summary(RECORDS, "abc", ["red", "2"], before=same)
    assert (found["programs"], same["programs"], more["programs"]) == (1, 1, 2)
    assert (found["words"], found["answers"]) == (3, 1)
    assert found["outside"] == {"questions": 5, "distinct": 3, "most": {"2": 2, "blue": 2, "": 1}}


def test_strict_words_and_answers_are_those_of_the_labels_of_each_round(tmp_path):
    run = drive(tmp_path, STRICT)[1]
    one = RunFolder(tmp_path / "entropy" / "r0")
    sizes = [m["vocabulary"]["words"] for m in one.rounds]
    said = {t for r in one.records(len(sizes) - 1) for t in tokens(r["question"])}
    assert set(run.world.words.vocab[3:]) == said and sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert run.world.answers == frequent(
        one.records(len(sizes) - 1), fraction=len(one.labelled()) / 24, min_count=4
    )
    assert UNK in run.world.words.ids("zebra of " + " ".join(said))
    np.testing.assert_array_equal(
        run.world.val.array("text")[0], run.world.words.ids(run.world.val.records[0]["question"])
    )
    assert one.protocol["vocabulary"]["words"] == "strict"


def test_grown_answers_are_appended_and_noted_before_they_are_trained_on(tmp_path):
    run = drive(tmp_path, GROW)[1]
    one = RunFolder(tmp_path / "entropy" / "r0")
    events = one.ledger.valid()
    new = [e.data["answers"] for e in events if e.kind == GREW]
    assert run.world.answers == ["yes", "no", *(a for part in new for a in part)] and len(new) > 0
    sizes = [m["vocabulary"]["answers"] for m in one.rounds]
    assert sizes[0] == 2 and sizes[-1] == len(run.world.answers)
    assert one.rounds[-1]["vocabulary"]["programs"] == len(set(sizes)) > 1
    for at, event in enumerate(events):
        if event.kind == GREW:
            assert (events[at + 1].kind, events[at + 1].data["round"]) == ("TRAINED", event.data["round"])


@pytest.mark.parametrize("scope", [STRICT, GROW], ids=["strict", "grow"])
def test_stopped_after_every_phase_the_vocabulary_and_the_selection_are_the_same(tmp_path, scope):
    drive(tmp_path / "whole", scope)
    while not any(drive(tmp_path / "cut", scope, until=p)[0].state == "finished" for p in PHASES):
        pass
    a, b = (RunFolder(tmp_path / x / "entropy" / "r0") for x in ("whole", "cut"))
    assert [a.selection(r) for r in range(INITIAL, 3)] == [b.selection(r) for r in range(INITIAL, 3)]
    assert [m["vocabulary"] for m in a.rounds] == [m["vocabulary"] for m in b.rounds]
    assert [e.kind for e in a.ledger.events] == [e.kind for e in b.ledger.events]


def test_killed_between_the_event_and_the_training_answers_grow_once(tmp_path):
    whole = drive(tmp_path / "a", GROW)[1]
    for round in range(len(whole.base.counts)):
        run = drive(tmp_path / "b", GROW, until="COMMITTED")[1]
        if run.folder.position() == (round, "TRAINED"):
            with run.ledger.open():
                run._enter(round, note=True)
    again = drive(tmp_path / "b", GROW)[1]
    assert GREW in {e.kind for e in again.ledger.events}
    assert [e.kind for e in again.ledger.events] == [e.kind for e in whole.ledger.events]
    assert again.world.answers == whole.world.answers


def test_a_finished_round_answers_with_its_own_words_and_answers(tmp_path):
    run = drive(tmp_path, GROW)[1]
    last = run.world.answers
    questions = run.base.val.records[:2]
    number, rows = run.answers(questions, round=0)
    assert number == 0 and {r["answer"] for r in rows} <= {"yes", "no"} == set(run.world.answers)
    assert run.answers(questions)[0] == 3 and run.world.answers == last != ["yes", "no"]


def test_under_the_protocol_test_a_round_answers_with_its_own_words_and_answers(tmp_path):
    one = world(tmp_path, images=24, vocabulary=GROW, answers=["yes", "no"], protocol="test")
    with Run(one, method="random", repeat=0, folder=tmp_path / "random" / "r0", say=lambda line: None) as run:
        assert run.advance().state == "finished"
    files = [read_json(run.folder.folder(r) / evalai.RESULTS) for r in range(4)]
    first, last = ({row["answer"] for row in rows} for rows in (files[0], files[-1]))
    assert first <= {"yes", "no"} and last - {"yes", "no"} and last <= set(run.world.answers)
