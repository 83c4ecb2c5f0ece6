"""How many images each round has labels for, what they cost, and when to stop."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np


def targets(size: int, *, init: float, step: float, budget: float) -> list[int]:
    """Labelled images at the start of each round: `init`, `init + step`, ..., `budget` of a pool of `size` images.

    Counts are cumulative and rounded half up, so that the last one is exact (specification 1.4).

    Raises:
      ValueError: shares that are no shares, or steps that add no image.
    """
    first, each, last = (Fraction(str(x)) for x in (init, step, budget))
    if not (0 < first <= last <= 1 and each > 0):
        raise ValueError(
            f"active: init={init}, step={step}, budget={budget} must satisfy 0 < init <= budget <= 1"
        )
    rounds = int((last - first) / each)
    shares = [first + r * each for r in range(rounds + 1)]
    if shares[-1] < last:
        shares.append(last)
    counts = [int(share * size + Fraction(1, 2)) for share in shares]
    if counts[0] < 1 or any(b <= a for a, b in itertools.pairwise(counts)):
        raise ValueError(
            f"active: of {size} images, init={init} and step={step} give rounds of {counts[:4]} ... images: "
            "each must add at least one. Give larger shares or more images"
        )
    return counts


@dataclass(frozen=True)
class Cost:
    """Price of an image, a question, an answer and a second of annotation; the defaults count images."""

    image: float = 1.0
    question: float = 0.0
    answer: float = 0.0
    second: float = 0.0

    def of(self, records: Sequence[Mapping[str, Any]], *, images: int, seconds: float = 0.0) -> float:
        """The cost of `images` and their question records."""
        answers = sum(len(r["answers"]) for r in records)
        return (
            self.image * images + self.question * len(records) + self.answer * answers + self.second * seconds
        )


@dataclass(frozen=True)
class Stop:
    """When a run ends, beside its budget of images; None = never for that reason.

    Attributes:
      cost: no round starts that begins at this cost or more.
      seconds: nor one that begins after so many seconds of this process.
      accuracy: nor one after a round that reached this accuracy, in percent.
      plateau: nor one after `rounds` rounds that each added less than this, in points of accuracy.
      rounds: see `plateau`.
    """

    cost: float | None = None
    seconds: float | None = None
    accuracy: float | None = None
    plateau: float | None = None
    rounds: int = 3

    def reason(self, curve: Sequence[float], *, cost: float, seconds: float) -> str | None:
        """Why to stop after these accuracies, or None."""
        if self.cost is not None and cost >= self.cost:
            return f"cost {cost:g} reached {self.cost:g}"
        if self.seconds is not None and seconds >= self.seconds:
            return f"{seconds:.0f} s of {self.seconds:g} are over"
        if self.accuracy is not None and curve and curve[-1] >= self.accuracy:
            return f"accuracy {curve[-1]:.2f} reached {self.accuracy:g}"
        gains = np.diff(np.asarray(curve, np.float64))[-self.rounds :]
        if self.plateau is not None and len(gains) == self.rounds and (gains < self.plateau).all():
            return f"the last {self.rounds} rounds each added less than {self.plateau:g}"
        return None
