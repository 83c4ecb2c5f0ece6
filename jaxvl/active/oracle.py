"""Who answers: the annotations of a data set, which strategies never see, or people, through files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Record = Mapping[str, Any]


class OracleError(ValueError):
    """A label was asked for that must not be given."""


class Oracle:
    """The questions and answers of a pool of images. An image's become known by `label`, and only once.

    Args:
      records: question records with `image_id`, as readers of `jaxvl.data.SOURCES` annotate.
      images: ids of the pool; images without a question belong to it too. Default: the images of the records.
    """

    def __init__(self, records: Iterable[Record], *, images: Iterable[int] | None = None):
        self._records: dict[int, list[Record]] = {}
        for record in records:
            self._records.setdefault(int(record["image_id"]), []).append(record)
        ids = self._records if images is None else images
        self.ids = np.array(sorted({int(i) for i in ids}), np.int64)
        strange = set(self._records) - set(self.ids.tolist())
        if strange:
            raise OracleError(
                f"{len(strange)} questions are about images outside the pool, e.g. image_id {min(strange)}"
            )
        self._labelled: set[int] = set()

    def restore(self, ids: Collection[int]) -> list[Record]:
        """The records of images labelled in earlier rounds, which are then taken."""
        self._labelled = {int(i) for i in ids}
        return [r for i in sorted(self._labelled) for r in self._records.get(i, [])]

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
        """All questions and answers of these images, in their order.

        Args:
          selected: what the current round has selected.

        Raises:
          OracleError: an image was labelled before, was not selected, or is not in the pool.
        """
        for i in map(int, ids):
            if i not in selected:
                raise OracleError(f"image {i} was not selected in this round")
            if i in self._labelled:
                raise OracleError(f"image {i} is labelled already")
        known = set(self.ids.tolist())
        unknown = [i for i in map(int, ids) if i not in known]
        if unknown:
            raise OracleError(f"image {unknown[0]} is not in the pool of {len(known)} images")
        self._labelled.update(map(int, ids))
        return [r for i in map(int, ids) for r in self._records.get(i, [])]


def records_of(reader: Any) -> list[Record]:
    """All annotations of a question reader.

    Raises:
      OracleError: one lacks a field that active learning needs; names the example and the field.
    """
    rows = []
    for i in range(len(reader)):
        record = reader.annotation(i)
        for name in ("image_id", "question", "question_id", "answers", "answer_type"):
            if record.get(name) in (None, "", []):
                raise OracleError(
                    f"example {i} ({record.get('image', '?')}) has no {name!r}: active learning needs questions with "
                    "human answers; see docs/howto/use_your_own_data.md"
                )
        rows.append(record)
    return rows
