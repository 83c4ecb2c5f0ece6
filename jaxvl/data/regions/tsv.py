"""Tables of tab-separated fields with base64 arrays: those of bottom-up attention, and LXMERT's with confidences.

A line has an image. Which of the two it is says its number of fields. Lines are read one after the other, never the
whole file.

Shape legend: `n` regions of an image, `F` feature width.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.data.regions.layouts import (
    MOST_REGIONS,
    Detections,
    Item,
    Items,
    ReadOptions,
    checked,
    decoded,
    image_id,
    in_sides,
    number,
)
from jaxvl.data.regions.store import RecordError

BUTD = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
    "features",
)  # fmt: skip
NAMES = {"img_id": "image_id", "img_w": "image_w", "img_h": "image_h"}
LONGEST = 64 * 2**20  # bytes of a line; 300 regions of 2048 numbers take 3.3 MB


def read_butd_tsv(path: Path, options: ReadOptions) -> Items:
    """Images of a table of bottom-up attention (Anderson et al., 2018), without confidences; a `Layout`."""
    return _items(path, options, BUTD)


def read_lxmert_tsv(path: Path, options: ReadOptions) -> Items:
    """Images of a table of LXMERT (Tan and Bansal, 2019), with confidences of the objects; a `Layout`."""
    return _items(path, options, LXMERT)


def fields_of(path: Path) -> int:
    """How many fields the first line has."""
    with path.open("rb") as file:
        return file.readline(LONGEST).count(b"\t") + 1


def _items(path: Path, options: ReadOptions, fields: tuple[str, ...]) -> Items:
    if fields_of(path) != len(fields):
        raise DataError(
            f"{path}, line 1: {fields_of(path)} tab-separated fields, expected {len(fields)}: {', '.join(fields)}"
        )
    return _lines(path, options, fields)


def _lines(path: Path, options: ReadOptions, fields: tuple[str, ...]) -> Items:
    size = max(1, path.stat().st_size)
    with path.open("rb") as file:
        line_number = 0
        while line := file.readline(LONGEST + 1):
            line_number += 1
            where = f"{path}, line {line_number}"
            if len(line) > LONGEST:
                raise DataError(f"{where}: longer than {LONGEST:,} bytes; the file is damaged or no table")
            values = line.rstrip(b"\r\n").split(b"\t")
            if values == [b""] or (line_number == 1 and values[0] == fields[0].encode()):
                continue  # an empty line, or one with the names of the fields
            row = {NAMES.get(field, field): value for field, value in zip(fields, values, strict=False)}
            share = file.tell() / size
            if len(values) != len(fields):
                raise DataError(
                    f"{where}: {len(values)} fields, expected {len(fields)}; the file is cut off or damaged: fetch it "
                    "again"
                )
            name = row["image_id"].decode("utf-8", "replace")
            yield Item(image_id(name, where=where), where, partial(_load, row, options, where), share)


def _load(row: dict[str, bytes], options: ReadOptions, where: str) -> Detections:
    n = number(_text(row, "num_boxes"), where=where, name="num_boxes", most=MOST_REGIONS)
    w, h = (number(_text(row, name), where=where, name=name) for name in ("image_w", "image_h"))
    boxes = decoded(row["boxes"], "<f4", (n, 4), where=where, name="boxes")
    features = decoded(row["features"], "<f4", (n, -1), where=where, name="features")
    conf = None
    if "objects_conf" in row:
        conf = decoded(row["objects_conf"], "<f4", (n,), where=where, name="objects_conf")
        if not np.isfinite(conf).all():
            raise RecordError(f"{where}, field 'objects_conf': not finite; extract this image again")
    objects = None
    if options.classes and "objects_id" in row:
        objects = decoded(row["objects_id"], "<i8", (n,), where=where, name="objects_id")
        if objects.min() < 0 or objects.max() >= options.classes:
            raise RecordError(
                f"{where}, field 'objects_id': {objects.min()} to {objects.max()}, there are {options.classes} "
                "classes; give the class names of this detector"
            )
    found = Detections(features, in_sides(boxes, width=w, height=h, where=where), conf, objects)
    return checked(found, options, where=where)


def _text(row: dict[str, bytes], name: str) -> str:
    return row[name].decode("ascii", "replace")
