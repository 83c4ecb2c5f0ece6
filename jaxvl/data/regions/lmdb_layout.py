"""LMDB folders of ViLBERT and its relatives: a pickled dict an image, under the image's id, and a list of all ids.

Shape legend: `n` regions of an image, `F` feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
    extra,
    image_id,
    in_sides,
    number,
)
from jaxvl.data.regions.legacy import UnsafePickleError, read_pickle
from jaxvl.data.regions.store import RecordError

KEYS = b"keys"
LARGEST = 64 * 2**20  # bytes of an entry; 300 regions of 2048 numbers take 3.3 MB
WANTED = ("num_boxes", "image_w", "image_h", "boxes", "features")


def read_lmdb(path: Path, options: ReadOptions) -> Items:
    """Images of an LMDB folder (or a single file), with confidences where it has `objects_conf`; a `Layout`."""
    if not options.legacy_pickle:
        raise DataError(
            f"{path}: an LMDB of this layout holds pickles, which are read only with --allow-legacy-pickle (with a "
            "list of what they may hold)"
        )
    library = extra("lmdb", why=f"{path}: LMDB")
    try:
        env = library.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, create=False
        )
    except library.Error as error:
        raise DataError(f"{path}: not a readable LMDB ({error}); fetch it again") from error
    with env.begin() as txn:
        listed = txn.get(KEYS)
    if listed is None:
        env.close()
        raise DataError(f"{path}: no entry 'keys' that lists the images; it is of another layout")
    keys = read_pickle(listed, where=f"{path}, entry 'keys'")
    if not isinstance(keys, (list, set, tuple)) or not all(
        isinstance(key, (bytes, str, int)) for key in keys
    ):
        env.close()
        raise DataError(f"{path}, entry 'keys': not a list of image ids")
    names = [key if isinstance(key, bytes) else str(key).encode() for key in keys]
    return _items(path, env, names, options)


def _items(path: Path, env: Any, keys: Sequence[bytes], options: ReadOptions) -> Items:
    with env, env.begin() as txn:
        for done, key in enumerate(sorted(keys), start=1):
            name = key.decode("utf-8", "replace")
            where = f"{path}, entry {name!r}"
            load = partial(_load, txn, key, options, where)
            yield Item(image_id(name, where=where), where, load, done / len(keys))


def _load(txn: Any, key: bytes, options: ReadOptions, where: str) -> Detections:
    value = txn.get(key)
    if value is None:
        raise RecordError(f"{where}: listed in 'keys', but not there; fetch the LMDB again")
    if len(value) > LARGEST:
        raise RecordError(f"{where}: {len(value):,} bytes; no image has more than {LARGEST:,}")
    try:
        row = read_pickle(value, where=where)
    except UnsafePickleError:
        raise
    except DataError as error:
        raise RecordError(str(error)) from error
    missing = [name for name in WANTED if name not in row] if isinstance(row, dict) else ["num_boxes"]
    if missing:
        raise RecordError(f"{where}, field {missing[0]!r}: missing")
    n = number(row["num_boxes"], where=where, name="num_boxes", most=MOST_REGIONS)
    w, h = (number(row[name], where=where, name=name) for name in ("image_w", "image_h"))
    boxes = _array(row["boxes"], (n, 4), where=where, name="boxes")
    features = _array(row["features"], (n, -1), where=where, name="features")
    conf = None
    if "objects_conf" in row:
        conf = _array(row["objects_conf"], (n,), where=where, name="objects_conf")
        if not np.isfinite(conf).all():
            raise RecordError(f"{where}, field 'objects_conf': not finite; extract this image again")
    found = Detections(features, in_sides(boxes, width=w, height=h, where=where), conf)
    return checked(found, options, where=where)


def _array(value: Any, shape: tuple[int, ...], *, where: str, name: str) -> np.ndarray:
    """f32, of base64 or of an array that was pickled as it is."""
    if isinstance(value, (str, bytes)):
        return decoded(value, "<f4", shape, where=where, name=name)
    try:
        return np.asarray(value, np.float32).reshape(shape)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{where}, field {name!r}: {error}") from error
