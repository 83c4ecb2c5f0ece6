"""Who answers: the annotations of a data set, which strategies never see, or people, through files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl.active.items import IMAGE, Unit

Record = Mapping[str, Any]


class OracleError(ValueError):
    """A label was asked for that must not be given."""


class Oracle:
    """The questions and answers of a pool of items. An item's become known by `label`, and only once.

    Args:
      records: question records with `image_id`, as readers of `jaxvl.data.SOURCES` annotate.
      pool: ids of its items; images without a question belong to it too. Default: those of the records.
      unit: what an item is: an image with all its questions, or a single question.
    """

    def __init__(self, records: Iterable[Record], *, pool: Iterable[int] | None = None, unit: Unit = IMAGE):
        self.unit = unit
        self._records: dict[int, list[Record]] = {}
        for record in records:
            self._records.setdefault(int(record[unit.key]), []).append(record)
        ids = self._records if pool is None else pool
        self.ids = np.array(sorted({int(i) for i in ids}), np.int64)
        strange = set(self._records) - set(self.ids.tolist())
        if strange:
            raise OracleError(
                f"{len(strange)} questions are about {unit.many} outside the pool, e.g. {unit.key} {min(strange)}"
            )
        self._labelled: set[int] = set()

    def restore(self, ids: Collection[int]) -> list[Record]:
        """The records of items labelled in earlier rounds, which are then taken."""
        self._labelled = {int(i) for i in ids}
        return [r for i in sorted(self._labelled) for r in self._records.get(i, [])]

    def everything(self) -> list[Record]:
        """The records of all images: for the model of the whole pool that curves are compared with, no strategy."""
        return [r for i in self.ids.tolist() for r in self._records.get(i, [])]

    def questions(self, ids: Sequence[int]) -> list[list[str]]:
        """The questions of images that need not be labelled, without answers: only for runs called transductive.

        Raises:
          OracleError: an image is not in the pool.
        """
        unknown = sorted(set(map(int, ids)) - set(self.ids.tolist()))
        if unknown:
            raise OracleError(f"image {unknown[0]} is not in the pool: its true questions are not known")
        return [[str(r["question"]) for r in self._records.get(int(i), [])] for i in ids]

    def label(self, ids: Sequence[int], *, selected: Collection[int]) -> list[Record]:
        """All questions and answers of these items, in their order.

        Args:
          selected: what the current round has selected.

        Raises:
          OracleError: an item was labelled before, was not selected, or is not in the pool.
        """
        for i in map(int, ids):
            if i not in selected:
                raise OracleError(f"{self.unit.one} {i} was not selected in this round")
            if i in self._labelled:
                raise OracleError(f"{self.unit.one} {i} is labelled already")
        known = set(self.ids.tolist())
        unknown = [i for i in map(int, ids) if i not in known]
        if unknown:
            raise OracleError(
                f"{self.unit.one} {unknown[0]} is not in the pool of {len(known)} {self.unit.many}"
            )
        self._labelled.update(map(int, ids))
        return [r for i in map(int, ids) for r in self._records.get(i, [])]


def records_of(reader: Any, *, answered: bool = True) -> list[Record]:
    """All annotations of a question reader; `answered`: they must have answers.

    Raises:
      OracleError: one lacks a field that active learning needs; names the example and the field.
    """
    rows, wanted = (
        [],
        ("image_id", "question", "question_id", *(("answers", "answer_type") if answered else ())),
    )
    for i in range(len(reader)):
        record = reader.annotation(i)
        for name in wanted:
            if record.get(name) in (None, "", []):
                raise OracleError(
                    f"example {i} ({record.get('image', '?')}) has no {name!r}: active learning needs questions with "
                    "human answers; see docs/howto/use_your_own_data.md"
                )
        rows.append(record)
    return rows
