"""Labels as the two JSON files of VQA v2: `questions` and `annotations`, read and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxvl.active.human.entries import KINDS, Asked, Entry, Fields, Problems, given
from jaxvl.active.report.balance import question_key
from jaxvl.atomic import write_json

QUESTIONS, ANNOTATIONS = "questions.json", "annotations.json"


class Files(NamedTuple):
    """The two files that `write_vqa` made."""

    questions: Path
    annotations: Path


def pair(folder: Path) -> list[Path]:
    """The two JSON files of a folder, those with questions and those with annotations.

    Raises:
      ValueError: there are not exactly these two.
    """
    found = {part: sorted(folder.glob(f"*{part}*.json")) for part in ("questions", "annotations")}
    for part, paths in found.items():
        if len(paths) != 1:
            raise ValueError(
                f"{folder}: {len(paths)} files are named *{part}*.json, one is needed: put the two files of VQA v2, "
                "questions and annotations, into a folder of their own"
            )
    return [found["questions"][0], found["annotations"][0]]


def parse(contents: Sequence[Any], problems: Problems) -> list[Entry]:
    """Entries of VQA v2 content: one object with both lists, or one for each."""
    lists: dict[str, list[Any]] = {}
    for content in contents:
        for part in ("questions", "annotations"):
            if isinstance(content, Mapping) and isinstance(content.get(part), list):
                lists[part] = content[part]
    for part in ("questions", "annotations"):
        if part not in lists:
            problems.add(
                "", part, "is missing",
                "Questions and annotations belong together: put both files into a folder and give the folder.",
            )  # fmt: skip
    if len(lists) < 2:
        return []
    annotated = _by_id(lists["annotations"], "annotations", problems)
    asked = _by_id(lists["questions"], "questions", problems)
    for number in sorted(set(annotated) - set(asked)):
        problems.add(
            f"annotations, question_id {number}", "question_id", "is no question's", "Add the question."
        )
    entries = [_entry(asked[n], annotated.get(n), n, problems) for n in asked]
    return [e for e in entries if e is not None]


def _by_id(rows: Sequence[Any], part: str, problems: Problems) -> dict[int, Mapping[str, Any]]:
    out: dict[int, Mapping[str, Any]] = {}
    for place, row in enumerate(rows, start=1):
        where = f"{part}, row {place}"
        if not isinstance(row, Mapping):
            problems.add(where, "-", "is no object", "Write {...}.")
            continue
        number = Fields(row, where, problems).integer("question_id")
        if number is not None and number in out:
            problems.add(where, "question_id", f"{number} occurs twice", "Question ids must differ.")
        elif number is not None:
            out[number] = row
    return out


def _entry(
    question: Mapping[str, Any], annotation: Mapping[str, Any] | None, number: int, problems: Problems
) -> Entry | None:
    where, before = f"question_id {number}", len(problems.lines)
    if annotation is None:
        problems.add(where, "answers", "has no annotation", "Annotate the question or leave it out.")
        return None
    head = Fields(question, where, problems)
    image_id, text = head.integer("image_id"), head.text("question")
    if text is not None and not question_key(text):
        head.bad("question", "has no word", "Write a question.")
    fields = Fields(annotation, where, problems)
    if annotation.get("image_id", image_id) != image_id:
        fields.bad(
            "image_id", f"is {annotation['image_id']}, the question's is {image_id}", "They must be equal."
        )
    kind, prefix = fields.one_of("answer_type", KINDS), fields.text("question_type", needed=False)
    answers = [given(v, where, problems, f"answers[{i}]") for i, v in enumerate(fields.rows("answers"))]
    if image_id is None or text is None or len(problems.lines) > before:
        return None
    asked = Asked(text, [a for a in answers if a is not None], kind, number, prefix)
    return Entry(where, image_id, "ok", [asked])


def write_vqa(records: Sequence[Mapping[str, Any]], folder: Path, *, subtype: str = "train2014") -> Files:
    """Write records as VQA v2 has them, so that `SOURCES["vqa_v2"]` and other programs read them.

    Args:
      records: with `image_id`, `question`, `question_id`, `answers`, `answer_type`.
      folder: gets `questions.json` and `annotations.json`.
      subtype: COCO's name of the split, part of the images' file names.
    """
    questions = [{k: r[k] for k in ("image_id", "question", "question_id")} for r in records]
    head = {"data_type": "mscoco", "data_subtype": subtype}
    files = Files(folder / QUESTIONS, folder / ANNOTATIONS)
    write_json(files.questions, {**head, "task_type": "Open-Ended", "questions": questions})
    write_json(files.annotations, {**head, "annotations": [_annotation(r) for r in records]})
    return files


def _annotation(record: Mapping[str, Any]) -> dict[str, Any]:
    names = record.get("annotators") or [None] * len(record["answers"])
    sure = record.get("confidences") or [None] * len(record["answers"])
    answers = []
    for i, (answer, name, confidence) in enumerate(zip(record["answers"], names, sure, strict=True), start=1):
        row = {"answer_id": i, "answer": answer, "answer_confidence": confidence or "yes"}
        # anna#2, a second answer of hers, is numbered again when it is read; a nameless one is of its file
        answers.append(row if name is None else {**row, "annotator": name.partition("#")[0]})
    counts = Counter(record["answers"])
    return {
        "question_id": record["question_id"], "image_id": record["image_id"],
        "question_type": record.get("question_type") or "none of the above", "answer_type": record["answer_type"],
        "multiple_choice_answer": max(counts, key=lambda a: counts[a]), "answers": answers,
    }  # fmt: skip
