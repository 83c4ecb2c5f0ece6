"""The report of a table: ours with intervals beside the paper's numbers, what holds of its orderings, every cell."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxvl import config as cfg
from jaxvl.display import duration, table
from jaxvl.reproduce.jobs import Cell
from jaxvl.reproduce.statistics import Estimate, estimate, paired, ratio, verdict
from jaxvl.reproduce.store import Store
from jaxvl.reproduce.tables import Column, Kept, Row, Table

CSV = (
    "table", "scale", "data", "row", "column", "seed", "value", "status", "seconds", "seconds_of_all_stages", "commit",
    "command",
)  # fmt: skip
NEVER = (
    "Ours and the paper's numbers come from different data, sizes and training: they are not comparable. Only "
    "orderings within one column are."
)


PAIRED = (
    "Paired by seed: the mean difference with its 95 % t interval. Shown: the whole interval is above 0. Intervals are "
    "not widened for the number of orderings."
)


class Found(NamedTuple):
    """What a cell came to: `value` is None unless `status` is "finished"."""

    cell: Cell
    value: float | None
    status: str
    seconds: float | None
    total: float | None
    commit: str
    command: str


def collect(cells: Iterable[Cell], store: Store) -> list[Found]:
    """The state of every cell, from the files of its jobs."""
    return [_found(cell, store) for cell in cells]


def _found(cell: Cell, store: Store) -> Found:
    if cell.job is None:
        return Found(cell, None, cell.reason, None, None, "", "")
    jobs = [*cell.job.before(), cell.job]
    records = [store.record(job) for job in jobs]
    commits = ", ".join(dict.fromkeys(c for record in records for c in record.get("commits", [])))
    commands = " && ".join(record["command"] for record in records if record)
    result = store.result(cell.job)
    if result is None:
        failed = [(job, store.failure(job)) for job in jobs]
        status = next((f"failed: {job.stage}: {error}" for job, error in failed if error), "not run")
        return Found(cell, None, status, None, None, commits, commands)
    value, status = result["metrics"].get(cell.metric), "finished"
    if value is None:
        status = f"failed: no metric {cell.metric!r}, there are: {', '.join(result['metrics'])}"
    elif not math.isfinite(value):
        value, status = None, f"failed: {cell.metric} is {value}"
    times = [store.seconds(job) for job in jobs]
    return Found(cell, value, status, times[-1], round(sum(t or 0.0 for t in times), 1), commits, commands)


def scores(found: Iterable[Found], row: str, column: str) -> dict[int, float]:
    """Seed -> value of the finished cells of a row and a column."""
    return {
        f.cell.seed: f.value
        for f in found
        if f.value is not None and (f.cell.row, f.cell.column) == (row, column)
    }


def lines(spec: Table, found: Sequence[Found]) -> tuple[list[str], list[list[str]]]:
    """(columns, cells) of the main table: each score of ours, its number of seeds, then the paper's."""
    head, body = [""], [[row.label] for row in spec.rows]
    at = 0
    for column in spec.columns:
        head += [f"ours: {column.title}", "n", *(f"paper: {name}" for name in column.paper)]
        for row, line in zip(spec.rows, body, strict=True):
            values = list(scores(found, row.label, column.name).values())
            line += [estimate(values).text() if values else "-", str(len(values)) if values else "-"]
            line += [_printed(x) for x in row.paper[at : at + len(column.paper)]]
        at += len(column.paper)
    return head, body


def _printed(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def orderings(spec: Table, found: Sequence[Found]) -> list[str]:
    """One line for each claimed ordering and column: the paired difference, its interval and whether it holds."""
    out = []
    for claim in spec.claims:
        for column in spec.columns:
            better, worse = (scores(found, label, column.name) for label in (claim.better, claim.worse))
            head = f"{claim.better} > {claim.worse}{_where(spec, column)}"
            out.append(f"{head}: {_said(paired(better, worse))}")
    for kept in spec.kept:
        out += [_kept(spec, kept, i, column, found) for i, column in enumerate(spec.columns)]
    return out


def _where(spec: Table, column: Column) -> str:
    return f" ({column.name})" if len(spec.columns) > 1 else ""


def _said(difference: Estimate | None) -> str:
    if difference is None:
        return "no data"
    return f"{difference.text(sign=True)}, {_seeds(difference.n)}: {verdict(difference)}"


def _seeds(n: int) -> str:
    return f"{n} seed{'s' if n > 1 else ''}"


def _kept(spec: Table, kept: Kept, i: int, column: Column, found: Sequence[Found]) -> str:
    ours, theirs = (scores(found, label, column.name) for label in (kept.row, kept.of))
    share = ratio(ours, theirs, scale=100.0)
    head = f"{kept.row} as a share of {kept.of}{_where(spec, column)}: "
    if share is None:
        return f"{head}no data (paper {kept.paper[i]:g} %)"
    return f"{head}{share.text(1)} %, {_seeds(share.n)} (paper {kept.paper[i]:g} %)"


def scored_on(config: cfg.ConfigDict, columns: Iterable[Column]) -> list[str]:
    """What the columns of ours are trained and scored on, from the config of a row."""
    out = []
    for column in columns:
        if column.stage in config.stages:
            section = config.stages[column.stage]
            parts = [
                f"{part}: {_reader(section[part])}" for part in ("train", "val") if section[part] is not None
            ]
            out.append(f"{column.title}: `{column.metric}` of stage `{column.stage}`; {'; '.join(parts)}")
    return out


def _reader(section: Mapping[str, object]) -> str:
    rest = {k: v for k, v in sorted(section.items()) if k != "name"}
    return f"{section['name']}({', '.join(f'{k}={cfg.to_dict(v)!r}' for k, v in rest.items())})"


def markdown(
    spec: Table, found: Sequence[Found], *, scale: str, data: str, on: Sequence[str], ended: str = ""
) -> str:
    """The report; the main table and the orderings are also printed.

    Args:
      found: from `collect`.
      scale, data: choices of the command line.
      on: from `scored_on`.
      ended: why the command ended before all cells were there.
    """
    where = f"scale `{scale}`, {spec.data[data].title}"
    title = f"{spec.name}: {spec.title} (ours: {where})"
    head, body = lines(spec, found)
    claims = orderings(spec, found)
    out = [
        table(title, head, body),
        f"Paper: {spec.source}. {NEVER}",
        "Ours: mean over seeds with a 95 % t interval (none for a single seed); n seeds; - where there is none.",
        bullets("What ours is scored on", on),
        bullets("Orderings that the paper claims", claims),
        PAIRED if claims else "",
        bullets("Notes", [*spec.notes, *row_notes(spec.rows)]),
        bullets("Cells without a value", problems(found)),
        f"Ended early: {ended}." if ended else "",
        cell_table(found),
    ]  # fmt: skip
    print("\n".join(claims))
    return "\n".join(part.rstrip("\n") + "\n" for part in out if part)


def bullets(title: str, items: Iterable[str]) -> str:
    """A list in Markdown under a heading; empty without items."""
    found = "\n".join(f"- {item}" for item in items)
    return found and f"### {title}\n\n{found}"


def row_notes(rows: Iterable[Row]) -> list[str]:
    """What is different about some rows."""
    return [f"{row.label}: {row.note}" for row in rows if row.note]


def problems(found: Iterable[Found]) -> list[str]:
    """Cells that were to be trained and have no value; those of one reason share a line."""
    grouped: dict[str, list[str]] = {}
    for f in found:
        if f.value is None and f.cell.job is not None:
            grouped.setdefault(f.status, []).append(f"{f.cell.row} {f.cell.column} seed {f.cell.seed}")
    return [f"{reason}: {'; '.join(names)}" for reason, names in grouped.items()]


def cell_table(found: Sequence[Found]) -> str:
    """Every cell that has a value, with its time, commit and the command of its last stage."""
    rows = [
        [
            f.cell.row, f.cell.column, str(f.cell.seed), "-" if f.value is None else f"{f.value:.2f}",
            "-" if f.seconds is None else duration(f.seconds), "-" if f.total is None else duration(f.total), f.commit,
            f"`{f.command.rsplit(' && ', 1)[-1]}`",
        ]
        for f in found
        if f.value is not None
    ]  # fmt: skip
    head = (
        "row",
        "column",
        "seed",
        "value",
        "time",
        "with all it builds on",
        "commit",
        "command of the last stage",
    )
    return table("Cells", head, rows, file=io.StringIO()) if rows else ""


def write_csv(path: Path, spec: Table, found: Iterable[Found], *, scale: str, data: str) -> None:
    """All cells, one a line; a missing value is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV)
    for f in found:
        writer.writerow(
            [
                spec.name,
                scale,
                data,
                f.cell.row,
                f.cell.column,
                f.cell.seed,
                f.value,
                f.status,
                f.seconds,
                f.total,
                f.commit,
                f.command,
            ]
        )
    write_text(path, text.getvalue())


def write_rows(path: Path, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
