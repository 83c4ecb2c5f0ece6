"""The files of a region store: shards, the manifest that makes them count, and the writer's lock.

    store/manifest.json          what the features are, what made them, and the table of shards with their checksums
    store/shard-00000.npy        a record an image: boxes, conf, features (`numpy.load(..., mmap_mode="r")` reads it)
    store/shard-00000.ids.npy    [n,2] int64: image_id and number of regions of each record

Shape legend: `R` regions, `F` feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.atomic import read_json, sha256, write_file, write_json
from jaxvl.data.records import DataError

VERSION, KIND = 1, "regions"
MANIFEST = "manifest.json"
DTYPES = ("float16", "float32")
FIELDS: Mapping[str, type | tuple[type, ...]] = {
    "regions": int,
    "width": int,
    "dtype": str,
    "count": int,
    "shard_bytes": int,
    "made_by": dict,
    "sources": list,
    "shards": list,
}


class StoreError(DataError):
    """A region store that cannot be used as it is; the message names the folder and the way out."""


class StoreLocked(StoreError):
    """Another process writes to the store."""


def record_dtype(*, regions: int, width: int, dtype: str, objects: bool = False) -> np.dtype:
    """A record: `boxes [R,4]` f32, `conf [R]` f32, `features [R,F]`, in one piece, so that an image is one read.

    With `objects` also `objects [R]` i2, the detector's class of each region, -1 where there is no region.
    """
    boxes, features = ("boxes", "<f4", (regions, 4)), ("features", np.dtype(dtype).newbyteorder("<"))
    more = [("objects", "<i2", (regions,))] if objects else []
    return np.dtype([boxes, ("conf", "<f4", (regions,)), *more, (*features, (regions, width))])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
      FileNotFoundError: there is none.
      StoreError: not the manifest of a region store, or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no region store ({MANIFEST} is not there); launch/regions.py convert or extract makes one"
        )
    try:
        record = read_json(path)
    except ValueError as error:
        raise StoreError(str(error)) from error
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise StoreError(f"{path}: not the manifest of a region store; give the folder of one")
    if record.get("version") != VERSION:
        raise StoreError(
            f"{path}: version {record.get('version')!r}, this jaxvl reads {VERSION}: convert again"
        )
    for name, kind in FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise StoreError(f"{path}, field {name!r}: missing or of the wrong type; restore the file")
    if not isinstance(record.setdefault("classes", None), list | None):
        raise StoreError(f"{path}, field 'classes': is no list of names; restore the file")
    return record


def write_manifest(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the manifest: what it does not list does not exist."""
    write_json(folder / MANIFEST, {"version": VERSION, "kind": KIND, **record})


def write_shard(folder: Path, number: int, records: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
    """Write a shard's two files; its row in the manifest's table."""
    row: dict[str, Any] = {"file": f"shard-{number:05d}.npy", "images": len(ids)}
    for key, name, array in (("", row["file"], records), ("ids_", f"shard-{number:05d}.ids.npy", ids)):
        write_file(folder / name, lambda path, array=array: _save(path, array))  # type: ignore[misc]
        row |= {f"{key}bytes": (folder / name).stat().st_size, f"{key}sha256": sha256(folder / name)}
    return row


def ids_path(folder: Path, shard: Mapping[str, Any]) -> Path:
    """Where a shard's ids are."""
    return folder / shard["file"].replace(".npy", ".ids.npy")


def read_ids(folder: Path, shard: Mapping[str, Any]) -> np.ndarray:
    """`[n,2]` i64: image_id and number of regions of each record of a shard; StoreError if damaged."""
    path = ids_path(folder, shard)
    _require_size(path, shard["ids_bytes"])
    if sha256(path) != shard["ids_sha256"]:
        raise StoreError(
            f"{path}: the checksum is not the one in {MANIFEST}: restore it, or make the store again"
        )
    table = np.load(path)
    if table.shape != (shard["images"], 2) or table.dtype != np.int64:
        raise StoreError(f"{path}: {table.dtype} {list(table.shape)}, not int64 [{shard['images']}, 2]")
    return table


def map_shard(folder: Path, shard: Mapping[str, Any], dtype: np.dtype) -> np.ndarray:
    """`[n]` records of a shard, mapped into memory; StoreError if the file is gone or not of its size."""
    path = folder / shard["file"]
    _require_size(path, shard["bytes"])
    try:
        records = np.load(path, mmap_mode="r")
    except ValueError as error:
        raise StoreError(f"{path}: damaged ({error}); restore it, or make the store again") from error
    if records.dtype != dtype or records.shape != (shard["images"],):
        raise StoreError(
            f"{path}: records {records.dtype} {list(records.shape)} are not what {MANIFEST} says"
        )
    return records


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # numpy.save would append .npy to the temporary name
        np.save(file, array, allow_pickle=False)


def _require_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.exists() else None
    if found != size:
        state = "is missing" if found is None else f"has {found} bytes, not {size}"
        raise StoreError(f"{path} {state}: restore it, or delete the store and make it again")
