"""SNLI-VE: does a photograph entail a sentence? The official JSON Lines, or ALBEF's and DiDE's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from jaxvl.data.records import Paths, Row, as_paths, options, read_rows
from jaxvl.data.sentences.labels import (
    ENTAILMENT,
    NO_AGREEMENT,
    Gathered,
    Sentences,
    check_order,
    entailment_of,
)

# The premise (sentence1) is never read: the image takes its place.
NAMES = {
    "image": ("Flickr30K_ID", "image"),
    "sentence": ("sentence2", "sentence"),
    "label": ("gold_label", "label"),
}
FOLDER = "flickr30k-images"


class SnliVe(Sentences):
    """`snli_ve_{train,dev,test}.jsonl` (Flickr30K_ID, sentence2, gold_label), or a list of `{image, sentence, label}`.

    The label is the string; contradiction is 0, neutral 1, entailment 2. Rows labelled "-" are left out and counted.

    Args:
      files: one file or several, read as one.
      images: folder(s) or zip(s) that hold `flickr30k-images/{Flickr30K_ID}.jpg`, or the files alone.
      label_order: what integer labels mean, DiDE's `("contradiction", "entailment", "neutral")`; None = strings only.
      missing: "keep" or "drop" rows whose images do not exist.
      holdout: see `Records`.
    """

    def __init__(
        self,
        files: Paths,
        *,
        images: Paths,
        label_order: Sequence[str] | None = None,
        missing: str = "keep",
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        found = parse_snli_ve(files, images=images, label_order=label_order, missing=missing)
        extra = options(images=images, format="snli_ve", label_order=label_order)
        check = [*found.parsed.files, *extra]
        super().__init__(found.complete(), images, dropped=found.dropped, check=check, holdout=holdout)


def parse_snli_ve(
    files: Paths,
    *,
    images: Paths | None = None,
    label_order: Sequence[str] | None = None,
    missing: str = "keep",
) -> Gathered:
    """All rows of SNLI-VE files, good ones and problems."""
    check_order(label_order)
    found = Gathered(as_paths(files), images=images, missing=missing)
    for file in found.parsed.files:
        for number, data in read_rows(file):
            row = Row(found.parsed, file, number, data, NAMES)
            if row.get("label") == NO_AGREEMENT:
                found.dropped["a label without agreement"] += 1
                continue
            if isinstance(row.get("image"), int):
                row.data = {**row.data, "Flickr30K_ID": str(row.get("image"))}
            name, sentence = row.string("image"), row.string("sentence")
            label = entailment_of(row, label_order)
            if row.ok and name is not None and sentence is not None:
                found.add(row, [photograph(name)], sentence, label, ENTAILMENT)
    return found


def photograph(name: str) -> str:
    """The path of a Flickr30k image that a file names by number, file name or path."""
    name = name if PurePosixPath(name).suffix else f"{name}.jpg"
    return name if "/" in name else f"{FOLDER}/{name}"
