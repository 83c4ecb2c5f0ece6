"""A batch of images for people, as files: JSON Lines, CSV, COCO-like JSON, Label Studio tasks, pictures and a page.

batch.jsonl              an image (or a question about one) a line, in the order of choice, the reserve last
batch.csv images.json    the same for spreadsheets and for tools that read COCO's `images`
images/                  the pictures
labelstudio.json .xml    tasks to import, and the labelling interface
gallery.html             the pictures and why each was picked: for whoever runs the study
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active.human import gallery, labelstudio
from jaxvl.active.report.balance import question_key
from jaxvl.active.report.pictures import Encoded, Pictures, encode, thumbnail
from jaxvl.atomic import write_file, write_json, write_jsonl

SCHEMA = "ccrl.batch/1"
BATCH, TABLE, IMAGES, TASKS, INTERFACE, GALLERY = (
    "batch.jsonl", "batch.csv", "images.json", "labelstudio.json", "labelstudio.xml", "gallery.html",
)  # fmt: skip
QUESTIONS = 5  # that people are asked to write for an image
SUGGESTED = ("pattern_id", "question", "type", "match", "uncertainty", "answer", "p_max", "rate")
ASKED = ("pattern_id", "question", "type")  # of which people may know where gold images are mixed in


class Batch(NamedTuple):
    """What was exported.

    Attributes:
      images: lines of the batch, the reserve and gold images included; questions, if these are the items.
      reserve: how many of them are the reserve.
      duplicates: image that was left out -> the image of the batch whose picture or features are the same. Of
        questions: the ids of questions that are the same about the same picture.
      without_picture: images of which there is no picture.
    """

    images: int
    reserve: int
    duplicates: dict[int, int]
    without_picture: list[int]


def export_batch(
    rows: Sequence[Mapping[str, Any]],
    *,
    run: str,
    round: int,
    images: Pictures | None,
    suggest: bool,
    folder: Path,
    questions: int = QUESTIONS,
    url: str | None = None,
    gold: Sequence[int] = (),
    known: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    digests: Mapping[int, str | None] | None = None,
    rng: np.random.Generator | None = None,
) -> Batch:
    """Write a batch for people.

    Args:
      rows: the selection in the order of choice: `rank`, `image_id`, `score`, and `n_match`, `contributors`, `reserve`.
        With `question_id` and `question` in them, questions go out, and people write the answers only.
      run: its name, for people.
      images: picture of an image id: encoded bytes, a file, or RGB `[H,W,3]` u8; None where there is none.
      suggest: whether annotators see the questions that the strategy had in mind: it saves writing and anchors them.
      questions: how many to ask for an image.
      url: where pictures are served, e.g. "https://host/%012d.jpg" with a place for the image id; default: as files.
      gold: images with known labels to mix in at random places; annotators then see no scores.
      known: image -> questions, `{"question", "type"}`, to suggest where the selection has none: of gold images those
        with known answers.
      digests: image -> a hash of its features; of images with equal ones, the gold one or else the first is exported.
        None = unlike others.
      rng: places the gold images.

    Raises:
      ValueError: no rows, an image that occurs twice, a picture that cannot be decoded, `gold` without `rng`, or with
        questions.
    """
    given = any("question_id" in r for r in rows)
    if given and gold:
        raise ValueError("gold images are mixed in among images; this batch is of questions: leave gold out")
    questions, suggest = (1, False) if given else (questions, suggest)
    _check([item_of(r) for r in rows], gold, "question" if given else "image")
    thumbnails: dict[int, str] = {}
    duplicates: dict[int, int] = {}
    seen: dict[tuple[str, str], int] = {}
    entries: list[dict[str, Any]] = []
    known_pictures = {int(i): _picture(images, int(i)) for i in gold}
    for (
        image_id,
        picture,
    ) in known_pictures.items():  # wherever they stand: what equals a labelled image is its duplicate
        _first(seen, {"image_id": image_id}, (digests or {}).get(image_id), picture)
    for row in _with_gold(rows, gold, rng):
        image_id, item = int(row["image_id"]), item_of(row)
        asked = row.get("contributors") or (known or {}).get(image_id) or []
        entry = _entry(row, asked, run=run, round=round, suggest=suggest, questions=questions)
        entry["rank"] = len(entries) + 1
        entry["url"] = url % image_id if url else None
        if image_id in known_pictures:
            encoded, first = known_pictures[image_id], None
        else:
            encoded = _picture(images, image_id)
            first = _first(seen, row, (digests or {}).get(image_id), encoded)
        if first is not None:
            duplicates[item] = first
            continue
        if encoded is not None:
            entry.update(_stored(encoded, image_id, folder))
            thumbnails[image_id] = thumbnail(encoded.data)
        entries.append(entry)
    unsure = {item_of(r): _uncertainty(r) for r in rows if r.get("contributors")}
    _write(entries, folder, questions=questions, suggest=suggest, uncertainty=None if gold else unsure)
    reasons = {item_of(r): r for r in rows}
    page = gallery.page(entries, reasons, thumbnails, duplicates=duplicates)
    write_file(folder / GALLERY, lambda path: path.write_text(page, encoding="utf-8"))
    without = [e["image_id"] for e in entries if e["image_id"] not in thumbnails]
    return Batch(len(entries), sum(bool(e.get("reserve")) for e in entries), duplicates, without)


def _picture(images: Pictures | None, image_id: int) -> Encoded | None:
    picture = images(image_id) if images is not None else None
    return None if picture is None else encode(picture, image_id)


def item_of(row: Mapping[str, Any]) -> int:
    """The id of a line's item: of its question, if it has one, or of its image."""
    return int(row.get("question_id", row["image_id"]))


def _first(
    seen: dict[tuple[str, str], int], row: Mapping[str, Any], features: str | None, encoded: Encoded | None
) -> int | None:
    """The earlier item with the same question and the same features or picture; None: there is none, it is noted."""
    question = question_key(row.get("question", ""))
    marks = [(f"features {features}", question)] if features is not None else []
    marks += [(f"picture {encoded.digest}", question)] if encoded is not None else []
    first = next((seen[m] for m in marks if m in seen), None)
    for mark in marks:
        seen.setdefault(mark, item_of(row) if first is None else first)
    return first


def _check(ids: Sequence[int], gold: Sequence[int], what: str) -> None:
    if not ids:
        raise ValueError("a batch needs images: the selection is empty")
    twice = [i for i, n in Counter([*ids, *map(int, gold)]).items() if n > 1]
    if twice:
        raise ValueError(f"{what} {min(twice)} occurs twice in the batch; each may be exported once")


def _stored(encoded: Encoded, image_id: int, folder: Path) -> dict[str, Any]:
    """Write the picture; what a line of the batch says of it."""
    name = f"images/{image_id}{encoded.suffix}"
    write_file(folder / name, lambda path: path.write_bytes(encoded.data))
    return {"file_name": name, "width": encoded.width, "height": encoded.height}


def _with_gold(
    rows: Sequence[Mapping[str, Any]], gold: Sequence[int], rng: np.random.Generator | None
) -> list[Mapping[str, Any]]:
    """The rows with gold images at random places before the reserve."""
    if not gold:
        return list(rows)
    if rng is None:
        raise ValueError("gold images are mixed in at random places: give a generator")
    mixed = [r for r in rows if not r.get("reserve")]
    for image_id in gold:
        mixed.insert(int(rng.integers(len(mixed) + 1)), {"image_id": int(image_id), "score": None})
    return [*mixed, *(r for r in rows if r.get("reserve"))]


def _entry(
    row: Mapping[str, Any],
    found: Sequence[Mapping[str, Any]],
    *,
    run: str,
    round: int,
    suggest: bool,
    questions: int,
) -> dict[str, Any]:
    suggested = [{k: c.get(k) for k in SUGGESTED} for c in found[:questions]] if suggest else []
    entry = {
        "schema": SCHEMA, "run": run, "round": round, "rank": 0, "image_id": int(row["image_id"]), "file_name": None,
        "url": None, "width": None, "height": None, "score": row.get("score"), "n_match": row.get("n_match"),
        "suggested": suggested, "n_questions": questions,
    }  # fmt: skip
    if "question_id" in row:
        entry |= {k: row[k] for k in ("question_id", "question")}
    return {**entry, "reserve": True} if row.get("reserve") else entry


def _write(
    entries: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    questions: int,
    suggest: bool,
    uncertainty: Mapping[int, float] | None,
) -> None:
    shown = entries if uncertainty is not None else [_blind(e) for e in entries]
    write_jsonl(folder / BATCH, shown)
    write_file(folder / TABLE, lambda p: p.write_text(_csv(shown, questions), encoding="utf-8"))
    coco = [
        {
            "id": e["image_id"],
            **{k: e[k] for k in ("file_name", "width", "height")},
            "coco_url": e["url"],
            "rank": e["rank"],
        }
        for e in shown
    ]
    info = {"description": f"{shown[0]['run']}, round {shown[0]['round']}", "schema": SCHEMA}
    write_json(folder / IMAGES, {"info": info, "images": coco})
    write_json(folder / TASKS, labelstudio.tasks(shown, questions=questions, uncertainty=uncertainty))
    text = labelstudio.config(questions=questions, suggest=suggest, given="question_id" in shown[0])
    write_file(folder / INTERFACE, lambda p: p.write_text(text, encoding="utf-8"))


def _blind(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A line that does not tell a gold image from others: without scores, with bare questions."""
    asked = [{k: s.get(k) if k in ASKED else None for k in SUGGESTED} for s in entry["suggested"]]
    return {**entry, "score": None, "n_match": None, "suggested": asked}


def _uncertainty(row: Mapping[str, Any]) -> float:
    """Mean over the contributors of an image."""
    return float(np.mean([c["uncertainty"] for c in row["contributors"]]))


def _csv(entries: Sequence[Mapping[str, Any]], questions: int) -> str:
    """A line for each image; texts that a spreadsheet would run as formulas are quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head: tuple[str, ...] = ("rank", "image_id", "file_name", "url", "score", "n_match", "reserve")
    given = "question_id" in entries[0]
    head, name = ((*head, "question_id"), "question") if given else (head, "suggested_{}")
    writer.writerow([*head, *(name.format(k + 1) for k in range(questions))])
    for e in entries:
        texts = [e["question"]] if given else [s["question"] for s in e["suggested"]]
        texts = ["'" + t if t[:1] in "=+-@\t" else t for t in texts] + [""] * (questions - len(texts))
        writer.writerow([*("" if e.get(k) is None else e.get(k) for k in head), *texts])
    return out.getvalue()
