"""How good a task model is: the official VQA accuracy of every evaluation question, kept one by one.

The report resamples evaluation images, so the score of each question is stored beside its image. NumPy only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl import scores
from jaxvl.active import evalai
from jaxvl.active.bank import KINDS
from jaxvl.atomic import read_json


class Scored(NamedTuple):
    """`value [N]` f32 in [0, 1] of each question, its `question_id [N]` and `image_id [N]` i64, its `kind [N]` i8."""

    value: np.ndarray
    question_id: np.ndarray
    image_id: np.ndarray
    kind: np.ndarray

    def accuracy(self) -> dict[str, float]:
        """Percent: `overall`, and of each answer type that occurs."""
        out = {"overall": 100.0 * float(self.value.mean(dtype=np.float64))}
        for kind, name in enumerate(KINDS):
            mine = self.kind == kind
            if mine.any():
                out[name] = 100.0 * float(self.value[mine].mean(dtype=np.float64))
        return out

    def save(self, path: Path) -> None:
        """Write an `.npz` file under exactly this name."""
        with path.open("wb") as file:
            np.savez(file, **self._asdict())

    @classmethod
    def load(cls, path: Path) -> Scored:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(*(arrays[name] for name in cls._fields))


def score(
    predict: Callable[[Any], Any], source: Any, answers: Sequence[str], *, variant: str = "official"
) -> Scored:
    """Ask a model all questions of a source.

    Args:
      predict: source -> `{"index": [N, n]}`, best answer first, as the predictor "answer" of tasks gives.
      source: has `annotation(i)` with `answers`, `answer_type`, `question_id`, `image_id`.
      answers: the strings that the indices point into.
      variant: of `scores.vqa_accuracy`.
    """
    index = np.asarray(predict(source)["index"])[:, 0]
    rows = [source.annotation(i) for i in range(len(source))]
    if len(index) != len(rows):
        raise ValueError(f"{len(index)} predictions for {len(rows)} questions")
    values = [
        scores.vqa_accuracy(answers[a], answers=row["answers"], variant=variant)
        for a, row in zip(index, rows, strict=True)
    ]
    return Scored(
        np.array(values, np.float32),
        np.array([int(row["question_id"]) for row in rows], np.int64),
        np.array([int(row["image_id"]) for row in rows], np.int64),
        np.array(
            [KINDS.index(row["answer_type"]) if row["answer_type"] in KINDS else -1 for row in rows], np.int8
        ),
    )


def answered(predict: Callable[[Any], Any], source: Any, answers: Sequence[str]) -> list[dict[str, Any]]:
    """What a model answers to the questions of a source: `[{"question_id", "answer"}]`; arguments as of `score`."""
    index = np.asarray(predict(source)["index"])[:, 0]
    if len(index) != len(source):
        raise ValueError(f"{len(index)} predictions for {len(source)} questions")
    ids = [int(source.annotation(i)["question_id"]) for i in range(len(source))]
    return [{"question_id": i, "answer": answers[a]} for i, a in zip(ids, index, strict=True)]


def score_file(predictions: Path, annotations: Path, *, variant: str = "official") -> dict[str, float]:
    """Percent, overall, by answer type and by question type, of a result file against VQA v2 annotations.

    Args:
      predictions: `[{"question_id": int, "answer": str}]`, every question of the annotations exactly once.
      annotations: `{"annotations": [{"question_id", "answers": [{"answer"}], "answer_type", "question_type"}]}`.

    Raises:
      ValueError: missing, repeated or unknown question ids, or another content; names the file and the ids.
    """
    given, content = read_json(predictions), read_json(annotations)
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise ValueError(f"{annotations}: no list 'annotations' in it; give an annotation file of VQA v2")
    if not isinstance(given, list) or not all(
        isinstance(p, dict) and {"question_id", "answer"} <= set(p) for p in given
    ):
        raise ValueError(f'{predictions}: expected [{{"question_id": 1, "answer": "yes"}}, ...]')
    answers = {int(p["question_id"]): str(p["answer"]) for p in given}
    ids = [int(r["question_id"]) for r in rows]
    evalai.check_ids((int(p["question_id"]) for p in given), ids, where=predictions, of=annotations)
    values = [
        scores.vqa_accuracy(answers[i], answers=[a["answer"] for a in r["answers"]], variant=variant)
        for i, r in zip(ids, rows, strict=True)
    ]
    out = scores.mean_by(values, groups=[str(r.get("answer_type") or "") for r in rows], name="accuracy")
    out |= scores.mean_by(values, groups=[str(r.get("question_type") or "") for r in rows], name="accuracy")
    return {name: 100.0 * value for name, value in out.items()}
