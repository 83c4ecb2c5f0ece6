"""Which questions strategies ask of unlabelled images (A17), by name; the report says which proposer was used.

Shape legend: `N` images, `J` asked questions, `L` words, `Q` patterns of the bank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active.bank import KINDS, Bank
from jaxvl.active.request import Request
from jaxvl.data.region_source import RegionImages
from jaxvl.data.words import tokens
from jaxvl.types import Predict

MATCHER, MATCHED = "vqme", "pool/matched"  # the stage that "bank_matched" asks, through this engine
OWN = "own"  # instead of a proposer's name, where the items are questions: each is asked itself
CAUTION = {
    "bank_matched": (
        "Each image is asked the bank's questions that match it best by VQME's critic: this proposer hands the other "
        "methods half of CCRL."
    ),
    "visible": (
        "Transductive: each unlabelled image is asked its true questions, which a pool without labels does not have. "
        "This breaks the protocol; compare with transductive runs only."
    ),
}


class Asked(NamedTuple):
    """Questions for images: `text` i32 `[J,L]` for all alike, or `[N,J,L]` padded with zeros; `kinds` likewise."""

    text: np.ndarray
    kinds: np.ndarray


class About(NamedTuple):
    """What a proposer may use.

    Attributes:
      bank: patterns of the round.
      common: positions `[J]` in the bank, the same for all images and methods.
      asked: J.
      records: labelled questions.
      predict: predictions of the round's models.
      questions: the true questions of images, oldest first; only "visible" asks for them.
      words: tokeniser.
    """

    bank: Bank
    common: np.ndarray
    asked: int
    records: Sequence[Mapping[str, Any]]
    predict: Predict
    questions: Callable[[Sequence[int]], list[list[str]]]
    words: Any


def bank_random(images: RegionImages, about: About) -> Asked:
    """The same patterns of every image."""
    return Asked(about.bank.text[about.common], about.bank.kinds[about.common])


def bank_matched(images: RegionImages, about: About) -> Asked:
    """Of each image the J patterns that match it best, by the matcher's critic."""
    request: Any = Request(
        images=RegionImages(images.provider, images.ids), text=about.bank.text, kinds=about.bank.kinds,
        rates=np.ones((len(KINDS), 1)), stage=MATCHER, k_max=about.asked,
    )  # fmt: skip
    found: Any = about.predict(MATCHED, request)  # an engine, asked with a request
    return Asked(about.bank.text[found], about.bank.kinds[found])


def visible(images: RegionImages, about: About) -> Asked:
    """Of each image its own questions, the first J; their kinds are guessed, as answers stay hidden."""
    text = np.zeros((len(images), about.asked, about.words.length), np.int32)
    kinds = np.zeros(text.shape[:2], np.int32)
    guess = Guess(about.records)
    for i, questions in enumerate(about.questions(images.ids.tolist())):
        for j, question in enumerate(questions[: about.asked]):
            text[i, j], kinds[i, j] = about.words.ids(question), guess(question)
    return Asked(text, kinds)


class Guess:
    """The kind of a question whose answers are hidden: that of most labelled questions that open alike (1.2)."""

    def __init__(self, records: Sequence[Mapping[str, Any]]):
        self._counts: dict[tuple[str, ...], Counter[int]] = {}
        for record in records:
            kind = KINDS.index(record["answer_type"])
            for opening in _openings(record["question"]):
                self._counts.setdefault(opening, Counter())[kind] += 1

    def __call__(self, question: str) -> int:
        """Position in `KINDS`; equal counts: the later kind, as in the bank."""
        found = next((c for o in _openings(question) if (c := self._counts.get(o))), Counter())
        return max(range(len(KINDS)), key=lambda kind: (found[kind], kind))


def _openings(question: str) -> list[tuple[str, ...]]:
    """The first two words, the first, none: most telling first."""
    words = tuple(tokens(question))
    return [words[:n] for n in (2, 1, 0)]


PROPOSERS: dict[str, Callable[[RegionImages, About], Asked]] = {
    "bank_random": bank_random,
    "bank_matched": bank_matched,
    "visible": visible,
}


def caution(proposer: str) -> str | None:
    """What a reader must know of curves with this proposer, given as in a protocol: "name/J"; None = nothing."""
    return CAUTION.get(proposer.split("/")[0])
