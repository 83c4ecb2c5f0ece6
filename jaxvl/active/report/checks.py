"""May these runs be drawn into one figure? Only if they differ in the method and the repeat alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl.active.folder import LATER
from jaxvl.active.proposers import caution
from jaxvl.active.report.comparison import ENOUGH
from jaxvl.active.report.statistics import REFERENCE, Curves, RunRecord

OF_A_REPEAT = ("init_of", "initial")  # parts of a protocol that repeats need not share


def require_comparable(runs: Sequence[RunRecord]) -> None:
    """Raise ValueError, with what differs, unless the runs have one protocol and, in each repeat, one initial set."""
    lines = incomparable(runs)
    if lines:
        raise ValueError(
            "these runs cannot be compared; give only runs of one protocol:\n"
            + "\n".join(f"- {x}" for x in lines)
        )


def incomparable(runs: Sequence[RunRecord]) -> list[str]:
    """A line for each part of the protocol that differs from the first run's, and for each other initial set."""
    lines = []
    for run in runs[1:]:
        for name, a, b in _differences(runs[0].protocol, run.protocol):
            if name not in OF_A_REPEAT:
                lines.append(f"{_name(run)}: {name} is {b}, that of {_name(runs[0])} is {a}")
    phases = sorted({str(m["phase"]) for run in runs for m in run.rounds if m.get("phase")})
    if len(phases) > 1:
        lines.append(f"scores are of {' and '.join(phases)}: two sets of questions")
    alike: dict[tuple[str, str], RunRecord] = {}
    for run in runs:
        for name in sorted(run.options):  # what only one of two runs knows of is of other code
            other = alike.setdefault((run.method, name), run)
            a, b = (json.dumps(r.options[name], sort_keys=True) for r in (other, run))
            if a != b:
                lines.append(
                    f"{_name(run)}: {name} is {_short(b)}, that of {_name(other)} is {_short(a)}: two methods, one name"
                )
    first: dict[int, RunRecord] = {}
    for run in runs:
        other = first.setdefault(run.repeat, run)
        for name, a, b in _differences(other.protocol, run.protocol):
            if name in OF_A_REPEAT:
                lines.append(f"{_name(run)}: {name} is {b}, that of {_name(other)} is {a}")
        if set(run.labelled(0)) != set(other.labelled(0)) and run.rounds and other.rounds:
            lines.append(f"{_name(run)}: it starts from other images than {_name(other)}")
    return lines


def _differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    out = []
    for name in sorted({*a, *b} - {name for name in LATER if name not in a or name not in b}):
        x, y = (json.dumps(p[name], sort_keys=True) if name in p else "not there" for p in (a, b))
        if x != y:
            out.append((name, _short(x), _short(y)))
    return out


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _name(run: RunRecord) -> str:
    return f"{run.method}, repeat {run.repeat}"


def cautions(runs: Sequence[RunRecord]) -> list[str]:
    """What the runs' protocols call for being said of them: each once."""
    proposers = dict.fromkeys(str(run.protocol.get("proposer", "")) for run in runs)
    return [f"Questions by {name}. {said}" for name in proposers if (said := caution(name)) is not None]


def warnings(found: Curves) -> list[str]:
    """What a reader must know before the numbers."""
    lines = []
    counts = {method: len(mine) for method, mine in found.items()}
    few = min(counts.values())
    if few < 2:
        single = ", ".join(m for m, n in counts.items() if n < 2)
        lines.append(f"One repeat says nothing of the spread: no verdict is given for {single}.")
    elif few < ENOUGH:
        lines.append(
            f"The study plans for {ENOUGH} repeats; the method with the fewest has {few}. Intervals are wide."
        )
    if REFERENCE not in found:
        lines.append(
            f"There is no run of {REFERENCE!r}: whether choosing images helps at all is not answered here."
        )
    lacking = sum(int(np.isnan(c.overall).sum()) for mine in found.values() for c in mine.values())
    if lacking:
        lines.append(
            f"{lacking} rounds have no accuracy (n/a): their answers are to be scored by EvalAI, and the scores passed "
            "on with launch/al.py scores. Areas and tests need all rounds of a run."
        )
    last = {int(c.rounds[-1]) for mine in found.values() for c in mine.values()}
    if len(last) > 1:
        lines.append(
            f"Runs stand at different rounds, {min(last)} to {max(last)}: areas are taken where all have points."
        )
    return lines
