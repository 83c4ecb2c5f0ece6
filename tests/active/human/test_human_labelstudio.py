"""Label Studio: tasks and interface as it reads them, exports as it writes them."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from jaxvl.active.human import labelstudio, read_labels


def text(name, *texts):
    value = {"text": list(texts)}
    return {
        "from_name": name,
        "to_name": "image",
        "type": "textarea",
        "value": value,
        "id": name,
        "origin": "manual",
    }


def choice(name, value):
    return {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": [value]}}


def annotation(*result, **fields):
    return {
        "id": 1,
        "completed_by": 3,
        "was_cancelled": False,
        "lead_time": 12.0,
        "result": list(result),
        **fields,
    }


def task(image_id, *annotations):
    return {
        "id": 100 + image_id,
        "data": {"image": "x.jpg", "image_id": image_id},
        "annotations": list(annotations),
    }


WET = (text("q_1", "Is it wet?"), text("a_1", "yes"), choice("type_1", "yes/no"))


def read(tmp_path, *tasks, ids=(1, 2, 3), **kwargs):
    path = tmp_path / "project-4-at-2026-05-01.json"
    path.write_text(json.dumps(list(tasks)))
    return read_labels(path, batch_ids=ids, **kwargs)


def test_slots_become_questions_with_annotator_and_time(tmp_path):
    two = annotation(*WET, text("q_3", "How many dogs?"), text("a_3", "2"), lead_time=30.0)
    got = read(tmp_path, task(1, two))
    assert [(r["question"], r["answers"], r["annotators"]) for r in got.records] == [
        ("Is it wet?", ["yes"], ["3"]), ("How many dogs?", ["2"], ["3"]),
    ]  # fmt: skip
    assert [r["answer_type"] for r in got.records] == ["yes/no", "number"]
    assert [r["seconds"] for r in got.records] == [15, 15]


def test_two_annotators_answer_one_question(tmp_path):
    other = annotation(
        text("q_1", "is it wet"), text("a_1", "no"), completed_by={"id": 4, "email": "b@x.org"}
    )
    (record,) = read(tmp_path, task(1, annotation(*WET), other)).records
    assert (
        record["answers"] == ["yes", "no"]
        and record["annotators"] == ["3", "b@x.org"]
        and record["seconds"] == 24
    )


def test_several_texts_are_several_answers(tmp_path):
    (record,) = read(
        tmp_path, task(1, annotation(text("q_1", "What?"), text("a_1", "cup", " ", "glass")))
    ).records
    assert record["answers"] == ["cup", "glass"] and record["annotators"] == ["3", "3#2"]


def test_cancelled_skipped_and_bad_images(tmp_path):
    tasks = [
        task(1, annotation(was_cancelled=True)), task(2, annotation(choice("status", "bad image"))),
        task(3, annotation(choice("status", "skip"), *WET)), task(4),
    ]  # fmt: skip
    got = read(tmp_path, *tasks, ids=(1, 2, 3, 4))
    assert (got.skipped, got.bad_images, got.records) == ([1, 3], [2], [])


BAD = {
    "an answer without a question": (
        annotation(text("a_2", "yes")),
        "field 'q_2': has 0 questions for 1 answers",
    ),
    "two questions": (
        annotation(text("q_1", "Who?", "What?"), text("a_1", "he")),
        "field 'q_1': has 2 questions",
    ),
    "a question without an answer": (annotation(text("q_1", "Who?")), "field 'a_1': is empty"),
    "nothing": (annotation(), "no question was written"),
    "a type": (annotation(*WET[:2], choice("type_1", "person")), "field 'type_1': is 'person'"),
    "a status": (annotation(*WET, choice("status", "done")), "field 'status': is 'done'"),
    "a text that is none": (annotation({**text("q_1"), "value": 3}), "field 'result'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_with_its_task(tmp_path, case):
    wrong, message = BAD[case]
    with pytest.raises(ValueError) as error:
        read(tmp_path, task(1, annotation(*WET)), task(2, wrong))
    assert "task 2, annotation 1" in str(error.value) and message in str(error.value)
    assert [
        r["image_id"] for r in read(tmp_path, task(1, annotation(*WET)), task(2, wrong), partial=True).records
    ] == [1]


def test_the_short_export_and_strange_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="task 1, field 'annotations': is missing. Export as JSON"):
        read(tmp_path, {"image": "x.jpg", "image_id": 1, "q_1": "Who?"})
    with pytest.raises(ValueError, match="task 1, annotation 1, field 'image_id': 9 is not in the batch"):
        read(tmp_path, task(9, annotation(*WET)))


@pytest.mark.parametrize("suggest", [False, True])
def test_the_interface_has_a_field_for_all_that_is_read(suggest):
    root = ET.fromstring(labelstudio.config(questions=3, suggest=suggest))
    names = {e.get("name") for e in root.iter() if e.get("name")}
    wanted = {"image", "status"} | {f"{p}_{k}" for p in ("q", "a", "type") for k in (1, 2, 3)}
    assert names == (wanted | {"s_1", "s_2", "s_3"} if suggest else wanted)
    assert all(e.get("toName") == "image" for e in root.iter() if e.tag in ("TextArea", "Choices"))


def test_tasks_hold_what_the_interface_shows():
    suggested = [{"question": "Who?", "uncertainty": 0.5}]
    entry = {
        "image_id": 5, "rank": 1, "score": 3.5, "url": None, "file_name": "images/5.jpg", "run": "ccrl/r0", "round": 2,
        "suggested": suggested,
    }  # fmt: skip
    (got,) = labelstudio.tasks([entry], questions=2, uncertainty={5: 0.7})
    assert got["data"] == {
        "image": "/data/local-files/?d=images/5.jpg", "image_id": 5, "al_rank": 1, "al_score": 3.5, "uncertainty": 0.7,
        "suggested_1": "Who?", "suggested_2": "",
    }  # fmt: skip
    assert got["meta"] == {"run": "ccrl/r0", "round": 2, "reserve": False}
    (blind,) = labelstudio.tasks([entry], questions=2, uncertainty=None)
    assert not {"al_score", "uncertainty"} & set(blind["data"])
