"""Reading labels that people made: JSON Lines of our own, VQA v2 JSON, and exports of Label Studio.

A file is taken as a whole or not at all, unless the good part of it is asked for. Raw answers are kept as they were
written; normal forms are for comparisons only. Nothing in a file is opened, fetched or run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxvl.active.human import answered, labelstudio, vqa_json
from jaxvl.active.human.answered import of_questions
from jaxvl.active.human.entries import (
    KINDS,
    STATUS,
    Asked,
    Entry,
    Fields,
    Given,
    Problems,
    given,
    majority_type,
    parse_json,
    read_text,
)
from jaxvl.active.report.balance import question_key

SCHEMA = "ccrl.labels/1"


class Imported(NamedTuple):
    """What a file of labels holds.

    Attributes:
      records: question records `{image, image_id, question, question_id, answers, annotators, answer_type}`, and
        `question_type`, `seconds`, `confidences` where the file says so. `annotators` are as long as `answers`.
      skipped: images that people left out; questions, if these went out.
      bad_images: images that cannot be used; the questions about them.
      problems: what was left out with `partial`, a line each.
      sha: of the content: equal for equal files.
      gold: records of images whose labels were known before, to judge annotators by.
    """

    records: list[dict[str, Any]]
    skipped: list[int]
    bad_images: list[int]
    problems: list[str]
    sha: str
    gold: list[dict[str, Any]]


def read_labels(
    file: Path,
    *,
    batch_ids: Collection[int],
    partial: bool = False,
    gold_ids: Collection[int] = (),
    questions: Mapping[int, Mapping[str, Any]] | None = None,
) -> Imported:
    """Read and check a file of labels.

    Args:
      file: JSON Lines (`ccrl.labels/1`), a Label Studio JSON export, a JSON file with `questions` and `annotations` as
        VQA v2 has them, or a folder with the two VQA v2 files.
      batch_ids: images that were exported; others are refused.
      partial: leave out what is wrong, and say so in `problems`; else one wrong line refuses the file.
      gold_ids: exported images whose labels are known.
      questions: where questions went out: the line of the batch of each question id, with `image_id` and `question`.
        Labels must name them by `question_id`, and `batch_ids` are their images.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: wrong lines, all of them named with file, line, field and fix.
    """
    paths = vqa_json.pair(file) if file.is_dir() else [file]
    sha = hashlib.sha256()
    for path in paths:
        sha.update(hashlib.sha256(path.read_bytes()).digest() if len(paths) > 1 else path.read_bytes())
    problems = Problems(str(file))
    entries = _parse(paths, problems)
    allowed = {*map(int, batch_ids), *map(int, gold_ids)}
    if questions is None:
        kept = [e for e in entries if _in_batch(e, allowed, problems)]
    else:
        kept = [found for e in entries for found in of_questions(e, questions, problems)]
    if not entries and not problems.lines:
        problems.add(
            "",
            "-",
            "holds no labels",
            f"Write one {{...}} a line, see {SCHEMA} in docs/howto/label_with_people.md.",
        )
    if problems.lines and not partial:
        listed = "\n".join(f"- {line}" for line in problems.lines)
        raise ValueError(f"{file}: nothing was imported (--partial takes what is not listed here):\n{listed}")
    key = "image_id" if questions is None else "question_id"
    records = merge_records(_records(kept, file.stem), by=key)
    gold = {int(i) for i in gold_ids}
    have = {int(r[key]) for r in records}
    by_status = {
        s: sorted({int(getattr(e, key)) for e in kept if e.status == s} - have - gold) for s in STATUS
    }
    return Imported(
        [r for r in records if r["image_id"] not in gold], by_status["skip"], by_status["bad_image"],
        problems.lines, sha.hexdigest(), [r for r in records if r["image_id"] in gold],
    )  # fmt: skip


def merge_records(
    records: Sequence[Mapping[str, Any]], *, min_answers: int = 1, by: str = "image_id"
) -> list[dict[str, Any]]:
    """One record for each question of an image, with the answers of all that ask it.

    Questions are equal if they differ in case and punctuation only. A later answer of an annotator replaces the earlier
    one, so that an export that has grown can be imported again; records without `annotators` add all their answers.

    Args:
      records: in the order they came in.
      min_answers: questions with fewer are left out.
      by: "image_id"; or "question_id" = questions are equal if their ids are.

    Returns:
      In order of first appearance, each with a `question_id` of its own: the given one if it is free, else
      `image_id * 1000 + k`.
    """
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for record in records:
        head = int(record[by])
        words = question_key(record["question"]) if by == "image_id" else ""
        groups.setdefault((head, words), []).append(record)
    taken: set[int] = set()
    out = []
    for rows in groups.values():
        merged = _merged(rows)
        number = next((int(r["question_id"]) for r in rows if r.get("question_id") is not None), None)
        if number is None or number in taken:
            number = int(rows[0]["image_id"]) * 1000
            while number in taken:
                number += 1
        taken.add(number)
        if len(merged["answers"]) >= min_answers:
            out.append({**merged, "question_id": number})
    return out


def _merged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    answers: dict[Any, tuple[str, Any, str | None]] = {}
    seconds: dict[Any, float] = {}
    for place, row in enumerate(rows):
        names = row.get("annotators") or [None] * len(row["answers"])
        sure = row.get("confidences") or [None] * len(row["answers"])
        mine = tuple(names)
        for i, (answer, name, confidence) in enumerate(zip(row["answers"], names, sure, strict=True)):
            answers[(place, i) if name is None else name] = (answer, name, confidence)
        if row.get("seconds") is not None:
            seconds[mine if all(n is not None for n in mine) else place] = float(row["seconds"])
    texts = [a for a, _, _ in answers.values()]
    first = rows[0]
    out: dict[str, Any] = {
        "image": str(next((r["image"] for r in rows if r.get("image")), first["image_id"])),
        "image_id": int(first["image_id"]), "question": first["question"], "answers": texts,
        "answer_type": majority_type([r.get("answer_type") for r in rows], texts),
    }  # fmt: skip
    if any(name is not None for _, name, _ in answers.values()):
        out["annotators"] = [name for _, name, _ in answers.values()]
    if any(c is not None for _, _, c in answers.values()):
        out["confidences"] = [c for _, _, c in answers.values()]
    kind = next((r["question_type"] for r in rows if r.get("question_type")), None)
    return {
        **out,
        **({"question_type": kind} if kind else {}),
        **({"seconds": sum(seconds.values())} if seconds else {}),
    }


# ---- formats ------------------------------------------------------------------------------------------------


def _parse(paths: Sequence[Path], problems: Problems) -> list[Entry]:
    if len(paths) > 1:
        return vqa_json.parse([parse_json(read_text(p), problems) for p in paths], problems)
    text = read_text(paths[0])
    head = text.lstrip()[:1]
    if head == "[" and not _is_line(text):
        return labelstudio.parse(parse_json(text, problems), problems)
    if head == "{" and not _is_line(text):
        content = parse_json(text, Problems(problems.file))
        if isinstance(content, dict) and ("questions" in content or "annotations" in content):
            return vqa_json.parse([content], problems)
    return _lines(text, problems)


def _is_line(text: str) -> bool:
    """Whether the first line is a value of its own: an object that speaks of an image, or one value of several."""
    first, _, rest = text.lstrip().partition("\n")
    found = parse_json(first, Problems(""))
    if isinstance(found, dict):
        return not {"questions", "annotations"} & set(found)
    return found is not None and bool(rest.strip())


def _lines(text: str, problems: Problems) -> list[Entry]:
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"line {number}"
            before = len(problems.lines)
            value = parse_json(line, problems, where)
            if len(problems.lines) > before:
                continue
            if not isinstance(value, dict):
                problems.add(where, "-", "is no object", "Write one {...} a line.")
                continue
            entry = _entry(value, where, problems)
            if entry is not None and len(problems.lines) == before:
                entries.append(entry)
    return entries


def _entry(data: Mapping[str, Any], where: str, problems: Problems) -> Entry | None:
    fields = Fields(data, where, problems)
    schema = data.get("schema", SCHEMA)
    if schema != SCHEMA:
        fields.bad(
            "schema", f"is {schema!r}", f"A file of labels has {SCHEMA!r}; was the batch itself given?"
        )
        return None
    if "question_id" in data and "qas" not in data:
        return answered.entry(data, where, problems)
    image_id, status = fields.integer("image_id"), fields.one_of("status", STATUS, "ok")
    rows = fields.rows("qas", empty=status != "ok") if status == "ok" or "qas" in data else []
    asked = [_asked(row, where, problems, f"qas[{i}]") for i, row in enumerate(rows)]
    if image_id is None or status is None:
        return None
    name = data.get("file_name")
    good = [a for a in asked if a is not None] if status == "ok" else []
    return Entry(where, image_id, status, good, name if isinstance(name, str) else None)


def _asked(row: Any, where: str, problems: Problems, path: str) -> Asked | None:
    if not isinstance(row, dict):
        problems.add(where, path, "is no object", 'Write {"question": "...", "answers": [...]}.')
        return None
    fields = Fields(row, where, problems, path + ".")
    question, kind = fields.text("question"), fields.one_of("answer_type", KINDS)
    number = fields.integer("question_id", needed=False)
    prefix = fields.text("question_type", needed=False)
    if question is not None and not question_key(question):
        fields.bad("question", "has no word", "Write a question.")
    values = fields.rows("answers")
    answers = [given(v, where, problems, f"{path}.answers[{i}]") for i, v in enumerate(values)]
    if question is None:
        return None
    return Asked(question, [a for a in answers if a is not None], kind, number, prefix)


def _in_batch(entry: Entry, allowed: Collection[int], problems: Problems) -> bool:
    if entry.image_id in allowed:
        return True
    problems.add(
        entry.where, "image_id", f"{entry.image_id} is not in the batch that was exported",
        "Label the images of the batch; it may be of another round or run.",
    )  # fmt: skip
    return False


def _records(entries: Sequence[Entry], source: str) -> list[dict[str, Any]]:
    """A record for each question of each entry; answers without an annotator are named after the file."""
    anonymous: dict[tuple[int, str], int] = {}
    out = []
    for entry in entries:
        for asked in entry.asked:
            key = (entry.image_id, question_key(asked.question))
            names = _names(asked.answers, source, anonymous.get(key, 0))
            anonymous[key] = anonymous.get(key, 0) + sum(a.annotator is None for a in asked.answers)
            row: dict[str, Any] = {
                "image": entry.file_name, "image_id": entry.image_id, "question": asked.question,
                "question_id": asked.question_id, "question_type": asked.question_type,
                "answers": [a.answer for a in asked.answers], "annotators": names, "answer_type": asked.answer_type,
            }  # fmt: skip
            if any(a.confidence for a in asked.answers):
                row["confidences"] = [a.confidence for a in asked.answers]
            if any(a.seconds is not None for a in asked.answers):
                row["seconds"] = sum(a.seconds or 0.0 for a in asked.answers)
            out.append(row)
    return out


def _names(answers: Sequence[Given], source: str, start: int) -> list[str]:
    """Distinct names within a question: a second answer of `anna` is of `anna#2`, nameless ones are of `file#n`."""
    names: list[str] = []
    for answer in answers:
        if answer.annotator is None:
            start += 1
            names.append(f"{source}#{start}")
            continue
        name, n = answer.annotator, 1
        while name in names:
            n += 1
            name = f"{answer.annotator}#{n}"
        names.append(name)
    return names
