"""The scalars of a run on disk; it only ever receives Python numbers.

    workdir/metrics.jsonl    one object a step: {"step": 20, "loss": 3.1, ...}
    workdir/metrics.csv      the same as a table; columns appear as their metrics do
    workdir/events/          the same for TensorBoard
    workdir/curves.png       the same as curves, drawn by `Log.plot`

Only process 0 writes. A file never holds wall-clock times of its own: a resumed run ends with the
files of an uninterrupted one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from jaxvl.display import Progress, host_number, table
from jaxvl.plots import curves

__all__ = ["Alarm", "Log", "Progress", "read_rows", "table"]


class Alarm:
    """Says on the standard error what a task's `alarm(scalars, share=)` says of a log's rows, if it has one: once.

    Args:
      task: of the stage; name: of the stage; steps: all its updates, of which a row has seen a share.
    """

    def __init__(self, task: Any, *, name: str, steps: int):
        self._alarm, self._name, self._steps = getattr(task, "alarm", None), name, steps

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        """Look at the scalars of a step."""
        said = self._alarm(scalars, share=step / max(1, self._steps)) if self._alarm else None
        if said is not None:
            print(f"{self._name}: warning: {said}", file=sys.stderr)
            self._alarm = None


class Log:
    """Scalars of one run, on disk as they arrive."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        append_from_step: int | None = None,
        watch: Callable[[int, Mapping[str, float]], None] | None = None,
    ):
        """Open the files of `workdir`.

        Args:
          workdir: created if absent.
          append_from_step: the step that the run resumes from; rows of later steps, and a row cut short by a
            kill, are dropped. None = start anew: all rows are dropped.
          watch: is shown every step's scalars as they are written.
        """
        self.directory, self._watch = Path(workdir), watch
        self.rows: list[dict[str, float]] = []
        self._columns: list[str] = []
        self._events: SummaryWriter | None = None
        self._writes = jax.process_index() == 0
        self._from = append_from_step
        if self._writes:
            self.directory.mkdir(parents=True, exist_ok=True)
            if append_from_step is not None:
                self.rows = [r for r in read_rows(self._jsonl) if r["step"] <= append_from_step]
            self._rewrite()

    @property
    def _jsonl(self) -> Path:
        return self.directory / "metrics.jsonl"

    @property
    def _csv(self) -> Path:
        return self.directory / "metrics.csv"

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add the scalars of a step; several calls for one step make one row, later values win.

        Raises:
          ValueError: `step` is before the last one written.
          TypeError: a value is not a number on the host (a device array would make the run wait).
        """
        values = {name: host_number(name, value) for name, value in scalars.items()}
        if not self._writes:
            return
        if self._watch is not None:
            self._watch(step, values)
        last = self.rows[-1] if self.rows else None
        if last and step < last["step"]:
            raise ValueError(
                f"{self._jsonl}: step {step} comes after step {last['step']:.0f}; steps must not decrease"
            )
        for name, value in values.items():
            self._tensorboard().add_scalar(name, value, step)
        if last and step == last["step"]:
            last.update(values)
            self._rewrite()
            return
        before = len(self._columns)
        self.rows.append({"step": step, **values})
        self._columns = _columns(self._columns, self.rows[-1])
        _append(self._jsonl, _json_line(self.rows[-1]))
        if len(self._columns) == before:
            _append(self._csv, _csv_lines(self._columns, self.rows[-1:]))
        else:
            _replace(self._csv, _csv_lines(self._columns, self.rows, header=True))

    def plot(self) -> None:
        """Draw `curves.png`; nothing if there are no rows yet."""
        if self._writes and self.rows:
            curves(self.rows, path=self.directory / "curves.png")

    def close(self) -> None:
        """Flush the TensorBoard events."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def _tensorboard(self) -> SummaryWriter:
        if self._events is None:
            purge = 0 if self._from is None else self._from + 1
            suffix = f".{time.time_ns()}"  # two runs within a second must not share a file
            self._events = SummaryWriter(
                str(self.directory / "events"), purge_step=purge, filename_suffix=suffix
            )
        return self._events

    def _rewrite(self) -> None:
        self._columns = ["step"]
        for row in self.rows:
            self._columns = _columns(self._columns, row)
        _replace(self._jsonl, "".join(map(_json_line, self.rows)))
        _replace(self._csv, _csv_lines(self._columns, self.rows, header=True))


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Rows of a `metrics.jsonl`, `[]` if absent; a last line cut short is left out. What was not finite is NaN.

    Raises:
      ValueError: another line is not JSON; names file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            if i + 1 < len(lines):
                raise ValueError(f"{path}, line {i + 1} is not JSON ({e}); delete that line") from e
            break
        rows.append({k: math.nan if v is None else v for k, v in row.items()})
    return rows


def _columns(columns: list[str], row: Mapping[str, float]) -> list[str]:
    return columns + [name for name in row if name not in columns]


def _json_line(row: Mapping[str, float]) -> str:
    finite = {k: v if math.isfinite(v) else None for k, v in row.items()}  # JSON has no NaN
    return json.dumps(finite, allow_nan=False) + "\n"


def _csv_lines(columns: Sequence[str], rows: Iterable[Mapping[str, float]], header: bool = False) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    if header:
        writer.writerow(columns)
    writer.writerows([row.get(name, "") for name in columns] for row in rows)
    return out.getvalue()


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as f:
        f.write(text)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
