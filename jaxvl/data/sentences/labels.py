"""What readers of labelled sentences share: canonical labels, rows with one image or two, and what was left out.

Labels are matched by their strings: files number them differently (BridgeTower's SNLI-VE has neutral 1 and
entailment 2, DiDE's the reverse). Here contradiction is 0, neutral 1, entailment 2; a false statement 0, a true one 1.

Record of a row: `image`, `image_id`, `sentence`, `sentence_id`, `label` (None in test files without labels),
`label_name`; for pairs of images `image2`, `image2_id`; where several rows share a sentence `sentence_group`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl.data.images import ImageStore
from jaxvl.data.records import DataError, Parsed, Paths, Records, Row, report_dropped

ENTAILMENT = ("contradiction", "neutral", "entailment")
TRUTH = ("False", "True")
NO_AGREEMENT = "-"  # gold label of SNLI where the annotators did not agree


class Sentences(Records):
    """Records with a sentence and perhaps a second image.

    Args:
      parsed: of a `Gathered`.
      dropped: rows that were left out, by reason; the attribute `dropped`.
      images, check, holdout: see `Records`. Pairs made of the same set of images are held out together.
    """

    def __init__(
        self,
        parsed: Parsed,
        images: Paths | None,
        *,
        dropped: Mapping[str, int],
        check: Sequence[str] = (),
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        self.dropped = dict(dropped)
        super().__init__(parsed, [ImageStore(images)], check=check, holdout=holdout)

    def image2(self, i: int) -> np.ndarray:
        """The second image of row `i`, `[H, W, 3]` uint8 RGB; raises `ImageError` naming the file."""
        return self.stores[self._roots[i]].image(self.annotation(i)["image2"])

    def has_image2(self, i: int) -> bool:
        """True if the second image of row `i` exists."""
        return self.stores[self._roots[i]].exists(self.annotation(i)["image2"])

    def require_answers(self) -> None:
        """Raise `DataError` naming file, row and fix if sentences have no labels: they cannot be trained on."""
        if self._unanswered:
            raise DataError(f"sentences without labels can be predicted, not trained on: {self._unanswered}")


class Gathered:
    """Rows on their way into `Sentences`: good ones, problems, and counts of what is left out.

    Args:
      files: read as one.
      images: where to look for the images if `missing` is "drop".
      missing: "keep" = rows whose images do not exist stay (training then replaces them, up to 1 %); "drop" = they are
        left out and counted.
    """

    def __init__(self, files: list[str], *, images: Paths | None = None, missing: str = "keep") -> None:
        if missing not in ("keep", "drop"):
            raise ValueError(f"missing={missing!r} must be 'keep' or 'drop'")
        self.parsed = Parsed(files)
        self.dropped: Counter[str] = Counter()
        self._store = ImageStore(images) if missing == "drop" else None
        self._exists: dict[str, bool] = {}
        self._numbers: dict[str, int] = {}
        self._pairs: bool | None = None

    def add(
        self,
        row: Row,
        images: Sequence[str],
        sentence: str,
        label: int | None,
        names: Sequence[str],
        *,
        image_id: int | None = None,
        group: str | None = None,
        held_with: str | None = None,
    ) -> None:
        """Keep a good row.

        Args:
          image_id: the file's own, for rows with one image.
          group: equal for rows that share a sentence.
          held_with: rows with the same string fall on the same side of a holdout; None = those of the first image.
        """
        if self._store is not None and not all(map(self._found, images)):
            self.dropped["missing images"] += 1
            return
        pair = len(images) == 2
        if self._pairs not in (None, pair):
            row.bad(
                "image",
                "has another number of images than the rows before",
                "Put these rows in another file.",
            )
            return
        self._pairs = pair
        if label is None:
            self.parsed.unanswered[len(self.parsed.packed)] = row.missing("label")
        record = {
            "image": images[0],
            "sentence": sentence,
            "sentence_id": len(self.parsed.packed),
            "label": label,
            "label_name": None if label is None else names[label],
        }
        if pair:
            number = self._number(images[0])
            record.update(image2=images[1], image2_id=self._number(images[1]))
        if group is not None:
            record["sentence_group"] = group
        named = image_id if image_id is not None else images[0]
        self.parsed.add(record, row=row.number, image_id=number if pair else named)
        self.parsed.images[-1] = held_with or images[0]

    def complete(self) -> Parsed:
        """The rows, after a log line on what was left out; raises `DataError` that sums up all problems."""
        report_dropped(self.parsed, self.dropped)
        return self.parsed.require_valid()

    def _found(self, image: str) -> bool:
        if image not in self._exists:
            assert self._store is not None
            self._exists[image] = self._store.exists(image)
        return self._exists[image]

    def _number(self, image: str) -> int:
        return self._numbers.setdefault(image, len(self._numbers))


def truth_of(row: Row) -> int | None:
    """0 or 1 of a label true/false, whatever its case, or 0/1; None without a label or with a problem."""
    value = row.get("label")
    if value is None:
        return None
    if isinstance(value, (bool, int)) and value in (0, 1):
        return int(value)
    if isinstance(value, str) and value.lower() in ("false", "true"):
        return int(value.lower() == "true")
    row.bad("label", f"is {value!r}", 'Write "True" or "False".')
    return None


def entailment_of(row: Row, order: Sequence[str] | None = None) -> int | None:
    """Canonical id of an entailment label; None without a label or with a problem. `order` names integer labels."""
    value = row.get("label")
    if isinstance(value, int) and not isinstance(value, bool) and order is not None:
        if 0 <= value < len(order):
            return ENTAILMENT.index(order[value])
        row.bad("label", f"is {value}", f"Write 0 to {len(order) - 1}, for {', '.join(order)}.")
        return None
    if value is None or value in ENTAILMENT:
        return None if value is None else ENTAILMENT.index(value)
    fix = f"Write {', '.join(ENTAILMENT)}"
    fix += ", or pass label_order for numbers." if isinstance(value, int) else "."
    row.bad("label", f"is {value!r}", fix)
    return None


def check_order(order: Sequence[str] | None) -> None:
    """Raise ValueError unless `order` is None or names each entailment label once."""
    if order is not None and sorted(order) != sorted(ENTAILMENT):
        raise ValueError(f"label_order={order!r} must name each of {', '.join(ENTAILMENT)} once")
