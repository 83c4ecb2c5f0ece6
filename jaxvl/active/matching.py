"""How good a matcher is on held-out images: true pairs against pairs that a shuffle made (specification 5.6, 5.7).

NumPy only. Shape legend: `N` held-out pairs, `W` critic width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxvl.types import Predict

SHUFFLES = 4
BINS = 10
LOG2 = float(np.log(2.0))
# Match rates outside are a sign of a critic that is not calibrated, or has collapsed.
HIGH, LOW = 0.6, 0.01


def held_out_scores(predict: Predict, held: Any, rng: np.random.Generator) -> dict[str, float]:
    """Scores of a matcher on a source of question rows.

    The predictor "match" is asked again for rows whose questions were passed on to other images.

    Returns:
      "balanced_accuracy", of each answer kind "balanced_accuracy/<kind>", "information" (2 log 2 - loss, nats), "ece"
      (calibration error of the match probability), "match_rate" (share of shuffled pairs that match).
    """
    true = np.asarray(predict("match", held), np.float64)
    false, kinds = [], []
    for _ in range(SHUFFLES):
        source = shuffled(held, rng)
        if source is None:
            continue
        false.append(np.asarray(predict("match", source), np.float64))
        kinds.append(source.array("answer_kind"))
    if not false:
        raise ValueError(
            "no held-out question can be passed on to an image of which it was not asked: label more images"
        )
    return summary(
        true, np.concatenate(false), held.array("answer_kind"), np.concatenate(kinds), names=held.kinds
    )


def shuffled(held: Any, rng: np.random.Generator) -> Any | None:
    """The rows whose question, after a shuffle, was not asked of their image, as a source; None if there are none."""
    order = rng.permutation(len(held))
    given = np.empty(len(held), np.int64)
    given[order] = np.roll(order, 1)
    own, key = held.array("keys_of_image"), held.array("question_key")
    other_keys = own[given]
    fits = (own == key[given, None]).any(1) | (other_keys == key[:, None]).any(1)
    fits |= held.image_ids == held.image_ids[given]
    rows = np.flatnonzero(~fits)
    return Passed(held, rows, given[rows]) if len(rows) else None


class Passed:
    """Rows of a question source with the question of another row each."""

    def __init__(self, held: Any, rows: np.ndarray, questions: np.ndarray):
        self.held, self.rows, self.questions = held, rows, questions

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        said = {name: self.held.array(name)[self.questions[i]] for name in ("text", "text_mask")}
        return {**self.held[int(self.rows[i])], **said}

    def array(self, name: str) -> np.ndarray:
        """One of the arrays of the questions, as `RegionQuestions.array`."""
        return self.held.array(name)[self.questions]


def summary(
    true: np.ndarray, false: np.ndarray, true_kind: np.ndarray, false_kind: np.ndarray, *, names: Any
) -> dict[str, float]:
    """The scores from critic values of true and of shuffled pairs."""
    out = {"balanced_accuracy": balanced(true, false)}
    for kind, name in enumerate(names):
        a, b = true[true_kind == kind], false[false_kind == kind]
        if len(a) and len(b):
            out[f"balanced_accuracy/{name.replace('/', '_')}"] = balanced(a, b)
    loss = np.logaddexp(0, -true).mean() + np.logaddexp(0, false).mean()
    out["information"] = 2 * LOG2 - float(loss)
    out["ece"] = calibration_error(true, false)
    out["match_rate"] = float((false > 0).mean())
    return out


def balanced(true: np.ndarray, false: np.ndarray) -> float:
    """Mean of the share of true pairs above 0 and of shuffled ones at most 0."""
    return 0.5 * (float((true > 0).mean()) + float((false <= 0).mean()))


def calibration_error(true: np.ndarray, false: np.ndarray) -> float:
    """Expected calibration error of `sigmoid(T)` in ten bins, both classes with equal weight."""
    p = 1 / (1 + np.exp(-np.clip(np.concatenate([true, false]), -500, 500)))
    label = np.concatenate([np.ones(len(true)), np.zeros(len(false))])
    weight = np.concatenate([np.full(len(true), 0.5 / len(true)), np.full(len(false), 0.5 / len(false))])
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    total = np.bincount(bins, weight, BINS)
    gap = np.abs(np.bincount(bins, weight * label, BINS) - np.bincount(bins, weight * p, BINS))
    return float(gap[total > 0].sum())


def warning(match_rate: float) -> str | None:
    """What a match rate says of the critic, if it is outside of what calibrated ones have."""
    if match_rate > HIGH:
        return f"{match_rate:.0%} of random pairs match: the critic is not calibrated (expected at most {HIGH:.0%})"
    if match_rate < LOW:
        return (
            f"{match_rate:.1%} of random pairs match: the critic has collapsed (expected at least {LOW:.0%})"
        )
    return None
