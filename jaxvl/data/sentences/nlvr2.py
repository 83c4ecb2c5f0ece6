"""NLVR2: true and false statements about two photographs, in the official JSON Lines or ALBEF's JSON."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxvl.data.records import Paths, Row, as_paths, options, read_rows
from jaxvl.data.sentences.labels import TRUTH, Gathered, Sentences, truth_of

NAMES = {
    "identifier": ("identifier",),
    "sentence": ("sentence",),
    "label": ("label",),
    "directory": ("directory",),
    "images": ("images",),
}
IDENTIFIER = re.compile(r"(\w+-\d+)-(\d+)-(\d+)")  # set, pair of the set, sentence of the set
_IMAGE = re.compile(r"(\w+-\d+)-\d+-img[01]\.\w+$")


class Nlvr2(Sentences):
    """NLVR2's `train.json`, `dev.json`, `test1.json` (JSON Lines), or ALBEF's list of `{images, sentence, label}`.

    An identifier `split-set-pair-sentence` names the images `images/train/{directory}/{split-set-pair}-img0.png` and
    `-img1.png`, or `dev/...`, `test1/...`. Their names end in .png whatever they are: the content decides. The same
    sentence is said of up to four pairs of a set (`sentence_group`). Label 1 is true.

    Args:
      files: one file or several, read as one.
      images: folder(s) or zip(s) that hold the paths above, or ends of them.
      missing: "keep" or "drop" rows whose images do not exist; many of the photographs have left the web.
      holdout: see `Records`; all pairs of a set fall on one side.
    """

    def __init__(
        self,
        files: Paths,
        *,
        images: Paths,
        missing: str = "keep",
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        found = parse_nlvr2(files, images=images, missing=missing)
        check = [*found.parsed.files, *options(images=images, format="nlvr2")]
        super().__init__(found.complete(), images, dropped=found.dropped, check=check, holdout=holdout)


def parse_nlvr2(files: Paths, *, images: Paths | None = None, missing: str = "keep") -> Gathered:
    """All rows of NLVR2 files, good ones and problems."""
    found = Gathered(as_paths(files), images=images, missing=missing)
    for file in found.parsed.files:
        for number, data in read_rows(file):
            row = Row(found.parsed, file, number, data, NAMES)
            pair = _given(row) if row.has("images") else _named(row)
            sentence, label = row.string("sentence"), truth_of(row)
            if not row.ok or pair is None or sentence is None:
                continue
            at, group, of_set = pair
            group = group or f"{of_set or ' '.join(at)} {sentence}"
            found.add(row, at, sentence, label, TRUTH, group=group, held_with=of_set)
    return found


def sets_of(identifier: str) -> tuple[str, str] | None:
    """`(split-set-pair, split-set)` of an identifier with or without its last field; None of another string."""
    match = re.fullmatch(r"((\w+-\d+)-\d+)(-\d+)?", identifier)
    return (match[1], match[2]) if match else None


def pair_of(pair: str, directory: str | None) -> list[str]:
    """The paths of the images of `split-set-pair`."""
    split = pair.split("-")[0]
    folder = f"images/train/{directory}" if directory is not None else split
    return [f"{folder}/{pair}-img{k}.png" for k in (0, 1)]


def _named(row: Row) -> tuple[list[str], str, str] | None:
    """Images, sentence group and set of an official row."""
    identifier = row.string("identifier")
    if identifier is None:
        return None
    match = IDENTIFIER.fullmatch(identifier)
    if match is None:
        row.bad("identifier", f"is {identifier!r}", "Write split-set-pair-sentence, as in dev-850-0-0.")
        return None
    of_set, pair, sentence = match.groups()
    directory = row.get("directory")
    if of_set.startswith("train-") and directory is None:
        row.bad(
            "directory",
            "is missing",
            "Training images lie in numbered folders: take the official train.json.",
        )
        return None
    at = pair_of(f"{of_set}-{pair}", None if directory is None else str(directory))
    return at, f"{of_set}--{sentence}", of_set


def _given(row: Row) -> tuple[list[str], None, str | None] | None:
    """Images and, if their names tell, the set of a row of ALBEF."""
    images = row.strings("images")
    if images is None:
        return None
    if len(images) != 2:
        row.bad("images", f"has {len(images)} images", "Write the paths of two.")
        return None
    match = _IMAGE.search(images[0])
    return images, None, match[1] if match else None
