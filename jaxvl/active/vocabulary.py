"""Words and answers of a round, where they follow the labels instead of being known before round 0 (A18, 11.7)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxvl.active.folder import RunFolder
from jaxvl.active.human import quality
from jaxvl.active.report.balance import consensus
from jaxvl.data.hard_labels import strict_min_count

if TYPE_CHECKING:
    from jaxvl.active.world import World

SCOPES = {"words": ("all", "strict"), "answers": ("fixed", "strict")}
GREW = "GREW"  # an event before TRAINED: the answers that this round has more than the one before
LISTED = 20  # answers out of the vocabulary that metrics list


@dataclass(frozen=True)
class Scope:
    """What is known of words and answers.

    Attributes:
      words: "all" = those of all questions; "strict" = those of labelled questions, built anew each round.
      answers: "fixed" before round 0; "strict" = those that are frequent among the labels, built anew each round.
      grow: whether frequent answers that are no candidates become some, at the next round.
      min_count: questions that an answer must answer if all images were labelled.
    """

    words: str = "all"
    answers: str = "fixed"
    grow: bool = False
    min_count: int = 9

    @property
    def changes(self) -> bool:
        """Whether rounds differ."""
        return self.words == "strict" or self.answers == "strict" or self.grow


def frequent(records: Sequence[Mapping[str, Any]], *, fraction: float, min_count: int) -> list[str]:
    """Consensus answers of at least max(2, `min_count` times the labelled fraction) questions, by first appearance.

    Raises:
      ValueError: there is none.
    """
    least = strict_min_count(fraction, full=min_count)
    counts = Counter(a for a in (consensus(r["answers"]) for r in records) if a)
    found = [answer for answer, n in counts.items() if n >= least]
    if not found:
        raise ValueError(
            f"no answer is given to {least} of the {len(records)} labelled questions: start with more images "
            "(config.active.init), or config.active.answers.scope='fixed'"
        )
    return found


def grown(
    records: Sequence[Mapping[str, Any]], answers: Collection[str], *, fraction: float, min_count: int
) -> list[str]:
    """The frequent answers (as `frequent`) that are no candidates yet, most frequent first."""
    least = strict_min_count(fraction, full=min_count)
    return [answer for answer, n in quality.outside(records, answers).items() if answer and n >= least]


def of_round(base: World, run: RunFolder, round: int, *, note: bool) -> tuple[Any, list[str], list[str]]:
    """Words and answers of a round, and which of the answers are new and were noted in the ledger by this call.

    Args:
      base: with the words and answers that are known before round 0.
      note: whether the ledger may be written: answers grow once, before the round's training.
    """
    scope, records = base.options.vocabulary, run.records(round)
    fraction = len(run.labelled(round)) / len(base.oracle.ids)
    words = base.words if scope.words == "all" else base.make_words(r["question"] for r in records)
    answers, new = base.answers, list[str]()
    if scope.answers == "strict":
        answers = frequent(records, fraction=fraction, min_count=scope.min_count)
    if scope.grow:
        events = [e.data for e in run.ledger.valid() if e.kind == GREW]
        answers = [*answers, *(a for e in events if e["round"] <= round for a in e["answers"])]
        if note and all(e["round"] != round for e in events):
            new = grown(records, answers, fraction=fraction, min_count=scope.min_count)
            if new:
                run.ledger.append(GREW, round=round, answers=new)
    return words, [*answers, *new], new


def summary(
    records: Sequence[Mapping[str, Any]],
    words: Collection[str],
    answers: Collection[str],
    *,
    before: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """For the metrics: sizes, and the labelled questions whose consensus answer is no candidate.

    Args:
      before: the same of the round before; None = this is the first.

    Returns:
      `words`, `answers`: how many; `digest` of both; `programs`: how many vocabularies there were up to here, each of
      which compiles the models' programs anew; `outside`: `questions`, `distinct` answers, `most` frequent ones.
    """
    outside = quality.outside(records, answers)
    most = dict(list(outside.items())[:LISTED])
    digest = hashlib.sha256(json.dumps([list(words), list(answers)]).encode()).hexdigest()[:16]
    programs = 1 if before is None else before["programs"] + (digest != before["digest"])
    return {
        "words": len(words), "answers": len(answers), "digest": digest, "programs": programs,
        "outside": {"questions": sum(outside.values()), "distinct": len(outside), "most": most},
    }  # fmt: skip
