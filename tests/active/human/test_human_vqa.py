"""VQA v2 JSON: in, out, and back through the reader that trains on it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from jaxvl.active.human import read_labels, write_vqa
from jaxvl.data import SOURCES

LINES = [
    {
        "image_id": 9,
        "qas": [
            {
                "question": "Is it wet?",
                "answers": [{"answer": "yes", "annotator": "a"}, {"answer": "no", "annotator": "b"}],
            },
            {
                "question": "Who?",
                "answers": [{"answer": "a man", "annotator": "a", "answer_confidence": "maybe"}],
            },
        ],
    },
    {"image_id": 25, "qas": [{"question": "How many?", "answers": [{"answer": "3", "annotator": "b"}]}]},
]


@pytest.fixture
def records(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    return read_labels(tmp_path / "a.jsonl", batch_ids=[9, 25]).records


def test_a_round_trip_through_vqa_json_adds_only_what_the_format_must_have(tmp_path, records):
    write_vqa(records, tmp_path / "vqa")
    again = read_labels(tmp_path / "vqa", batch_ids=[9, 25]).records
    added = {"question_type": "none of the above"}
    sure = [{"confidences": ["yes"] * len(r["answers"]), **r, **added} for r in records]
    assert again == sure


def test_second_and_nameless_answers_make_the_round_trip_too(tmp_path, records):
    first = {**records[0], "answers": ["a", "b", "c"], "annotators": ["anna", "anna#2", "file#1"]}
    write_vqa([first], tmp_path / "vqa")
    (got,) = read_labels(tmp_path / "vqa", batch_ids=[first["image_id"]]).records
    assert got["answers"] == ["a", "b", "c"] and got["annotators"] == ["anna", "anna#2", "file"]


def test_one_file_may_hold_both_lists(tmp_path, records):
    files = write_vqa(records, tmp_path / "vqa")
    both = {**json.loads(files.questions.read_text()), **json.loads(files.annotations.read_text())}
    (tmp_path / "both.json").write_text(json.dumps(both, indent=1))
    got = read_labels(tmp_path / "both.json", batch_ids=[9, 25])
    assert [r["question_id"] for r in got.records] == [9000, 9001, 25000]


def test_the_reader_of_vqa_v2_reads_what_was_written(tmp_path, records):
    files = write_vqa(records, tmp_path / "vqa")
    images = tmp_path / "train2014"
    images.mkdir()
    for i in (9, 25):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(images / f"COCO_train2014_{i:012d}.jpg")
    reader = SOURCES["vqa_v2"](questions=files.questions, annotations=files.annotations, images=tmp_path)
    assert len(reader) == 3 and reader.has_image(2)
    for i, record in enumerate(records):
        row = reader.annotation(i)
        for name in ("image_id", "question", "question_id", "answers", "answer_type"):
            assert row[name] == record[name]


def test_questions_without_annotations_and_the_other_way_are_named(tmp_path, records):
    files = write_vqa(records, tmp_path / "vqa")
    content = json.loads(files.annotations.read_text())
    content["annotations"][0]["question_id"] = 77
    files.annotations.write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        read_labels(tmp_path / "vqa", batch_ids=[9, 25])
    assert "question_id 9000" in str(error.value) and "question_id 77" in str(error.value)
    got = read_labels(tmp_path / "vqa", batch_ids=[9, 25], partial=True)
    assert [r["question_id"] for r in got.records] == [9001, 25000]


def test_a_question_id_that_occurs_twice_is_named(tmp_path, records):
    files = write_vqa(records, tmp_path / "vqa")
    content = json.loads(files.questions.read_text())
    content["questions"][1]["question_id"] = 9000
    files.questions.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="questions, row 2, field 'question_id': 9000 occurs twice"):
        read_labels(tmp_path / "vqa", batch_ids=[9, 25])


def test_annotations_alone_say_what_is_missing(tmp_path, records):
    files = write_vqa(records, tmp_path / "vqa")
    with pytest.raises(ValueError, match="put both files into a folder"):
        read_labels(files.annotations, batch_ids=[9, 25])
    files.questions.unlink()
    with pytest.raises(ValueError, match=r"0 files are named \*questions\*.json"):
        read_labels(tmp_path / "vqa", batch_ids=[9, 25])
