"""The Arrow tables of ViLT, BridgeTower and DiDE: one row per image, with the encoded image and all its texts.

Tables are memory-mapped: an image is read when it is asked for, and processes share the pages. Only texts are copied.
pyarrow is imported when a table is opened: `pip install -e '.[arrow]'`.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.data.answers import fold, kind
from jaxvl.data.images import decode
from jaxvl.data.records import DataError, Parsed, Paths, Records, Row, as_paths, options, report_dropped
from jaxvl.data.sentences.labels import ENTAILMENT, NO_AGREEMENT, TRUTH, check_order
from jaxvl.data.sentences.nlvr2 import pair_of, sets_of
from jaxvl.data.sentences.snli_ve import photograph

COLUMNS = {
    "captions": ("image", "caption"),
    "vqa": ("image", "questions", "question_id"),
    "nlvr2": ("image_0", "image_1", "questions", "answers"),
    "snli": ("image",),
}
TEXTS = {
    "captions": ("caption", "image_id"),
    "vqa": ("questions", "question_id", "answers", "answer_scores", "image_id", "split"),
    "nlvr2": ("questions", "answers", "identifier"),
    "snli": ("sentences", "labels", "questions", "answers", "identifier"),
}
_SHARDS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015"}
logger = logging.getLogger(__name__)


class ArrowRecords(Records):
    """Rows of `parse_arrow` with the images of their tables.

    Args:
      dropped: rows that were left out, by reason; the attribute `dropped`.
      check, holdout: see `Records`.
    """

    def __init__(
        self,
        parsed: Parsed,
        *,
        dropped: Mapping[str, int],
        check: Sequence[str] = (),
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        self._tables = [Table(file) for file in parsed.files]
        self.dropped = dict(dropped)
        super().__init__(parsed, (), check=check, holdout=holdout)

    def annotation(self, i: int) -> dict[str, Any]:
        """Strings and truth of example `i`."""
        found = super().annotation(i)
        if "scores" in found:
            targets: dict[str, float] = {}
            for answer, score in found["scores"].items():
                targets[fold(answer)] = max(score, targets.get(fold(answer), 0.0))
            targets.pop("", None)
            found.update(targets=targets, answer_type=kind(targets))
        return found

    def image(self, i: int) -> np.ndarray:
        """`[H, W, 3]` uint8 RGB; raises `ImageError` naming table and row."""
        return self._picture(i, 0)

    def image2(self, i: int) -> np.ndarray:
        """The second image of NLVR2."""
        return self._picture(i, 1)

    def has_image(self, i: int) -> bool:
        """True: a table holds its images."""
        return 0 <= i < len(self)

    has_image2 = has_image

    def require_answers(self) -> None:
        """Raise `DataError` if no question has an answer (a test table); single ones without have weight 0."""
        if len(self) and not any(self.annotation(i).get("targets", True) for i in range(len(self))):
            raise DataError(
                f"{', '.join(self.files)}: no question has an answer: test tables are predicted, not trained on"
            )

    def _picture(self, i: int, which: int) -> np.ndarray:
        found = super().annotation(i)
        table, row = self._tables[found["table"]], found["row"]
        column = f"image_{which}" if "image2" in found else "image"
        return decode(table.image(column, row), name=f"{table.path}, row {row + 1}, column '{column}'")


class ViltArrow(ArrowRecords):
    """Arrow IPC files as ViLT's scripts write them, and BridgeTower's and DiDE's variants.

    | kind | tables | record |
    |---|---|---|
    | captions | `coco_caption_karpathy_*`, `f30k_*`, `conceptual_caption_*`, `sbu_*`, `vg` | `captions` |
    | vqa | `vqav2_*`, BridgeTower's `*_fix` | `question`, `scores` and `targets` {answer: score}, `question_id` |
    | nlvr2 | `nlvr2_*` | `sentence`, `label`, `image2`, `sentence_group` |
    | snli | BridgeTower's `snli_*` (sentences, labels), DiDE's `snli_ve_*` (questions, answers) | `sentence`, `label` |

    Each text is an example of its own; repeated captions of an image count once, in the order of the table.

    Args:
      files: one table or several; `sbu_{0..8}.arrow` stands for nine. All must exist.
      kind: see above; None = told by the columns.
      rows: "caption", or "image" = one example per image and a random one of its captions per visit.
      label_order: what the integers of a column `labels` mean; None = contradiction, neutral, entailment (BridgeTower).
        Labels that are strings need no order.
      unanswered: "keep" or "drop" questions without a scored answer; ViLT's own tables leave them out of train and val.
      allow_missing: leave out tables that do not exist, with a warning.
      holdout: see `Records`.

    Attributes:
      dropped: rows that were left out, by reason.
    """

    def __init__(
        self,
        files: Paths,
        *,
        kind: str | None = None,
        rows: str = "caption",
        label_order: Sequence[str] | None = None,
        unanswered: str = "keep",
        allow_missing: bool = False,
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        parsed, dropped = parse_arrow(
            files,
            kind=kind,
            rows=rows,
            label_order=label_order,
            unanswered=unanswered,
            allow_missing=allow_missing,
        )
        report_dropped(parsed, dropped)
        check = [*parsed.files, *options(format="vilt_arrow", kind=kind, label_order=label_order)]
        super().__init__(parsed.require_valid(), dropped=dropped, check=check, holdout=holdout)


class Table:
    """One memory-mapped table, opened once per process; can be pickled."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._pid = -1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    @property
    def data(self) -> Any:
        """The `pyarrow.Table`; raises `DataError` if the file is no Arrow file."""
        with self._lock:
            if self._pid != os.getpid():
                self._data, self._pid = _open(self.path), os.getpid()
        return self._data

    def image(self, column: str, row: int) -> bytes:
        """The encoded image of a row; empty if it is null."""
        return self.data[column][row].as_py() or b""

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The given columns of each row, a few thousand at a time; images are not read."""
        for batch in self.data.select(list(columns)).to_batches(max_chunksize=4096):
            yield from batch.to_pylist()


def parse_arrow(
    files: Paths,
    *,
    kind: str | None = None,
    rows: str = "caption",
    label_order: Sequence[str] | None = None,
    unanswered: str = "keep",
    allow_missing: bool = False,
) -> tuple[Parsed, Counter[str]]:
    """All texts of the tables with problems, and how many were left out, by reason."""
    for name, value, known in (
        ("rows", rows, ("caption", "image")),
        ("unanswered", unanswered, ("keep", "drop")),
        ("kind", kind, (None, *COLUMNS)),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} is none of {', '.join(map(str, known))}")
    check_order(label_order)
    reader = _Rows(Parsed(_paths(files, allow_missing)), rows, tuple(label_order or ENTAILMENT), unanswered)
    for number, file in enumerate(reader.parsed.files):
        table = Table(file)
        columns = table.data.column_names
        found = kind or detect_kind(file, columns)
        lacking = [column for column in COLUMNS[found] if column not in columns]
        if lacking:
            raise DataError(
                f"{file}: no column {', '.join(lacking)} (it has {', '.join(columns)}). A table of kind={found!r} "
                f"needs {', '.join(COLUMNS[found])}."
            )
        texts = [column for column in TEXTS[found] if column in columns]
        take = getattr(reader, found)
        for place, data in enumerate(table.rows(texts)):
            row = Row(reader.parsed, file, place + 1, data, {})
            take(row, {"table": number, "row": place}, Path(file).stem)
    return reader.parsed, reader.dropped


def detect_kind(file: str, columns: Sequence[str]) -> str:
    """The kind of a table with these columns; `DataError` if it is none that is read here."""
    has = set(columns)
    if {"image_0", "image_1"} <= has:
        return "nlvr2"
    if "caption" in has:
        return "captions"
    if "question_id" in has:
        return "vqa"
    if {"sentences", "labels"} <= has or {"questions", "answers"} <= has:
        return "snli"
    raise DataError(
        f"{file}: columns {', '.join(columns)} are those of no table that is read here: captions have caption, VQA v2 "
        "questions and question_id, NLVR2 image_0 and image_1, SNLI-VE sentences and labels or questions and answers."
    )


class _Rows:
    """One method per kind: the rows of a table as records."""

    def __init__(self, parsed: Parsed, rows: str, order: tuple[str, ...], unanswered: str) -> None:
        self.parsed, self.each, self.order, self.unanswered = parsed, rows, order, unanswered
        self.dropped: Counter[str] = Counter()
        self._numbers: dict[str, int] = {}

    def captions(self, row: Row, at: dict[str, int], table: str) -> None:
        """Keep an image with all its captions, or with each alone."""
        texts = _strings(row, "caption")
        if texts is None:
            return
        texts = [text for text in dict.fromkeys(texts) if text.strip()]
        if not texts:
            self.dropped["an image without captions"] += 1
            return
        given = row.get("image_id")
        image = f"{table}/{row.number}" if given is None else str(given)
        collection = re.sub(r"_?\d+$", "", table)  # names are unique within a collection only
        for part in [texts] if self.each == "image" else [[text] for text in texts]:
            self._add({"image": image, "captions": part, **at}, row, image_id=f"{collection}/{image}")

    def vqa(self, row: Row, at: dict[str, int], table: str) -> None:
        """Keep each question about the image, with its answers."""
        questions, ids = _strings(row, "questions"), row.get("question_id")
        if questions is None or not _parallel(row, len(questions), "question_id", ids):
            return
        nothing: list[list[Any]] = [[]] * len(questions)  # test tables have empty columns
        answers, scores = row.get("answers") or nothing, row.get("answer_scores") or nothing
        if not _parallel(row, len(questions), "answers", answers) or not _parallel(
            row, len(questions), "answer_scores", scores
        ):
            return
        image_id = row.get("image_id")
        split = _YEARS.get(str(row.get("split")))
        image = f"{table}/{row.number}" if image_id is None else str(image_id)
        if split is not None and isinstance(image_id, int):
            image = f"{split}/COCO_{split}_{image_id:012d}.jpg"
        for question, question_id, said, score in zip(questions, ids, answers, scores, strict=True):
            said, score = said or [], score or []
            if not _parallel(row, len(said), "answer_scores", score):
                continue
            if not said and self.unanswered == "drop":
                self.dropped["a question without a scored answer"] += 1
                continue
            record = {
                "image": image,
                "question": question,
                "scores": dict(zip(said, score, strict=True)),
                "question_id": question_id,
                **at,
            }
            self._add(record, row, image_id=image if image_id is None else image_id)

    def nlvr2(self, row: Row, at: dict[str, int], table: str) -> None:
        """Keep each sentence about the two images, with its truth."""
        sentences, answers = _strings(row, "questions"), _strings(row, "answers")
        if sentences is None or not _parallel(row, len(sentences), "answers", answers):
            return
        identifier = str(row.get("identifier") or f"{table}/{row.number}")
        sets = sets_of(identifier)
        pair, of_set = sets if sets is not None else (identifier, identifier)
        images = pair_of(pair, None)
        numbers = [self._numbers.setdefault(image, len(self._numbers)) for image in images]
        for sentence, answer in zip(sentences, answers or (), strict=True):
            if answer not in TRUTH:
                row.bad("answers", f"holds {answer!r}", 'Write "True" or "False".')
                continue
            label = TRUTH.index(answer)
            record = self._sentence(images[0], sentence, label, TRUTH, at)
            record.update(image2=images[1], image2_id=numbers[1], sentence_group=f"{of_set} {sentence}")
            self._add(record, row, image_id=numbers[0], held_with=of_set)

    def snli(self, row: Row, at: dict[str, int], table: str) -> None:
        """Keep each hypothesis about the image, with its label."""
        if row.has("sentences"):
            pairs, labels = row.get("sentences"), row.get("labels")
            if any(len(pair) != 2 for pair in pairs):
                row.bad("sentences", "holds no pairs", "Write [premise, hypothesis] for each label.")
                return
            sentences: list[str] | None = [pair[1] for pair in pairs]
        else:
            sentences, labels = _strings(row, "questions"), row.get("answers")
        if sentences is None or not _parallel(row, len(sentences), "labels", labels):
            return
        given = row.get("identifier")
        image = f"{table}/{row.number}" if given is None else photograph(str(given))
        for sentence, label in zip(sentences, labels, strict=True):
            name = self.order[label] if isinstance(label, int) and 0 <= label < 3 else label
            if name in (NO_AGREEMENT, -1):
                self.dropped["a label without agreement"] += 1
            elif name not in ENTAILMENT:
                row.bad("labels", f"holds {label!r}", f"Write {', '.join(ENTAILMENT)} or 0 to 2.")
            else:
                record = self._sentence(image, sentence, ENTAILMENT.index(name), ENTAILMENT, at)
                self._add(record, row, image_id=image)

    def _sentence(
        self, image: str, sentence: str, label: int, names: Sequence[str], at: dict[str, int]
    ) -> dict[str, Any]:
        known = {"sentence_id": len(self.parsed.packed), "label": label, "label_name": names[label]}
        return {"image": image, "sentence": sentence, **known, **at}

    def _add(
        self, record: dict[str, Any], row: Row, *, image_id: Hashable, held_with: str | None = None
    ) -> None:
        self.parsed.add(record, row=row.number, image_id=image_id)
        if held_with is not None:
            self.parsed.images[-1] = held_with


def _strings(row: Row, name: str) -> list[str] | None:
    value = row.get(name)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return value
    row.bad(name, "is not a list of strings", "Write the table again: each row lists its texts.")
    return None


def _parallel(row: Row, length: int, name: str, values: Any) -> bool:
    if isinstance(values, list) and len(values) == length:
        return True
    held = f"has {len(values)} entries" if isinstance(values, list) else "is missing"
    row.bad(name, f"{held} for {length} texts", "Write the table again: the lists of a row belong together.")
    return False


def _paths(files: Paths, allow_missing: bool) -> list[str]:
    given = [files] if isinstance(files, (str, Path)) else list(files)
    paths: list[str] = []
    for name in map(str, given):
        shards = _SHARDS.search(name)
        numbers = range(int(shards[1]), int(shards[2]) + 1) if shards else ()
        paths += [_SHARDS.sub(str(k), name, count=1) for k in numbers] if shards else [name]
    if not allow_missing:
        return as_paths(paths)
    there = [path for path in paths if Path(path).expanduser().is_file()]
    if len(there) < len(paths):
        absent = [path for path in paths if path not in there]
        logger.warning("%d of %d tables are missing: %s", len(absent), len(paths), ", ".join(absent))
    return as_paths(there or paths)


def _open(path: str) -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise ImportError(f"{path}: reading Arrow tables needs pyarrow: pip install -e '.[arrow]'") from error
    try:
        return pa.ipc.open_file(pa.memory_map(path)).read_all()
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path}: not an Arrow IPC file ({error}). ViLT's scripts write one with pa.RecordBatchFileWriter; a "
            "stream (pa.RecordBatchStreamWriter) or a Parquet file is another format."
        ) from error
