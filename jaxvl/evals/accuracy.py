"""Accuracy of classes: statements (NLVR2), entailment (SNLI-VE), questions with scored answers; a majority baseline.

Scores are percentages. Consistency follows the evaluation of lil-lab/nlvr.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl import scores
from jaxvl.types import Predict, Source

GROUPS = ("label_name", "statement_type", "answer_type")


class AccuracyEval:
    """Share of the examples whose predictor "class" is the annotation's `label`.

    Where annotations have `scores` {answer: score} instead, an example counts the score of the predicted answer (VQA's
    soft score). Examples with neither, as in test files, are not scored.

    Args:
      answers: the classes as strings; only needed for `scores`.
      groups: annotation keys by whose strings the accuracy is broken down; a key whose value is true or false gives the
        accuracy of the true ones under its own name.

    Returns (when called):
      "accuracy", "accuracy/<group>", and "consistency" where annotations have a `sentence_group`: the share of
      sentences all of whose examples are right. Percent.

    Raises (when called):
      ValueError: nothing to score, or not one class an example.
    """

    def __init__(self, answers: Sequence[str] | None = None, *, groups: Sequence[str] = GROUPS):
        self.answers, self.groups = None if answers is None else list(answers), tuple(groups)

    def __call__(self, predict: Predict, source: Source) -> dict[str, float]:
        """Predict and score."""
        annotations = [source.annotation(i) for i in range(len(source))]
        found = np.asarray(predict("class", source))
        if found.shape != (len(annotations),):
            raise ValueError(f"the predictor 'class' gave {found.shape} for {len(annotations)} examples")
        return accuracy(found, annotations, answers=self.answers, groups=self.groups)


class MajorityClass:
    """What never looking gives: the most frequent training label, equal ones by number.

    Args:
      train: training source; the labels of its annotations are counted, for `scores` the sum of each answer's.
      answers, groups: see `AccuracyEval`.

    Returns (when called): as `AccuracyEval`.

    Raises:
      ValueError: no training annotation has a label.
    """

    def __init__(
        self, train: Source, *, answers: Sequence[str] | None = None, groups: Sequence[str] = GROUPS
    ):
        places = {answer: i for i, answer in enumerate(answers or ())}
        counts: Counter[int] = Counter()
        for i in range(len(train)):
            annotation = train.annotation(i)
            if annotation.get("label") is not None:
                counts[int(annotation["label"])] += 1
            for answer, score in (annotation.get("scores") or {}).items():
                if answer in places:
                    counts[places[answer]] += score
        if not counts:
            raise ValueError("the majority class needs labelled training examples; none has a label")
        self.label = min(counts, key=lambda label: (-round(counts[label], 6), label))
        self.answers, self.groups = None if answers is None else list(answers), tuple(groups)

    def __call__(self, predict: Predict, source: Source) -> dict[str, float]:
        """Score the baseline; `predict` is not used."""
        annotations = [source.annotation(i) for i in range(len(source))]
        found = np.full(len(annotations), self.label)
        return accuracy(found, annotations, answers=self.answers, groups=self.groups)


def accuracy(
    predictions: np.ndarray,
    annotations: Sequence[Mapping[str, Any]],
    *,
    answers: Sequence[str] | None = None,
    groups: Sequence[str] = GROUPS,
) -> dict[str, float]:
    """ "accuracy", "accuracy/<group>" and "consistency" in percent over the annotations that can be scored."""
    pairs = zip(predictions.tolist(), annotations, strict=True)
    scored = [(value, a) for p, a in pairs if (value := _score(p, a, answers)) is not None]
    if not scored:
        raise ValueError(
            "no example has a label: nothing to score (human answers are for the evaluator 'vqa')"
        )
    values = [100.0 * value for value, _ in scored]
    out: dict[str, float] = {}
    for key in groups:
        names = [_group(key, annotation) for _, annotation in scored]
        out |= scores.mean_by(values, groups=names, name="accuracy")
    out |= scores.mean_by(values, groups=[""] * len(values), name="accuracy")
    sentences: dict[str, bool] = {}
    for value, annotation in scored:
        group = annotation.get("sentence_group")
        if group is not None:
            sentences[group] = sentences.get(group, True) and value == 1
    if sentences:
        out["consistency"] = 100.0 * sum(sentences.values()) / len(sentences)
    return out


def _score(prediction: int, annotation: Mapping[str, Any], answers: Sequence[str] | None) -> float | None:
    label, soft = annotation.get("label"), annotation.get("scores")
    if label is not None:
        return float(prediction == label)
    if not soft:
        return None
    if answers is None:
        raise ValueError("annotations have scores of answers: AccuracyEval needs the answers of the classes")
    return float(soft.get(answers[prediction], 0.0))


def _group(key: str, annotation: Mapping[str, Any]) -> str:
    value = annotation.get(key)
    if isinstance(value, bool):
        return key if value else ""
    return "" if value is None else str(value)
