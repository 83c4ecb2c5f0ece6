"""What all file readers share: rows with checked fields, compact storage, images, and the split by image.

Annotations stay packed as JSON bytes: five million caption rows take well under a gigabyte, where the same rows as
Python dicts take several, once in each loader process.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import logging
import shlex
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from jaxvl.data.images import ImageStore

Paths = str | Path | Sequence[str | Path]
SHOWN = 5  # kinds of problems written out in an error; the rest is counted
INT32 = 2**31
SAVE_AS_UTF8 = "Save the file as UTF-8."
logger = logging.getLogger(__name__)


class DataError(ValueError):
    """A data file that cannot be used as it is; the message names file, rows, fields and fixes."""


@dataclass(frozen=True, slots=True)  # a test file has one for each of its half million rows without answers
class Problem:
    """One thing wrong in one row (rows count from 1; in JSON Lines they are lines)."""

    file: str
    row: int
    field: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, field '{self.field}': {self.what}. {self.fix}"


@dataclass(frozen=True)
class NotJson:
    """Stands for a line that is not JSON, so that the other lines are still looked at."""

    what: str
    fix: str


@dataclass
class Parsed:
    """Rows read so far: annotations packed as bytes, what identifies their images, and all problems met."""

    files: list[str]
    problems: list[Problem] = field(default_factory=list)
    seen: int = 0
    packed: list[bytes] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    image_ids: list[Hashable] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    # By position in `packed`: questions without answers, which are a problem only if they are trained on.
    unanswered: dict[int, Problem] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any], *, row: int, image_id: Hashable = None, root: int = 0) -> None:
        """Keep a good row; `record` must hold "image". `root` says which image store has it."""
        self.packed.append(json.dumps(record, ensure_ascii=False).encode())
        self.images.append(record["image"])
        self.image_ids.append(image_id)
        self.roots.append(root)
        self.lines.append(row)

    def require_valid(self) -> Parsed:
        """Raise one `DataError` that sums up all problems, or that there are no rows."""
        if self.problems:
            raise DataError(summary(self.problems, self.seen))
        if not self.packed:
            raise DataError(f"{', '.join(self.files)}: no rows")
        return self


def report_dropped(parsed: Parsed, dropped: Mapping[str, int]) -> None:
    """Log how many rows were left out and why, if any were."""
    if dropped:
        reasons = ", ".join(f"{n} for {reason}" for reason, n in dropped.items())
        logger.warning("%s: rows left out: %s", ", ".join(parsed.files), reasons)


def summary(problems: Sequence[Problem], rows: int) -> str:
    """All problems in a few lines: how many of which field, then the first of each kind in full."""
    bad = len({(p.file, p.row) for p in problems})
    fields = Counter(p.field for p in problems)
    parts = ", ".join(f"{n} in '{name}'" for name, n in fields.most_common())
    alike: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        alike.setdefault((problem.file, problem.field, problem.what), []).append(problem)
    lines = [f"{bad} of {rows} rows cannot be used ({parts}):"]
    for group in list(alike.values())[:SHOWN]:
        more = f" (and {len(group) - 1} more such rows)" if len(group) > 1 else ""
        lines.append(f"  {group[0]}{more}")
    if len(alike) > SHOWN:
        lines.append(f"  ... and {sum(map(len, list(alike.values())[SHOWN:]))} other problems")
    return "\n".join(lines)


class Row:
    """One row of a file; the getters note a problem and return None where a field is missing or of the wrong kind.

    Args:
      names: field -> names it may have in the file, the first one present and not null wins.
    """

    def __init__(
        self, parsed: Parsed, file: str, number: int, data: Any, names: Mapping[str, Sequence[str]]
    ) -> None:
        self.parsed, self.file, self.number, self.names = parsed, file, number, names
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        parsed.seen += 1
        self._start = len(parsed.problems)
        if isinstance(data, NotJson):
            self.bad("(row)", data.what, data.fix)
        elif not isinstance(data, dict):
            self.bad("(row)", f"is a {type(data).__name__}, not an object", "Write one {...} object a row.")

    @property
    def ok(self) -> bool:
        """True as long as no problem was noted in this row."""
        return len(self.parsed.problems) == self._start

    def bad(self, name: str, what: str, fix: str) -> None:
        """Note a problem of field `name`."""
        self.parsed.problems.append(Problem(self.file, self.number, name, what, fix))

    def has(self, name: str) -> bool:
        """True if the row gives `name` under one of its accepted names."""
        return self.get(name) is not None

    def get(self, name: str) -> Any:
        """The raw value of `name`, or None."""
        for key in self.names.get(name, (name,)):
            if self.data.get(key) is not None:
                return self.data[key]
        return None

    def string(self, name: str) -> str | None:
        """A string that is not blank."""
        value = self.get(name)
        if value is None:
            self._missing(name)
            return None
        if not isinstance(value, str) or not value.strip():
            what = "is empty" if isinstance(value, str) else f"is a {type(value).__name__}, not a string"
            self.bad(name, what, "Fill it in or remove the row.")
            return None
        return value

    def strings(self, name: str) -> list[str] | None:
        """One string, or a list of strings; at least one, none blank."""
        value = self.get(name)
        if value is None:
            self._missing(name)
            return None
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            self.bad(name, "is not a string or a list of strings", "Write a string or a list of strings.")
            return None
        if not values or not all(v.strip() for v in values):
            what = "holds an empty string" if values else "is an empty list"
            self.bad(name, what, "Remove the empty text or the row.")
            return None
        return values

    def integer(self, name: str) -> int | None:
        """An integer of 32 bits (strings of digits count), or None without a problem if the field is absent."""
        value = self.get(name)
        if isinstance(value, str) and value.lstrip("-").isdigit():
            value = int(value)
        if value is not None and not _is_int32(value):
            self.bad(name, f"is {value!r}, not an integer below 2^31", "Give each row an integer.")
            return None
        return value

    def _missing(self, name: str) -> None:
        if self.ok:
            problem = self.missing(name)
            self.bad(name, problem.what, problem.fix)

    def missing(self, name: str) -> Problem:
        """That `name` is not in this row, with the nearest name that is; the problem is not noted."""
        known = tuple(n for names in self.names.values() for n in names)
        what, fix = _absent(name, tuple(self.names.get(name, (name,))), known, tuple(self.data))
        return Problem(self.file, self.number, name, what, fix)


class Records:
    """A reader over parsed rows; see `jaxvl.data.source.Reader`.

    `annotation(i)["image_id"]` is the file's own where every row has an integer below 2^31, else images are
    numbered in order of appearance.

    Args:
      stores: the image stores that `Parsed.roots` counts.
      check: arguments of `python -m jaxvl.data check` for these files.
      holdout: `dict(share=0.2, part="train"|"held", by="image", seed=0)` keeps the part of the rows whose image
        falls, by a hash of its name, outside or inside a held-out share; a row's part depends on nothing else.
        `dict(last=1000, part=...)` holds out the rows of the last 1,000 images, in the order of the files instead.
    """

    def __init__(
        self,
        parsed: Parsed,
        stores: Sequence[ImageStore],
        *,
        check: Sequence[str] = (),
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        keep = _held(parsed.images, **holdout) if holdout is not None else np.arange(len(parsed.packed))
        if holdout is not None and not len(keep):
            raise DataError(f"{', '.join(parsed.files)}: holdout={dict(holdout)} keeps no row")
        self.files, self.stores = parsed.files, list(stores)
        self._check = list(check)
        self._ends = np.cumsum([len(parsed.packed[i]) for i in keep], dtype=np.int64)
        self._blob = b"".join(parsed.packed[i] for i in keep)
        self._image_ids = _image_ids(parsed)[keep]
        self._roots = np.asarray(parsed.roots, np.uint8)[keep]
        some = keep if parsed.unanswered else ()
        bare = [parsed.unanswered[int(i)] for i in some if int(i) in parsed.unanswered]
        self._unanswered = summary(bare, len(keep)) if bare else ""

    def __len__(self) -> int:
        return len(self._ends)

    def annotation(self, i: int) -> dict[str, Any]:
        """Strings and ragged truth of row `i`."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        start = self._ends[i - 1] if i else 0
        return {**json.loads(self._blob[start : self._ends[i]]), "image_id": int(self._image_ids[i])}

    def image(self, i: int) -> np.ndarray:
        """`[H, W, 3]` uint8 RGB; raises `ImageError` naming the file."""
        return self.stores[self._roots[i]].image(self.annotation(i)["image"])

    def has_image(self, i: int) -> bool:
        """True if the image file of row `i` exists; `AmbiguousImageError` if its key fits several files."""
        return self.stores[self._roots[i]].exists(self.annotation(i)["image"])

    def require_answers(self) -> None:
        """Raise `DataError` naming file, row and fix if questions have no answers: they cannot be trained on."""
        if self._unanswered:
            raise DataError(f"questions without answers can be predicted, not trained on: {self._unanswered}")

    @property
    def check_command(self) -> str:
        """The command that inspects these files and decodes their images."""
        if not self._check:
            return ""
        return shlex.join(["python", "-m", "jaxvl.data", "check", *self._check, "--decode", "all"])


def options(**given: Any) -> list[str]:
    """Command-line options of what is not None: `image_template="x"` -> `--image-template x`."""
    out: list[str] = []
    for name, value in given.items():
        if value is not None:
            out += ["--" + name.replace("_", "-"), *map(str, _as_list(value))]
    return out


def read_rows(path: str | Path) -> Iterator[tuple[int, Any]]:
    """`(row number from 1, value)` of a JSON list, or of JSON Lines (by the file's first character).

    The value of a line that is not JSON is a `NotJson`, which `Row` turns into a problem.
    """
    path = Path(as_paths(path)[0])
    with path.open("rb") as file:  # as bytes: a wrong encoding is reported with its line, below
        first = next((c for c in iter(lambda: file.read(1), b"") if not c.isspace()), b"")
    if first != b"[":
        yield from _read_lines(path)
        return
    yield from enumerate(read_json(path), start=1)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; a `DataError` names the file and the place."""
    path = Path(as_paths(path)[0])
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not valid JSON ({error}). Fetch or export the file again.") from error


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file; a `DataError` names the file and the line of what is not UTF-8."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: {_not_utf8(error)}. {SAVE_AS_UTF8}") from error


def as_paths(files: Paths) -> list[str]:
    """A path or a list of paths as a list of strings; all must exist, and the error names every one that does not."""
    paths = [str(Path(f).expanduser()) for f in _as_list(files)]
    if not paths:
        raise DataError("no annotation file is given: name one or several")
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        near = Path(missing[0]).parent
        names = [p.name for p in near.iterdir()] if near.is_dir() else []
        close = difflib.get_close_matches(Path(missing[0]).name, names, n=1)
        hint = f". Did you mean {near / close[0]}?" if close else ""
        raise FileNotFoundError(f"no such file: {', '.join(missing)}{hint}")
    return paths


@functools.lru_cache(maxsize=1024)  # the rows of a file are alike
def _absent(
    name: str, accepted: tuple[str, ...], known: tuple[str, ...], keys: tuple[str, ...]
) -> tuple[str, str]:
    names = " or ".join(f"'{n}'" for n in accepted)
    close = difflib.get_close_matches(name, [key for key in keys if key not in known], n=1, cutoff=0.7)
    hint = f" Did you mean '{close[0]}'? Then pass fields={{'{name}': '{close[0]}'}}." if close else ""
    return f"is missing (the row has {', '.join(keys) or 'nothing'})", f"Add {names}.{hint}"


def _as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, (str, Path)) or not isinstance(value, Sequence) else list(value)


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line.decode("utf-8").rstrip())
            except UnicodeDecodeError as error:
                yield number, NotJson(_not_utf8(error), SAVE_AS_UTF8)
            except json.JSONDecodeError as error:
                what = f"is not JSON: {error.msg} (line {number}, column {error.colno})"
                yield number, NotJson(what, "Write one {...} object a line.")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8: byte 0x{error.object[error.start]:02x} ({error.reason})"


def _is_int32(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and -INT32 <= value < INT32


def _image_ids(parsed: Parsed) -> np.ndarray:
    raw = parsed.image_ids
    if raw and all(_is_int32(value) and value >= 0 for value in raw):
        return np.asarray(raw, np.int32)
    places: dict[Hashable, int] = {}
    named = all(value is not None for value in raw)
    keys = raw if named else list(zip(parsed.roots, parsed.images, strict=True))
    return np.asarray([places.setdefault(key, len(places)) for key in keys], np.int32)


def _held(
    images: Sequence[str],
    *,
    part: str,
    share: float | None = None,
    last: int | None = None,
    by: str = "image",
    seed: int = 0,
) -> np.ndarray:
    if by != "image":
        raise ValueError(f"holdout: by={by!r} is not known; rows are split by 'image'")
    if part not in ("train", "held"):
        raise ValueError(f"holdout: part={part!r} must be 'train' or 'held'")
    if (share is None) == (last is None):
        raise ValueError(f"holdout: share={share}, last={last}: give one of them")
    if share is not None and not 0 < share < 1:
        raise ValueError(f"holdout: share={share} must lie between 0 and 1")
    names = list(dict.fromkeys(images))
    if last is not None and not 0 < last < len(names):
        raise ValueError(f"holdout: last={last} must lie between 0 and the {len(names)} images there are")
    ends = set(names[-last:]) if last is not None else None
    held = {n: _uniform(f"{seed}:{n}") < (share or 0.0) if ends is None else n in ends for n in names}
    return np.array([i for i, image in enumerate(images) if held[image] == (part == "held")], np.int64)


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
