"""The command: check the input, run what is missing, write the report."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvl.config import ConfigError, unknown
from jaxvl.display import table as show
from jaxvl.reproduce import active, bridge_tower, ccrl, probes
from jaxvl.reproduce.active import TIMES, ActiveTable, Plan, TimesTable, fill_times
from jaxvl.reproduce.jobs import Cell, cells, in_order, row_config
from jaxvl.reproduce.probes import ProbeTable
from jaxvl.reproduce.report import (
    NEVER,
    bullets,
    collect,
    markdown,
    scored_on,
    write_csv,
    write_rows,
    write_text,
)
from jaxvl.reproduce.runner import Execute, execute, run_jobs
from jaxvl.reproduce.speed import FILE, SPEED_COLUMNS, SpeedTable, read_speed, speed_lines
from jaxvl.reproduce.store import Store
from jaxvl.reproduce.tables import Table, select

Spec = Table | SpeedTable | ActiveTable | ProbeTable | TimesTable
TABLES: dict[str, Spec] = {t.name: t for t in (*bridge_tower.ALL, *ccrl.ALL)}


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of launch/reproduce.py.

    Attributes:
      workdir: of all tables of one scale, one kind of data and one commit.
      root: the repository.
      only: part of the label of the rows to run; None = all.
      budget_minutes: no job is started after that time; None = no limit.
      mix_commits: go on in a workdir whose cells were made by other code.
    """

    workdir: Path
    root: Path
    scale: str = "small"
    seeds: tuple[int, ...] = (0, 1, 2)
    data: str = "scenes"
    only: str | None = None
    report_only: bool = False
    budget_minutes: float | None = None
    mix_commits: bool = False


def seed_list(texts: Iterable[str]) -> tuple[int, ...]:
    """Seeds from the parts of a comma-separated flag.

    Raises:
      ConfigError: not all are distinct whole numbers from 0 on, or there are none.
    """
    texts = [t.strip() for t in texts]
    if not texts or not all(t.isdecimal() for t in texts) or len({int(t) for t in texts}) < len(texts):
        raise ConfigError(
            f"--seeds={','.join(texts)}: expected distinct whole numbers from 0 on, e.g. --seeds=0,1,2"
        )
    return tuple(int(t) for t in texts)


def find(name: str) -> Spec:
    """A table by name; an unknown one is reported with the closest.

    Raises:
      ConfigError: unknown.
    """
    if name not in TABLES:
        raise unknown("table", name, [*TABLES, "list"])
    return TABLES[name]


def list_tables(root: Path) -> None:
    """Print what can be reproduced, and on which data: those whose config file is there."""
    rows = []
    for t in TABLES.values():
        size, data = "timed by bench/cached_inference.py", "-"
        if isinstance(t, Table):
            size = f"{len(t.columns)} x {len(t.rows)}"
            data = ", ".join(name for name, choice in t.data.items() if (root / choice.config).exists())
        elif isinstance(t, TimesTable):
            size = "timed by bench/pool_scoring.py"
        elif isinstance(t, ProbeTable):
            size, data = f"{len(probes.COLUMNS)} x {len(t.rows)}", ", ".join(t.data)
        elif isinstance(t, ActiveTable):
            size, data = f"{len(t.shares)} x {len(t.rows)}", ", ".join(t.data)
        rows.append([t.name, t.title, size, data, t.source])
    show("Tables", ("--table", "", "columns x rows", "--data", "in the paper"), rows)


def reproduce(
    spec: Spec,
    options: Options,
    *,
    execute: Execute = execute,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Run the missing cells of a table and write its report; what is finished is not run again.

    Returns:
      The Markdown file; the CSV file is beside it.

    Raises:
      ConfigError: bad input, before any work, or code that changed during the run.
      SystemExit, KeyboardInterrupt: stopped; the report is written nevertheless.
    """
    if isinstance(spec, SpeedTable):
        sizes = ("--batch=1", "--batch=16")  # the paper's, and one at which launching does not decide
        measure(options, FILE, "cached_inference.py", *(f"--task={row.task}" for row in spec.rows), *sizes)
        return report_speed(spec, options.workdir)
    if isinstance(spec, TimesTable):
        measure(options, TIMES, "pool_scoring.py", "--strategies")
        return fill_times(spec, options.workdir.expanduser().absolute())
    if isinstance(spec, (ActiveTable, ProbeTable)):
        plan = Plan(
            options.workdir.expanduser().absolute(),
            options.root,
            options.scale,
            options.data,
            options.seeds,
            options.only,
        )
        if isinstance(spec, ProbeTable):
            return probes.fill(spec, plan, report_only=options.report_only)
        return active.fill(spec, plan, report_only=options.report_only)
    store = Store(options.workdir, options.root)
    wanted = {row.label for row in select(spec.rows, options.only)}
    every = cells(
        spec, spec.rows, seeds=options.seeds, root=options.root, data=options.data, scale=options.scale
    )
    store.check(scale=options.scale, data=options.data)
    if options.report_only:
        return report(spec, every, store, options)
    store.begin(scale=options.scale, data=options.data, mix=options.mix_commits)
    mine = [cell for cell in every if cell.row in wanted]
    budget = None if options.budget_minutes is None else 60 * options.budget_minutes
    metrics = {cell.job.name: cell.metric for cell in mine if cell.job is not None}
    jobs = in_order(mine)
    ended = "stopped"
    try:
        ended = run_jobs(
            jobs, store, labels=labels(mine), metrics=metrics, budget=budget, execute=execute, clock=clock
        )
    finally:
        path = report(spec, every, store, options, ended)
    return path


def labels(found: Sequence[Cell]) -> dict[str, str]:
    """What to call each job: its seed, the first row that needs it, how many share it, and its stage."""
    users: dict[str, list[str]] = {}
    jobs = {}
    for cell in found:
        for job in in_order([cell]):
            users.setdefault(job.name, []).append(cell.row)
            jobs[job.name] = job
    out = {}
    for name, rows in users.items():
        distinct = list(dict.fromkeys(rows))
        more = f" and {len(distinct) - 1} more" if len(distinct) > 1 else ""
        out[name] = f"seed {jobs[name].seed}  {distinct[0]}{more}: {jobs[name].stage}"
    return out


def report(spec: Table, every: Sequence[Cell], store: Store, options: Options, ended: str = "") -> Path:
    """Write the Markdown and the CSV file of a table; returns the former."""
    found = collect(every, store)
    trained = next((row for row in spec.rows if row.ablation is not None), None)
    on: list[str] = []
    if trained is not None:
        config, _, _ = row_config(spec, trained, root=options.root, data=options.data, scale=options.scale)
        on = scored_on(config, spec.columns)
    path = store.workdir / f"{spec.name.replace('/', '_')}.md"
    choice = dict(scale=options.scale, data=options.data)
    write_text(path, markdown(spec, found, **choice, on=on, ended=ended))
    write_csv(path.with_suffix(".csv"), spec, found, **choice)
    print(f"{ended + chr(10) if ended else ''}report: {path}   cells: {path.with_suffix('.csv')}")
    return path


def measure(options: Options, file: str, script: str, *flags: str) -> None:
    """Have a bench write its `file` in the workdir, unless it is there, or only a report is wanted.

    Raises:
      ConfigError: the bench fails.
    """
    out = options.workdir.expanduser().absolute() / file
    if out.exists() or options.report_only:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(options.root / "bench" / script), *flags, f"--out={out}"]
    print(f"measuring: {shlex.join(command)}", flush=True)
    if subprocess.run(command, cwd=options.root, check=False).returncode:
        raise ConfigError(f"bench/{script} failed; its message is above")


def report_speed(spec: SpeedTable, workdir: Path) -> Path:
    """Write the report of a table of times from the bench's file in the workdir, if there is one."""
    workdir = workdir.expanduser().absolute()
    source = workdir / FILE
    found: Mapping[str, Any] | None = read_speed(source) if source.exists() else None
    if found is None:
        measured = f"no {source}: write it with `python bench/cached_inference.py --out {source}`"
    else:
        known = {key: found.get(key, "unknown") for key in ("device", "commit", "command")}
        sizes = ", ".join(f"{k} {v}" for k, v in found.get("sizes", {}).items()) or "unknown"
        measured = f"ours: {known['device']}, commit {known['commit']}, `{known['command']}`; sizes: {sizes}"
    text = [
        show(f"{spec.name}: {spec.title}", SPEED_COLUMNS, speed_lines(spec, found)),
        f"Paper: {spec.source}. {NEVER.replace('data, sizes and training', 'machines and amounts of work')}",
        bullets("Notes", [measured, *spec.notes]),
    ]
    path = workdir / f"{spec.name.replace('/', '_')}.md"
    write_text(path, "\n".join(part.rstrip("\n") + "\n" for part in text))
    write_rows(path.with_suffix(".csv"), SPEED_COLUMNS, speed_lines(spec, found))
    print(f"{measured}\nreport: {path}   cells: {path.with_suffix('.csv')}")
    return path
