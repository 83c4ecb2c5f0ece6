"""How good labels of people are, over the rounds of a run: tables for a terminal and for the page. NumPy only.

Specification 11.7. A round's `quality.json` is what `human.quality.summary` says after each import.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvl.active.folder import QUALITY
from jaxvl.active.report.page import note, table
from jaxvl.active.report.statistics import RunRecord
from jaxvl.atomic import read_json

SHOWN = 10  # flagged questions and answers outside the list that are written out
FLAG_TEXT = "fewer than 30 % of the answers agree"
HEAD = ("annotator", "answers", "agreement with others", "known answers", "accuracy on them")
ABOUT = (
    "Agreement: the share of the other answers to a question that are the same, in normal form. Accuracy: official VQA "
    "accuracy on images whose labels were known, against the answers of others; - = none were asked."
)


def combined(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One summary of several rounds; means are weighted by what they are over."""
    people: dict[str, dict[str, Any]] = {}
    for name in sorted({n for r in rounds for n in r["annotators"]}):
        mine = [r["annotators"][name] for r in rounds if name in r["annotators"]]
        people[name] = {
            "answers": sum(m["answers"] for m in mine), "compared": sum(m["compared"] for m in mine),
            "agreement": _mean([(m["agreement"], m["compared"]) for m in mine]),
            "gold": sum(m["gold"] for m in mine), "accuracy": _mean([(m["accuracy"], m["gold"]) for m in mine]),
        }  # fmt: skip
    outside: Counter[str] = Counter()
    for r in rounds:
        outside.update(r["outside"] or {})
    return {
        "questions": sum(r["questions"] for r in rounds), "compared": sum(r["compared"] for r in rounds),
        "agreement": _mean([(r["agreement"], r["compared"]) for r in rounds]),
        "flagged": sorted((f for r in rounds for f in r["flagged"]), key=lambda f: f["agreement"]),
        "outside": None if any(r["outside"] is None for r in rounds) else dict(outside.most_common()),
        "taken_over": sum(r["taken_over"] for r in rounds), "annotators": people,
    }  # fmt: skip


def _mean(pairs: Sequence[tuple[float | None, int]]) -> float | None:
    known = [(value, n) for value, n in pairs if value is not None and n]
    return sum(v * n for v, n in known) / sum(n for _, n in known) if known else None


def annotator_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """A row of `HEAD` for each annotator."""
    return [
        [name, str(p["answers"]), _percent(p["agreement"]), str(p["gold"]), _percent(p["accuracy"])]
        for name, p in found["annotators"].items()
    ]


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What a reader should look at: questions few agree on, answers outside the list, suggestions taken over."""
    lines = [f"{found['questions']} questions, {found['taken_over']} of them taken over from suggestions"]
    if found["compared"]:
        lines[0] += (
            f"; mean agreement {_percent(found['agreement'])} over {found['compared']} with several answers"
        )
    flagged = found["flagged"]
    if flagged:
        lines.append(f"questions where {FLAG_TEXT}: {len(flagged)}, worst first{_more(flagged)}:")
        lines += [
            f"  image {f['image_id']}: {f['question']} {_percent(f['agreement'])} ({', '.join(f['answers'])})"
            for f in flagged[:SHOWN]
        ]
    outside = found["outside"]
    if outside:
        listed = ", ".join(f"{answer} ({n})" for answer, n in list(outside.items())[:SHOWN])
        lines.append(
            f"answers that the model cannot give, to {sum(outside.values())} of the questions{_more(outside)}: {listed}"
        )
    return lines


def of_run(run: RunRecord) -> dict[str, Any] | None:
    """The combined summary of a run's rounds, that which waits for labels included; None if people labelled none."""
    numbers = [-1, *(int(m["round"]) for m in run.rounds)]
    paths = [run.folder(r) / QUALITY for r in numbers if "EXPORTED" in run.events(r)]
    rounds = [read_json(path) for path in paths if path.exists()]
    return combined(rounds) if rounds else None


def parts(runs: Sequence[RunRecord]) -> list[str]:
    """The section of the page: annotators and remarks of each run that people labelled."""
    out: list[str] = []
    for run in runs:
        found = of_run(run)
        if found is None:
            continue
        first, *rest = remarks(found)
        out.append(f"<h3>{html.escape(run.method)}, repeat {run.repeat}</h3>")
        out.append(note(first + "."))
        if found["annotators"]:
            out.append(table(HEAD, annotator_rows(found)))
        if found["flagged"]:
            rows = [
                [f["image_id"], f["question"], _percent(f["agreement"]), ", ".join(f["answers"])]
                for f in found["flagged"][:SHOWN]
            ]
            out.append(note(rest[0].rstrip(":")))
            out.append(table(("image", "question", "agreement", "answers"), rows))
        if found["outside"]:
            out.append(note(rest[-1] + "."))
    return [*out, note(ABOUT)] if out else []


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _more(items: Any) -> str:
    return f" (the first {SHOWN} of {len(items)})" if len(items) > SHOWN else ""
