"""What a strategy sees of a round: items without labels, and items with them.

Both are sources of image rows (`regions`, `region_mask`, `asked`, ...) that `predict` takes. Where items are images,
each is asked the same patterns of the bank; where they are questions, each row is an image with its own question.
Questions of unlabelled images, and answers of anything unlabelled, are not in here: they are behind the oracle.
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
    """Unlabelled items, with what is asked of each.

    Attributes:
      ids: of the items; `image_ids`, their images.
      bank: all patterns of the round; None where the items are questions.
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
        bank: Bank | None,
        shares: Shares,
        image_ids: np.ndarray | None = None,
        cache: Path | None = None,
    ):
        super().__init__(provider, ids, image_ids=image_ids, asked=text, asked_kinds=kinds)
        self.bank, self.shares, self.cache = bank, shares, cache


class Labelled(RegionImages):
    """Labelled items, with their question records.

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
        image_ids: np.ndarray | None = None,
    ):
        super().__init__(provider, ids, image_ids=image_ids)
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
