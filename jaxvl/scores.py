"""Scores on the host: official VQA accuracy, ranks and recalls, majority answers. NumPy only.

All scores are fractions in [0, 1]; papers print them times 100.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl.vqa_normalise import normalise, punctuation, strip

VARIANTS = ("official", "openvqa")
LEARNT, PATIENCE = 55.0, 0.2  # percent that matching should have reached; after this share of the updates
FEW = 4  # fewer annotators cannot reach 1 by the official formula


def vqa_accuracy(prediction: str, *, answers: Sequence[str], variant: str = "official") -> float:
    """Accuracy of one predicted answer against its human answers.

    Mean over annotators `j` of `min(1, matches among the others / 3)`: of ten, 1, 2, 3 and 4 agreeing humans
    give 0.3, 0.6, 0.9 and 1. With fewer annotators the same formula runs over those there are. One, two or three
    are too few for it (its best score for two that agree is 1/3): the accuracy is then the share of them who gave
    the answer, both sides normalised, for either variant.

    Args:
      prediction: the answer to score.
      answers: human answers, one per annotator, at least one.
      variant: "official" processes neither side if all humans gave the same string, and then compares exactly,
        case included. "openvqa" always normalises the prediction, and only removes punctuation from the humans
        if they disagree (as in the evaluator of MILVLG/openvqa).

    Returns:
      A fraction in [0, 1].

    Raises:
      ValueError: no answers, or an unknown variant.

    Source: GT-Vision-Lab/VQA.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: expected one of {VARIANTS}")
    if not answers:
        raise ValueError(f"no human answers to score the prediction {prediction!r} against")
    truth, given = [strip(a) for a in answers], strip(prediction)
    if len(truth) < FEW:
        return [normalise(a) for a in truth].count(normalise(given)) / len(truth)
    unanimous = len(set(truth)) == 1
    if variant == "openvqa":
        given = normalise(given)
        truth = truth if unanimous else [punctuation(a) for a in truth]
    elif not unanimous:
        given, truth = normalise(given), [normalise(a) for a in truth]
    return agreement(truth.count(given), annotators=len(truth))


def agreement(matches: int, *, annotators: int) -> float:
    """Accuracy in [0, 1] of an answer that `matches` of the annotators gave: the formula of `vqa_accuracy`."""
    if annotators < FEW:
        return matches / annotators
    # A matching annotator sees one match fewer among the others than an annotator who answered differently.
    others = annotators - matches
    return (matches * min(1.0, (matches - 1) / 3) + others * min(1.0, matches / 3)) / annotators


def mean_by(values: Sequence[float], *, groups: Sequence[str], name: str) -> dict[str, float]:
    """`{name: mean, name/<group>: mean of the group}`; an empty group string joins the overall mean only."""
    if len(values) != len(groups):
        raise ValueError(f"{len(values)} values but {len(groups)} groups")
    if not values:
        return {}
    array, kind = np.asarray(values, np.float64), np.asarray(groups, object)
    scores = {name: float(array.mean())}
    for group in sorted({g for g in groups if g}):
        scores[f"{name}/{slug(group)}"] = float(array[kind == group].mean())
    return scores


def slug(text: str) -> str:
    """A metric name without slashes or spaces: "yes/no" -> "yes_no"."""
    return "_".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def best_rank(scores: np.ndarray, *, relevant: np.ndarray) -> np.ndarray:
    """Place of the best relevant column of each row, 0 = first; equal scores rank by column.

    Args:
      scores: `[N,M]`, larger is better; NaN is an error.
      relevant: bool `[N,M]`, at least one True in every row.

    Returns:
      `[N]` int64.
    """
    if np.isnan(scores).any():
        raise ValueError(f"NaN scores in rows {np.flatnonzero(np.isnan(scores).any(1))[:5].tolist()}")
    if not relevant.any(1).all():
        raise ValueError(f"rows without a relevant column: {np.flatnonzero(~relevant.any(1))[:5].tolist()}")
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(relevant, order, axis=1).argmax(1)


def recalls(ranks: np.ndarray, *, at: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of queries whose best relevant item is among the first `k`, for each `k` of `at`."""
    return {k: float((np.asarray(ranks) < k).mean()) for k in at}


def answer_counts(annotation: Mapping[str, Any]) -> dict[str, float]:
    """Share of each answer of one question: over its human answers, else over its training targets."""
    answers = annotation.get("answers") or []
    if answers:
        return {a: c / len(answers) for a, c in Counter(answers).items()}
    return dict(annotation.get("targets") or {})


def majority(annotations: Iterable[Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """The most frequent answer, and that of each answer type; ties go to the alphabetically first.

    Raises:
      ValueError: no annotation has an answer.
    """
    total: Counter[str] = Counter()
    by_type: dict[str, Counter[str]] = {}
    for annotation in annotations:
        share = answer_counts(annotation)
        kind = str(annotation.get("answer_type") or "")
        for answer, weight in share.items():
            total[answer] += weight  # type: ignore[assignment]
            by_type.setdefault(kind, Counter())[answer] += weight  # type: ignore[assignment]
    if not total:
        raise ValueError("the majority answer needs training questions with answers; none has any")

    def top(counter: Counter[str]) -> str:
        return min(counter, key=lambda answer: (-round(counter[answer], 6), answer))

    return top(total), {kind: top(counter) for kind, counter in by_type.items()}


def matching_alarm(percent: float, share: float, *, of: str = "") -> str | None:
    """What is wrong with an accuracy of matching, in percent, after this share of the updates; None if nothing is.

    The matching head of a dual encoder can stay at chance for long (specification of the Bridge tower, 15.10).
    """
    if share < PATIENCE or percent >= LEARNT:
        return None
    return (
        f"matching {of}is at {percent:.1f} % after {100 * share:.0f} % of the updates, 50 is chance: it has not been "
        "learnt yet (more updates, a larger batch, or another weight of the masked words)"
    )
