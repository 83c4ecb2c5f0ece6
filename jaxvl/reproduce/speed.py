"""Tables of inference time: their cells are the rows of a file that bench/cached_inference.py writes.

The file is JSON:

    {"schema": "jaxvl.speed/1", "device": "2 cores of an AMD EPYC", "commit": "4f604bb", "command": "python bench/...",
     "sizes": {"width": 768, "depth": 12},
     "rows": [{"task": "vqa", "batch": 64, "mode": "both cached", "teacher_seconds": 1.31, "student_seconds": 0.43,
               "ratio": 3.05, "ratio_low": 2.98, "ratio_high": 3.11}]}

`task` names a row of the table (nlvr2, snli_ve, vqa); `mode` says what is cached and which tokens are computed; seconds
are of one batch, the median of the timed calls; the ratio is teacher / student with its 95 % bootstrap interval.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxvl.config import ConfigError

FILE = "cached_inference.json"
SCHEMA = "jaxvl.speed/1"
NUMBERS = ("batch", "teacher_seconds", "student_seconds", "ratio", "ratio_low", "ratio_high")


@dataclasses.dataclass(frozen=True)
class SpeedRow:
    """One task, with the seconds and the ratio that the paper prints."""

    task: str
    label: str
    teacher: float
    student: float
    ratio: float


@dataclasses.dataclass(frozen=True)
class SpeedTable:
    """A table whose cells are timed by the bench."""

    name: str
    title: str
    source: str
    rows: tuple[SpeedRow, ...]
    notes: tuple[str, ...] = ()


def read_speed(path: Path) -> dict[str, Any]:
    """The bench's file.

    Raises:
      ConfigError: not JSON, another schema, or a row without one of its fields; names the file, the row and the field.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ConfigError(f"{path}, line {e.lineno}: not valid JSON ({e.msg}); run the bench again") from e
    schema = found.get("schema") if isinstance(found, Mapping) else None
    if schema != SCHEMA:
        raise ConfigError(
            f"{path}: schema {schema!r}, expected {SCHEMA!r}; run the bench of this version again"
        )
    for i, row in enumerate(found.get("rows", [])):
        wrong = [k for k in NUMBERS if not isinstance(row.get(k), (int, float))]
        wrong += [k for k in ("task", "mode") if not isinstance(row.get(k), str)]
        if wrong:
            raise ConfigError(f"{path}, row {i}: {', '.join(wrong)} missing or of the wrong type")
    return dict(found)


def speed_lines(table: SpeedTable, found: Mapping[str, Any] | None) -> list[list[str]]:
    """Cells of the table: each of the paper's rows beside all rows of its task in the bench's file, or "-"."""
    out = []
    for row in table.rows:
        printed = [f"{row.teacher:g}", f"{row.student:g}", f"{row.ratio:g}"]
        timed = [r for r in (found or {}).get("rows", []) if r["task"] == row.task]
        out += [
            [
                row.label, r["mode"], str(r["batch"]), f"{r['teacher_seconds']:.4g}", f"{r['student_seconds']:.4g}",
                f"{r['ratio']:.2f} [{r['ratio_low']:.2f}, {r['ratio_high']:.2f}]", faster(r), *printed,
            ]
            for r in timed
        ]  # fmt: skip
        if not timed:
            out.append([row.label, *["-"] * 6, *printed])
    return out


def faster(row: Mapping[str, Any]) -> str:
    """What a ratio's interval says of the claim that the student is faster."""
    if row["ratio_low"] > 1:
        return "shown"
    return "reversed" if row["ratio_high"] < 1 else "not shown"


SPEED_COLUMNS = (
    "task", "ours: mode", "ours: batch", "ours: teacher, s a batch", "ours: student, s a batch",
    "ours: teacher / student", "faster", "paper: ViLT, s a split", "paper: ours, s a split", "paper: ratio",
)  # fmt: skip
