"""A round in which people answer questions that were chosen: files name the question, every format comes back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from active_world import world

from jaxvl.active import people
from jaxvl.active.folder import INITIAL, RunFolder
from jaxvl.active.human import export_batch, write_vqa
from jaxvl.active.rounds import Run


def start(folder, **kwargs):
    """Run until people are needed; the run's folder and the outcome."""
    shared = world(folder, images=25, unit="qa", simulated=False, budget=0.25, **kwargs)
    path = folder / "entropy" / "r0"
    with Run(shared, method="entropy", repeat=0, folder=path, say=lambda line: None) as one:
        outcome = one.advance()
    return RunFolder(path), outcome


def batch(run, reserve=False):
    return [r for r in run.selection(run.position()[0]) if bool(r.get("reserve")) == reserve]


def lines(rows, **more):
    return [
        {"schema": "ccrl.labels/1", "question_id": r["question_id"], "answers": ["red"], **more} for r in rows
    ]


def give(run, content, tmp_path, **kwargs):
    file = tmp_path / "labels.jsonl"
    rows = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
    file.write_text(rows)
    with run.ledger.open() as ledger:
        return people.receive(run, ledger, run.position()[0], file, **kwargs)


def test_a_round_waits_for_answers_and_goes_on_with_the_next(tmp_path):
    run, outcome = start(tmp_path)
    assert outcome.state == "waiting" and "0 of 6 questions" in outcome.why
    for round in (INITIAL, 0):
        give(run, lines(batch(run)), tmp_path)
        run, outcome = start(tmp_path)
        assert len(run.questions(round)) in (6, 7)
    assert outcome.state == "finished" and len(run.labelled()) == 13 and run.problems() == []
    asked = {r["question_id"]: r for r in [*run.selection(INITIAL), *run.selection(0)]}
    for record in run.records():
        want = asked[record["question_id"]]
        assert (record["image_id"], record["question"]) == (want["image_id"], want["question"])
        assert record["answers"] == ["red"] and record["answer_type"] == "other"


def test_the_batch_shows_each_question_once_also_of_one_picture(tmp_path):
    run, _ = start(tmp_path)
    folder = run.folder(INITIAL) / "batch"
    rows = [json.loads(x) for x in (folder / "batch.jsonl").read_text().splitlines()]
    assert [r["question_id"] for r in rows] == [r["question_id"] for r in run.selection(INITIAL)]
    assert all(r["question"] and r["n_questions"] == 1 and r["suggested"] == [] for r in rows)
    assert rows[0]["question"] in (folder / "gallery.html").read_text()
    head, first, *_ = (folder / "batch.csv").read_text().splitlines()
    assert head.endswith("question_id,question") and rows[0]["question"] in first
    tasks = json.loads((folder / "labelstudio.json").read_text())
    assert tasks[0]["data"]["question"] == rows[0]["question"]
    interface = (folder / "labelstudio.xml").read_text()
    assert 'value="$question"' in interface and 'name="a_1"' in interface and 'name="q_1"' not in interface


def test_only_the_same_question_about_the_same_picture_is_a_duplicate(tmp_path):
    asked = ((1, 5, "Is it red?"), (2, 5, "Is it blue?"), (3, 6, "is it red"), (4, 7, "is it red"))
    rows = [
        {"rank": i, "question_id": i, "image_id": image, "question": q, "score": None}
        for i, image, q in asked
    ]
    options = dict(run="r", round=0, images=lambda i: np.full((8, 8, 3), i // 7, np.uint8), suggest=True)
    made = export_batch(rows, **options, folder=tmp_path)
    assert made.duplicates == {3: 1} and made.images == 3  # images 5 and 6 look alike
    with pytest.raises(ValueError, match="leave gold out"):
        export_batch(rows, **options, folder=tmp_path, gold=[9], rng=np.random.default_rng(0))


def label_studio(run, tmp_path):
    tasks = json.loads((run.folder(INITIAL) / "batch" / "labelstudio.json").read_text())
    text = {"type": "textarea", "from_name": "a_1", "value": {"text": ["red"]}}
    for n, task in enumerate(tasks):
        task["annotations"] = [{"completed_by": "ann", "result": [text], "lead_time": 2.0}]
        if n == 0:
            task["annotations"] = [{"was_cancelled": True, "result": []}]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    return path


def vqa(run, tmp_path):
    rows = batch(run)[1:]
    write_vqa([{**r, "answers": ["red"], "answer_type": "other"} for r in rows], tmp_path / "vqa")
    return tmp_path / "vqa"


@pytest.mark.parametrize("written", [label_studio, vqa])
def test_other_formats_come_back_by_their_question_ids(tmp_path, written):
    run, _ = start(tmp_path)
    chosen = [r["question_id"] for r in batch(run)]
    with run.ledger.open() as ledger:
        got = people.receive(run, ledger, INITIAL, written(run, tmp_path))
    spare = [r["question_id"] for r in batch(run, reserve=True)]  # in the place of what is skipped
    assert len(spare) == 1 and people.state(run, INITIAL).ids == chosen[1:] + (spare if got.skipped else [])
    assert got.skipped == (chosen[:1] if written is label_studio else [])


def test_a_skipped_question_is_replaced_and_its_image_may_be_asked_about_again(tmp_path):
    run, _ = start(tmp_path)
    give(run, lines(batch(run)), tmp_path)
    run, _ = start(tmp_path, reserve=0.5)
    chosen, reserve = batch(run), batch(run, reserve=True)
    give(run, [*lines(chosen[1:]), *lines(reserve), *lines(chosen[:1], status="bad_image")], tmp_path)
    ids = [r["question_id"] for r in [*chosen[1:], reserve[0]]]
    assert people.state(run, 0).ids == ids and people.state(run, 0).excluded == [chosen[0]["question_id"]]


def test_what_is_not_of_the_batch_is_refused_line_by_line(tmp_path):
    run, _ = start(tmp_path)
    first, other = batch(run)[:2]
    outside = next(i for i in run.pool().tolist() if i not in [r["question_id"] for r in batch(run)])
    image = {
        "schema": "ccrl.labels/1",
        "image_id": first["image_id"],
        "qas": [{"question": "?a", "answers": ["b"]}],
    }
    rows = [
        {**lines([first])[0], "question_id": outside}, {**lines([first])[0], "image_id": 10**6},
        {**lines([first])[0], "question": "is it night?"}, image, {**lines([first])[0], "answers": []},
    ]  # fmt: skip
    with pytest.raises(ValueError) as error:
        give(run, rows, tmp_path)
    text = str(error.value)
    for part in (
        f"line 1, field 'question_id': {outside} is not in the batch", "line 2, field 'image_id': is 1000000",
        "line 3, field 'question': is not that of question", "line 4, field 'question_id': is missing",
        "line 5, field 'answers'",
    ):  # fmt: skip
        assert part in text, text
    got = give(run, [*rows, *lines([other])], tmp_path, partial=True)
    assert len(got.problems) == 5 and people.state(run, INITIAL).ids == [other["question_id"]]
