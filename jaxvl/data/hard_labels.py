"""Human answers as classes: the hard label of a question, its soft targets, and shares of the answers.

Specification 2.4. Shape legend: `K` labels of a question, `C` answers (classes).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvl.scores import agreement
from jaxvl.vqa_normalise import normalise


class Targets(NamedTuple):
    """What a question's human answers say about the classes; unused slots are class C with zeros.

    Attributes:
      label: `[K]` i32 classes that were given, the most frequent first.
      score: `[K]` f32 accuracy of giving each.
      share: `[K]` f32 how often each was given, over all that are classes: sums to 1 if there is one.
      hard: the hard label, -1 if no answer is a class.
    """

    label: np.ndarray
    score: np.ndarray
    share: np.ndarray
    hard: int


class AnswerClasses:
    """Candidate answers as classes 0 to C - 1.

    Args:
      answers: candidate answers. A human answer in its official normal form is looked up among them as they are
        written, then among their normal forms.
      max_labels: K; of more, the most frequent are kept.

    Raises:
      ValueError: no answers, or one twice.
    """

    def __init__(self, answers: Sequence[str], *, max_labels: int = 10) -> None:
        self.answers, self.max_labels = tuple(answers), max_labels
        self._places = {answer: i for i, answer in enumerate(self.answers)}
        if not self.answers or len(self._places) != len(self.answers):
            raise ValueError(
                f"{len(self.answers)} answers, {len(self._places)} distinct: give each class once"
            )
        for i, answer in enumerate(self.answers):
            self._places.setdefault(normalise(answer), i)

    def __len__(self) -> int:
        return len(self.answers)

    def place(self, answer: str) -> int:
        """Class of a human answer, -1 if it is none."""
        return self._places.get(normalise(answer), -1)

    def hard(self, record: Mapping[str, Any]) -> int:
        """The hard label: the consensus answer's class, else that of the class that was given most, else -1.

        The consensus is the record's `multiple_choice_answer` if it has one, else the most frequent answer; equally
        frequent ones go by the order of their strings.
        """
        return self._hard(record, self._counts(record))

    def targets(self, record: Mapping[str, Any]) -> Targets:
        """All targets of a record with `answers`, one an annotator.

        Of ten annotators, 1, 2, 3, 4 give the scores .3, .6, .9, 1; of other numbers see `scores.agreement`.
        """
        counts, given = self._counts(record), len(record.get("answers") or ())
        kept = sorted(counts, key=lambda place: (-counts[place], self.answers[place]))[: self.max_labels]
        out = Targets(
            np.full(self.max_labels, len(self), np.int32),
            np.zeros(self.max_labels, np.float32),
            np.zeros(self.max_labels, np.float32),
            self._hard(record, counts),
        )
        out.label[: len(kept)] = kept
        out.score[: len(kept)] = [agreement(counts[place], annotators=given) for place in kept]
        out.share[: len(kept)] = [counts[place] / sum(counts[p] for p in kept) for place in kept]
        return out

    def _hard(self, record: Mapping[str, Any], counts: Counter[int]) -> int:
        consensus = record.get("multiple_choice_answer")
        place = self.place(consensus) if consensus is not None else -1
        if place >= 0:
            return place
        # The most frequent answer of all is also the most frequent among the classes, if it is one.
        return min(counts, key=lambda p: (-counts[p], self.answers[p]), default=-1)

    def _counts(self, record: Mapping[str, Any]) -> Counter[int]:
        places = (self.place(answer) for answer in record.get("answers") or ())
        return Counter(place for place in places if place >= 0)


def strict_min_count(fraction: float, *, full: int = 9) -> int:
    """How often an answer must be given to be a class, if only a fraction of the data is labelled.

    `full` is the count for all data; at least 2 are asked for (specification 2.4, `strict`).
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie in (0, 1]")
    return max(2, math.ceil(full * fraction))
