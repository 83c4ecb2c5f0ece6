"""What all runs of a config share: the pool and who answers, features, words, models and strategies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active.bank import Bank
from jaxvl.active.budget import Cost, Stop
from jaxvl.active.fitting import Fitter
from jaxvl.active.oracle import Oracle, Record
from jaxvl.active.pool import Candidates, Labelled
from jaxvl.active.strategies.base import Strategy
from jaxvl.types import PyTree, Rows, Source

TASK = "task"  # the stage of the model that is scored
Engine = Callable[[Mapping[str, PyTree], Source], Rows]


@dataclass(frozen=True)
class Options:
    """Choices of the protocol; see the specification, sections 1 and 13.

    Attributes:
      asked: J, patterns that strategies ask of every unlabelled image.
      variant: of the official accuracy.
      bank: keyword arguments of `build_bank`.
      shared_init: whether all repeats start from the images of the first.
      stands_for: whether it is counted how many unselected images each selected one stands for: one more pass over the
        pool in every round.
      min_fraction: people's batches count as complete from this share of images on.
      reserve: images exported beyond the batch, as a share of it.
      suggest: whether people are shown questions.
      gold: labelled images mixed into a batch of people, as a share of it.
    """

    asked: int = 8
    variant: str = "official"
    bank: Mapping[str, Any] = field(default_factory=dict)
    shared_init: bool = False
    stands_for: bool = True
    min_fraction: float = 0.9
    reserve: float = 0.1
    suggest: bool = True
    gold: float = 0.0
    cost: Cost = field(default_factory=Cost)
    stop: Stop = field(default_factory=Stop)


@dataclass
class World:
    """See the module.

    Attributes:
      seed: master seed.
      oracle: pool and answers.
      counts: labelled images at the start of each round.
      provider: regions of images by id.
      words: tokeniser and word vectors.
      answers: candidate answers, fixed before round 0.
      val: evaluation questions.
      fitter: trains the stages.
      strategies: by the name that a run has as its method.
      engines: predictors over several models, by full name.
      data_key: JSON that says which data all of this is; "val" of it the evaluation questions.
      simulated: whether the oracle answers at once, from annotations; else people do, through files.
      questions: records -> source of question rows.
      images: ids, asked text, kinds -> source of image rows.
    """

    seed: int
    oracle: Oracle
    counts: list[int]
    provider: Any
    words: Any
    answers: list[str]
    val: Any
    fitter: Fitter
    strategies: Mapping[str, Strategy]
    data_key: Mapping[str, Any]
    options: Options = Options()
    engines: Mapping[str, Engine] = field(default_factory=dict)
    simulated: bool = True
    picture: Callable[[int], Any] | None = None

    @property
    def answers_key(self) -> str:
        """A hash of the candidate answers."""
        return digest(self.answers)

    def labelled(
        self, ids: np.ndarray, records: Sequence[Record], bank: Callable[[Sequence[Record]], Bank]
    ) -> Labelled:
        """The labelled images of a round."""
        return Labelled(
            self.provider, ids, records=records, words=self.words, answers=self.answers, bank=bank
        )

    def candidates(
        self, ids: np.ndarray, labelled: Labelled, asked: np.ndarray, *, cache: Path | None = None
    ) -> Candidates:
        """The unlabelled images of a round; both they and the labelled ones are asked these patterns of the bank."""
        bank = labelled.bank
        labelled.ask(bank.text[asked], bank.kinds[asked])
        return Candidates(
            self.provider,
            ids,
            text=bank.text[asked],
            kinds=bank.kinds[asked],
            bank=bank,
            shares=labelled.shares,
            cache=cache,
        )


def digest(lines: Sequence[str]) -> str:
    """A hash of a list of strings."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
