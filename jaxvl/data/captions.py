"""Readers of captions: ALBEF's JSON files, and JSON Lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxvl.data.images import ImageStore
from jaxvl.data.records import Parsed, Paths, Records, Row, as_paths, options, read_rows

NAMES = {
    "image": ("image", "file", "file_name"),
    "image_id": ("image_id",),
    "captions": ("captions", "caption"),
}


class AlbefCaptions(Records):
    """ALBEF's caption files: a JSON list of `{"image": path, "caption": str or [str]}`, optionally `image_id`.

    Args:
      files: one file or several, read as one.
      root: folder(s) or zip(s) below which the paths lie; None = the paths as they are.
      rows: "image" = one example per row of the file, a random one of its captions per visit; "caption" = one
        example per caption.
      holdout: see `Records`.
    """

    def __init__(
        self,
        files: Paths,
        *,
        root: Paths | None = None,
        rows: str = "image",
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        parsed = parse_captions(files, rows=rows).require_valid()
        check = [*parsed.files, *options(images=root, format="albef_captions")]
        super().__init__(parsed, [ImageStore(root)], check=check, holdout=holdout)


class JsonlCaptions(Records):
    """JSON Lines of `{"image": path, "captions": [str]}` or `{"image_id": int, ...}` with a template.

    Args:
      files: one file or several, read as one.
      images: folder(s) or zip(s) of the images.
      image_template: makes the file name of an integer `image_id`, e.g. "%012d.jpg"; used where a row has no image.
      fields: other names in the file, e.g. `{"captions": "sentences"}`.
      rows, holdout: see `AlbefCaptions`.
    """

    def __init__(
        self,
        files: Paths,
        *,
        images: Paths,
        image_template: str | None = None,
        fields: Mapping[str, str] | None = None,
        rows: str = "image",
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        parsed = parse_captions(
            files, image_template=image_template, fields=fields, rows=rows
        ).require_valid()
        extra = options(
            images=images, format="jsonl", image_template=image_template, field=field_options(fields)
        )
        super().__init__(parsed, [ImageStore(images)], check=[*parsed.files, *extra], holdout=holdout)


def parse_captions(
    files: Paths,
    *,
    image_template: str | None = None,
    fields: Mapping[str, str] | None = None,
    rows: str = "image",
) -> Parsed:
    """All rows of caption files, good ones and problems."""
    if rows not in ("image", "caption"):
        raise ValueError(f"rows={rows!r} must be 'image' or 'caption'")
    names = with_fields(NAMES, fields)
    parsed = Parsed(as_paths(files))
    for file in parsed.files:
        for number, data in read_rows(file):
            row = Row(parsed, file, number, data, names)
            image, captions = image_of(row, image_template), row.strings("captions")
            if image is None or captions is None:
                continue
            for part in [captions] if rows == "image" else [[caption] for caption in captions]:
                parsed.add({"image": image, "captions": part}, row=number, image_id=row.get("image_id"))
    return parsed


def image_of(row: Row, template: str | None) -> str | None:
    """The image key of a row: its own, else made of `image_id` by `template`; notes a problem if there is none."""
    if row.has("image") or not row.has("image_id"):
        return row.string("image")
    if template is None:
        row.bad("image", "is missing, there is only an image_id", "Pass image_template, e.g. '%012d.jpg'.")
        return None
    image_id = row.integer("image_id")
    if image_id is None:
        return None
    return template % image_id


def with_fields(
    names: Mapping[str, tuple[str, ...]], fields: Mapping[str, str] | None
) -> dict[str, tuple[str, ...]]:
    """`names` with the names that the caller gave for some fields."""
    unknown = sorted(set(fields or ()) - set(names))
    if unknown:
        raise ValueError(f"fields={unknown} are not read here; known are {', '.join(names)}")
    return {**names, **{name: (given,) for name, given in (fields or {}).items()}}


def field_options(fields: Mapping[str, str] | None) -> list[str] | None:
    """`fields` as the values of the command-line option `--field`."""
    return [f"{name}={given}" for name, given in fields.items()] if fields else None
