"""A choice of items, checked, summed up, and written as the lines of `selection.jsonl`. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active.bank import KINDS, Bank
from jaxvl.active.items import Questions
from jaxvl.active.report.balance import judged, rank_correlation, stands_for
from jaxvl.active.strategies.base import Selection, finite
from jaxvl.types import Predict


def check_selection(found: Selection, pool: Any, budget: int, method: str) -> None:
    """Raise ValueError unless a strategy did what it must: `budget` distinct rows of the pool."""
    rows = np.asarray(found.rows)
    inside = rows.size == 0 or (rows.min() >= 0 and rows.max() < len(pool))
    if len(rows) != budget or len(np.unique(rows)) != budget or not inside:
        raise ValueError(
            f"strategy {method!r} returned {len(np.unique(rows))} distinct rows of {len(rows)}, "
            f"{budget} of a pool of {len(pool)} were asked for"
        )


def score_summary(found: Selection) -> dict[str, Any]:
    """Of the scores: mean, deviation, quantiles, rank correlation with the match counts; means of what they are of.

    Where pruning left images out, of an even sample of the pool.
    """
    if found.score is None:
        return {}
    score = np.asarray(found.score, np.float64)
    counts = found.notes.get("n_match")
    there = np.flatnonzero(np.isfinite(score)) if counts is None else judged(score, np.asarray(counts))
    if not there.size:
        return {}
    some = score[there]
    out: dict[str, Any] = {"images": len(there), "mean": float(some.mean()), "sd": float(some.std())}
    out["quantiles"] = [float(q) for q in np.quantile(some, (0.0, 0.25, 0.5, 0.75, 1.0))]
    if counts is not None:
        count = np.asarray(counts)[there]
        out["n_match"] = [float(q) for q in np.quantile(count, (0.0, 0.5, 1.0))]
        for name in ("f", "rate"):  # per matching pattern
            if f"sum_{name}" in found.notes and count.sum():
                out[f"mean_{name}"] = float(np.asarray(found.notes[f"sum_{name}"])[there].sum() / count.sum())
        if len(some) > 1 and some.std() > 0 and count.std() > 0:
            out["spearman_n_match"] = rank_correlation(some, count)
    return out


def selection_rows(
    scores: Mapping[str, np.ndarray], wanted: int, asked: Bank | Questions, answers: Sequence[str]
) -> list[dict[str, Any]]:
    """The lines of `selection.jsonl`: rank, item, score, notes, and the questions that contributed most.

    Args:
      scores: `ids`, `rows`, `score`, and notes `note/<name>`.
      wanted: lines after these are the reserve.
      asked: the bank, of whose patterns images have contributors, or the questions that are the items.
      answers: candidates.
    """
    questions = asked if isinstance(asked, Questions) else None
    rows = []
    for rank, row in enumerate(scores["rows"].tolist(), start=1):
        line: dict[str, Any] = {"rank": rank, **item_line(int(scores["ids"][row]), questions)}
        line["score"] = float(scores["score"][row]) if len(scores["score"]) else None
        for name in scores:
            note = scores[name][row] if name.startswith("note/") else None
            if note is not None and np.ndim(note) == 0 and not name.startswith("note/top_"):
                line[name[len("note/") :]] = note.item()
        if "stands_for" in scores and rank <= wanted:
            line["stands_for"] = int(scores["stands_for"][rank - 1])
        if "note/top_pattern" in scores:
            line["contributors"] = contributors(scores, row, asked, answers)
        if rank > wanted:
            line["reserve"] = True
        rows.append(line)
    return rows


def drawn(ids: np.ndarray, wanted: int, reserve: int, rng: np.random.Generator) -> np.ndarray:
    """The initial items, drawn at random and sorted, then a reserve: the former do not depend on the latter."""
    first = np.sort(rng.choice(ids, wanted, replace=False))
    rest = np.setdiff1d(ids, first)
    return np.concatenate([first, rng.choice(rest, min(reserve, len(rest)), replace=False)])


def initial_rows(ids: np.ndarray, wanted: int, questions: Questions | None) -> list[dict[str, Any]]:
    """The lines of `selection.jsonl` of items without scores."""
    rows = [
        {"rank": n, **item_line(int(i), questions), "score": None}
        for n, i in enumerate(ids.tolist(), start=1)
    ]
    return [row | ({"reserve": True} if row["rank"] > wanted else {}) for row in rows]


def item_line(item: int, questions: Questions | None) -> dict[str, Any]:
    """How files name an item: by its image, or as `Questions.line` does."""
    return {"image_id": item} if questions is None else questions.line(item)


def contributors(
    scores: Mapping[str, np.ndarray], row: int, asked: Bank | Questions, answers: Sequence[str]
) -> list[dict[str, Any]]:
    """The patterns that gave an image most of its score; of a question, itself."""
    out = []
    for slot, position in enumerate(scores["note/top_pattern"][row].tolist()):
        if position < 0:
            break
        names = [k for k in ("match", "uncertainty", "p_max", "rate") if f"note/top_{k}" in scores]
        found = {k: float(scores[f"note/top_{k}"][row][slot]) for k in names}
        found = {k: value for k, value in found.items() if not np.isnan(value)}  # nobody was asked
        known = int(scores["note/top_answer"][row][slot])
        guess = {"answer": answers[known]} if known >= 0 else {}
        if isinstance(asked, Questions):
            item = asked.line(int(scores["ids"][row]))
            kind = KINDS[int(scores["note/top_kind"][row][slot])]
            head = {"pattern_id": str(item["question_id"]), "question": item["question"], "type": kind}
        else:
            pattern = asked.patterns[position]
            head = {"pattern_id": pattern.id, "question": pattern.question, "type": KINDS[pattern.kind]}
        out.append({**head, **found, **guess})
    return out


def arrays_of(found: Selection, ids: np.ndarray) -> dict[str, np.ndarray]:
    """A choice among these items as the arrays of `scores.npz`: `ids`, `rows`, `score` (empty: none), `note/...`."""
    score = np.zeros(0) if found.score is None else np.asarray(found.score, np.float64)
    notes = {f"note/{name}": np.asarray(values) for name, values in found.notes.items()}
    return {"ids": ids, "rows": np.asarray(found.rows), "score": score, **notes}


def standing(predict: Predict, name: str, pool: Any, rows: np.ndarray, *, block: int = 4_096) -> np.ndarray:
    """How many unselected images of the pool have each selected one as their nearest among the selected, `[k]` i64.

    Args:
      predict: gives the vectors `[N,D]`; name: of the predictor, see `Strategy.vectors`.
      rows: `[k]` positions of the selected images.
      block: images of the pool that are compared at a time.
    """
    vectors = finite(np.asarray(predict(name, pool), np.float32), name=name, ids=pool.ids)
    left = np.ones(len(vectors), bool)
    left[rows] = False
    counts = np.zeros(len(rows), np.int64)
    for start in range(0, len(vectors), block):
        at = slice(start, start + block)
        counts += stands_for(vectors[rows], vectors[at][left[at]], block=block)
    return counts


def save_npz(path: Path, **arrays: Any) -> None:
    """`numpy.savez` under exactly this name."""
    with path.open("wb") as file:
        np.savez(file, **arrays)
