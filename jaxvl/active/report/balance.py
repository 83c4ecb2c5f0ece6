"""What a strategy picked: how evenly answers are spread, how many questions an image brings, how much picks overlap.

NumPy only. Specification 9.3, 9.4 and 11.4.

Shape legend: `C` answers, `K` picked images, `N` images, `D` width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl.data.words import tokens
from jaxvl.vqa_normalise import normalise

SAMPLE = 1_000  # images by which the scores of a pool are summed up, if not all are scored


def consensus(answers: Sequence[str]) -> str:
    """The most frequent answer in normal form; equal counts go to the one that was given first."""
    counts = Counter(normalise(a) for a in answers)
    return max(counts, key=lambda a: counts[a], default="")


def entropy(counts: Sequence[int] | np.ndarray) -> float:
    """Entropy of counts over the log of how many are not 0, in [0, 1]; 1 if a single one is, 0 without any."""
    n = np.asarray(counts, np.float64)
    n = n[n > 0]
    if n.size < 2:
        return float(n.size)
    p = n / n.sum()
    return float(-(p * np.log(p)).sum() / np.log(n.size))


def gini(counts: Sequence[int] | np.ndarray, size: int | None = None) -> float:
    """Gini coefficient of counts, 0 = all equal, towards 1 = one has all.

    Args:
      counts: `[C]`; 0 for answers that never occur.
      size: how many answers there are; those that `counts` leaves out count 0. Default: as many as `counts`.
    """
    n = np.sort(np.asarray(counts, np.float64))
    total = len(n) if size is None else size
    if total < len(n):
        raise ValueError(f"{len(n)} counts are more than size={size}")
    if not n.sum():
        return 0.0
    rank = np.arange(total - len(n) + 1, total + 1)
    return float((2 * rank - total - 1) @ n / (total * n.sum()))


def answer_balance(records: Sequence[Mapping[str, Any]], answers: Collection[str]) -> dict[str, Any]:
    """How evenly the consensus answers of labelled questions are spread over the candidate answers.

    Args:
      records: question records with `question`, `answers`, `answer_type`.
      answers: the candidates; Gini runs over them. Other answers are only counted.

    Returns:
      For "overall" and each answer type `{questions, distinct, entropy, gini}`, and `outside`, the share of questions
      whose consensus is no candidate, with the ten most frequent of those in `outside_answers`.
    """
    known = {normalise(a) for a in answers}
    given = [(str(r["answer_type"]), consensus(r["answers"])) for r in records]
    out: dict[str, Any] = {}
    for kind in ("overall", *sorted({kind for kind, _ in given})):
        counts = Counter(a for k, a in given if a in known and kind in ("overall", k))
        values = list(counts.values())
        total = sum(kind in ("overall", k) for k, _ in given)
        out[kind] = {
            "questions": total, "distinct": len(counts), "entropy": entropy(values), "gini": gini(values, len(known)),
        }  # fmt: skip
    others = Counter(a for _, a in given if a not in known)
    out["outside"] = sum(others.values()) / max(1, len(given))
    out["outside_answers"] = dict(others.most_common(10))
    return out


def composition(records: Sequence[Mapping[str, Any]], seen: Collection[str] = ()) -> dict[str, Any]:
    """What a round's labels consist of.

    Args:
      records: the round's question records.
      seen: normal forms of the questions that were labelled before (see `question_key`).

    Returns:
      `images`, `questions`, `per_image`, `types {answer type: share}`, `new_patterns` (distinct questions that nobody
      had asked before), `answer_entropy`, and `counts {answer type or "overall": {consensus answer: questions}}`.
    """
    images = {int(r["image_id"]) for r in records}
    types = Counter(str(r["answer_type"]) for r in records)
    keys = {question_key(r["question"]) for r in records}
    counts: dict[str, Counter[str]] = {"overall": Counter(), **{kind: Counter() for kind in sorted(types)}}
    for r in records:
        answer = consensus(r["answers"])
        for kind in ("overall", str(r["answer_type"])):
            counts[kind][answer] += 1
    return {
        "images": len(images), "questions": len(records), "per_image": len(records) / max(1, len(images)),
        "types": {k: n / len(records) for k, n in sorted(types.items())},
        "new_patterns": len(keys - set(seen)), "answer_entropy": entropy(list(counts["overall"].values())),
        "counts": counts,
    }  # fmt: skip


def question_key(question: str) -> str:
    """Normal form of a question: equal for questions that differ in case and punctuation only."""
    return " ".join(tokens(question))


def jaccard(a: Collection[int], b: Collection[int]) -> float:
    """Size of the intersection over that of the union, in [0, 1]; 1 for two empty sets."""
    x, y = set(a), set(b)
    return len(x & y) / len(x | y) if x | y else 1.0


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation in [-1, 1], ties with their mean rank; NaN if one side is constant."""
    x, y = _ranks(np.asarray(a, np.float64)), _ranks(np.asarray(b, np.float64))
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / norm) if norm > 0 else float("nan")


def representative(count: np.ndarray) -> np.ndarray:
    """Positions of at most `SAMPLE` images, evenly over these match counts `[N]`: pruning scores them in any case."""
    order = np.argsort(-np.asarray(count), kind="stable")
    return order[:: max(1, -(-len(order) // SAMPLE))]


def judged(score: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Positions of the images by which scores `[N]` (NaN where pruning left them out) stand for the pool's."""
    known, some = np.isfinite(score), representative(count)
    pruned = (
        not known.all() and known[some].all()
    )  # older runs did not score the sample: then all that there are
    return some if pruned else np.flatnonzero(known)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def stands_for(picked: np.ndarray, others: np.ndarray, *, block: int = 4_096) -> np.ndarray:
    """How many unselected images have each picked image as their nearest, `[K]` i64.

    Args:
      picked: vectors of the selected images `[K,D]`.
      others: vectors of the unselected ones `[N,D]`.
      block: rows of `others` at a time.
    """
    picked = np.asarray(picked, np.float64)
    half = 0.5 * (picked**2).sum(1)
    counts = np.zeros(len(picked), np.int64)
    for start in range(0, len(others), block):
        nearest = (np.asarray(others[start : start + block], np.float64) @ picked.T - half).argmax(1)
        counts += np.bincount(nearest, minlength=len(picked))
    return counts
