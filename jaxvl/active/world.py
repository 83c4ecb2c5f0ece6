"""What all runs of a config share: the pool and who answers, features, words, models and strategies."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active.bank import KINDS, Bank
from jaxvl.active.budget import Cost, Stop
from jaxvl.active.fitting import Fitter
from jaxvl.active.items import Questions, Unit, opening_kinds
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
      protocol: "val" = evaluation questions are scored here; "test" = their answers are written down for EvalAI.
      asked: J, patterns that strategies ask of every unlabelled image.
      proposer: key of `PROPOSERS`: which patterns.
      share_task_model: "plain" = strategies without a loss of their own ask the scored model (A16); "never" = a model
        that is trained for each of them.
      vocabulary: what is known of words and answers before they are labelled.
      warm_start: whether the task model starts from its parameters of the round before.
      variant: of the official accuracy.
      bank: keyword arguments of `build_bank`.
      shared_init: whether all repeats start from the images of the first.
      stands_for: whether it is counted how many unselected images each selected one stands for: one more pass over the
        pool in every round.
      min_fraction: people's batches count as complete from this share of images on.
      reserve: images exported beyond the batch, as a share of it.
      suggest: whether people are shown questions.
      gold: labelled images mixed into a batch of people, as a share of it.
      min_answers: people's questions with fewer answers do not count yet.
    """

    protocol: str = "val"
    asked: int = 8
    proposer: str = "bank_random"
    share_task_model: str = "plain"
    warm_start: bool = False
    vocabulary: Scope = field(default_factory=Scope)
    variant: str = "official"
    bank: Mapping[str, Any] = field(default_factory=dict)
    shared_init: bool = False
    stands_for: bool = True
    min_fraction: float = 0.9
    reserve: float = 0.1
    suggest: bool = True
    gold: float = 0.0
    min_answers: int = 1
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
      counts: labelled items at the start of each round.
      questions: the questions of the pool, where these are the items; None = images are.
      provider: regions of images by id.
      words: tokeniser and word vectors.
      answers: candidate answers, fixed before round 0.
      val: evaluation questions.
      fitter: trains the stages.
      strategies: by the name that a run has as its method.
      engines: predictors over several models, by full name.
      data_key: JSON that says which data all of this is; "val" of it the evaluation questions, "annotations" what
        models and scores read beside questions and answers.
      simulated: whether the oracle answers at once, from annotations; else people do, through files.
      approximate: method -> in which ways its selections are approximate.
      picture: RGB array of an image id, if there are pictures.
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
    approximate: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    simulated: bool = True
    picture: Callable[[int], Any] | None = None
    questions: Questions | None = None
    make_words: Callable[[Iterable[str]], Any] = Words.build
    rebuild: Callable[[Any, list[str]], World] | None = None

    @property
    def unit(self) -> Unit:
        """What an item is."""
        return self.oracle.unit

    @property
    def earlier_key(self) -> dict[str, Any]:
        """`data_key` as it was before annotations were part of it: what older workdirs know their results by."""
        return {k: v for k, v in self.data_key.items() if k != "annotations"}

    @property
    def answers_key(self) -> str:
        """A hash of the candidate answers."""
        return digest(self.answers)

    def labelled(
        self, ids: np.ndarray, records: Sequence[Record], bank: Callable[[Sequence[Record]], Bank]
    ) -> Labelled:
        """The labelled items of a round; questions are asked as they are, with their true answer types."""
        more: dict[str, Any] = dict(records=records, words=self.words, answers=self.answers, bank=bank)
        if self.questions is None:
            return Labelled(self.provider, ids, **more)
        of = {int(r["question_id"]): r for r in records}
        rows = [of[i] for i in ids.tolist()]
        images = np.array([int(r["image_id"]) for r in rows], np.int64)
        found = Labelled(self.provider, ids, image_ids=images, **more)
        kinds = np.array([KINDS.index(r["answer_type"]) for r in rows])
        found.ask(self._text([r["question"] for r in rows])[:, None], kinds[:, None])
        return found

    def _text(self, questions: Sequence[str]) -> np.ndarray:
        """`[N,L]` word ids."""
        return np.stack([self.words.ids(q) for q in questions])

    def candidates(
        self,
        ids: np.ndarray,
        labelled: Labelled,
        ask: Callable[[RegionImages], Asked],
        *,
        cache: Path | None = None,
    ) -> Candidates:
        """The unlabelled items of a round.

        Args:
          ids: of the items.
          labelled: of the round.
          ask: gives what is asked of images, the labelled ones too. Not used where the items are questions: each is
            asked itself, with the answer type of its opening phrase.
          cache: see `Candidates`.
        """
        if self.questions is not None:
            at = self.questions.at(ids)
            texts = [self.questions.texts[i] for i in at]
            return Candidates(
                self.provider, ids, image_ids=self.questions.image_ids[at], text=self._text(texts)[:, None],
                kinds=opening_kinds(texts, labelled.records)[:, None], bank=None, shares=labelled.shares, cache=cache,
            )  # fmt: skip
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


def digest(lines: Sequence[str]) -> str:
    """A hash of a list of strings."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
