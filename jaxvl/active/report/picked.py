"""What the runs picked, round by round: from their question records, selections and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvl.active.report.balance import (
    composition,
    entropy,
    gini,
    jaccard,
    judged,
    question_key,
    rank_correlation,
)
from jaxvl.active.report.statistics import RunRecord

INITIAL = -1
SCORES = "scores.npz"
QUANTITIES = {
    "entropy": "Entropy of the labelled answers",
    "gini": "Gini coefficient of the labelled answers",
    "per_image": "Questions of each new image",
    "new_patterns": "Questions that nobody had asked before",
}


@dataclass
class Picked:
    """One run's labels; position `r` of all lists is about the labels that came in before round r.

    Attributes:
      images: ids that came in.
      rows: `composition` of what came in, with `entropy` and `answers` of all labels so far; the latter like its
        `counts`.
    """

    method: str
    repeat: int
    images: list[set[int]]
    rows: list[dict[str, Any]]


def picks_of(run: RunRecord) -> Picked:
    """Labels of a run up to its last evaluated round."""
    out = Picked(run.method, run.repeat, [], [])
    seen: set[str] = set()
    counts: dict[str, Counter[str]] = {}
    for number in range(INITIAL, int(run.rounds[-1]["round"])):
        records = run.questions(number)
        row = composition(records, seen)
        seen |= {question_key(r["question"]) for r in records}
        for kind, new in row["counts"].items():
            counts.setdefault(kind, Counter()).update(new)
        before = set(run.labelled(number)) if number > INITIAL else set()
        out.images.append(set(run.labelled(number + 1)) - before)
        out.rows.append({**row, "entropy": entropy(list(counts["overall"].values())),
                         "answers": {kind: dict(c) for kind, c in counts.items()}})  # fmt: skip
    return out


def over_rounds(found: Sequence[Picked]) -> dict[str, dict[str, np.ndarray]]:
    """method -> quantity of `QUANTITIES` -> means over its repeats `[P]`, as far as all of them have come.

    Gini runs over all answers that any of the runs has labels of.
    """
    size = _sizes(found)["overall"]
    out: dict[str, dict[str, np.ndarray]] = {}
    for method in dict.fromkeys(p.method for p in found):
        mine = [p for p in found if p.method == method]
        last = min(len(p.rows) for p in mine)
        table = [[_quantities(row, size) for row in p.rows[:last]] for p in mine]
        out[method] = {
            name: np.array([[row[name] for row in rows] for rows in table], np.float64).mean(0)
            for name in QUANTITIES
        }
    return out


def _quantities(row: Mapping[str, Any], size: int) -> dict[str, float]:
    return {
        **{k: row[k] for k in QUANTITIES if k != "gini"},
        "gini": gini(list(row["answers"]["overall"].values()), size),
    }


def _sizes(found: Sequence[Picked]) -> dict[str, int]:
    """Answer type or "overall" -> how many answers any of the runs has labels of."""
    known: dict[str, set[str]] = {}
    for p in found:
        for kind, counts in p.rows[-1]["answers"].items():
            known.setdefault(kind, set()).update(counts)
    return {kind: len(known[kind]) for kind in sorted(known, key=lambda k: (k != "overall", k))}


def spread_rows(found: Sequence[Picked]) -> list[list[Any]]:
    """How evenly answers are spread, by answer type.

    Returns:
      Rows `[method, type, entropy and Gini of a round's new labels, the same of all labels at the end]`: means over
      repeats, of new labels over the rounds after the initial one too; None where nothing of the type came.
    """
    rows: list[list[Any]] = []
    for method in dict.fromkeys(p.method for p in found):
        mine = [p for p in found if p.method == method]
        for kind, size in _sizes(found).items():
            new = [c for p in mine for row in p.rows[1:] if (c := row["counts"].get(kind))]
            last = [c for p in mine if (c := p.rows[-1]["answers"].get(kind))]
            rows.append([method, kind, *_spread(new, size), *_spread(last, size)])
    return rows


def _spread(counts: Sequence[Mapping[str, int]], size: int) -> tuple[float | None, float | None]:
    if not counts:
        return None, None
    values = [list(c.values()) for c in counts]
    return float(np.mean([entropy(v) for v in values])), float(np.mean([gini(v, size) for v in values]))


def overlap(found: Sequence[Picked], a: str, b: str) -> float | None:
    """Mean Jaccard index of what two methods picked in a round, over rounds and common repeats.

    For one method and itself: of its repeats, which says how stable it is. The initial images, which are equal, do not
    count. None where there is nothing to compare.
    """
    if a == b:
        mine = [p for p in found if p.method == a]
        pairs = [(p, q) for i, p in enumerate(mine) for q in mine[i + 1 :]]
    else:
        other = {p.repeat: p for p in found if p.method == b}
        pairs = [(p, other[p.repeat]) for p in found if p.method == a and p.repeat in other]
    values = [jaccard(x, y) for p, q in pairs for x, y in zip(p.images[1:], q.images[1:], strict=False)]
    return float(np.mean(values)) if values else None


def chance(found: Sequence[Picked], pool: int) -> float | None:
    """`overlap` of two methods that pick at random and start from the same images: `k / (2 n - k)`.

    Any of the n images that are not in the initial set is among the k of a given round with probability k / n, whatever
    the other method has. Mean over rounds and repeats.
    """
    sizes = [(len(x), pool - len(p.images[0])) for p in found for x in p.images[1:]]
    values = [k / (2 * n - k) for k, n in sizes if 0 < k <= n]
    return float(np.mean(values)) if values else None


def match_counts(runs: Sequence[RunRecord]) -> list[list[Any]]:
    """For each method with counts of matches: does its score say more than how many questions match?

    Returns:
      Rows `[method, mean n_match of the pool, of the picked, Spearman(score, n_match)]`, means over rounds and repeats.
    """
    values: dict[str, list[tuple[float, ...]]] = {}
    for run in runs:
        for row in run.rounds:
            path = run.folder(int(row["round"])) / SCORES
            if not path.exists():
                continue
            with np.load(path) as scores:
                if "note/n_match" not in scores or not len(scores["score"]):
                    continue
                count, score, rows = scores["note/n_match"], scores["score"], scores["rows"]
            known = judged(score, count)
            values.setdefault(run.method, []).append(
                (count.mean(), count[rows].mean(), rank_correlation(score[known], count[known]))
            )
    return [[m, *map(float, np.mean(v, axis=0))] for m, v in values.items()]


def seconds(runs: Sequence[RunRecord]) -> dict[str, dict[str, float]]:
    """method -> phase -> mean seconds of a round; models that were kept from another run do not count."""
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        mine = values.setdefault(run.method, {})
        for row in run.rounds:
            for name, event in run.events(int(row["round"])).items():
                if name == "TRAINED" and not event.data["model"]["hit"]:
                    mine.setdefault("task model", []).append(event.data["seconds"])
                elif name == "EVALUATED":
                    mine.setdefault("evaluation", []).append(event.data["seconds"])
                elif name == "FITTED" and event.data["models"]:
                    if not any(m["hit"] for m in event.data["models"].values()):
                        mine.setdefault("sampler models", []).append(event.data["seconds"])
                elif name == "SCORED":
                    mine.setdefault("selection", []).append(event.data["strategy_seconds"])
    return {m: {phase: float(np.mean(v)) for phase, v in phases.items()} for m, phases in values.items()}
