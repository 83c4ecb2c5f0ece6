"""Tables of linear probes: rows are kinds of features, cells are trained in this process, one result file each.

All is in `<workdir>/probe-<data>`: results in `probe/`, trained models in `models/`. What is there is not run again.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxvl import run_probe
from jaxvl.config import ConfigError, unknown
from jaxvl.display import duration
from jaxvl.display import table as show
from jaxvl.reproduce.active import ActiveRow, Plan
from jaxvl.reproduce.jobs import load_config
from jaxvl.reproduce.report import NEVER, PAIRED, bullets, write_text
from jaxvl.reproduce.runner import sigterm_exits
from jaxvl.reproduce.statistics import Repeats, estimate, paired, verdict
from jaxvl.reproduce.store import commit
from jaxvl.reproduce.tables import Claim, Data
from jaxvl.run import enable_compilation_cache

COLUMNS = ("overall", "yes/no", "number", "other")
Found = dict[tuple[str, int], dict[str, Any]]  # (row, seed) -> result


@dataclasses.dataclass(frozen=True)
class ProbeTable:
    """A table of probes.

    Attributes:
      rows: `method` is a key of `run_probe.ROWS`; `paper` has a number for each of `COLUMNS`.
      caution: what must be read before the paper's numbers; it stands right below them.
    """

    name: str
    title: str
    source: str
    rows: tuple[ActiveRow, ...]
    data: Mapping[str, Data]
    claims: tuple[Claim, ...] = ()
    caution: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def fill(spec: ProbeTable, plan: Plan, *, report_only: bool = False) -> Path:
    """Run what is missing, write the report.

    Returns:
      The Markdown file; the CSV file is beside it.

    Raises:
      ConfigError, ValueError, FileNotFoundError: bad input, before any work.
      SystemExit: SIGTERM; the report is written, and the same command goes on.
    """
    if plan.data not in spec.data:
        raise unknown("data", plan.data, spec.data)
    rows = [r.method for r in spec.rows if (plan.only or "").lower() in r.label.lower()]
    if not rows:
        raise ConfigError(
            f"--only={plan.only}: no row contains it; rows: {'; '.join(r.label for r in spec.rows)}"
        )
    if report_only:
        return write(spec, plan)
    enable_compilation_cache()
    choice = spec.data[plan.data]
    arg = ",".join(["ccrl", f"scale={plan.scale}", *([choice.arg] if choice.arg else [])])
    config = load_config(plan.root, choice.config, arg)
    prober = run_probe.Prober(config, folder(plan))
    run_probe.begin(config, folder(plan))
    try:
        with sigterm_exits():
            for _ in run_probe.fill(prober, rows, plan.repeats, note={"commit": commit(plan.root)}):
                pass
    finally:
        path = write(spec, plan)
    return path


def folder(plan: Plan) -> Path:
    """Where results and models are."""
    return plan.workdir / f"probe-{plan.data}"


def results(spec: ProbeTable, plan: Plan) -> Found:
    """The results that are there."""
    out: Found = {}
    for row in spec.rows:
        for seed in plan.repeats:
            path = run_probe.path_of(folder(plan), row.method, seed)
            if path.exists():
                out[row.method, seed] = json.loads(path.read_text(encoding="utf-8"))
    return out


def write(spec: ProbeTable, plan: Plan) -> Path:
    """Write the Markdown and the CSV file; the path of the former."""
    found = results(spec, plan)
    path = plan.workdir / f"{spec.name.replace('/', '_')}.md"
    head = ["", *(f"ours: {c}" for c in COLUMNS), "n", *(f"paper: {c}" for c in COLUMNS)]
    title = f"{spec.name}: {spec.title} (ours: scale `{plan.scale}`, {spec.data[plan.data].title})"
    parts = [
        show(title, head, list(body(spec, found))),
        bullets("Before comparing with the paper", spec.caution), f"Paper: {spec.source}. {NEVER}",
        "Ours: percent, mean over seeds with a 95 % t interval (none for one seed); n seeds; - where there is none.",
        bullets("Rows that cannot be filled", lacking(spec, plan)),
        bullets("Orderings that the paper prints", orderings(spec, found)), PAIRED,
        bullets("How", how(plan, found)), bullets("Notes", spec.notes), show_cells(spec, found),
    ]  # fmt: skip
    write_text(path, "\n".join(p.rstrip("\n") + "\n" for p in parts if p))
    write_text(path.with_suffix(".csv"), cells_csv(spec, plan, found))
    print(f"report: {path}   cells: {path.with_suffix('.csv')}")
    return path


def body(spec: ProbeTable, found: Found) -> Iterator[list[str]]:
    """The lines of the main table."""
    for row in spec.rows:
        each = [list(points(found, row.method, c).values()) for c in COLUMNS]
        cells = [estimate(values).text() if values else "-" for values in each]
        count = str(max(map(len, each))) if any(each) else "-"
        yield [row.label, *cells, count, *("-" if x is None else f"{x:.2f}" for x in row.paper)]


def points(found: Found, row: str, column: str) -> Repeats:
    """Seed -> percent."""
    return {
        seed: one["accuracy"][column]
        for (r, seed), one in found.items()
        if r == row and column in one["accuracy"]
    }


def lacking(spec: ProbeTable, plan: Plan) -> list[str]:
    """A line for each row that needs a file of the user's."""
    reasons = {row.label: run_probe.unavailable(folder(plan), row.method) for row in spec.rows}
    return [f"{label}: {reason}" for label, reason in reasons.items() if reason]


def orderings(spec: ProbeTable, found: Found) -> list[str]:
    """A line for each ordering of the overall accuracy."""
    method, out = {row.label: row.method for row in spec.rows}, []
    for claim in spec.claims:
        a, b = (points(found, method[label], "overall") for label in (claim.better, claim.worse))
        difference = paired(a, b)
        said = "no data"
        if difference is not None:
            seeds = "1 seed" if difference.n == 1 else f"{difference.n} seeds"
            said = f"{difference.text(sign=True)}, {seeds}: {verdict(difference)}"
        out.append(f"{claim.better} > {claim.worse}: {said}")
    return out


def how(plan: Plan, found: Found) -> list[str]:
    """The command, the words, the time."""
    seeds = ",".join(map(str, plan.repeats))
    flags = f"--table=ccrl/3 --scale={plan.scale} --data={plan.data} --seeds={seeds} --workdir={plan.workdir}"
    out = [f"`python launch/reproduce.py {flags}`"]
    out += [f"G: {words}" for words in dict.fromkeys(one["words"] for one in found.values())]
    highest = sum(one["lr"] == max(map(float, one["tried"]), default=0.0) for one in found.values())
    if highest:
        out.append(
            f"the highest rate was chosen in {highest} of {len(found)} cells: more epochs may well help these"
        )
    seconds = sum(one["seconds"] for one in found.values())
    return [*out, f"{len(found)} cells, {duration(seconds)}" if found else "nothing was run yet"]


def show_cells(spec: ProbeTable, found: Found) -> str:
    """Every cell: the rate that was chosen, and what it was chosen by."""
    rows = []
    for row in spec.rows:
        for (method, seed), one in found.items():
            if method == row.method:
                tried = ", ".join(f"{lr}: {value:.2f}" for lr, value in one["tried"].items())
                overall = f"{one['accuracy']['overall']:.2f}"
                size = [str(one["width"]), f"{one['lr']:g}", tried, duration(one["seconds"])]
                rows.append([row.label, str(seed), overall, *size, one.get("commit", "-")])
    head = (
        "row",
        "seed",
        "overall",
        "features",
        "rate",
        "overall on held-out training images",
        "time",
        "commit",
    )
    return show("Cells", head, rows, file=io.StringIO()) if rows else ""


def cells_csv(spec: ProbeTable, plan: Plan, found: Found) -> str:
    """A line for each row and seed, also of those that are not there."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ("table", "scale", "data", "row", "seed", *COLUMNS, "lr", "status", "seconds", "commit")
    writer.writerow(head)
    for row in spec.rows:
        why = run_probe.unavailable(folder(plan), row.method) or "not run"
        for seed in plan.repeats:
            one = found.get((row.method, seed), {})
            values = [one.get("accuracy", {}).get(c) for c in COLUMNS]
            rest = (one.get("lr"), "finished" if one else why, one.get("seconds"), one.get("commit"))
            writer.writerow((spec.name, plan.scale, plan.data, row.label, seed, *values, *rest))
    return out.getvalue()
