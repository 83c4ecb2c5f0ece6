"""What a file of labels says, before it is checked against a batch: an entry for each image and line.

Every format (`labels`, `vqa_json`, `labelstudio`) parses into these; what is wrong becomes a line of `Problems`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jaxvl.active.report.balance import consensus

KINDS = ("yes/no", "number", "other")
STATUS = ("ok", "skip", "bad_image")
CONFIDENCE = ("yes", "maybe", "no")
LONGEST = 1_000  # characters of a question or an answer


class Given(NamedTuple):
    """One person's answer; None where the file does not say."""

    answer: str
    annotator: str | None = None
    seconds: float | None = None
    confidence: str | None = None


class Asked(NamedTuple):
    """A question of an image with its answers; None where the file does not say."""

    question: str
    answers: Sequence[Given]
    answer_type: str | None = None
    question_id: int | None = None
    question_type: str | None = None


class Entry(NamedTuple):
    """What one place of a file says of an image, or of a question that went out; its `file_name` if it says so."""

    where: str
    image_id: int
    status: str
    asked: Sequence[Asked]
    file_name: str | None = None
    question_id: int | None = None


@dataclass
class Problems:
    """Lines that say what is wrong in a file: where, which field, what, and what to do."""

    file: str
    lines: list[str] = field(default_factory=list)

    def add(self, where: str, name: str, what: str, fix: str) -> None:
        """Note a problem."""
        place = f"{where}, " if where else ""
        self.lines.append(f"{self.file}, {place}field {name!r}: {what}. {fix}")


class Fields:
    """The fields of one JSON object; a wrong one is noted and None is returned."""

    def __init__(self, data: Mapping[str, Any], where: str, problems: Problems, path: str = ""):
        self.data, self.where, self.problems, self.path = data, where, problems, path

    def bad(self, name: str, what: str, fix: str) -> None:
        """Note a problem of a field."""
        self.problems.add(self.where, self.path + name, what, fix)

    def text(self, name: str, *, needed: bool = True) -> str | None:
        """A string that is not blank, with single spaces."""
        value = self.data.get(name)
        if value is None and not needed:
            return None
        if not isinstance(value, str) or not value.strip():
            self.bad(name, f"is {_shown(value)}", 'Write a text in quotes, e.g. "2".')
            return None
        if len(value) > LONGEST:
            self.bad(name, f"has {len(value)} characters", f"At most {LONGEST} make sense.")
            return None
        return " ".join(value.split())

    def integer(self, name: str, *, needed: bool = True) -> int | None:
        """An integer, not negative."""
        value = self.data.get(name)
        if value is None and not needed:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            self.bad(name, f"is {_shown(value)}", "Write the integer that the batch has.")
            return None
        return value

    def one_of(self, name: str, known: Sequence[str], default: str | None = None) -> str | None:
        """One of these strings, or the default if the field is absent."""
        value = self.data.get(name, default)
        if value is not None and value not in known:
            self.bad(name, f"is {_shown(value)}", f"Write one of {', '.join(known)}, or leave it out.")
            return None
        return value

    def seconds(self, name: str = "seconds") -> float | None:
        """A finite number of seconds, not negative; absent is None."""
        value = self.data.get(name)
        if value is None:
            return None
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            self.bad(name, f"is {_shown(value)}", "Write seconds as a number, or leave it out.")
            return None
        return float(value)

    def rows(self, name: str, *, empty: bool = False) -> list[Any]:
        """A list; noted if it is not one, or empty without `empty`."""
        value = self.data.get(name)
        if not isinstance(value, list) or not (value or empty):
            self.bad(name, f"is {_shown(value)}", "Write a list [...] with at least one element.")
            return []
        return value


def given(value: Any, where: str, problems: Problems, path: str) -> Given | None:
    """An answer: `{"answer", "annotator", "seconds", "answer_confidence"}` or the text alone; None if it is wrong."""
    before = len(problems.lines)
    data = {"answer": value} if isinstance(value, str) else value
    if not isinstance(data, Mapping):
        problems.add(where, path, f"is {_shown(value)}", 'Write {"answer": "yes"} or "yes".')
        return None
    fields = Fields(data, where, problems, path + ".")
    annotator = data.get("annotator")
    if annotator is not None and (not isinstance(annotator, (str, int)) or isinstance(annotator, bool)):
        fields.bad("annotator", f"is {_shown(annotator)}", "Write a name or a number.")
    elif "#" in str(annotator):
        fields.bad(
            "annotator", f"is {_shown(annotator)}", "Leave out #: it numbers several answers of one person."
        )
    answer, seconds = fields.text("answer"), fields.seconds()
    confidence = fields.one_of("answer_confidence", CONFIDENCE)
    if answer is None or len(problems.lines) > before:
        return None
    return Given(answer, None if annotator is None else str(annotator), seconds, confidence)


def parse_json(text: str, problems: Problems, where: str = "") -> Any:
    """The value of a JSON text; None, with a problem noted, if it is not JSON or nested too deeply."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where or f"line {error.lineno}"
        problems.add(place, "-", f"is not JSON: {error.msg} (column {error.colno})", "Export the file again.")
    except RecursionError:
        problems.add(where, "-", "is nested too deeply", "Labels have five levels.")
    except ValueError as error:  # a number with thousands of digits
        problems.add(where or "the file", "-", f"cannot be read: {error}", "Write numbers of sensible size.")
    return None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
      ValueError: it is not UTF-8; names the line.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: is not UTF-8; save it as UTF-8 text") from error


def answer_type(answers: Sequence[str]) -> str:
    """Kind of the consensus in normal form: "yes/no", "number" (`2`, `1.5`, `1,000`) or "other"."""
    best = consensus(answers)
    if best in ("yes", "no"):
        return "yes/no"
    digits = best.replace(",", "").replace(".", "", 1).removeprefix("-")
    return "number" if digits.isascii() and digits.isdigit() else "other"


def majority_type(types: Sequence[str | None], answers: Sequence[str]) -> str:
    """The type that is given, if all that are given agree; else that of the consensus answer."""
    found = Counter(t for t in types if t is not None)
    return next(iter(found)) if len(found) == 1 else answer_type(answers)


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
