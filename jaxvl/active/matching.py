"""How good a matcher is on held-out images: true pairs against pairs that a shuffle made (specification 5.6, 5.7).

NumPy only. Shape legend: `N` held-out pairs, `W` critic width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvl.types import Predict, PyTree

SHUFFLES = 4
BINS = 10
LOG2 = float(np.log(2.0))
# Match rates outside are a sign of a critic that is not calibrated, or has collapsed.
HIGH, LOW = 0.6, 0.01
GAP = 0.02  # of balanced accuracy, that seeing the image must be worth
IMAGE = ("regions", "region_mask", "region_boxes")  # the arrays of a row that show its image


def held_out_scores(
    predict: Predict, held: Any, rng: np.random.Generator, *, calibrate: bool = False
) -> dict[str, float]:
    """Scores of a matcher on a source of question rows.

    The predictor "match" is asked again for rows whose questions were passed on to other images.

    Returns:
      "balanced_accuracy", of each answer kind "balanced_accuracy/<kind>", "information" (2 log 2 - loss, nats), "ece"
      (calibration error of the match probability), "match_rate" (share of shuffled pairs that match). With `calibrate`
      also "balanced_accuracy_scaled", after Platt scaling on these pairs: what a fit that ends with it is stopped by.
    """
    true, false = asked(predict, held, shuffles(held, rng))
    out = summary(true.value, false.value, true.kind, false.kind, names=held.kinds)
    if calibrate:
        scale, shift = platt(true.value, false.value)
        scaled = (scale * x.value + shift for x in (true, false))
        out["balanced_accuracy_scaled"] = balanced(*scaled) if scale > 0 else out["balanced_accuracy"]
    return out


def finished(
    trainer: Any, params: PyTree, held: Any, rng: np.random.Generator, *, calibrate: bool = False
) -> tuple[PyTree, dict[str, float]]:
    """What is asked once, of the matcher that a fit keeps: is it the image that it sees, and is it calibrated?

    Args:
      trainer: with a task that has the predictor "match" and, to calibrate, `rescaled(params, scale=, shift=)`.
      calibrate: Platt scaling of the critic on the held-out pairs.

    Returns:
      The parameters, calibrated if asked and possible, and "balanced_accuracy_text": with the features of another image
      in each pair, so that only the question can tell; "visual_gap": what seeing the right image adds. Calibrated also
      "platt_scale", "platt_shift", and after it "ece_calibrated", "match_rate_calibrated" and
      "balanced_accuracy_calibrated", which are of images that each half of the pairs was not scaled with.
    """

    def predict(name: str, source: Any) -> Any:
        return trainer.predict(params, name, source)

    passed = shuffles(held, rng)
    true, false = asked(predict, held, passed)
    blind_true, blind_false = asked(predict, Unseen(held, held, rng), [Unseen(held, p, rng) for p in passed])
    scale, shift = platt(true.value, false.value) if calibrate else (1.0, 0.0)
    seen, blind = (
        balanced(*((scale * x.value + shift if scale > 0 else x.value) for x in pair))
        for pair in ((true, false), (blind_true, blind_false))
    )
    out = {"balanced_accuracy_text": blind, "visual_gap": seen - blind}
    if not calibrate:
        return params, out
    out |= {"platt_scale": scale, "platt_shift": shift}
    if scale <= 0:  # the order of the patterns would turn around
        return params, out
    a, b = crossed(true, false)
    out |= {"ece_calibrated": calibration_error(a, b), "match_rate_calibrated": float((b > 0).mean())}
    out["balanced_accuracy_calibrated"] = balanced(a, b)
    return trainer.task.rescaled(params, scale=scale, shift=shift), out


class Asked(NamedTuple):
    """Critic values of `P` pairs: `value [P]` f64, answer `kind [P]` of the question, `image [P]` i64."""

    value: np.ndarray
    kind: np.ndarray
    image: np.ndarray


def asked(predict: Predict, true: Any, false: Sequence[Any]) -> tuple[Asked, Asked]:
    """The critic of true pairs, and of shuffled ones, all together."""
    found = [
        Asked(np.asarray(predict("match", s), np.float64), s.array("answer_kind"), np.asarray(s.image_ids))
        for s in (true, *false)
    ]
    return found[0], Asked(*(np.concatenate(parts) for parts in zip(*found[1:], strict=True)))


def shuffles(held: Any, rng: np.random.Generator) -> list[Passed]:
    """Some shuffles of the rows; ValueError if no question can be passed on."""
    found = [source for _ in range(SHUFFLES) if (source := shuffled(held, rng)) is not None]
    if not found:
        raise ValueError(
            "no held-out question can be passed on to an image of which it was not asked, so matching cannot be "
            "judged: label more images, with questions that are about what each shows (al.py rollback takes a round "
            "back)"
        )
    return found


def platt(true: np.ndarray, false: np.ndarray) -> tuple[float, float]:
    """`scale`, `shift` for which `sigmoid(scale T + shift)` is best calibrated, both classes with equal weight.

    One half then still means a density ratio of 1. Newton's method on the logistic loss with the targets of Platt
    ("Probabilistic outputs for support vector machines", 1999), which stay finite where the classes are separate.
    """
    n, m = len(true), len(false)
    value = np.concatenate([true, false])
    unit = float(np.abs(value).max()) or 1.0
    x = np.stack([value / unit, np.ones(n + m)], 1)
    target = np.concatenate([np.full(n, (n + 1) / (n + 2)), np.full(m, 1 / (m + 2))])
    weight = np.concatenate([np.full(n, 0.5 / n), np.full(m, 0.5 / m)])

    def loss(beta: np.ndarray) -> float:
        z = x @ beta
        return float((weight * (np.logaddexp(0, z) - target * z)).sum())

    beta = np.zeros(2)
    for _ in range(100):
        p = 0.5 * (1 + np.tanh(0.5 * (x @ beta)))
        slope = x.T @ (weight * (p - target))
        bend = x.T @ (x * (weight * p * (1 - p))[:, None]) + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(bend, slope), 1.0
        while size > 1e-9 and loss(beta - size * step) > loss(beta):
            size /= 2
        beta = beta - size * step
        if np.abs(slope).max() < 1e-10 or size <= 1e-9:
            break
    return float(beta[0] / unit), float(beta[1])


def crossed(true: Asked, false: Asked) -> tuple[np.ndarray, np.ndarray]:
    """Values of true and of shuffled pairs after Platt scaling, each half of the images scaled by the other's pairs."""
    ids = np.unique(np.concatenate([true.image, false.image]))
    halves = [np.searchsorted(ids, part.image) % 2 for part in (true, false)]
    out = true.value.copy(), false.value.copy()
    for half in (0, 1):
        rest = [part.value[h != half] for part, h in zip((true, false), halves, strict=True)]
        if all(map(len, rest)):
            scale, shift = platt(*rest)
            for values, h in zip(out, halves, strict=True):
                values[h == half] = scale * values[h == half] + shift
    return out


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
        self.image_ids = held.image_ids[rows]

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


class Unseen:
    """Rows of `source` with the features of another image of `held`, the same one for all rows of an image."""

    def __init__(self, held: Any, source: Any, rng: np.random.Generator):
        self.held, self.source, self.image_ids = held, source, source.image_ids
        ids, first = np.unique(held.image_ids, return_index=True)
        order = rng.permutation(len(ids))
        shown = np.empty(len(ids), np.int64)
        shown[order] = first[np.roll(order, 1)]
        self.shown = shown[np.searchsorted(ids, self.image_ids)]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        row, other = self.source[i], self.held[int(self.shown[i])]
        return {**row, **{name: other[name] for name in IMAGE}}

    def array(self, name: str) -> np.ndarray:
        """One of the arrays of the questions."""
        out: np.ndarray = self.source.array(name)
        return out


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
    return binned_gap(p, label, weight)


def binned_gap(p: np.ndarray, label: np.ndarray, weight: np.ndarray) -> float:
    """Sum over ten bins of `p [N]` of how far the weighted sums of `p` and of `label [N]` are apart."""
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(bins, weight * (label - p), BINS)).sum())


def warnings(scores: Mapping[str, float]) -> list[str]:
    """What the held-out scores say against a matcher."""
    out = []
    rate = scores.get("match_rate_calibrated", scores.get("match_rate"))
    if rate is not None and rate > HIGH:
        out.append(
            f"{rate:.0%} of random pairs match: the critic is not calibrated (expected at most {HIGH:.0%})"
        )
    if rate is not None and rate < LOW:
        out.append(
            f"{rate:.1%} of random pairs match: the critic has collapsed (expected at least {LOW:.0%})"
        )
    if scores.get("visual_gap", GAP) < GAP:
        out.append(
            f"its balanced accuracy is {scores['visual_gap']:+.3f} above that with other images' features (less than "
            f"{GAP}): a match carries no visual evidence"
        )
    if scores.get("platt_scale", 1.0) <= 0:
        out.append("not calibrated: on held-out pairs its values fall where they should rise")
    if not 0.11 < scores.get("temperature", 1.0) < 9.0:
        out.append(
            f"the temperature of its answers is {scores['temperature']:.2g}, the end of what is tried: too few answers "
            "on held-out images to choose by"
        )
    return out


def said(scores: Mapping[str, float]) -> str:
    """The held-out scores for a line of the display, with a comma before; empty if there are none."""
    out = ""
    if "balanced_accuracy" in scores:
        out += f", balanced accuracy {scores['balanced_accuracy']:.2f} on held-out images"
    if "log_loss" in scores:  # of an answer model
        out += f", accuracy {scores['accuracy']:.2f} and ECE {scores['ece']:.2f} on held-out images"
    if "visual_gap" in scores:
        out += f", {scores['balanced_accuracy_text']:.2f} with other images' features"
    return out
