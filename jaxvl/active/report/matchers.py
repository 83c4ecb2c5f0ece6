"""From events of runs: how good matchers and answer models are on held-out images; what to know of a selection."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl.active.report.statistics import RunRecord

COLUMNS: Mapping[str, str] = {
    "balanced_accuracy": "balanced accuracy",
    "balanced_accuracy_text": "other images' features",
    "visual_gap": "gap",
    "balanced_accuracy/yes_no": "yes/no",
    "balanced_accuracy/number": "number",
    "balanced_accuracy/other": "other",
    "ece": "ECE",
    "ece_calibrated": "ECE, calibrated",
    "match_rate": "match rate",
}

ANSWER_COLUMNS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "log_loss": "log loss, nats",
    "ece": "ECE",
    "temperature": "temperature",
    "log_loss_calibrated": "log loss, calibrated",
    "ece_calibrated": "ECE, calibrated",
}


def fits(run: RunRecord) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Round, stage and event data of every model of a run that was scored on held-out images."""
    for row in run.rounds:
        event = run.events(int(row["round"])).get("FITTED")
        for stage, model in (event.data["models"] if event is not None else {}).items():
            if model.get("result", {}).get("held_out"):
                yield int(row["round"]), stage, model


def matcher_rows(runs: Sequence[RunRecord], columns: Mapping[str, str] = COLUMNS) -> list[list[Any]]:
    """Rows `[method, stage, *columns]` of the models that have the first of these scores.

    Means over rounds and repeats; "-" where no fit has the score.
    """
    values: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for run in runs:
        for _, stage, model in fits(run):
            if next(iter(columns)) in model["result"]["held_out"]:
                values.setdefault((run.method, stage), []).append(model["result"]["held_out"])
    rows: list[list[Any]] = []
    for (method, stage), scores in values.items():
        found = [[s[name] for s in scores if name in s] for name in columns]
        rows.append([method, stage, *(f"{np.mean(v):.3f}" if v else "-" for v in found)])
    return rows


def approximate_lines(runs: Sequence[RunRecord]) -> list[str]:
    """A line for each method whose selections are approximate."""
    found: dict[str, list[str]] = {}
    for run in runs:
        ways = [way for row in run.rounds for way in row.get("approximate", ())]
        found[run.method] = list(dict.fromkeys([*found.get(run.method, ()), *ways]))
    return [f"Selections of {m} are approximate: {', '.join(ways)}." for m, ways in found.items() if ways]


def matcher_warnings(runs: Sequence[RunRecord]) -> list[str]:
    """The newest of what held-out scores say against matchers: a line for each method, stage and kind of doubt."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        for number, stage, model in fits(run):
            for text in model.get("warnings", ()):
                line = f"{run.method}, repeat {run.repeat}, round {number}, {stage}: {text}"
                kind = re.sub(r"[-+]?[\d.]+%?", "#", text)
                found.setdefault((run.method, stage, kind), []).append(line)
    more = [(lines[-1], len(lines) - 1) for lines in found.values()]
    return [f"{line}." + (f" And {n} more like it." if n else "") for line, n in more]
