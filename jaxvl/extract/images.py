"""The images that features are extracted of, by their ids: those of a folder, of a zip, or of a reader's questions."""

from __future__ import annotations

import inspect
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl.data.images import ImageStore
from jaxvl.data.records import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SHOWN = 5


class Images(NamedTuple):
    """Images by id.

    Attributes:
      ids: `[N]` i64, sorted, distinct.
      names: `[N]`, what people know them by: file names.
      read: id -> `[H,W,3]` uint8 RGB; raises `ImageError` that names the file.
    """

    ids: np.ndarray
    names: Sequence[str]
    read: Callable[[int], np.ndarray]


def find_images(given: str, sources: Mapping[str, Callable[..., Any]]) -> Images:
    """The images that a command-line argument means.

    Args:
      given: a folder or a zip, whose file names end with the ids (`COCO_train2014_000000000009.jpg` is 9); or a reader
        of questions as a config has it, in JSON: `{"name": "jsonl_vqa", "files": ..., "images": ...}`. A reader's ids
        are those that its questions carry, which it may number itself.
      sources: readers by name.

    Raises:
      DataError: nothing there, file names without ids or with the same, a reader that is not known or not valid.
    """
    if given.lstrip().startswith("{"):
        return _of_reader(given, sources)
    path = Path(given).expanduser()
    keys = [key for key in _files(path) if key.lower().endswith(SUFFIXES)]
    if not keys:
        raise DataError(f"{given}: no image ({', '.join(SUFFIXES)}) in there")
    found: dict[int, str] = {}
    for key in keys:
        number = re.search(r"(\d{1,18})$", Path(key).stem)
        if number is None:
            raise DataError(
                f"{given}: the name of {key} does not end with an image_id. Rename the files, or give the reader of "
                "the questions, whose ids are taken: "
                '--images \'{"name": "jsonl_vqa", "files": "...", "images": "..."}\''
            )
        other = found.setdefault(int(number[1]), key)
        if other != key:
            raise DataError(
                f"{given}: {other} and {key} have the same image_id {int(number[1])}. Extract the folders to stores of "
                "their own, or give the reader of the questions instead"
            )
    store = ImageStore(path)
    ids = np.array(sorted(found), np.int64)
    return Images(ids, [found[int(i)] for i in ids], lambda i: store.image(found[i]))


def _of_reader(given: str, sources: Mapping[str, Callable[..., Any]]) -> Images:
    try:
        options = json.loads(given)
    except json.JSONDecodeError as error:
        raise DataError(f"--images {given}: not valid JSON ({error})") from error
    name = options.pop("name", None)
    if name not in sources:
        raise DataError(f"--images, field 'name': {name!r} is no reader; known are {', '.join(sources)}")
    try:
        inspect.signature(sources[name]).bind(**options)
    except TypeError as error:
        raise DataError(f"--images, reader {name!r}: {error}") from error
    reader = sources[name](**options)
    rows: dict[int, int] = {}
    names: dict[int, str] = {}
    for row in range(len(reader)):
        annotation = reader.annotation(row)
        image_id = int(annotation["image_id"])
        if rows.setdefault(image_id, row) == row:
            names[image_id] = str(annotation.get("image", image_id))
    _require_files(reader, rows, names)
    ids = np.array(sorted(rows), np.int64)
    return Images(ids, [names[int(i)] for i in ids], lambda i: reader.image(rows[i]))


def _require_files(reader: Any, rows: Mapping[int, int], names: Mapping[int, str]) -> None:
    """Raise DataError that lists the images which have no file."""
    exists = getattr(reader, "has_image", None)  # readers that draw their images have none
    missing = [names[i] for i, row in rows.items() if exists is not None and not exists(row)]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"{', '.join(map(str, reader.files))}: {len(missing)} of {len(rows)} images have no file: "
            f"{', '.join(missing[:SHOWN])}{more}; correct 'images' of the reader, or fetch them"
        )


def _files(path: Path) -> list[str]:
    """Sorted paths of the files in a folder or a zip."""
    if path.is_dir():
        return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    if not path.is_file():
        raise DataError(f"{path}: no such folder or zip of images")
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(member.filename for member in archive.infolist() if not member.is_dir())
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: not a readable zip file ({error}); fetch it again") from error
