"""A choice of items, checked, summed up, and written as the lines of `selection.jsonl`. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active.bank import KINDS, Bank
from jaxvl.active.items import Questions
from jaxvl.active.report.balance import rank_correlation, stands_for
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
    """Mean, deviation and quantiles of the scores there are, and their rank correlation with the match counts."""
    if found.score is None:
        return {}
    score = np.asarray(found.score, np.float64)
    there = np.isfinite(score)
    if not there.any():
        return {}
    some = score[there]
    out: dict[str, Any] = {"images": int(there.sum()), "mean": float(some.mean()), "sd": float(some.std())}
    out["quantiles"] = [float(q) for q in np.quantile(some, (0.0, 0.25, 0.5, 0.75, 1.0))]
    if "n_match" in found.notes:
        count = np.asarray(found.notes["n_match"])[there]
        out["n_match"] = [float(q) for q in np.quantile(count, (0.0, 0.5, 1.0))]
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
        answer = answers[int(scores["note/top_answer"][row][slot])]
        if isinstance(asked, Questions):
            item = asked.line(int(scores["ids"][row]))
            kind = KINDS[int(scores["note/top_kind"][row][slot])]
            head = {"pattern_id": str(item["question_id"]), "question": item["question"], "type": kind}
        else:
            pattern = asked.patterns[position]
            head = {"pattern_id": pattern.id, "question": pattern.question, "type": KINDS[pattern.kind]}
        out.append({**head, **found, "answer": answer})
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
