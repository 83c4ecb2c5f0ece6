"""Inspection of data files before a run: `python -m jaxvl.data check FILE ...`.

Reports malformed rows, missing or undecodable images, duplicates, how far a list of answers covers the questions,
and what two splits share. Errors are what breaks a run or its result; warnings are for the reader to judge.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.data.answers import best, fold, read_answers
from jaxvl.data.arrow import ArrowRecords, parse_arrow
from jaxvl.data.captions import parse_captions
from jaxvl.data.images import AmbiguousImageError, ImageError, ImageStore
from jaxvl.data.records import DataError, NotJson, Parsed, Paths, Records, read_json, read_rows, summary
from jaxvl.data.sentences import (
    ENTAILMENT,
    Sentences,
    parse_entailment,
    parse_nlvr2,
    parse_snli_ve,
    parse_statements,
)
from jaxvl.data.text import clean_caption
from jaxvl.data.vqa import COCO_TEMPLATE, parse_albef, parse_jsonl, parse_vqa_v2

SENTENCES = ("nlvr2", "snli_ve", "jsonl_entailment", "jsonl_statements")
FORMATS = ("albef_captions", "albef_vqa", "vqa_v2", "jsonl", *SENTENCES, "vilt_arrow")
LEVELS = ("error", "warning", "ok")
LOW_COVERAGE = 0.8  # share of questions below which a list of answers is worth a warning
SHOWN = 5
FEW = 10  # rows looked at to tell a format


@dataclass(frozen=True)
class Layout:
    """How a file is written; None = found out or not needed. See `python -m jaxvl.data check --help`."""

    format: str | None = None
    images: Paths | None = None
    vg_images: Paths | None = None
    questions: Paths | None = None
    annotations: Paths | None = None
    image_template: str | None = None
    fields: Mapping[str, str] | None = None
    answer_separator: str | None = None
    permutations: int = 1
    label_order: Sequence[str] | None = None
    kind: str | None = None


@dataclass(frozen=True)
class Finding:
    """One line of a report. `count` is the number of rows, images or texts it is about."""

    level: str
    topic: str
    count: int
    message: str
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        shown = f": {'; '.join(self.examples[:SHOWN])}" if self.examples else ""
        return f"{self.level:8}{self.topic:12}{self.message}{shown}{'; ...' if len(self.examples) > SHOWN else ''}"


@dataclass
class Report:
    """What was found in a file; `ok` is False if there are errors."""

    files: list[str]
    format: str
    rows: int
    images: int
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True without errors; warnings do not count."""
        return all(finding.level != "error" for finding in self.findings)

    def add(
        self, bad: bool, level: str, topic: str, message: str, otherwise: str, examples: Iterable[str] = ()
    ) -> None:
        """A finding of `level` if `bad`, else that all is well (`otherwise`)."""
        shown = list(examples)
        self.findings.append(
            Finding(level, topic, len(shown), message, shown) if bad else Finding("ok", topic, 0, otherwise)
        )

    def __str__(self) -> str:
        counts = Counter(finding.level for finding in self.findings)
        head = f"{', '.join(self.files)}: {self.rows} usable rows, {self.images} images, format {self.format}"
        lines = [str(f) for f in sorted(self.findings, key=lambda f: LEVELS.index(f.level))]
        return "\n".join([head, *lines, f"{counts['error']} errors, {counts['warning']} warnings"])

    def to_json(self) -> str:
        """The report for programs."""
        return json.dumps({**asdict(self), "ok": self.ok}, indent=1, ensure_ascii=False)


def check(
    files: Sequence[str],
    layout: Layout,
    *,
    answers: str | Path | None = None,
    against: str | None = None,
    decode: int | None = 100,
) -> Report:
    """Inspect annotation files that are read as one.

    Args:
      answers: a list of candidate answers whose coverage is reported.
      against: another split, in the same layout or one that is recognised, that should share no image with `files`.
        It needs no answers: of VQA v2, give its question file.
      decode: images to decode, spread evenly over the file; None = all. Missing files are always looked for.
    """
    kind, parsed, reader = _open(files, layout)
    rows = [reader.annotation(i) for i in range(len(reader))]
    report = Report(list(files), kind, len(rows), len({image for row in rows for image in _images(row)}))
    _check_rows(report, parsed)
    for reason, n in getattr(reader, "dropped", {}).items():
        report.findings.append(Finding("ok", "rows", n, f"{n} more are left out for {reason}"))
    if not rows:
        return report
    given = layout.images is not None or layout.vg_images is not None or kind == "vilt_arrow"
    _check_images(report, reader, rows, decode, given=given)
    if "question" in rows[0]:
        _check_questions(report, rows)
    elif "sentence" in rows[0]:
        _check_sentences(report, rows)
    else:
        _check_captions(report, rows)
    if answers is not None:
        _check_coverage(report, rows, read_answers(answers))
    if against is not None:
        _check_against(report, rows, against, layout)
    return report


def detect(path: str | Path) -> str:
    """The format of a file, from its first row that can be read; `DataError` if it is none that jaxvl reads."""
    if Path(path).suffix == ".arrow":
        return "vilt_arrow"
    text = Path(path).suffix == ".json"
    # NLVR2's .json files are JSON Lines; a line of any other file that starts like one is looked at as well.
    starts = [data for _, data in itertools.islice(read_rows(path), FEW) if isinstance(data, dict)]
    sentences = _detect_sentences(starts[0], text) if starts else None
    if sentences is not None:
        return sentences
    if text and isinstance(content := read_json(path), dict) and {"questions", "annotations"} & set(content):
        return "vqa_v2"
    row = next((data for _, data in read_rows(path) if isinstance(data, dict)), None)
    if isinstance(row, dict):
        if not text:
            return "jsonl"
        if "question" in row:
            return "albef_vqa"
        if "caption" in row or "captions" in row:
            return "albef_captions"
    number, first = next(iter(read_rows(path)), (0, None))
    if row is None and isinstance(first, NotJson):
        raise DataError(f"{path}, row {number}: {first.what}. {first.fix}")
    raise DataError(f"{path}: cannot tell its format from the first row. Pass --format {'|'.join(FORMATS)}.")


def _detect_sentences(row: Mapping[str, Any], json_list: bool) -> str | None:
    """The format of a row of labelled sentences, by its fields; None if it is no such row."""
    has = set(row)
    if "Flickr30K_ID" in has:
        return "snli_ve"
    if "sentence" in has and (has & {"left_url", "directory"} or (json_list and "images" in has)):
        return "nlvr2"
    if not has & {"sentence", "statement", "hypothesis"} or has & {"captions", "caption", "question"}:
        return None
    if "hypothesis" in has or row.get("label") in ENTAILMENT:
        return "snli_ve" if json_list else "jsonl_entailment"
    return "jsonl_statements" if "label" in has else None


def _open(files: Sequence[str], layout: Layout) -> tuple[str, Parsed, Records]:
    kind = layout.format or detect(files[0])
    if kind in SENTENCES:
        return kind, *_open_sentences(kind, list(files), layout)
    if kind == "vilt_arrow":
        parsed, dropped = parse_arrow(list(files), kind=layout.kind, label_order=layout.label_order)
        return kind, parsed, ArrowRecords(parsed, dropped=dropped)
    if kind == "vqa_v2":
        parsed = _open_vqa_v2(files, layout)
    elif kind == "albef_vqa":
        parsed = parse_albef(list(files))
    elif kind == "albef_captions":
        parsed = parse_captions(list(files))
    else:
        parsed = _open_jsonl(files, layout)
    stores = [ImageStore(layout.images)]
    if kind == "albef_vqa":
        stores.append(ImageStore(layout.vg_images))
    return kind, parsed, Records(parsed, stores)


def _open_sentences(kind: str, files: list[str], layout: Layout) -> tuple[Parsed, Records]:
    template, fields = layout.image_template, layout.fields
    if kind == "nlvr2":
        found = parse_nlvr2(files)
    elif kind == "snli_ve":
        found = parse_snli_ve(files, label_order=layout.label_order)
    elif kind == "jsonl_entailment":
        found = parse_entailment(
            files, image_template=template, fields=fields, label_order=layout.label_order
        )
    else:
        found = parse_statements(
            files, image_template=template, fields=fields, permutations=layout.permutations
        )
    return found.parsed, Sentences(found.parsed, layout.images, dropped=found.dropped)


def _open_vqa_v2(files: Sequence[str], layout: Layout) -> Parsed:
    questions: Paths = list(files)
    annotations = layout.annotations
    if "questions" not in read_json(files[0]):
        if layout.questions is None:
            raise DataError(
                f"{files[0]}: holds annotations only. Pass --questions with the question file; as --against give "
                "the question file itself."
            )
        questions, annotations = layout.questions, list(files)
    return parse_vqa_v2(questions, annotations, image_template=layout.image_template or COCO_TEMPLATE)


def _open_jsonl(files: Sequence[str], layout: Layout) -> Parsed:
    fields = dict(layout.fields or {})
    first = next((data for _, data in read_rows(files[0]) if isinstance(data, dict)), None)
    if first is not None and fields.get("question", "question") in first:
        return parse_jsonl(
            list(files),
            image_template=layout.image_template,
            fields=fields,
            answer_separator=layout.answer_separator,
        )
    return parse_captions(list(files), image_template=layout.image_template, fields=fields)


def _check_rows(report: Report, parsed: Parsed) -> None:
    if parsed.problems:
        message = summary(parsed.problems, parsed.seen)
        report.findings.append(Finding("error", "rows", len(parsed.problems), message))
    elif not parsed.packed:
        report.findings.append(Finding("error", "rows", 0, "the file has no rows"))
    else:
        report.findings.append(Finding("ok", "rows", 0, f"all {parsed.seen} rows can be used"))


def _check_images(
    report: Report, reader: Records, rows: list[dict[str, Any]], decode: int | None, given: bool
) -> None:
    absolute = all(Path(row["image"]).is_absolute() for row in rows)
    if not given and not absolute:
        report.findings.append(
            Finding("warning", "images", 0, "not looked for: pass --images with their folder or zip file")
        )
        return
    first = {row[name]: (name, i) for i, row in reversed(list(enumerate(rows)))
             for name in ("image2", "image") if name in row}  # fmt: skip
    missing, ambiguous = _look_for(reader, first)
    message = f"{len(missing)} of {len(first)} images are missing"
    report.add(bool(missing), "error", "images", message, f"all {len(first)} images exist", missing)
    if ambiguous:
        message = f"{len(ambiguous)} of {len(first)} images fit several files"
        report.findings.append(Finding("error", "images", len(ambiguous), message, [*ambiguous.values()]))
    absent = {*missing, *ambiguous}
    present = [i for image, i in first.items() if image not in absent]
    if decode is not None and decode < len(present):
        present = [present[k] for k in np.linspace(0, len(present) - 1, decode).astype(int)]
    broken = []
    for name, i in present:
        try:
            getattr(reader, name)(i)
        except ImageError as error:
            broken.append(str(error))
    message = f"{len(broken)} of {len(present)} tried cannot be decoded"
    report.add(bool(broken), "error", "decoding", message, f"{len(present)} images decoded", broken)


def _look_for(reader: Records, first: Mapping[str, tuple[str, int]]) -> tuple[list[str], dict[str, str]]:
    """The images that do not exist, and `{image: why}` of those whose key fits several files."""
    missing, ambiguous = [], {}
    for image, (name, i) in first.items():
        try:
            if not getattr(reader, f"has_{name}")(i):
                missing.append(image)
        except AmbiguousImageError as error:
            ambiguous[image] = str(error)
    return missing, ambiguous


def _check_questions(report: Report, rows: list[dict[str, Any]]) -> None:
    ids = _repeated(row["question_id"] for row in rows)
    report.add(
        bool(ids), "error", "ids", f"{len(ids)} question ids are repeated", "question ids are unique", ids
    )
    twice = _repeated((row["image"], row["question"]) for row in rows)
    message = f"{len(twice)} questions are asked twice of one image"
    report.add(bool(twice), "warning", "duplicates", message, "no question is repeated", twice)
    silent = [str(row["question_id"]) for row in rows if not row["targets"]]
    level = "ok" if len(silent) == len(rows) else "warning"  # a test file has none at all
    message = f"{len(silent)} questions have no answer"
    report.add(bool(silent), level, "answers", message, "every question has answers", silent)
    _check_cleaned(report, [row["question"] for row in rows])


def _check_captions(report: Report, rows: list[dict[str, Any]]) -> None:
    twice = _repeated((row["image"], caption) for row in rows for caption in row["captions"])
    message = f"{len(twice)} captions are repeated on one image"
    report.add(bool(twice), "warning", "duplicates", message, "no caption is repeated on its image", twice)
    _check_cleaned(report, [caption for row in rows for caption in row["captions"]])


def _check_sentences(report: Report, rows: list[dict[str, Any]]) -> None:
    labels = defaultdict(list)
    for row in rows:
        labels[row["image"], row.get("image2", ""), row["sentence"]].append(row["label_name"])
    twice = [" | ".join(filter(None, key)) for key, given in labels.items() if len(given) > 1]
    message = f"{len(twice)} sentences are repeated on their image"
    report.add(bool(twice), "warning", "duplicates", message, "no sentence is repeated on its image", twice)
    split = [" | ".join(filter(None, key)) for key, given in labels.items() if len(set(given)) > 1]
    message = f"{len(split)} sentences have different labels on one image"
    report.add(bool(split), "warning", "labels", message, "no sentence has two labels on one image", split)
    counts = Counter(str(row["label_name"] or "none") for row in rows)
    shares = ", ".join(f"{name} {n / len(rows):.1%}" for name, n in sorted(counts.items()))
    report.findings.append(Finding("ok", "labels", 0, f"labels: {shares}"))
    _check_cleaned(report, [row["sentence"] for row in rows])


def _check_cleaned(report: Report, texts: list[str]) -> None:
    empty = [text for text in texts if not clean_caption(text)]
    message = f"{len(empty)} texts are empty once punctuation is removed"
    report.add(bool(empty), "warning", "texts", message, "no text is empty after clean-up", empty)


def _check_coverage(report: Report, rows: list[dict[str, Any]], answers: list[str]) -> None:
    known = {fold(answer) for answer in answers}
    targets = [row["targets"] for row in rows if row.get("targets")]
    if not targets:
        report.add(
            True,
            "error",
            "coverage",
            "there are no answers to cover: --answers is for labelled questions",
            "",
        )
        return
    outside = Counter(best(t) for t in targets if best(t) not in known)
    share = 1 - outside.total() / len(targets)
    weight = sum(w for t in targets for a, w in t.items() if a in known) / sum(
        sum(t.values()) for t in targets
    )
    message = (
        f"{len(answers)} candidates hold the best answer of {share:.1%} of {len(targets)} questions, "
        f"{weight:.1%} of all answer weight"
    )
    examples = [f"{answer} ({n})" for answer, n in outside.most_common()]
    report.add(
        share < LOW_COVERAGE, "warning", "coverage", message + "; most frequent outside", message, examples
    )


def _check_against(report: Report, rows: list[dict[str, Any]], name: str, layout: Layout) -> None:
    # The files given with the first split answer its questions, not those of the other one.
    layout = replace(layout, questions=None, annotations=None)
    _, parsed, other = _open([name], layout)
    if parsed.problems:
        message = f"in the rows of --against: {summary(parsed.problems, parsed.seen)}"
        report.findings.append(Finding("error", "overlap", len(parsed.problems), message))
    if not len(other):
        message = f"{name} has no usable row: give --against a file of another split in the same layout"
        report.findings.append(Finding("error", "overlap", 0, message))
        return
    _check_overlap(report, rows, [other.annotation(i) for i in range(len(other))], name)


def _check_overlap(
    report: Report, rows: list[dict[str, Any]], others: list[dict[str, Any]], name: str
) -> None:
    here, there = (
        {image for row in rows for image in _images(row)},
        {image for row in others for image in _images(row)},
    )
    shared = sorted(here & there)
    message = f"{len(shared)} images are also in {name}"
    report.add(bool(shared), "error", "overlap", message, f"no image is also in {name}", shared)
    names = {image.rsplit("/", 1)[-1] for image in there - here}
    alike = sorted(image for image in here - there if image.rsplit("/", 1)[-1] in names)
    message = f"{len(alike)} images have the file name of one in {name}, in another folder"
    report.add(
        bool(alike), "warning", "overlap", message, f"no other image shares a file name with {name}", alike
    )
    texts = {_normal(text) for row in others for text in _texts(row)}
    mine = [_normal(text) for row in rows for text in _texts(row)]
    known = [text for text in mine if text in texts]
    message = f"{len(known)} of {len(mine)} texts ({len(known) / max(len(mine), 1):.1%}) also occur in {name}"
    report.add(
        bool(known),
        "warning",
        "overlap",
        message,
        f"no text also occurs in {name}",
        list(dict.fromkeys(known)),
    )


def _texts(row: Mapping[str, Any]) -> list[str]:
    one = next((row[name] for name in ("question", "sentence") if name in row), None)
    return row["captions"] if one is None else [one]


def _images(row: Mapping[str, Any]) -> list[str]:
    return [row[name] for name in ("image", "image2") if name in row]


def _normal(text: str) -> str:
    return clean_caption(text, max_words=1000)


def _repeated(keys: Iterable[Any]) -> list[str]:
    counts = Counter(keys)
    return [" | ".join(key) if isinstance(key, tuple) else str(key) for key, n in counts.items() if n > 1]
