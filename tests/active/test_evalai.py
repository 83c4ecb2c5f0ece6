"""The protocol `test`: every round leaves a file that EvalAI takes, and its scores come back by hand."""

from __future__ import annotations

import json

import pytest
from active_world import world

from jaxvl.active import evalai, loop
from jaxvl.active.folder import RunFolder, runs_in
from jaxvl.active.report import report
from jaxvl.atomic import sha256

ROWS = [dict(question_id=i, answer="yes") for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(workdir, question ids) of two methods, three rounds each."""
    folder = tmp_path_factory.mktemp("test protocol")
    shared = world(folder, protocol="test", budget=0.375)
    loop.run(shared, folder, methods=["random", "entropy"], repeats=[0], say=lambda line: None)
    return folder, {int(r["question_id"]) for r in shared.val.records}


def scored(tmp_path, rounds, phase="test-dev"):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"phase": phase, "rounds": rounds}))
    return path


def test_every_round_answers_every_question_and_has_no_accuracy(ran):
    folder, ids = ran
    for run in runs_in(folder):
        assert [m["acc"] for m in run.rounds] == [{}, {}, {}] and len(run.results) == 3
        for number in run.results:
            rows = evalai.read_results(run.folder(number) / evalai.RESULTS)
            assert {r["question_id"] for r in rows} == ids and len(rows) == len(ids)
        assert run.problems() == []
    assert not list(folder.rglob("evaluation.npz"))


def test_reports_say_na_until_scores_are_passed_on(ran, tmp_path):
    folder, _ = ran
    text = report(runs_in(folder), tmp_path / "report").read_text()
    assert "n/a" in text and "6 rounds have no accuracy" in text
    one = runs_in(folder)[0]
    given = scored(tmp_path, {"1": {"overall": 50.5, "yes/no": 60}, "2": {"overall": 52}})
    assert set(evalai.take_scores(one.path, given, one.results)) == {1, 2}
    assert [m["acc"].get("overall") for m in RunFolder(one.path).rounds] == [None, 50.5, 52.0]
    text = report(runs_in(folder), tmp_path / "report").read_text()
    assert "50.50" in text and "4 rounds have no accuracy" in text
    (one.path / evalai.SCORES_FILE).unlink()


def test_scores_of_another_answer_file_do_not_count_and_verify_says_so(ran, tmp_path):
    one = runs_in(ran[0])[1]
    evalai.take_scores(one.path, scored(tmp_path, {"0": {"overall": 50}}), {0: "another"})
    again = RunFolder(one.path)
    assert again.rounds[0]["acc"] == {} and "scored for another" in again.problems()[0]
    (one.path / evalai.SCORES_FILE).unlink()


def test_two_phases_and_rounds_without_answers_are_refused(ran, tmp_path):
    one = runs_in(ran[0])[0]
    with pytest.raises(ValueError, match=r"round 7 .* rounds that have one: 0, 1, 2"):
        evalai.take_scores(one.path, scored(tmp_path, {"7": {"overall": 1}}), one.results)
    evalai.take_scores(one.path, scored(tmp_path, {"0": {"overall": 1}}), one.results)
    with pytest.raises(ValueError, match="two phases"):
        evalai.take_scores(one.path, scored(tmp_path, {"1": {"overall": 1}}, "test-standard"), one.results)
    (one.path / evalai.SCORES_FILE).unlink()


def test_methods_that_share_a_model_ask_it_once(ran):
    first = {sha256(run.folder(0) / evalai.RESULTS) for run in runs_in(ran[0])}
    assert len(first) == 1


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ({}, "expected"),
        ({"x": {"overall": 1}}, "'x'"),
        ({"0": {"yes/no": 1}}, "'0'"),
        ({"0": {"overall": 101}}, "101"),
        ({"0": {"overall": 1, "color": 2}}, "'color'"),
    ],
)
def test_bad_scores_are_named(tmp_path, rounds, message):
    with pytest.raises(ValueError, match=message):
        evalai.read_scores(scored(tmp_path, rounds))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:2], "1 question ids are missing, e.g. 3"),
        ([*ROWS, ROWS[0]], "1 question ids are repeated, e.g. 1"),
        ([*ROWS, dict(question_id=9, answer="no")], "not among the questions, e.g. 9"),
        ([*ROWS[:2], dict(question_id="3", answer="no")], "row 3"),
        ([*ROWS[:2], dict(question_id=3, answer=4)], "row 3"),
        ({"a": 1}, "expected"),
    ],
)
def test_what_evalai_would_refuse_is_found(tmp_path, rows, message):
    questions, pred = tmp_path / "q.json", tmp_path / "p.json"
    questions.write_text(json.dumps({"questions": [dict(question_id=i) for i in (1, 2, 3)]}))
    pred.write_text(json.dumps(ROWS))
    assert evalai.check_results(pred, questions) == 3
    pred.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        evalai.check_results(pred, questions)


def test_test_dev_alone_is_refused(tmp_path):
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"data_subtype": "test-dev2015", "questions": [dict(question_id=1)]}))
    with pytest.raises(ValueError, match="whole test file"):
        evalai.check_results(path, path)


def test_a_run_answers_other_questions_and_stays_as_it_is(ran):
    from jaxvl.active.rounds import Run

    folder, ids = ran
    path = folder / "random" / "r0"
    before = (path / "events.jsonl").read_bytes()
    shared = world(folder, protocol="test", budget=0.375)
    one = Run(shared, method="random", repeat=0, folder=path, say=lambda line: None)
    number, rows = one.answers(shared.val.records[:3], round=1)
    assert number == 1 and len(rows) == 3 and {r["question_id"] for r in rows} <= ids
    assert rows == json.loads((path / "round_001" / evalai.RESULTS).read_text())[:3]
    with pytest.raises(ValueError, match="round 8 has no model"):
        one.answers(shared.val.records[:3], round=8)
    assert (path / "events.jsonl").read_bytes() == before
