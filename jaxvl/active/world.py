"""What all runs of a config share: the pool and who answers, features, words, models and strategies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active.bank import Bank
from jaxvl.active.budget import Cost, Stop
from jaxvl.active.fitting import Fitter
from jaxvl.active.oracle import Oracle, Record
from jaxvl.active.pool import Candidates, Labelled
from jaxvl.active.proposers import MATCHER, Asked
from jaxvl.active.strategies.base import Strategy
from jaxvl.active.vocabulary import Scope
from jaxvl.data.region_source import RegionImages
from jaxvl.data.words import Words
from jaxvl.types import PyTree, Rows, Source

TASK = "task"  # the stage of the model that is scored
SAMPLER = "sampler"  # one like it that a strategy asks instead, if the scored one is not shared
SHARING = ("plain", "never")
Engine = Callable[[Mapping[str, PyTree], Source], Rows]


@dataclass(frozen=True)
class Options:
    """Choices of the protocol; see the specification, sections 1 and 13.

    Attributes:
      asked: J, patterns that strategies ask of every unlabelled image.
      proposer: key of `PROPOSERS`: which patterns.
      share_task_model: "plain" = strategies without a loss of their own ask the scored model (A16); "never" = a model
        that is trained for each of them.
      vocabulary: what is known of words and answers before they are labelled.
      warm_start: whether the task model starts from its parameters of the round before.
      variant: of the official accuracy.
      bank: keyword arguments of `build_bank`.
      shared_init: whether all repeats start from the images of the first.
      min_fraction: people's batches count as complete from this share of images on.
      reserve: images exported beyond the batch, as a share of it.
      suggest: whether people are shown questions.
    """

    asked: int = 8
    proposer: str = "bank_random"
    share_task_model: str = "plain"
    warm_start: bool = False
    vocabulary: Scope = field(default_factory=Scope)
    variant: str = "official"
    bank: Mapping[str, Any] = field(default_factory=dict)
    shared_init: bool = False
    min_fraction: float = 0.9
    reserve: float = 0.1
    suggest: bool = True
    cost: Cost = field(default_factory=Cost)
    stop: Stop = field(default_factory=Stop)

    def needs(self, strategy: Strategy) -> tuple[str, ...]:
        """The sampler stages of a strategy in the order of training, with those that these options call for."""
        sampler = self.share_task_model == "never" and strategy.reads_task
        matcher = self.proposer == "bank_matched" and strategy.asks
        more = (*((SAMPLER,) if sampler else ()), *((MATCHER,) if matcher else ()))
        return tuple(dict.fromkeys((*more, *strategy.needs)))


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
      make_words: questions -> tokeniser, for rounds whose words are those of labelled questions.
      rebuild: (words, answers) -> this world with models that have these, for rounds that differ in them.
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
    make_words: Callable[[Iterable[str]], Any] = Words.build
    rebuild: Callable[[Any, list[str]], World] | None = None

    @property
    def answers_key(self) -> str:
        """A hash of the candidate answers."""
        return hashlib.sha256("\n".join(self.answers).encode()).hexdigest()[:16]

    def labelled(
        self, ids: np.ndarray, records: Sequence[Record], bank: Callable[[Sequence[Record]], Bank]
    ) -> Labelled:
        """The labelled images of a round."""
        return Labelled(
            self.provider, ids, records=records, words=self.words, answers=self.answers, bank=bank
        )

    def candidates(
        self,
        ids: np.ndarray,
        labelled: Labelled,
        ask: Callable[[RegionImages], Asked],
        *,
        cache: Path | None = None,
    ) -> Candidates:
        """The unlabelled images of a round; both they and the labelled ones are asked what `ask` gives for them."""
        labelled.ask(*ask(labelled))
        asked = ask(RegionImages(self.provider, ids))
        return Candidates(
            self.provider,
            ids,
            text=asked.text,
            kinds=asked.kinds,
            bank=labelled.bank,
            shares=labelled.shares,
            cache=cache,
        )
