"""Visual question answering: official accuracy, results for the evaluation server, and the majority baseline.

Scores are percentages. Source: GT-Vision-Lab/VQA; results in the format of the EvalAI server.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl import scores
from jaxvl.types import Predict, Source


class VQAEval:
    """Scores the first answer of the predictor "answer" by the official accuracy, and writes all answers down.

    Datasets with fewer than ten human answers are scored as `scores.vqa_accuracy` describes: by the same
    formula over those there are, and below four by the share who gave the answer. Questions without
    human answers (test sets) are only written to `results`.

    Args:
      answers: candidate answers; the predictor's indices point into it.
      results: JSON file `[{"question_id": int, "answer": str}]`, one row per question, replaced atomically;
        None = do not write.
      variant: see `scores.vqa_accuracy`.

    Returns (when called):
      "accuracy" and "accuracy/<answer type>", e.g. "accuracy/yes_no", in percent; empty if no question has
      human answers.

    Raises (when called):
      ValueError: an index outside `answers`, a repeated question_id in `results`, or nothing to do.
    """

    def __init__(
        self,
        answers: Sequence[str],
        *,
        results: str | os.PathLike[str] | None = None,
        variant: str = "official",
    ):
        if not answers:
            raise ValueError("VQAEval needs the candidate answers that the predictor's indices point into")
        if variant not in scores.VARIANTS:
            raise ValueError(f"variant={variant!r}: expected one of {scores.VARIANTS}")
        self.answers, self.variant = list(answers), variant
        self.results = None if results is None else Path(results)

    def __call__(self, predict: Predict, source: Source) -> dict[str, float]:
        """Predict, write `results`, score."""
        annotations = [source.annotation(i) for i in range(len(source))]
        if self.results is None and not any(a.get("answers") or a.get("scores") for a in annotations):
            raise ValueError(
                "no question has human answers and results=None: nothing to score, nothing to write"
            )
        predictions = self._predictions(predict("answer", source), len(annotations))
        if self.results is not None:
            write_results(self.results, predictions, annotations)
        return accuracy(predictions, annotations, variant=self.variant)

    def _predictions(self, rows: Any, count: int) -> list[str]:
        index = np.asarray(rows["index"])[:, 0]
        if len(index) != count:
            raise ValueError(f"{len(index)} predictions for {count} questions")
        if index.min() < 0 or index.max() >= len(self.answers):
            raise ValueError(
                f"predicted answer {int(index.max())} of a list of {len(self.answers)}: the evaluator and the task "
                "must have the same candidate answers"
            )
        return [self.answers[i] for i in index]


class MajorityBaseline:
    """What never looking at image or question gives: the most frequent training answer.

    Args:
      train: training source; its annotations are counted, each question with weight 1.
      variant: see `scores.vqa_accuracy`.

    Returns (when called):
      "accuracy", "accuracy/<type>" of the most frequent answer; "by_type/accuracy", ... of the most frequent
      answer of each question's answer type (overall answer for types unseen in training). Percent.
    """

    def __init__(self, train: Source, *, variant: str = "official"):
        self.answer, self.by_type = scores.majority(train.annotation(i) for i in range(len(train)))
        self.variant = variant

    def __call__(self, predict: Predict, source: Source) -> dict[str, float]:
        """Score both baselines; `predict` is not used."""
        annotations = [source.annotation(i) for i in range(len(source))]
        overall = [self.answer] * len(annotations)
        typed = [self.by_type.get(str(a.get("answer_type") or ""), self.answer) for a in annotations]
        by_type = accuracy(typed, annotations, variant=self.variant)
        return {
            **accuracy(overall, annotations, variant=self.variant),
            **{f"by_type/{name}": value for name, value in by_type.items()},
        }


def accuracy(
    predictions: Sequence[str], annotations: Sequence[Mapping[str, Any]], *, variant: str = "official"
) -> dict[str, float]:
    """ "accuracy" and "accuracy/<answer type>" in percent over the questions that have human answers.

    Questions with `scores` {answer: score} instead, as in Arrow tables, have the accuracy that was worked out there.
    """
    pairs = zip(predictions, annotations, strict=True)
    known = [(p, a) for p, a in pairs if a.get("answers") or a.get("scores")]
    values = [
        100.0 * scores.vqa_accuracy(p, answers=a["answers"], variant=variant)
        if a.get("answers")
        else 100.0 * a["scores"].get(p, 0.0)
        for p, a in known
    ]
    return scores.mean_by(values, groups=[str(a.get("answer_type") or "") for _, a in known], name="accuracy")


def write_results(path: Path, predictions: Sequence[str], annotations: Sequence[Mapping[str, Any]]) -> None:
    """Write the server's JSON; readers see the old file or the new one, never half of it."""
    ids = [int(a["question_id"]) for a in annotations]
    repeated = [i for i, n in Counter(ids).items() if n > 1]
    if repeated:
        raise ValueError(
            f"question_id {repeated[0]} occurs more than once: {path} must have one row per question"
        )
    rows = [{"question_id": i, "answer": p} for i, p in zip(ids, predictions, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # all processes of a run write
    temporary.write_text(json.dumps(rows) + "\n", encoding="utf-8")
    temporary.replace(path)
