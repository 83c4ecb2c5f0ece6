"""What a strategy sees of a round: images without labels, and images with them.

Both are sources of image rows (`regions`, `region_mask`, `asked`, ...) that `predict` takes. Questions and answers of
unlabelled images are not in here: they are behind the oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active.balance import Shares
from jaxvl.active.bank import KINDS, Bank
from jaxvl.active.oracle import Record
from jaxvl.data.region_source import RegionImages, RegionQuestions


class Candidates(RegionImages):
    """Unlabelled images, with the patterns that are asked of each.

    Attributes:
      bank: all patterns of the round.
      shares: how often each answer was given to labelled questions of each kind.
      cache: folder where an engine may keep what it has scored so far; None = nowhere.
    """

    def __init__(
        self,
        provider: Any,
        ids: np.ndarray,
        *,
        text: np.ndarray,
        kinds: np.ndarray,
        bank: Bank,
        shares: Shares,
        cache: Path | None = None,
    ):
        super().__init__(provider, ids, asked=text, asked_kinds=kinds)
        self.bank, self.shares, self.cache = bank, shares, cache


class Labelled(RegionImages):
    """Labelled images, with their question records.

    Attributes:
      records: all their questions and answers.
    """

    def __init__(
        self,
        provider: Any,
        ids: np.ndarray,
        *,
        records: Sequence[Record],
        words: Any,
        answers: Sequence[str],
        bank: Callable[[Sequence[Record]], Bank],
    ):
        super().__init__(provider, ids)
        self.records, self._words, self._answers, self._build = list(records), words, list(answers), bank

    @cached_property
    def questions(self) -> RegionQuestions:
        """The questions as training rows."""
        return RegionQuestions(self.provider, self.records, self._words, self._answers, kinds=KINDS)

    @cached_property
    def bank(self) -> Bank:
        """The question bank of these labels."""
        return self._build(self.records)

    @cached_property
    def shares(self) -> Shares:
        """Shares of the answers among the labelled questions of each kind."""
        counts = np.zeros((len(KINDS), len(self._answers)))
        for i in range(len(self.questions)):
            answer, kind = self.questions.truth(i)
            if answer >= 0:
                counts[kind, answer] += 1
        return Shares.from_counts(counts)
