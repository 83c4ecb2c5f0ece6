"""What a run shows: its progress and its tables, drawn on a terminal, plain text elsewhere."""

from __future__ import annotations

import math
import numbers
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import jax
import numpy as np
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

RATE, WAIT = "examples_per_s", "data_wait_share"  # shown apart from the other scalars


class Progress:
    """How far a run is: a live display on a terminal, a plain line now and then elsewhere.

    Use as a context. `update` may be called at every step: it formats nothing until something is shown.
    """

    def __init__(
        self,
        stage: str,
        *,
        total: int,
        start: int = 0,
        every_seconds: float = 10.0,
        file: IO[str] | None = None,
    ):
        """Nothing is shown before the context is entered.

        Args:
          stage: name of the stage.
          total: its number of steps.
          start: the step that it resumes from.
          every_seconds: least time between two plain lines.
          file: where to show; default the terminal's stderr.
        """
        self.stage, self.total, self.start, self.step = stage, total, start, start
        self.every_seconds = every_seconds
        self.scalars: dict[str, float] = {}
        self._console = Console(file=file or sys.stderr, highlight=False, soft_wrap=True)
        self._shows = jax.process_index() == 0
        self._live: Live | None = None
        self._marks: list[tuple[float, int]] = []  # (time, step): the first after compilation, the last
        self._printed, self._printed_step = -math.inf, -1

    def __enter__(self) -> Progress:
        if self._shows and self._console.is_terminal:
            self._live = Live(
                console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._shows and self.step > self.start and self._printed_step != self.step:
            self._print()

    def update(self, step: int, scalars: Mapping[str, float] | None = None) -> None:
        """`step` is done; `scalars` replace those of the same names. `examples_per_s` and `data_wait_share` (0..1)
        have their own places in the display.
        """
        self.step = step
        now = time.monotonic()
        self._marks = [self._marks[0], (now, step)] if self._marks else [(now, step)]
        if scalars:
            self.scalars.update({k: host_number(k, v) for k, v in scalars.items()})
        due = step >= self.total or now - self._printed >= self.every_seconds
        if self._shows and self._live is None and due and self.scalars:
            self._printed = now
            self._print()

    def seconds_left(self) -> float | None:
        """Estimated from the steps after the first report, which holds the compilation; None before the second."""
        if len(self._marks) < 2 or self._marks[1][1] <= self._marks[0][1]:
            return None
        (t0, s0), (t1, s1) = self._marks
        return max(0.0, (t1 - t0) / (s1 - s0) * (self.total - s1) - (time.monotonic() - t1))

    def _facts(self) -> list[str]:
        """Examples a second, waiting, time left: what is known of them."""
        facts = []
        if RATE in self.scalars:
            facts.append(f"{self.scalars[RATE]:.4g} examples/s")
        if WAIT in self.scalars:
            facts.append(f"{self.scalars[WAIT]:.0%} waiting for data")
        left = self.seconds_left()
        if left is not None and self.step < self.total:
            facts.append(f"{duration(left)} left")
        return facts

    def _print(self) -> None:
        self._printed_step = self.step
        width = len(str(self.total))
        head = f"{self.stage}  {self.step:>{width}}/{self.total} ({self.step / max(self.total, 1):4.0%})"
        values = [f"{k} {number(v)}" for k, v in self.scalars.items() if k not in (RATE, WAIT)]
        self._console.print("  ".join([head, *values, *self._facts()]), markup=False, soft_wrap=True)

    def _render(self) -> Group:
        share = self.step / max(self.total, 1)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self.stage, style="bold"),
            ProgressBar(total=max(self.total, 1), completed=self.step, width=30),
            Text(f"{self.step}/{self.total}  {share:.0%}"),
            Text("  ".join(self._facts()) or "compiling", style="dim"),
        )
        names = [k for k in self.scalars if k not in (RATE, WAIT)]
        columns = max(1, min(4, self._console.width // 30))
        grid = Table.grid(padding=(0, 2))
        for i in range(0, len(names), columns):
            cells: list[Text] = []
            for name in names[i : i + columns]:
                cells += [Text(name, style="cyan"), Text(number(self.scalars[name]), justify="right")]
            grid.add_row(*cells)
        return Group(head, grid)


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    path: str | os.PathLike[str] | None = None,
    file: IO[str] | None = None,
) -> str:
    """Print a table (drawn on a terminal, aligned text elsewhere) and return it as Markdown.

    Args:
      title: heading.
      columns: names; a column whose cells are all numbers (or "-") is aligned to the right.
      rows: cells; floats are shown with four significant digits.
      path: file that the Markdown is appended to.
      file: where to print; default stdout.

    Raises:
      ValueError: a row has not as many cells as there are columns.
    """
    cells = [[x if isinstance(x, str) else number(x) for x in row] for row in rows]
    for i, row in enumerate(cells):
        if len(row) != len(columns):
            raise ValueError(
                f"table {title!r}, row {i} has {len(row)} cells for {len(columns)} columns: {row}"
            )
    right = [bool(cells) and all(_is_numeric(row[i]) for row in cells) for i in range(len(columns))]
    text = markdown(title, columns, cells, right)
    console = Console(file=file or sys.stdout, highlight=False, soft_wrap=True)
    if console.is_terminal:
        drawn = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for name, to_right in zip(columns, right, strict=True):
            drawn.add_column(name, justify="right" if to_right else "left")
        for row in cells:
            drawn.add_row(*map(Text, row))
        console.print(drawn, soft_wrap=False)
    else:
        console.print(_aligned(title, columns, cells, right), markup=False)
    if path is not None:
        with Path(path).open("a", encoding="utf-8") as f:
            f.write(text + "\n")
    return text


def markdown(
    title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]
) -> str:
    """The table in Markdown, heading included."""
    escaped = [[c.replace("|", "\\|") for c in row] for row in (list(columns), *cells)]
    rule = ["---:" if r else "---" for r in right]
    lines = [f"| {' | '.join(row)} |" for row in (escaped[0], rule, *escaped[1:])]
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def number(value: Any) -> str:
    """Four significant digits for floats, everything else as it is."""
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.4g}"
    return "-" if value is None else str(value)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`, `1 d 3 h`."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    if s < 86400:
        return f"{s // 3600} h {s % 3600 // 60:02d} min"
    return f"{s // 86400} d {s % 86400 // 3600} h"


def _aligned(
    title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool]
) -> str:
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        parts = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        return "  ".join(parts).rstrip()

    return "\n".join(["", title, line(columns), "  ".join("-" * w for w in widths), *map(line, cells), ""])


def _is_numeric(cell: str) -> bool:
    try:
        float(cell.rstrip("%"))
    except ValueError:
        return cell == "-"
    return True


def host_number(name: str, value: Any) -> float:
    """`value` as float; refuses device arrays, whose value the run would have to wait for."""
    if isinstance(value, numbers.Real) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return float(value)
    raise TypeError(
        f"scalar {name!r} is {type(value).__name__}; give a Python number (float(x) of a fetched value)"
    )
