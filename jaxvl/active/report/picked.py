"""What the runs picked, round by round: from their question records, selections and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvl.active.report.balance import (
    composition,
    consensus,
    entropy,
    gini,
    jaccard,
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
      rows: `composition` of what came in, with `entropy` and `answers` (counts) of all labels so far.
    """

    method: str
    repeat: int
    images: list[set[int]]
    rows: list[dict[str, Any]]


def picks_of(run: RunRecord) -> Picked:
    """Labels of a run up to its last evaluated round."""
    out = Picked(run.method, run.repeat, [], [])
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    for number in range(INITIAL, int(run.rounds[-1]["round"])):
        records = run.questions(number)
        row = composition(records, seen)
        seen |= {question_key(r["question"]) for r in records}
        counts.update(consensus(r["answers"]) for r in records)
        before = set(run.labelled(number)) if number > INITIAL else set()
        out.images.append(set(run.labelled(number + 1)) - before)
        out.rows.append({**row, "entropy": entropy(list(counts.values())), "answers": dict(counts)})
    return out


def over_rounds(found: Sequence[Picked]) -> dict[str, dict[str, np.ndarray]]:
    """method -> quantity of `QUANTITIES` -> means over its repeats `[P]`, as far as all of them have come.

    Gini runs over all answers that any of the runs has labels of.
    """
    size = len({a for p in found for row in p.rows for a in row["answers"]})
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
        "gini": gini(list(row["answers"].values()), size),
    }


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
            known = np.isfinite(score)
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
