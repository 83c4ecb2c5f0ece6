"""Proves the check command: what it finds, what it prints, and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from data_fakes import encoded, picture, write_images, write_json, write_jsonl, write_zip

from jaxvl.data.__main__ import main
from jaxvl.data.check import detect
from jaxvl.data.records import DataError

CLEAN = [{"image": f"{i}.png", "question": f"Is it {i}?", "answers": ["yes", "no", "no"]} for i in range(4)]


@pytest.fixture
def images(tmp_path) -> Path:
    return write_images(tmp_path / "images", [f"{i}.png" for i in range(4)])


def run(capsys, *argv) -> tuple[int, str]:
    code = main(["check", *map(str, argv)])
    printed = capsys.readouterr()
    return code, printed.out + printed.err


def test_a_clean_file_passes(tmp_path, images, capsys):
    code, out = run(capsys, write_jsonl(tmp_path / "qa.jsonl", CLEAN), "--images", images)
    assert (
        code == 0
        and "4 usable rows, 4 images, format jsonl" in out
        and out.endswith("0 errors, 0 warnings\n")
    )


def test_missing_and_broken_images_are_errors(tmp_path, images, capsys):
    (images / "1.png").unlink()
    (images / "2.png").write_bytes((images / "2.png").read_bytes()[:60])
    code, out = run(capsys, write_jsonl(tmp_path / "qa.jsonl", CLEAN), "--images", images, "--decode", "all")
    assert code == 1
    assert "error   images      1 of 4 images are missing: 1.png" in out
    assert "error   decoding    1 of 3 tried cannot be decoded: 2.png: cannot decode the image" in out


def test_decoding_can_be_limited(tmp_path, images, capsys):
    (images / "2.png").write_bytes(b"")
    path = write_jsonl(tmp_path / "qa.jsonl", CLEAN)
    assert (
        "2 images decoded" in run(capsys, path, "--images", images, "--decode", 2)[1]
    )  # the first and the last
    (images / "3.png").write_bytes(b"")
    assert "1 of 2 tried cannot be decoded: 3.png" in run(capsys, path, "--images", images, "--decode", 2)[1]
    with pytest.raises(SystemExit):
        run(capsys, path, "--decode", "some")


def test_malformed_rows_do_not_hide_the_rest(tmp_path, images, capsys):
    rows = [*CLEAN, {"image": "3.png", "question": ""}, {"question": "Who?"}]
    code, out = run(capsys, write_jsonl(tmp_path / "qa.jsonl", rows), "--images", images)
    assert code == 1 and "4 usable rows" in out and "2 of 6 rows cannot be used" in out
    assert "row 5, field 'question': is empty" in out and "row 6, field 'image': is missing" in out
    assert "all 4 images exist" in out


def test_a_first_line_that_is_not_json_does_not_hide_the_rest(tmp_path, capsys):
    path = write_jsonl(tmp_path / "qa.jsonl", CLEAN)
    path.write_text('{"image":\n' + path.read_text())
    code, out = run(capsys, path)
    assert (
        code == 1 and "4 usable rows" in out and "row 1, field '(row)': is not JSON: Expecting value" in out
    )


def test_duplicates_and_empty_texts_are_warnings_and_repeated_ids_errors(tmp_path, images, capsys):
    rows = [*CLEAN, CLEAN[0], {**CLEAN[1], "question": "?!", "answers": []}]
    code, out = run(capsys, write_jsonl(tmp_path / "qa.jsonl", rows), "--images", images)
    assert code == 0 and "3 warnings" in out
    assert "1 questions are asked twice of one image: 0.png | Is it 0?" in out
    assert "1 texts are empty once punctuation is removed" in out and "1 questions have no answer: 5" in out
    rows = [{**row, "question_id": 7} for row in CLEAN]
    code, out = run(capsys, write_jsonl(tmp_path / "qa.jsonl", rows), "--images", images)
    assert code == 1 and "1 question ids are repeated: 7" in out


def test_repeated_captions_are_warnings(tmp_path, capsys):
    path = write_jsonl(tmp_path / "c.jsonl", [{"image": "a", "captions": ["x", "x"]}])
    code, out = run(capsys, path)
    assert code == 0 and "1 captions are repeated on one image: a | x" in out
    assert "not looked for: pass --images" in out


def test_coverage_of_a_list_of_answers(tmp_path, capsys):
    path = write_jsonl(tmp_path / "qa.jsonl", CLEAN)
    code, out = run(capsys, path, "--answers", write_json(tmp_path / "a.json", ["yes"]))
    assert code == 0 and "warning coverage" in out
    assert "1 candidates hold the best answer of 0.0% of 4 questions, 33.3% of all answer weight" in out
    assert "most frequent outside: no (4)" in out
    assert "ok      coverage" in run(capsys, path, "--answers", write_json(tmp_path / "a.json", ["no"]))[1]


def test_overlap_with_another_split(tmp_path, capsys):
    rows = [CLEAN[0], {**CLEAN[1], "image": "val/1.png"}, {**CLEAN[2], "image": "new.png"}]
    other = write_jsonl(tmp_path / "val.jsonl", rows)
    code, out = run(capsys, write_jsonl(tmp_path / "qa.jsonl", CLEAN), "--against", other)
    assert code == 1 and f"1 images are also in {other}: 0.png" in out
    assert f"1 images have the file name of one in {other}, in another folder: 1.png" in out
    assert "3 of 4 texts (75.0%) also occur in" in out
    disjoint = write_jsonl(tmp_path / "val.jsonl", [{**CLEAN[0], "image": "z.png", "question": "New?"}])
    assert run(capsys, tmp_path / "qa.jsonl", "--against", disjoint)[0] == 0


def test_images_that_fit_several_files_are_reported(tmp_path, capsys):
    archive = write_zip(tmp_path / "images.zip", ["x/0.png", "y/0.png", "1.png", "2.png"])
    path = write_jsonl(tmp_path / "qa.jsonl", CLEAN)
    code, out = run(capsys, path, "--images", archive)
    assert code == 1 and "1 of 4 images are missing: 3.png" in out and "2 images decoded" in out
    assert f"1 of 4 images fit several files: 0.png: {archive} holds x/0.png and y/0.png: use" in out


def official(folder: Path, split: str, image_id: int) -> tuple[Path, Path]:
    question = {"question_id": image_id, "image_id": image_id, "question": f"Is it {image_id}?"}
    answer = {"question_id": image_id, "answers": [{"answer": "yes"}]}
    return (
        write_json(folder / f"{split}_q.json", {"questions": [question], "data_subtype": split}),
        write_json(folder / f"{split}_a.json", {"annotations": [answer]}),
    )


def test_the_overlap_of_official_files_needs_the_other_questions_only(tmp_path, capsys):
    (train, train_a), (val, val_a) = official(tmp_path, "train2014", 1), official(tmp_path, "val2014", 2)
    shared = write_json(tmp_path / "more_q.json", json.loads(train.read_text()))
    for given in ([train, "--annotations", train_a], [train_a, "--questions", train]):
        code, out = run(capsys, *given, "--against", shared)
        assert code == 1 and f"1 images are also in {shared}" in out and "1 of 1 texts (100.0%)" in out
        code, out = run(capsys, *given, "--against", val)
        assert code == 0 and f"no image is also in {val}" in out
    code, out = run(capsys, train, "--annotations", train_a, "--against", val_a)
    assert (
        code == 1
        and "val2014_a.json: holds annotations only" in out
        and "as --against give the question" in out
    )


def test_problems_of_the_other_split_are_reported(tmp_path, capsys):
    path = write_jsonl(tmp_path / "qa.jsonl", CLEAN)
    other = write_jsonl(
        tmp_path / "other.jsonl", [{"image": "z.png", "question": "New?"}, {"question": "Who?"}]
    )
    code, out = run(capsys, path, "--against", other)
    assert code == 1 and "in the rows of --against: 1 of 2 rows cannot be used" in out
    assert "other.jsonl, row 2, field 'image': is missing" in out and "no image is also in" in out
    write_jsonl(other, [{"question": "Who?"}])
    code, out = run(capsys, path, "--against", other)
    assert code == 1 and f"{other} has no usable row" in out and "no image is also in" not in out


def test_options_reach_the_reader(tmp_path, images, capsys):
    path = write_jsonl(
        tmp_path / "qa.jsonl", [{"image_id": i, "q": "Is it?", "answer": "a_b"} for i in range(4)]
    )
    options = [
        "--image-template",
        "%d.png",
        "--field",
        "question=q",
        "--answer-separator",
        "_",
        "--images",
        images,
    ]
    code, out = run(capsys, path, *options, "--answers", write_json(tmp_path / "a.json", ["a b"]))
    assert code == 0 and "100.0% of 4 questions" in out and "all 4 images exist" in out


def test_json_output_is_for_programs(tmp_path, images, capsys):
    (images / "1.png").unlink()
    code, out = run(capsys, write_jsonl(tmp_path / "qa.jsonl", CLEAN), "--images", images, "--json")
    report = json.loads(out)
    assert code == 1 and report["ok"] is False and report["rows"] == 4
    missing = [f for f in report["findings"] if f["level"] == "error"]
    assert missing == [{"level": "error", "topic": "images", "count": 1, "examples": ["1.png"],
                        "message": "1 of 4 images are missing"}]  # fmt: skip


def test_official_files_in_either_order(tmp_path, capsys):
    content = {"questions": [{"question_id": 1, "image_id": 2, "question": "q"}], "data_subtype": "val2014"}
    questions = write_json(tmp_path / "q.json", content)
    annotations = write_json(
        tmp_path / "a.json", {"annotations": [{"question_id": 1, "answers": [{"answer": "x"}]}]}
    )
    root = write_images(tmp_path / "coco", ["val2014/COCO_val2014_000000000002.jpg"])
    for argv in ([annotations, "--questions", questions], [questions, "--annotations", annotations]):
        code, out = run(capsys, *argv, "--images", root)
        assert code == 0 and "format vqa_v2" in out and "every question has answers" in out
    code, out = run(capsys, annotations)
    assert code == 1 and "holds annotations only. Pass --questions" in out


def test_formats_are_recognised(tmp_path):
    albef = {"image": "a", "question": "q", "dataset": "vqa"}
    assert detect(write_json(tmp_path / "1.json", [albef])) == "albef_vqa"
    assert detect(write_json(tmp_path / "2.json", [{"image": "a", "caption": "c"}])) == "albef_captions"
    assert detect(write_jsonl(tmp_path / "3.jsonl", [albef])) == "jsonl"
    assert detect(write_json(tmp_path / "4.json", {"questions": []})) == "vqa_v2"
    with pytest.raises(
        DataError, match=r"5\.json: cannot tell its format from the first row\. Pass --format"
    ):
        detect(write_json(tmp_path / "5.json", [{"a": 1}]))
    (tmp_path / "6.jsonl").write_text('\n{"image": \n')
    with pytest.raises(
        DataError, match=r"6\.jsonl, row 2: is not JSON: Expecting value \(line 2, column 10\)"
    ):
        detect(tmp_path / "6.jsonl")


def test_albef_questions_use_both_roots(tmp_path, capsys):
    rows = [
        {"question_id": 1, "image": "a.png", "question": "q", "answer": ["x"], "dataset": "vqa"},
        {"image": "b.png", "question": "q", "answer": "x", "dataset": "vg"},
    ]
    roots = [write_images(tmp_path / "coco", ["a.png"]), write_images(tmp_path / "vg", ["b.png"])]
    path = write_json(tmp_path / "vqa.json", rows)
    assert run(capsys, path, "--images", roots[0], "--vg-images", roots[1])[0] == 0


def test_missing_files_and_empty_files_end_with_an_error(tmp_path, capsys):
    code, out = run(capsys, tmp_path / "gone.json")
    assert code == 1 and "error: no such file" in out
    code, out = run(capsys, write_json(tmp_path / "empty.json", []), "--format", "albef_vqa")
    assert code == 1 and "the file has no rows" in out


def test_the_command_runs_as_a_module(tmp_path, images):
    path = write_jsonl(tmp_path / "qa.jsonl", CLEAN)
    command = [sys.executable, "-m", "jaxvl.data", "check", str(path), "--images", str(images)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0 and "0 errors" in done.stdout, done.stderr


def test_labelled_sentences_are_checked(tmp_path, images, capsys):
    rows = [{"image": f"{i}.png", "hypothesis": f"it is {i}", "label": "neutral"} for i in range(3)]
    rows += [{**rows[0], "label": "entailment"}, {**rows[1], "label": "-"}, {**rows[2], "label": "maybe"}]
    path = write_jsonl(tmp_path / "e.jsonl", rows)
    code, out = run(capsys, path, "--images", images)
    assert code == 1 and "4 usable rows, 3 images, format jsonl_entailment" in out
    assert "e.jsonl, row 6, field 'label': is 'maybe'. Write contradiction, neutral, entailment." in out
    assert "1 sentences have different labels on one image: 0.png | it is 0" in out
    assert "labels: entailment 25.0%, neutral 75.0%" in out
    assert "1 more are left out for a label without agreement" in out


def test_both_images_of_a_pair_are_looked_for(tmp_path, images, capsys):
    (images / "3.png").write_bytes(b"junk")
    rows = [
        {"image": "0.png", "image2": "9.png", "sentence": "x", "label": True},
        {"image": "1.png", "image2": "3.png", "sentence": "y", "label": False},
    ]
    code, out = run(capsys, write_jsonl(tmp_path / "s.jsonl", rows), "--images", images)
    assert code == 1 and "2 usable rows, 4 images, format jsonl_statements" in out
    assert "1 of 4 images are missing: 9.png" in out and "1 of 3 tried cannot be decoded: 3.png" in out
    other = write_jsonl(tmp_path / "t.jsonl", [{"images": ["a.png", "1.png"], "sentence": "z", "label": 1}])
    assert "1 images are also in" in run(capsys, tmp_path / "s.jsonl", "--against", other)[1]


def test_templates_with_permutations_are_checked(tmp_path, images, capsys):
    rows = [{"identifier": "1-0", "sentence": "x", "label": "true"}]
    command = [write_jsonl(tmp_path / "s.jsonl", rows), "--images", images, "--permutations", 2]
    code, out = run(capsys, *command, "--image-template", "{k}.png")
    assert code == 0 and "2 usable rows, 2 images" in out
    code, out = run(capsys, *command)
    assert code == 1 and "error: permutations=2 needs {k} in image_template" in out


def test_arrow_tables_are_checked(tmp_path, capsys):
    pa = pytest.importorskip("pyarrow", reason="pip install -e '.[arrow]' to read Arrow tables")
    data = pa.table(
        {"image": [encoded(picture(0)), b"junk"], "caption": [["x", "x"], ["y"]], "image_id": ["a", "b"]}
    )
    with (
        pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink,
        pa.RecordBatchFileWriter(sink, data.schema) as out,
    ):
        out.write_table(data)
    code, text = run(capsys, tmp_path / "c.arrow")
    assert code == 1 and "2 usable rows, 2 images, format vilt_arrow" in text
    assert "1 of 2 tried cannot be decoded" in text and "c.arrow, row 2, column 'image'" in text
    assert "no caption is repeated" in text


def test_the_answer_classes_can_be_written(tmp_path, capsys):
    notes = [{"question_id": i, "multiple_choice_answer": a} for i, a in enumerate(["no", "Yes", "yes"])]
    path = write_json(tmp_path / "a.json", {"annotations": notes})
    output = tmp_path / "classes.json"
    command = ["answers", str(path), "--output", str(output), "--min-count"]
    assert main([*command, "1", "--expect", "all"]) == 0
    assert json.loads(output.read_text()) == ["no", "yes"]
    assert main([*command, "2"]) == 1 and "3129 were expected" in capsys.readouterr().err
