"""Labels come in as they were written; a wrong line refuses the file and is named; importing again changes nothing."""

from __future__ import annotations

import json

import pytest

from jaxvl.active.human import merge_records, read_labels
from jaxvl.active.human.entries import answer_type


def line(image_id=7, **fields):
    qas = [{"question": "What color is the dog?", "answers": [{"answer": "Brown", "annotator": "anna"}]}]
    return {"schema": "ccrl.labels/1", "image_id": image_id, "status": "ok", "qas": qas, **fields}


def write(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


def qa(question, *answers, **fields):
    return {"question": question, "answers": [{"answer": a, "annotator": n} for a, n in answers], **fields}


def test_a_line_becomes_a_record_with_the_raw_answer(tmp_path):
    got = read_labels(write(tmp_path / "a.jsonl", line()), batch_ids=[7])
    assert got.records == [
        {
            "image": "7", "image_id": 7, "question": "What color is the dog?", "question_id": 7000,
            "answers": ["Brown"], "annotators": ["anna"], "answer_type": "other",
        }
    ]  # fmt: skip
    assert not got.problems and not got.skipped and len(got.sha) == 64


def test_strings_are_answers_and_names_come_from_the_file(tmp_path):
    row = line(qas=[{"question": "Is it wet?", "answers": ["yes", "no"]}], file_name="dogs/7.jpg")
    (record,) = read_labels(write(tmp_path / "from_ben.jsonl", row), batch_ids=[7]).records
    assert record["annotators"] == ["from_ben#1", "from_ben#2"] and record["image"] == "dogs/7.jpg"


def test_answers_to_the_same_question_are_merged(tmp_path):
    rows = [
        line(qas=[qa("Is it wet?", ("yes", "anna"))]),
        line(qas=[qa("is it WET", ("no", "ben"), ("no", "cem"))]),
    ]
    (record,) = read_labels(write(tmp_path / "a.jsonl", *rows), batch_ids=[7]).records
    assert record["answers"] == ["yes", "no", "no"] and record["annotators"] == ["anna", "ben", "cem"]
    assert record["question"] == "Is it wet?" and record["answer_type"] == "yes/no"


def test_an_export_that_has_grown_does_not_count_twice(tmp_path):
    first = read_labels(write(tmp_path / "a.jsonl", line(qas=[qa("Who?", ("ann", "p"))])), batch_ids=[7])
    rows = [line(qas=[qa("Who?", ("anne", "p"))]), line(qas=[qa("Who?", ("ann", "q"))])]
    second = read_labels(write(tmp_path / "b.jsonl", *rows), batch_ids=[7])
    (record,) = merge_records([*first.records, *second.records])
    assert record["answers"] == ["anne", "ann"] and record["annotators"] == ["p", "q"]


def test_nameless_answers_of_one_file_do_not_replace_those_of_another(tmp_path):
    row = line(qas=[{"question": "Who?", "answers": ["ann"]}])
    files = [write(tmp_path / name, row) for name in ("one.jsonl", "two.jsonl")]
    (record,) = merge_records([r for f in files for r in read_labels(f, batch_ids=[7]).records])
    assert record["answers"] == ["ann", "ann"]


def test_nameless_answers_on_several_lines_of_a_file_add_up(tmp_path):
    row = line(qas=[{"question": "Who?", "answers": ["ann"]}])
    (record,) = read_labels(write(tmp_path / "one.jsonl", row, row, row), batch_ids=[7]).records
    assert record["answers"] == ["ann"] * 3 and record["annotators"] == ["one#1", "one#2", "one#3"]


def test_records_without_annotators_add_up():
    rows = [{"image_id": 1, "question": "Who?", "answers": ["a"], "answer_type": "other", "seconds": 2.0}] * 2
    (record,) = merge_records(rows)
    assert record["answers"] == ["a", "a"] and record["seconds"] == 4 and "annotators" not in record


def test_question_ids_are_unique_whatever_is_given():
    rows = [
        {"image_id": 1, "question": q, "question_id": n, "answers": ["a"], "answer_type": "other"}
        for q, n in (("Who?", 1000), ("What?", None), ("Where?", 1000), ("When?", 5))
    ]
    assert [r["question_id"] for r in merge_records(rows)] == [1000, 1001, 1002, 5]


def test_questions_with_too_few_answers_are_left_out():
    rows = [
        {"image_id": 1, "question": "Who?", "answers": ["a", "b"], "answer_type": "other"},
        {"image_id": 1, "question": "What?", "answers": ["a"], "answer_type": "other"},
    ]
    assert [r["question"] for r in merge_records(rows, min_answers=2)] == ["Who?"]


def test_skipped_and_bad_images_are_told_apart(tmp_path):
    rows = [
        line(1, status="skip", qas=[]),
        {"image_id": 2, "status": "bad_image"},
        line(3),
        line(3, status="skip", qas=[]),
    ]
    got = read_labels(write(tmp_path / "a.jsonl", *rows), batch_ids=[1, 2, 3])
    assert (got.skipped, got.bad_images) == ([1], [2]) and [r["image_id"] for r in got.records] == [3]


BAD = {
    "no json": ("{not json", "is not JSON"),
    "a list": ("[1, 2]", "is no object"),
    "another schema": (line(schema="ccrl.batch/1"), "was the batch itself given"),
    "an id as text": (line(image_id="7"), "field 'image_id': is \"7\""),
    "an id that is true": (line(image_id=True), "field 'image_id': is true"),
    "another image": (line(8), "8 is not in the batch"),
    "no questions": (line(qas=[]), "field 'qas': is []"),
    "a status": (line(status="done"), "field 'status': is \"done\""),
    "a blank question": (line(qas=[qa(" ", ("a", "x"))]), "field 'qas[0].question': is \" \""),
    "a question of marks": (line(qas=[qa("?!", ("a", "x"))]), "field 'qas[0].question': has no word"),
    "no answers": (line(qas=[qa("Who?")]), "field 'qas[0].answers': is []"),
    "a number": (
        line(qas=[{"question": "How many?", "answers": [{"answer": 2}]}]), "field 'qas[0].answers[0].answer': is 2",
    ),
    "a type": (line(qas=[qa("Who?", ("a", "x"), answer_type="person")]), "field 'qas[0].answer_type': is \"person\""),
    "seconds": (
        line(qas=[{"question": "Who?", "answers": [{"answer": "a", "seconds": -1}]}]), "answers[0].seconds': is -1",
    ),
    "nesting": (
        '{"image_id": 7, "qas": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_line_is_named_and_nothing_is_imported(tmp_path, case):
    row, message = BAD[case]
    path = write(tmp_path / "a.jsonl", line(7), row)
    with pytest.raises(ValueError, match="nothing was imported") as error:
        read_labels(path, batch_ids=[7])
    assert f"{path}, line 2" in str(error.value) and message in str(error.value)


@pytest.mark.parametrize("case", BAD)
def test_partial_takes_the_other_lines_and_says_what_it_left(tmp_path, case):
    got = read_labels(write(tmp_path / "a.jsonl", BAD[case][0], line(7)), batch_ids=[7], partial=True)
    assert [r["image_id"] for r in got.records] == [7] and len(got.records[0]["answers"]) == 1
    assert len(got.problems) == 1 and BAD[case][1] in got.problems[0]


def test_all_wrong_lines_are_reported_at_once(tmp_path):
    with pytest.raises(ValueError) as error:
        read_labels(write(tmp_path / "a.jsonl", line(8), "{", line(7), line(9)), batch_ids=[7])
    assert [f"line {n}" in str(error.value) for n in (1, 2, 3, 4)] == [True, True, False, True]


def test_an_empty_file_and_another_encoding_are_errors(tmp_path):
    with pytest.raises(ValueError, match="holds no labels"):
        read_labels(write(tmp_path / "a.jsonl", ""), batch_ids=[7])
    (tmp_path / "b.jsonl").write_bytes(b'{"image_id": 7}\n{"x": "\xe9"}')
    with pytest.raises(ValueError, match="b.jsonl, line 2: is not UTF-8"):
        read_labels(tmp_path / "b.jsonl", batch_ids=[7])


def test_the_hash_is_of_the_content(tmp_path):
    one, two = (read_labels(write(tmp_path / n, line()), batch_ids=[7]).sha for n in ("a.jsonl", "b.jsonl"))
    other = read_labels(write(tmp_path / "c.jsonl", line(), line()), batch_ids=[7]).sha
    assert one == two != other


def test_gold_images_are_kept_apart(tmp_path):
    got = read_labels(write(tmp_path / "a.jsonl", line(7), line(1)), batch_ids=[7], gold_ids=[1])
    assert [r["image_id"] for r in got.records] == [7] and [r["image_id"] for r in got.gold] == [1]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["Yes."], "yes/no"), (["no", "no", "maybe"], "yes/no"), (["two"], "number"), (["2,000"], "number"),
        (["1.5"], "number"), (["10:30"], "other"), (["a dog"], "other"), (["none"], "number"), (["²"], "other"),
    ],
)  # fmt: skip
def test_types_are_inferred_from_the_consensus(answers, kind):
    assert answer_type(answers) == kind


def test_a_type_that_is_given_wins_unless_people_disagree(tmp_path):
    rows = [line(qas=[qa("Which bus?", ("2", "a"), answer_type="other")])]
    assert read_labels(write(tmp_path / "a.jsonl", *rows), batch_ids=[7]).records[0]["answer_type"] == "other"
    rows.append(line(qas=[qa("Which bus?", ("2", "b"), answer_type="yes/no")]))
    assert (
        read_labels(write(tmp_path / "b.jsonl", *rows), batch_ids=[7]).records[0]["answer_type"] == "number"
    )


def test_what_cannot_be_kept_apart_or_read_names_its_line(tmp_path):
    """`#` numbers the answers of a person; Python refuses to read numbers of thousands of digits."""
    rows = [line(), line(qas=[qa("Who?", ("ann", "team#1"))])]
    with pytest.raises(ValueError, match="line 2.*annotator.*Leave out #"):
        read_labels(write(tmp_path / "a.jsonl", *rows), batch_ids=[7])
    long = '{"schema": "ccrl.labels/1", "image_id": ' + "9" * 5000 + "}"
    with pytest.raises(ValueError, match="b.jsonl.*\n.*line 2.*cannot be read"):
        read_labels(write(tmp_path / "b.jsonl", line(), long), batch_ids=[7])
    got = read_labels(tmp_path / "b.jsonl", batch_ids=[7], partial=True)
    assert len(got.records) == 1 and len(got.problems) == 1
