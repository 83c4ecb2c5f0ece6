"""Tables whose cells are points of learning curves: methods x labelled shares, repeats as seeds.

All tables of a workdir and a scale share one workdir of launch/main.py, `<workdir>/active-<data>`, so that a method
is run once for all of them. The command resumes there as launch/main.py does, phase by phase.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvl.active.folder import RunFolder, runs_in
from jaxvl.config import ConfigError
from jaxvl.display import table as show
from jaxvl.reproduce.report import NEVER, PAIRED, bullets, write_rows, write_text
from jaxvl.reproduce.statistics import Repeats, estimate, paired, verdict
from jaxvl.reproduce.store import commit
from jaxvl.reproduce.tables import Claim, Data

Call = Callable[[list[str]], int]
NEAR = 0.005  # a labelled share is that of a column if it is this near


@dataclasses.dataclass(frozen=True)
class ActiveRow:
    """A method, and the numbers that the paper prints for it, from left to right."""

    label: str
    method: str
    paper: tuple[float | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class ActiveTable:
    """A table, or the points of a figure.

    Attributes:
      shares: labelled shares of the pool that are columns; a further one is the mean over all rounds after the first.
      paper: titles of the paper's columns.
      asked: title of the claims.
      overrides: dotted config paths for all methods, the same for all tables that share a workdir.
    """

    name: str
    title: str
    source: str
    rows: tuple[ActiveRow, ...]
    shares: tuple[float, ...]
    paper: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    asked: str = "Orderings that the paper claims"
    data: Mapping[str, Data] = dataclasses.field(default_factory=dict)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a table is run: where, at which scale, on what, for which repeats."""

    workdir: Path
    root: Path
    scale: str
    data: str
    repeats: tuple[int, ...]
    only: str | None = None


def fill(spec: ActiveTable, plan: Plan, *, report_only: bool = False, call: Call | None = None) -> Path:
    """Run what is missing, write the report.

    Returns:
      The Markdown file; the CSV file is beside it.

    Raises:
      ConfigError: unknown data, or launch/main.py ended with an error.
    """
    if plan.data not in spec.data:
        raise ConfigError(f"--data={plan.data}: {spec.name} can use {', '.join(spec.data)}")
    methods = [r.method for r in spec.rows if (plan.only or "").lower() in r.label.lower()]
    if not methods:
        raise ConfigError(
            f"--only={plan.only}: no row contains it; rows: {'; '.join(r.label for r in spec.rows)}"
        )
    ended = ""
    if not report_only:
        code = (call or run)(argv(spec, plan, methods))
        if code:
            ended = f"launch/main.py ended with code {code}; the same command goes on"
    path = write(spec, plan, ended)
    if ended:
        raise ConfigError(f"{ended}. Report of what is there: {path}")
    return path


def folder(plan: Plan) -> Path:
    """The workdir of launch/main.py that the tables share."""
    return plan.workdir / f"active-{plan.data}"


def argv(spec: ActiveTable, plan: Plan, methods: Sequence[str]) -> list[str]:
    """The command that runs these methods."""
    choice = spec.data[plan.data]
    arg = ",".join([*methods, f"scale={plan.scale}", *([choice.arg] if choice.arg else [])])
    more = {**spec.overrides, "active.only": plan.repeats}
    flags = [
        f"--config.{key}={value!r}" if not isinstance(value, str) else f"--config.{key}={value}"
        for key, value in more.items()
    ]
    main = [str(plan.root / "launch/main.py"), f"--config={plan.root / choice.config}:{arg}"]
    return [sys.executable, *main, f"--workdir={folder(plan)}", *flags]


def run(command: list[str]) -> int:
    """The exit code of a command that shows its output."""
    return subprocess.run(command, check=False).returncode


def write(spec: ActiveTable, plan: Plan, ended: str) -> Path:
    """Write the Markdown and the CSV file; the path of the former."""
    runs = runs_in(folder(plan)) if folder(plan).exists() else []
    runs = [r for r in runs if r.repeat in plan.repeats]
    path = plan.workdir / f"{spec.name.replace('/', '_')}.md"
    head = ["", *(f"ours: {name}" for name in columns(spec)), "n", *(f"paper: {t}" for t in spec.paper)]
    body = []
    for row in spec.rows:
        found = [points(spec, runs, row.method, name) for name in columns(spec)]
        cells = [estimate(list(p.values())).text() if p else "-" for p in found]
        count = str(max(map(len, found))) if any(found) else "-"
        body.append([row.label, *cells, count, *("-" if x is None else f"{x:.2f}" for x in row.paper)])
    title = f"{spec.name}: {spec.title} (ours: scale `{plan.scale}`, {spec.data[plan.data].title})"
    command = shlex.join(argv(spec, plan, [r.method for r in spec.rows])[1:])
    parts = [
        show(title, head, body), f"Paper: {spec.source}. {NEVER}",
        "Ours: percent, mean over repeats with a 95 % t interval; n repeats; - where there is none.",
        bullets(spec.asked, orderings(spec, runs)), PAIRED,
        bullets("How", [f"`python {command}`", f"commit {commit(plan.root)}", *costs(runs)]),
        bullets("Notes", list(spec.notes)), ended,
    ]  # fmt: skip
    write_text(path, "\n".join(p.rstrip("\n") + "\n" for p in parts if p))
    write_text(path.with_suffix(".csv"), cells_csv(spec, runs))
    print(f"report: {path}   cells: {path.with_suffix('.csv')}")
    return path


def columns(spec: ActiveTable) -> list[str]:
    """Names of our columns: shares in percent, and the mean over rounds."""
    return [*(f"{100 * share:g} %" for share in spec.shares), "mean"]


def points(spec: ActiveTable, runs: Sequence[RunFolder], method: str, column: str) -> Repeats:
    """Repeat -> accuracy of a method at a share, or the mean over all rounds after the first."""
    out = {}
    for one in runs:
        if one.method != method:
            continue
        curve = {m["round"]: (m["fraction"], m["acc"]["overall"]) for m in one.rounds if m["acc"]}
        if column == "mean":
            later = [acc for n, (_, acc) in curve.items() if n > 0]
            if later and one.position()[1] is None:
                out[one.repeat] = sum(later) / len(later)
            continue
        share = float(column.rstrip(" %")) / 100
        hit = [acc for fraction, acc in curve.values() if abs(fraction - share) < NEAR]
        if hit:
            out[one.repeat] = hit[0]
    return out


def orderings(spec: ActiveTable, runs: Sequence[RunFolder]) -> list[str]:
    """A line for each claimed ordering and column, but for those that say nothing of their own.

    Methods are the same at the share they all start from, and after one round the mean is that of the round.
    """
    method = {row.label: row.method for row in spec.rows}
    starts = [float(one.rounds[0]["fraction"]) for one in runs if one.rounds]
    *told, mean = [
        name
        for name, share in zip(columns(spec), (*spec.shares, None), strict=True)
        if share is None or all(abs(share - start) >= NEAR for start in starts)
    ]
    told += [mean] if not told or any(len(one.rounds) > 2 for one in runs) else []
    out = []
    for claim in spec.claims:
        for column in told:
            a, b = (points(spec, runs, method[label], column) for label in (claim.better, claim.worse))
            difference = paired(a, b)
            said = "no data"
            if difference is not None:
                said = f"{difference.text(sign=True)}, {difference.n} repeats: {verdict(difference)}"
            out.append(f"{claim.better} > {claim.worse} ({column}): {said}")
    return out


def costs(runs: Sequence[RunFolder]) -> list[str]:
    """How long the runs took, from their events."""
    seconds = sum(float(e.data.get("seconds", 0.0)) for r in runs for e in r.ledger.valid())
    return [f"{len(runs)} runs, {seconds / 60:.0f} min in their phases"] if runs else ["nothing was run yet"]


def cells_csv(spec: ActiveTable, runs: Sequence[RunFolder]) -> str:
    """A line for each method, column and repeat."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("table", "row", "method", "column", "repeat", "value"))
    for row in spec.rows:
        for column in columns(spec):
            for repeat, value in points(spec, runs, row.method, column).items():
                writer.writerow((spec.name, row.label, row.method, column, repeat, f"{value:.4f}"))
    return out.getvalue()


TIMES, TIMES_SCHEMA = "selection_times.json", "jaxvl.selection_times/1"


@dataclasses.dataclass(frozen=True)
class TimesTable:
    """Seconds of one selection: its cells are the rows of the file that `bench/pool_scoring.py --strategies` writes.

    Attributes:
      rows: methods with the seconds and the selected items a second that the paper prints.
    """

    name: str
    title: str
    source: str
    rows: tuple[ActiveRow, ...]
    notes: tuple[str, ...] = ()


def fill_times(spec: TimesTable, workdir: Path) -> Path:
    """Write the report from the bench's file in the workdir, with "-" where there is none; its path."""
    source = workdir / TIMES
    found = read_times(source) if source.exists() else None
    timed = {} if found is None else {row["strategy"]: row for row in found["rows"]}
    body = []
    for row in spec.rows:
        one = timed.get(row.method)
        ours = ["-"] * 6
        if one is not None:
            ours = [f"{one[k]:.3f}" for k in ("mean", "median", "min", "max")]
            ours += [f"{one['selected_per_second']:.1f}", f"{one['fit_seconds']:.1f}"]
        body.append([row.label, *ours, *("-" if x is None else f"{x:.2f}" for x in row.paper)])
    head = (
        "",
        "mean s",
        "median s",
        "min s",
        "max s",
        "selected/s",
        "fit s",
        "paper: s",
        "paper: selected/s",
    )
    how = f"no {source}: write it with `python bench/pool_scoring.py --strategies --out {source}`"
    if found is not None:
        on = found.get("machine", {})
        device = f"{on['platform']}, {on['threads']} threads of {on['cpu']}" if on else "unknown device"
        how = (
            f"ours: {found['selected']} of {found['pool']} images, scale `{found['scale']}`, {found['repetitions']} "
            f"repetitions after {found['warmup']} warm-up; {device}, commit "
            f"{found.get('commit', 'unknown')}"
        )
    parts = [
        show(f"{spec.name}: {spec.title}", head, body), f"Paper: {spec.source}. {NEVER}",
        bullets("Notes", [how, *spec.notes]),
    ]  # fmt: skip
    path = workdir / f"{spec.name.replace('/', '_')}.md"
    write_text(path, "\n".join(p.rstrip("\n") + "\n" for p in parts))
    write_rows(path.with_suffix(".csv"), head, body)
    print(f"{how}\nreport: {path}   cells: {path.with_suffix('.csv')}")
    return path


def read_times(path: Path) -> dict[str, Any]:
    """The bench's file.

    Raises:
      ConfigError: it is not such a file; names it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); run the bench again"
        ) from error
    if not isinstance(found, dict) or found.get("schema") != TIMES_SCHEMA:
        raise ConfigError(
            f"{path}: no file of selection times; write it with bench/pool_scoring.py --strategies"
        )
    return found
