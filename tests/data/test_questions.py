"""Proves question readers and answers: weights, formats of ALBEF, VQA v2 and JSON Lines, lists of candidates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_fakes import VOCAB, picture, write_images, write_json, write_jsonl, write_zip

from jaxvl.data.answers import best, build_answers, kind, read_answers, vqa_v2_answers, weigh
from jaxvl.data.records import DataError
from jaxvl.data.source import Examples, QuestionFormat
from jaxvl.data.text import Tokenizer
from jaxvl.data.vqa import AlbefVQA, JsonlVQA, VqaV2
from jaxvl.scores import majority, vqa_accuracy

TEN = ["yes"] * 6 + ["no"] * 3 + [""]


def test_weights_are_shares_of_all_annotators():
    assert weigh(TEN) == {"yes": 0.6, "no": 0.3}
    assert weigh(["Red  Dog", "red dog ", "cat"]) == {"red dog": 2 / 3, "cat": 1 / 3}
    assert weigh(["a", "a"], each=0.5) == {"a": 0.5} and weigh([]) == {}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({"yes": 0.5, "2": 0.4}, "yes/no"),
        ({"2": 1.0}, "number"),
        ({"2.5": 1.0}, "number"),
        ({"two": 1}, "other"),
        ({}, "other"),
    ],
)
def test_kinds_of_answers(targets, expected):
    assert kind(targets) == expected


def test_the_best_answer_breaks_ties_by_string():
    assert best({"b": 0.5, "a": 0.5, "c": 0.1}) == "a" and best({}) is None


ALBEF = [
    {"question_id": 5, "question": "Is it?", "answer": TEN, "image": "val2014/a.png", "dataset": "vqa"},
    {"question": "What?", "answer": "Dog", "image": "image/1.png", "dataset": "vg"},
    {"question_id": 6, "question": "Why?", "image": "val2014/a.png", "dataset": "vqa"},
]


def test_albef_files_mix_vqa_and_visual_genome(tmp_path):
    vqa, vg = (
        write_images(tmp_path / "coco", ["val2014/a.png"]),
        write_zip(tmp_path / "vg.zip", ["x", "image/1.png"][1:]),
    )
    reader = AlbefVQA(write_json(tmp_path / "vqa.json", ALBEF), vqa_root=vqa, vg_root=vg)
    first, second, third = (reader.annotation(i) for i in range(3))
    assert first == {
        "image": "val2014/a.png", "question": "Is it?", "answers": TEN, "targets": {"yes": 0.6, "no": 0.3},
        "answer_type": "yes/no", "question_id": 5, "image_id": 0,
    }  # fmt: skip
    assert second["targets"] == {"dog": 0.5} and second["question_id"] == -1 and second["image_id"] == 1
    assert third["answers"] == [] and third["targets"] == {} and third["image_id"] == 0
    assert np.array_equal(reader.image(1), picture(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "gqa"}, r'field \'dataset\': is \'gqa\'\. Write "vqa" or "vg"'),
        ({"dataset": None}, r"field 'dataset': is None"),
        ({"question": ""}, "field 'question': is empty"),
        (
            {"answer": [1, 2]},
            "field 'answers': is not a string or a list of strings. Write answers as strings",
        ),
        ({"question_id": 2**40}, r"field 'question_id': is 1099511627776, not an integer below 2\^31"),
    ],
)
def test_malformed_albef_questions_are_named(change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        AlbefVQA(write_json(tmp_path / "vqa.json", [{**ALBEF[0], **change}]))


def official(tmp_path, subtype: str = "val2014"):
    questions = [
        {"question_id": 250, "image_id": 25, "question": "Is it?"},
        {"question_id": 251, "image_id": 25, "question": "Who?"},
    ]
    content = {"questions": questions, "data_subtype": subtype}
    truth = [
        {
            "question_id": q,
            "answer_type": t,
            "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers)],
        }
        for q, t, answers in ((251, "other", ["man"] * 10), (250, "yes/no", TEN))
    ]
    return (
        write_json(tmp_path / f"{subtype}_questions.json", content),
        write_json(tmp_path / f"{subtype}_annotations.json", {"annotations": truth}),
    )


def test_official_files_are_joined_by_question_id(tmp_path):
    questions, annotations = official(tmp_path)
    root = write_images(tmp_path / "coco", ["val2014/COCO_val2014_000000000025.jpg"])
    reader = VqaV2(questions, annotations=annotations, images=root)
    assert reader.annotation(0) == {
        "image": "val2014/COCO_val2014_000000000025.jpg", "question": "Is it?", "answers": TEN,
        "targets": {"yes": 0.6, "no": 0.3}, "answer_type": "yes/no", "question_id": 250, "image_id": 25,
    }  # fmt: skip
    rows = json.loads(Path(annotations).read_text())["annotations"]
    more = {
        "question_type": "is it",
        "multiple_choice_answer": "yes",
    }  # what the bank's prefixes and hard labels need
    write_json(Path(annotations), {"annotations": [row | more for row in rows]})
    said = VqaV2(questions, annotations=annotations, images=root).annotation(0)
    assert said == reader.annotation(0) | more
    assert reader.annotation(1)["targets"] == {"man": 1.0} and reader.image(1).shape == (40, 50, 3)
    flat = VqaV2(questions, images=tmp_path / "coco" / "val2014")  # no annotations, no folder level
    assert flat.annotation(0)["answers"] == [] and flat.image(0).shape == (40, 50, 3)


def test_official_splits_combine_and_test_dev_uses_the_test_images(tmp_path):
    files = [official(tmp_path, subtype) for subtype in ("train2014", "test-dev2015")]
    reader = VqaV2([q for q, _ in files], images=tmp_path, image_template="{split}/%d.jpg")
    assert [reader.annotation(i)["image"] for i in (0, 2)] == ["train2014/25.jpg", "test2015/25.jpg"]


def test_official_files_that_do_not_match_are_named(tmp_path):
    questions, annotations = official(tmp_path)
    other = write_json(
        tmp_path / "other.json", {"annotations": [{"question_id": 250, "answers": [{"answer": "x"}]}]}
    )
    with pytest.raises(
        DataError, match=r"row 2, field 'question_id': 251 has no annotation\. Give the annotations"
    ):
        VqaV2(questions, annotations=other, images=tmp_path)
    with pytest.raises(
        DataError, match=r"annotations\.json: no list 'questions' in it \(it has annotations\)"
    ):
        VqaV2(annotations, images=tmp_path)
    bare = write_json(
        tmp_path / "bare.json", {"questions": [{"question_id": 1, "image_id": 1, "question": "q"}]}
    )
    with pytest.raises(DataError, match=r"bare\.json: no 'data_subtype': pass image_template"):
        VqaV2(bare, images=tmp_path)


def test_jsonl_takes_answer_or_answers_and_infers_the_rest(tmp_path):
    rows = [
        {"image_id": 7, "question": "Is it?", "answer": "no", "answer_type": "yes/no", "extra": 1},
        {"image": "b.png", "question": "What?", "answers": ["tape_dispenser", "book"], "question_id": 77},
        {"image": "b.png", "question": "How many?", "answers": ["3"] * 10, "answer": "4"},
        {"image": "b.png", "question": "Open?"},
    ]
    path = write_jsonl(tmp_path / "qa.jsonl", rows)
    reader = JsonlVQA(path, images=tmp_path, image_template="%04d.png", answer_separator="_")
    got = [reader.annotation(i) for i in range(4)]
    assert [r["image"] for r in got] == ["0007.png", "b.png", "b.png", "b.png"]
    assert [r["answers"] for r in got] == [["no"], ["tape dispenser", "book"], ["3"] * 10, []]
    assert got[1]["targets"] == {"tape dispenser": 0.5, "book": 0.5}
    assert [r["answer_type"] for r in got] == ["yes/no", "other", "number", "other"]
    assert [r["question_id"] for r in got] == [0, 77, 2, 3]
    assert reader.check_command.endswith(
        "--format jsonl --image-template %04d.png --answer-separator _ --decode all"
    )


def questions(tmp_path, answers: list[list[str]]) -> JsonlVQA:
    rows = [{"image": "a", "question": "q", "answers": a} for a in answers]
    return JsonlVQA(write_jsonl(tmp_path / "qa.jsonl", rows), images=tmp_path)


def test_candidates_are_counted_by_best_answer_or_by_all(tmp_path):
    reader = questions(tmp_path, [["yes", "yes", "no"], ["yes"], ["no"], ["cat"], ["b"], ["b"]])
    assert build_answers(reader) == ["b", "yes", "cat", "no"]  # equal counts by string
    assert build_answers(reader, count="all") == ["b", "no", "yes", "cat"]
    assert build_answers(reader, min_count=2) == ["b", "yes"] and build_answers(reader, top=1) == ["b"]
    with pytest.raises(ValueError, match="no answer is given to 5 questions or more: lower min_count"):
        build_answers(reader, min_count=5)
    with pytest.raises(ValueError, match="count='most' must be 'best' or 'all'"):
        build_answers(reader, count="most")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"is missing \(the row has image, question\)\. Add 'answers' or 'answer'\."),
        (
            {"anwsers": ["x"]},
            r"is missing .*Did you mean 'anwsers'\? Then pass fields=\{'answers': 'anwsers'\}",
        ),
        ({"answers": []}, r"holds no answer\. Fill it in or remove the row"),
        ({"answers": [" "]}, r"holds no answer"),
    ],
)
def test_rows_without_answers_are_predicted_but_not_trained_on(row, message, tmp_path):
    rows = [{"image": "a", "question": "q", "answer": "x"}, {"image": "a", "question": "q", **row}]
    reader = JsonlVQA(write_jsonl(tmp_path / "qa.jsonl", rows), images=tmp_path)
    source = Examples(reader, QuestionFormat(Tokenizer.from_vocab(VOCAB)), 8)
    assert source[1]["answer_weight"].sum() == 0
    for use in (lambda: build_answers(reader), source.shapes):
        with pytest.raises(
            DataError, match=rf"(?s)not trained on: 1 of 2 .*qa\.jsonl, row 2, field 'answers': {message}"
        ):
            use()


def test_an_example_without_answers_is_not_trained_on(tmp_path):
    source = Examples(questions(tmp_path, [["x"], []]), QuestionFormat(Tokenizer.from_vocab(VOCAB)), 8)
    assert source[1]["answer_weight"].sum() == 0
    with pytest.raises(
        DataError, match=r"qa\.jsonl: example 1 \(question_id 1\), field 'answers': holds no answer"
    ):
        source.augmented(1, np.random.default_rng(0))


def test_files_without_annotations_are_not_trained_on(tmp_path):
    reader = VqaV2(official(tmp_path)[0], images=tmp_path)
    with pytest.raises(DataError, match=r"row 1, field 'answers': is missing\. Give the annotations"):
        reader.require_answers()
    with pytest.raises(DataError, match=r"1 of 3 .*\n.*vqa\.json, row 3, field 'answers': is missing"):
        AlbefVQA(write_json(tmp_path / "vqa.json", ALBEF)).require_answers()


def test_the_holdout_decides_which_answers_are_required(tmp_path):
    rows = [{"image": str(i), "question": "q", **({} if i == 3 else {"answer": "x"})} for i in range(20)]
    path, parts = write_jsonl(tmp_path / "qa.jsonl", rows), {}
    for part in ("train", "held"):
        parts[part] = JsonlVQA(path, images=tmp_path, holdout=dict(share=0.5, part=part))
    holds = {p: "3" in [r.annotation(i)["image"] for i in range(len(r))] for p, r in parts.items()}
    for part, reader in parts.items():
        if not holds[part]:
            reader.require_answers()
            continue
        with pytest.raises(DataError, match="row 4"):
            reader.require_answers()


def test_answers_score_whatever_their_case_and_spaces(tmp_path):
    rows = [{"image": "a", "question": "q", "answers": ["Red  Ball"] * 10, "dataset": "vqa"}]
    for reader in (
        JsonlVQA(write_jsonl(tmp_path / "qa.jsonl", rows), images=tmp_path),
        AlbefVQA(write_json(tmp_path / "vqa.json", rows)),
    ):
        annotation = reader.annotation(0)
        assert annotation["answers"] == ["red ball"] * 10 and annotation["targets"] == {"red ball": 1.0}
        assert vqa_accuracy(build_answers(reader)[0], answers=annotation["answers"]) == 1.0
        assert vqa_accuracy(majority([annotation])[0], answers=annotation["answers"]) == 1.0


@pytest.mark.parametrize(
    "content", [["yes", "no", ""], {"no": 1, "yes": 0, "": 2}, [{"no": 1, "yes": 0, "": 2}, {"0": "yes"}]]
)
def test_lists_of_candidates_keep_their_order(content, tmp_path):
    assert read_answers(write_json(tmp_path / "answer_list.json", content)) == ["yes", "no", ""]


def test_a_text_list_has_one_candidate_a_line(tmp_path):
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    assert read_answers(tmp_path / "answers.txt") == ["yes", "no"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["yes", "yes"], r"1 answers are repeated \(yes\): keep each once"),
        ([1, 2], "not a list of answer strings"),
        ([], "not a list of answer strings"),
        ({"yes": 0, "no": 2}, "indices of the answers are not 0 to 1"),
    ],
)
def test_wrong_lists_are_explained(content, message, tmp_path):
    with pytest.raises(DataError, match=rf"answer_list\.json: .*{message}"):
        read_answers(write_json(tmp_path / "answer_list.json", content))


def test_a_missing_list_is_named(tmp_path):
    for name in ("a.json", "a.txt"):
        with pytest.raises(FileNotFoundError, match=rf"{name}"):
            read_answers(tmp_path / name)


def official_answers(tmp_path, *files: list[str]) -> list:
    rows = [{"annotations": [{"question_id": i, "multiple_choice_answer": a, "answers": []} for i, a in enumerate(f)]}
            for f in files]  # fmt: skip
    return [write_json(tmp_path / f"{k}.json", content) for k, content in enumerate(rows)]


def test_the_classes_of_vqa_v2_are_numbered_by_first_appearance(tmp_path):
    files = official_answers(tmp_path, ["b", "two", "rare", "a"], ["2", "B.", "two", "A dog"])
    assert vqa_v2_answers(files, min_count=2, expect=2) == ["b", "2"]
    assert vqa_v2_answers(files[::-1], min_count=2, expect=None) == ["2", "b"]
    assert vqa_v2_answers(files, min_count=1, expect=None) == ["b", "2", "rare", "", "dog"]


def test_another_number_of_classes_is_explained(tmp_path):
    files = official_answers(tmp_path, ["yes"] * 9 + ["no"] * 8)
    with pytest.raises(
        DataError, match=r"0\.json: 1 answers answer 9 questions or more, 3129 were expected\. Give the train"
    ):
        vqa_v2_answers(files)
    with pytest.raises(DataError, match=r"0\.json, row 1, field 'multiple_choice_answer': is missing"):
        vqa_v2_answers(write_json(tmp_path / "0.json", {"annotations": [{"answers": []}]}))
    with pytest.raises(DataError, match=r"0\.json: no list 'annotations' in it"):
        vqa_v2_answers(write_json(tmp_path / "0.json", {"questions": []}))


def test_candidates_of_a_reader_can_be_in_order_of_appearance(tmp_path):
    given = ["no", "two", "no", "Two.", "yes"]
    rows = [{"image": "a", "question": f"Q{i}", "answer": a} for i, a in enumerate(given)]
    reader = JsonlVQA(write_jsonl(tmp_path / "q.jsonl", rows[::-1]), images=tmp_path)
    assert build_answers(reader, order="appearance") == ["yes", "2", "no"]
    assert build_answers(reader, order="appearance", top=2) == ["2", "no"]
    with pytest.raises(DataError, match="3 answers are given to 1 questions or more, 4 were expected"):
        build_answers(reader, order="appearance", expect=4)
    with pytest.raises(ValueError, match="order='size' must be 'count' or 'appearance'"):
        build_answers(reader, order="size")


def test_questions_without_a_class_can_be_left_out(tmp_path, caplog):
    rows = [{"question_id": i, "image_id": i, "question": f"Q{i}"} for i in range(3)]
    said = [["Yes."] * 10, ["red"] * 10, ["blue"] * 9 + ["yes"]]
    notes = [
        {"question_id": i, "answers": [{"answer": a} for a in answers]} for i, answers in enumerate(said)
    ]
    given = dict(
        questions=write_json(tmp_path / "q.json", {"data_subtype": "val2014", "questions": rows}),
        annotations=write_json(tmp_path / "a.json", {"annotations": notes}),
        images=tmp_path,
        classes=write_json(tmp_path / "classes.json", ["yes"]),
    )
    for matching, kept in (("normalised", ["Q0", "Q2"]), ("raw", ["Q2"])):
        reader = VqaV2(**given, matching=matching)
        assert [reader.annotation(i)["question"] for i in range(len(reader))] == kept
        assert reader.dropped == {"no answer among the classes": 3 - len(kept)}
    assert "q.json: rows left out: 2 for no answer among the classes" in caplog.text
