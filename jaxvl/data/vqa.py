"""Readers of questions: ALBEF's JSON files, the official VQA v2 files, and JSON Lines.

A question reader gives `answers`, what the annotators said, and `targets`, `{answer: weight}` to train on. Answers
are in lower case with single spaces, so that targets, candidates and scores agree; the official files are so already.
Questions without answers can be predicted; training on them is refused (`Records.require_answers`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxvl.data.answers import build_answers, fold, kind, read_answers, soft_scores, weigh
from jaxvl.data.captions import field_options, image_of, with_fields
from jaxvl.data.images import ImageStore
from jaxvl.data.records import (
    DataError,
    Parsed,
    Paths,
    Problem,
    Records,
    Row,
    as_paths,
    options,
    read_json,
    read_rows,
    report_dropped,
)

__all__ = [
    "AlbefVQA",
    "JsonlVQA",
    "VqaV2",
    "build_answers",
    "parse_albef",
    "parse_jsonl",
    "parse_vqa_v2",
    "read_answers",
]

NAMES = {
    "image": ("image", "file", "file_name"),
    "image_id": ("image_id",),
    "question": ("question",),
    "answers": ("answers", "answer"),
    "question_id": ("question_id",),
    "answer_type": ("answer_type",),
}
# What annotations say beside the answers.
OFFICIAL = ("answer_type", "question_type", "multiple_choice_answer")
COCO_TEMPLATE = "{split}/COCO_{split}_%012d.jpg"
GIVE_ANNOTATIONS = "Give the annotations of these questions."
ROOTS = {"vqa": 0, "vg": 1}


class AlbefVQA(Records):
    """ALBEF's question files: `{"question_id", "question", "answer", "image", "dataset": "vqa"|"vg"}`.

    VQA rows have ten answers and get weights count / 10; Visual Genome rows have one string of weight `vg_weight`.
    Rows without "answer" (test files) have no targets. Rows without `question_id` get -1, -2, ...

    Args:
      files: one file or several, read as one.
      vqa_root, vg_root: folder(s) or zip(s) of the images of either kind; None = paths as they are.
      vg_weight: weight of a Visual Genome answer.
      holdout: see `Records`.
    """

    def __init__(
        self,
        files: Paths,
        *,
        vqa_root: Paths | None = None,
        vg_root: Paths | None = None,
        vg_weight: float = 0.5,
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        parsed = parse_albef(files, vg_weight=vg_weight).require_valid()
        check = [*parsed.files, *options(images=vqa_root, vg_images=vg_root, format="albef_vqa")]
        super().__init__(parsed, [ImageStore(vqa_root), ImageStore(vg_root)], check=check, holdout=holdout)


class VqaV2(Records):
    """The official VQA v2 question and annotation files with COCO's image folders.

    Args:
      questions: one `v2_OpenEnded_mscoco_*_questions.json` or several.
      annotations: the matching `v2_mscoco_*_annotations.json`; None for test sets.
      images: folder(s) or zip(s) that hold `train2014/COCO_train2014_000000000009.jpg` or the bare file names.
      image_template: file name of an image id; `{split}` is the `data_subtype` of the question file.
      classes: a list of answers (see `read_answers`); questions none of whose human answers is in it are left out, as
        ViLT and BridgeTower do, and counted in the attribute `dropped`. None = all questions stay.
      matching: how human answers are compared with `classes`, see `soft_scores`.
      holdout: see `Records`.
    """

    def __init__(
        self,
        questions: Paths,
        *,
        annotations: Paths | None = None,
        images: Paths,
        image_template: str = COCO_TEMPLATE,
        classes: str | Path | None = None,
        matching: str = "normalised",
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        known = frozenset(read_answers(classes)) if classes is not None else None
        dropped: Counter[str] = Counter()

        def keep(answers: list[str]) -> bool:
            if known is None or not answers or not known.isdisjoint(soft_scores(answers, matching=matching)):
                return True
            dropped["no answer among the classes"] += 1
            return False

        parsed = parse_vqa_v2(questions, annotations, image_template=image_template, keep=keep)
        self.dropped = dict(dropped)
        report_dropped(parsed.require_valid(), dropped)
        template = None if image_template == COCO_TEMPLATE else image_template
        extra = options(annotations=annotations, images=images, format="vqa_v2", image_template=template)
        super().__init__(parsed, [ImageStore(images)], check=[*parsed.files, *extra], holdout=holdout)


class JsonlVQA(Records):
    """JSON Lines of `{"image": path, "question": str, "answers": [str]}`; optionally `answer_type`, `question_id`.

    `answer` may stand for `answers`, and one string for a list. Each answer gets the share of the list it makes up.
    A row without answers has no targets. Without `question_id` rows are numbered from 0.

    Args:
      files: one file or several, read as one.
      images: folder(s) or zip(s) of the images.
      image_template: makes the file name of an integer `image_id`, e.g. "%012d.jpg"; used where a row has no image.
      fields: other names in the file, e.g. `{"question": "q"}`.
      answer_separator: the character that joins words within an answer ("_" in DAQUAR); becomes a space.
      holdout: see `Records`.
    """

    def __init__(
        self,
        files: Paths,
        *,
        images: Paths,
        image_template: str | None = None,
        fields: Mapping[str, str] | None = None,
        answer_separator: str | None = None,
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        parsed = parse_jsonl(
            files, image_template=image_template, fields=fields, answer_separator=answer_separator
        ).require_valid()
        extra = options(
            images=images,
            format="jsonl",
            image_template=image_template,
            field=field_options(fields),
            answer_separator=answer_separator,
        )
        super().__init__(parsed, [ImageStore(images)], check=[*parsed.files, *extra], holdout=holdout)


def parse_albef(files: Paths, *, vg_weight: float = 0.5) -> Parsed:
    """All rows of ALBEF question files, good ones and problems."""
    parsed, unnamed = Parsed(as_paths(files)), 0
    for file in parsed.files:
        for number, data in read_rows(file):
            row = Row(parsed, file, number, data, NAMES)
            image, question, answers = row.string("image"), row.string("question"), answers_of(row)
            question_id, dataset = row.integer("question_id"), row.get("dataset")
            if dataset not in ROOTS and row.data:
                row.bad(
                    "dataset",
                    f"is {dataset!r}",
                    'Write "vqa" or "vg": it says which image root the path is in.',
                )
            if not row.ok:
                continue
            if question_id is None:
                unnamed += 1
                question_id = -unnamed
            answers = [fold(answer) for answer in answers or []]
            targets = weigh(answers, each=vg_weight if dataset == "vg" else None)
            if not targets:
                _unanswered(row)
            record = _record(image, question, answers, targets, row.get("answer_type"), question_id)
            record |= {name: row.get(name) for name in OFFICIAL[1:] if row.has(name)}
            parsed.add(record, row=number, root=ROOTS[dataset])
    return parsed


def parse_vqa_v2(
    questions: Paths,
    annotations: Paths | None,
    *,
    image_template: str = COCO_TEMPLATE,
    keep: Callable[[list[str]], bool] = lambda answers: True,
) -> Parsed:
    """All rows of official VQA v2 files, joined by question id, good ones and problems.

    Args:
      keep: of the human answers of a question: False leaves it out.
    """
    parsed = Parsed(as_paths(questions))
    answered = _annotations(as_paths(annotations), parsed) if annotations is not None else None
    for file in parsed.files:
        content = _part(file, "questions")
        # The images of test-dev2015 are those of test2015.
        split = str(content.get("data_subtype", "")).replace("-dev", "")
        if not split and "{split}" in image_template:
            raise DataError(f"{file}: no 'data_subtype': pass image_template, e.g. 'COCO_val2014_%012d.jpg'")
        template = image_template.replace("{split}", split)
        for number, data in enumerate(content["questions"], start=1):
            row = Row(parsed, file, number, data, NAMES)
            image, question = image_of(row, template), row.string("question")
            question_id = row.integer("question_id")
            if row.ok and question_id is None:
                row.bad("question_id", "is missing", "The official files number their questions.")
            if not row.ok or question_id is None:
                continue
            if answered is not None and question_id not in answered:
                row.bad("question_id", f"{question_id} has no annotation", GIVE_ANNOTATIONS)
                continue
            answers, official = answered[question_id] if answered is not None else ([], {})
            if not keep(answers):
                continue
            if not answers:
                problem = Problem(file, number, "answers", "is missing", GIVE_ANNOTATIONS)
                parsed.unanswered[len(parsed.packed)] = problem
            record = _record(
                image, question, answers, weigh(answers), official.get("answer_type"), question_id
            )
            record |= {name: official[name] for name in OFFICIAL[1:] if name in official}
            parsed.add(record, row=number, image_id=row.get("image_id"))
    return parsed


def parse_jsonl(
    files: Paths,
    *,
    image_template: str | None = None,
    fields: Mapping[str, str] | None = None,
    answer_separator: str | None = None,
) -> Parsed:
    """All rows of JSON Lines questions, good ones and problems."""
    parsed = Parsed(as_paths(files))
    names = with_fields(NAMES, fields)
    for file in parsed.files:
        for number, data in read_rows(file):
            row = Row(parsed, file, number, data, names)
            image, question, answers = image_of(row, image_template), row.string("question"), answers_of(row)
            question_id = row.integer("question_id")
            if not row.ok:
                continue
            answers = [fold(answer.replace(answer_separator or " ", " ")) for answer in answers or []]
            targets = weigh(answers)
            if not targets:
                _unanswered(row)
            if question_id is None:
                question_id = len(parsed.packed)
            record = _record(image, question, answers, targets, row.get("answer_type"), question_id)
            parsed.add(record, row=number, image_id=row.get("image_id"))
    return parsed


def answers_of(row: Row) -> list[str] | None:
    """The answers of a row, [] if it has none: a string, a list of strings, or VQA v2's list of objects."""
    value = row.get("answers")
    if value is None:
        return []
    values = [value] if isinstance(value, str) else value
    if isinstance(values, list):
        values = [v.get("answer") if isinstance(v, dict) else v for v in values]
        if all(isinstance(v, str) for v in values):
            return values
    row.bad("answers", "is not a string or a list of strings", "Write answers as strings, numbers too.")
    return None


def _unanswered(row: Row) -> None:
    """Remember a row about to be added that has nothing to train on; `Records.require_answers` reports it."""
    problem = row.missing("answers")
    if row.has("answers"):
        problem = replace(problem, what="holds no answer", fix="Fill it in or remove the row.")
    row.parsed.unanswered[len(row.parsed.packed)] = problem


def _record(
    image: str | None,
    question: str | None,
    answers: list[str] | None,
    targets: Mapping[str, float],
    answer_type: str | None,
    question_id: int,
) -> dict[str, Any]:
    return {
        "image": image,
        "question": question,
        "answers": answers,
        "targets": targets,
        "answer_type": answer_type or kind(targets),
        "question_id": question_id,
    }


def _annotations(files: list[str], parsed: Parsed) -> dict[int, tuple[list[str], dict[str, Any]]]:
    found: dict[int, tuple[list[str], dict[str, Any]]] = {}
    for file in files:
        for number, data in enumerate(_part(file, "annotations")["annotations"], start=1):
            row = Row(parsed, file, number, data, NAMES)
            answers, question_id = answers_of(row), row.integer("question_id")
            if row.ok and question_id is None:
                row.bad("question_id", "is missing", "Annotations are joined to questions by it.")
            if row.ok and answers is not None and question_id is not None:
                found[question_id] = (answers, {name: row.get(name) for name in OFFICIAL if row.has(name)})
    return found


def _part(file: str, name: str) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get(name), list):
        has = ", ".join(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{file}: no list '{name}' in it (it has {has}). Give the official {name} file.")
    return content
