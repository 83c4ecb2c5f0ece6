"""What is chosen and labelled: images with all their questions, or single questions about images. NumPy only.

An item has an id, that of the image or of the question. Of an unlabelled image nothing but its regions is known; of an
unlabelled question its image and its words, never its answers or its answer type (specification 1.2, unit "qa").
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active.bank import KINDS, TIES
from jaxvl.data.words import tokens

OPENING = 4  # words of a question's opening phrase, at most


class Unit(NamedTuple):
    """A kind of item: its `name` in the config, the field `key` of a record that is its id, and words for it."""

    name: str
    key: str
    one: str
    many: str


IMAGE, QA = Unit("image", "image_id", "image", "images"), Unit("qa", "question_id", "question", "questions")
UNITS = {unit.name: unit for unit in (IMAGE, QA)}


class Questions:
    """The questions of a pool whose items they are, without their answers.

    Attributes:
      ids: `[N]` i64, ascending.
      image_ids: `[N]` i64.
      texts: the questions.

    Args:
      records: with `question_id`, `image_id` and `question`; nothing else of them is kept.

    Raises:
      ValueError: a record without one of these, or a question id that occurs twice; names it.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]]):
        found: dict[int, tuple[int, str]] = {}
        for number, record in enumerate(records):
            absent = [
                k for k in ("question_id", "image_id", "question") if record.get(k) is None or record[k] == ""
            ]
            if absent:
                raise ValueError(
                    f"example {number} ({record.get('image', '?')}) has no {absent[0]!r}: with active.unit='qa' people "
                    "answer the questions of the pool, so each needs one; or choose active.unit='image'"
                )
            item = int(record["question_id"])
            if item in found:
                raise ValueError(
                    f"question_id {item} occurs twice in the pool: give each question an id of its own"
                )
            found[item] = int(record["image_id"]), str(record["question"])
        self.ids = np.array(sorted(found), np.int64)
        self.image_ids = np.array([found[i][0] for i in self.ids.tolist()], np.int64)
        self.texts = [found[i][1] for i in self.ids.tolist()]

    def at(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Positions of these ids.

        Raises:
          ValueError: one is not in the pool.
        """
        wanted = np.asarray(ids, np.int64)
        found = np.minimum(np.searchsorted(self.ids, wanted), max(len(self.ids) - 1, 0))
        strange = wanted[self.ids[found] != wanted]
        if len(strange):
            raise ValueError(f"question {strange[0]} is not in the pool of {len(self.ids)} questions")
        return found

    def line(self, item: int) -> dict[str, Any]:
        """What files say of a question: its id, image and words."""
        (i,) = self.at([item])
        return {"question_id": item, "image_id": int(self.image_ids[i]), "question": self.texts[i]}


def opening_kinds(questions: Sequence[str], labelled: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """`[N]` i32: the answer type that labelled questions with the same opening phrase mostly have.

    The opening phrase of a question is the longest beginning, of four words at most, that a labelled question has too;
    without any it is empty, and all labelled questions count. Equal counts go to other, then number. It is read off the
    words: the official question types are part of the annotations, which are hidden.

    Args:
      questions: unlabelled ones.
      labelled: records with `question` and `answer_type`, at least one.
    """
    votes: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for record in labelled:
        words = tokens(record["question"])[:OPENING]
        for n in range(len(words) + 1):
            votes[tuple(words[:n])][str(record["answer_type"])] += 1
    kind = {
        opening: KINDS.index(min(KINDS, key=lambda k: (-count[k], TIES.index(k))))
        for opening, count in votes.items()
    }
    out = np.zeros(len(questions), np.int32)
    for row, question in enumerate(questions):
        words = tokens(question)[:OPENING]
        out[row] = next(kind[p] for n in range(len(words), -1, -1) if (p := tuple(words[:n])) in kind)
    return out
