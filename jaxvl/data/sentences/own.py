"""JSON Lines of one's own: hypotheses about an image, and true or false statements about one image or two."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvl.data.captions import field_options, image_of, with_fields
from jaxvl.data.records import Paths, Row, as_paths, options, read_rows
from jaxvl.data.sentences.labels import (
    ENTAILMENT,
    NO_AGREEMENT,
    TRUTH,
    Gathered,
    Sentences,
    check_order,
    entailment_of,
    truth_of,
)

IMAGES = {"image": ("image", "file", "file_name"), "image_id": ("image_id",)}
ENTAILMENT_NAMES = {
    **IMAGES,
    "sentence": ("hypothesis", "sentence", "sentence2"),
    "label": ("label", "gold_label"),
}
STATEMENT_NAMES = {
    **IMAGES,
    "image2": ("image2",),
    "images": ("images",),
    "sentence": ("sentence", "statement"),
    "label": ("label",),
    "identifier": ("identifier",),
}
_NUMBERED = re.compile(r"(\d+)-\d+")  # NLVR's identifiers: sentence, image


class JsonlEntailment(Sentences):
    """JSON Lines of `{"image": path, "hypothesis": str, "label": "contradiction" | "neutral" | "entailment"}`.

    `sentence` may stand for `hypothesis`. Rows labelled "-" are left out and counted.

    Args:
      files: one file or several, read as one.
      images: folder(s) or zip(s) of the images.
      image_template: makes the file name of an integer `image_id`, e.g. "%012d.jpg"; used where a row has no image.
      fields: other names in the file, e.g. `{"sentence": "claim"}`.
      label_order: what integer labels mean, e.g. `("contradiction", "entailment", "neutral")`; None = strings only.
      missing: "keep" or "drop" rows whose images do not exist.
      holdout: see `Records`.
    """

    def __init__(
        self,
        files: Paths,
        *,
        images: Paths,
        image_template: str | None = None,
        fields: Mapping[str, str] | None = None,
        label_order: Sequence[str] | None = None,
        missing: str = "keep",
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        found = parse_entailment(
            files,
            images=images,
            image_template=image_template,
            fields=fields,
            label_order=label_order,
            missing=missing,
        )
        extra = options(
            images=images,
            format="jsonl_entailment",
            image_template=image_template,
            field=field_options(fields),
            label_order=label_order,
        )
        check = [*found.parsed.files, *extra]
        super().__init__(found.complete(), images, dropped=found.dropped, check=check, holdout=holdout)


class JsonlStatements(Sentences):
    """JSON Lines of `{"image": path, "sentence": str, "label": true | false}`, with `image2` for two images.

    `statement` may stand for `sentence`, `images` (a list of two) for `image` and `image2`, and a label may be "true",
    "False", 0 or 1. Label 1 is true. Optional: `identifier`; NLVR's, such as 2321-0, tell which rows share a sentence.

    Args:
      files: one file or several, read as one.
      images: folder(s) or zip(s) of the images.
      image_template: makes the file name where a row has no image: of an integer `image_id`, e.g. "%012d.jpg", or of
        any fields and the permutation `k`, e.g. "{identifier}-{k}.png".
      permutations: examples made of each row, `k = 0, 1, ...` in the template; NLVR has six pictures of each row.
      fields: other names in the file, e.g. `{"sentence": "claim"}`.
      missing, holdout: see `JsonlEntailment`; rows that share a sentence by identifier fall on one side, as do
        those with the same first image.
    """

    def __init__(
        self,
        files: Paths,
        *,
        images: Paths,
        image_template: str | None = None,
        permutations: int = 1,
        fields: Mapping[str, str] | None = None,
        missing: str = "keep",
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        found = parse_statements(
            files,
            images=images,
            image_template=image_template,
            permutations=permutations,
            fields=fields,
            missing=missing,
        )
        extra = options(
            images=images,
            format="jsonl_statements",
            image_template=image_template,
            permutations=None if permutations == 1 else permutations,
            field=field_options(fields),
        )
        check = [*found.parsed.files, *extra]
        super().__init__(found.complete(), images, dropped=found.dropped, check=check, holdout=holdout)


def parse_entailment(
    files: Paths,
    *,
    images: Paths | None = None,
    image_template: str | None = None,
    fields: Mapping[str, str] | None = None,
    label_order: Sequence[str] | None = None,
    missing: str = "keep",
) -> Gathered:
    """All rows of entailment files, good ones and problems."""
    check_order(label_order)
    names = with_fields(ENTAILMENT_NAMES, fields)
    found = Gathered(as_paths(files), images=images, missing=missing)
    for file in found.parsed.files:
        for number, data in read_rows(file):
            row = Row(found.parsed, file, number, data, names)
            if row.get("label") == NO_AGREEMENT:
                found.dropped["a label without agreement"] += 1
                continue
            image, sentence = image_of(row, image_template), row.string("sentence")
            label = entailment_of(row, label_order)
            if row.ok and image is not None and sentence is not None:
                found.add(row, [image], sentence, label, ENTAILMENT, image_id=row.get("image_id"))
    return found


def parse_statements(
    files: Paths,
    *,
    images: Paths | None = None,
    image_template: str | None = None,
    permutations: int = 1,
    fields: Mapping[str, str] | None = None,
    missing: str = "keep",
) -> Gathered:
    """All rows of statement files, good ones and problems; `permutations` examples of each."""
    if permutations < 1 or (permutations > 1 and "{k}" not in (image_template or "")):
        raise ValueError(
            f"permutations={permutations} needs {{k}} in image_template, e.g. '{{identifier}}-{{k}}.png', "
            f"not {image_template!r}"
        )
    names = with_fields(STATEMENT_NAMES, fields)
    found = Gathered(as_paths(files), images=images, missing=missing)
    for file in found.parsed.files:
        for number, data in read_rows(file):
            row = Row(found.parsed, file, number, data, names)
            sentence, label = row.string("sentence"), truth_of(row)
            numbered = _NUMBERED.fullmatch(str(row.get("identifier") or ""))
            group = numbered[1] if numbered else None
            for k in range(permutations):
                at = _images(row, image_template, k)
                if not row.ok or at is None or sentence is None:
                    break
                image_id = row.get("image_id") if permutations == 1 else None
                found.add(row, at, sentence, label, TRUTH, image_id=image_id, group=group, held_with=group)
    return found


def _images(row: Row, template: str | None, k: int) -> list[str] | None:
    """The one or two image keys of a row, or None with a problem noted."""
    if row.has("images"):
        images = row.strings("images")
        if images is not None and len(images) > 2:
            row.bad("images", f"has {len(images)} images", "Write the paths of one or two.")
        return images
    if not row.has("image") and template is not None and "{" in template:
        try:
            return [template.format(**{"k": k, **row.data})]
        except (KeyError, IndexError) as error:
            row.bad(
                "image",
                f"is missing, and so is {error} of the template {template!r}",
                "Correct the template.",
            )
            return None
    first = image_of(row, template)
    if first is None:
        return None
    second = row.string("image2") if row.has("image2") else None
    return [first] if second is None else [first, second]
