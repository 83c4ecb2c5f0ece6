"""Region features of images in a folder: memory-mapped, sorted by image_id for the reader, safe against being killed.

A shard is written under a temporary name and renamed, then the manifest: a killed writer loses at most the shard under
way, and goes on with the images that are not there (see `files` for the layout). A record is checked before it is kept.

Shape legend: `R` regions of a store, `n` regions of an image, `F` feature width, `N` images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.atomic import TEMPORARY, Lock
from jaxvl.data.records import DataError
from jaxvl.data.region_source import Regions
from jaxvl.data.regions.files import (
    DTYPES,
    MANIFEST,
    StoreError,
    StoreLocked,
    map_shard,
    read_ids,
    read_manifest,
    record_dtype,
    write_manifest,
    write_shard,
)

SHARD_BYTES = 2**28
SHOWN = 10
UNKNOWN = "unknown"

PathLike = str | os.PathLike[str]


class RecordError(DataError):
    """Regions of an image that cannot be kept; the message names the image."""


class StoreWriter:
    """Adds regions of images to a store, new or begun.

    Attributes:
      regions, width: R and F.
      made_by: what decides the features; the same for all of them.
      sources: rows that say where features came from, kept in the manifest; see `convert`.

    Args:
      path: folder of the store.
      regions: R, the most an image may have; those with fewer are padded.
      width: F.
      made_by: plain JSON of all that decides the features (detector, weights, options). A store that was begun with
        other ones is refused: features of two detectors must not be mixed.
      classes: names of what the detector finds; None = which class a region is of is not kept.
      dtype: of the features: "float16" or "float32". Boxes and confidences are float32.
      shard_bytes: a shard is written once it has so many bytes; held in memory until then.

    Raises:
      StoreError: the folder holds another store, or another process writes to it.
      ValueError: an argument out of range.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        regions: int,
        width: int,
        made_by: Mapping[str, Any],
        classes: Sequence[str] | None = None,
        dtype: str = "float16",
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
        if regions < 1 or width < 1 or shard_bytes < 1:
            raise ValueError(
                f"regions={regions}, width={width}, shard_bytes={shard_bytes}: must be at least 1"
            )
        self.path, self.regions, self.width, self.dtype = Path(path).expanduser(), regions, width, dtype
        self.made_by: dict[str, Any] = json.loads(json.dumps(made_by))  # as it will be read back
        if classes is not None and not 0 < len(classes) < 2**15:
            raise ValueError(f"classes: {len(classes)} names; expected 1 to {2**15 - 1}")
        self.classes = None if classes is None else list(classes)
        self.shard_bytes = shard_bytes
        self.sources: list[dict[str, Any]] = []
        self._record = record_dtype(regions=regions, width=width, dtype=dtype, objects=classes is not None)
        self._shards: list[dict[str, Any]] = []
        self._present: set[int] = set()
        # zeros are not in memory before they are written to, so a small store costs little
        self._records = np.zeros(-(-shard_bytes // self._record.itemsize), self._record)
        self._ids: list[tuple[int, int]] = []
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock: Lock | None = Lock(self.path, error=StoreLocked)
        try:
            self._begin()
        except BaseException:
            self._release()
            raise

    def __contains__(self, image_id: int) -> bool:
        return int(image_id) in self._present

    def __len__(self) -> int:
        return len(self._present)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(
        self,
        image_id: int,
        *,
        features: np.ndarray,
        boxes: np.ndarray,
        conf: np.ndarray | None = None,
        objects: np.ndarray | None = None,
    ) -> None:
        """Append the regions of an image.

        Args:
          image_id: not negative, not there yet.
          features: `[n,F]`, 1 <= n <= R; finite, also in the store's dtype, and no row all zeros (that is what a region
            which is not there looks like).
          boxes: `[n,4]`, x1, y1, x2, y2 in units of the image's sides.
          conf: `[n]`, confidence of the detector; None or NaN = there is none.
          objects: `[n]`, positions in `classes`, if the store has them.

        Raises:
          RecordError: one of these does not hold; the image is not added.
          StoreError: closed.
        """
        if self._lock is None:
            raise StoreError(f"{self.path}: the writer is closed; open another one")
        if image_id < 0 or image_id in self:
            what = "is negative" if image_id < 0 else f"is in {self.path} already"
            raise RecordError(f"image_id {image_id} {what}; give each image once, with an id from 0 on")
        record = self._records[len(self._ids)]
        try:
            count = self._fill(record, image_id, features, boxes, conf)
            if self.classes is not None:
                record["objects"] = self._objects(image_id, count, objects)
        except BaseException:
            self._records[len(self._ids)] = np.zeros((), self._record)
            raise
        self._ids.append((int(image_id), count))
        self._present.add(int(image_id))
        if len(self._ids) == len(self._records):
            self.flush()

    def flush(self) -> None:
        """Write what was added so far as a shard, however small, and the manifest."""
        if self._ids:
            ids = np.array(self._ids, np.int64)
            records = self._records[: len(ids)]
            self._shards.append(write_shard(self.path, len(self._shards), records, ids))
            self._records, self._ids = np.zeros(len(self._records), self._record), []
        table = dict(shard_bytes=self.shard_bytes, sources=self.sources, shards=self._shards)
        stored = len(self._present) - len(self._ids)
        fixed: dict[str, Any] = dict(regions=self.regions, width=self.width, dtype=self.dtype, count=stored)
        if self.classes is not None:
            fixed["classes"] = self.classes
        write_manifest(self.path, {**fixed, "made_by": self.made_by, **table})

    def close(self) -> None:
        """Write what is pending and let others write."""
        if self._lock is not None:
            try:
                self.flush()
            finally:
                self._release()

    def _begin(self) -> None:
        if not (self.path / MANIFEST).exists():
            self.flush()
            return
        begun = read_manifest(self.path)
        for name in ("regions", "width", "dtype", "made_by", "classes"):
            if begun[name] != getattr(self, name):
                raise StoreError(
                    f"{self.path}: was begun with {name} {difference(begun[name], getattr(self, name))}. Use the same, "
                    "or give another folder: features of two kinds must not be mixed"
                )
        for leftover in self.path.glob(f"*{TEMPORARY}"):
            leftover.unlink()
        self._shards, self.sources = begun["shards"], begun["sources"]
        for shard in self._shards:
            self._present |= set(read_ids(self.path, shard)[:, 0].tolist())

    def _fill(
        self,
        record: np.ndarray,
        image_id: int,
        features: np.ndarray,
        boxes: np.ndarray,
        conf: np.ndarray | None,
    ) -> int:
        """Write the regions into `record`; how many there are."""
        n = len(features)
        if np.shape(features) != (n, self.width) or np.shape(boxes) != (n, 4) or not 1 <= n <= self.regions:
            raise RecordError(
                f"image_id {image_id}: features {list(np.shape(features))} with boxes {list(np.shape(boxes))}; this "
                f"store takes [n,{self.width}] with [n,4], n from 1 to {self.regions}"
            )
        if conf is not None and np.shape(conf) != (n,):
            raise RecordError(f"image_id {image_id}: conf {list(np.shape(conf))} for {n} regions")
        with np.errstate(over="ignore"):
            record["features"][:n] = features
        record["boxes"][:n], record["conf"][:] = boxes, np.nan
        if conf is not None:
            record["conf"][:n] = conf
        wrong = problem(record, n)
        if wrong:
            raise RecordError(f"image_id {image_id}: {wrong}")
        return n

    def _objects(self, image_id: int, count: int, given: np.ndarray | None) -> np.ndarray:
        """`[R]` classes of an image's regions, -1 beyond them."""
        ids, most = np.asarray([] if given is None else given), len(self.classes or ())
        if ids.shape != (count,) or ids.min() < 0 or ids.max() >= most:
            raise RecordError(
                f"image_id {image_id}: objects {ids.tolist()} of {count} regions and {most} classes"
            )
        return np.concatenate([ids, np.full(self.regions - count, -1)])

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def problem(record: np.ndarray, count: int) -> str | None:
    """What is wrong with a record of `count` regions, in words; None = nothing."""
    features, boxes = record["features"][:count], record["boxes"][:count]
    if not np.isfinite(features).all():
        return (
            f"features that are not finite in {record['features'].dtype} (region "
            f"{int(np.argmax(~np.isfinite(features).all(-1)))}): look for NaN, Inf or values that need float32"
        )
    zero = ~features.any(-1)
    if zero.any():
        return f"features of region {int(np.argmax(zero))} are all zero: extract this image again"
    if not np.isfinite(boxes).all() or (boxes < 0).any() or (boxes > 1).any():
        return "boxes outside [0, 1]: they are x1, y1, x2, y2 in units of the image's sides"
    if (boxes[:, 2:] < boxes[:, :2]).any():
        return "boxes with x2 < x1 or y2 < y1: they are corners, not x, y, width, height"
    if np.isinf(record["conf"]).any():
        return "confidences that are infinite"
    if record["features"][count:].any() or record["boxes"][count:].any():
        return f"values beyond its {count} regions"
    return None


class RegionStore:
    """Regions of images from one or more stores; a provider as in `jaxvl.data.region_source`.

    Files are mapped when they are first read, and can be sent to other processes.

    Attributes:
      made_by: what decides the features.
      classes: names of what the detector finds; None = the stores do not say what regions show.
      folders: of the stores.

    Args:
      paths: folder of a store, or several, which must be made alike; of an image in several the first is taken.

    Raises:
      FileNotFoundError: no store there.
      StoreError: damaged, of another version, or stores of different features.
    """

    def __init__(self, paths: PathLike | Sequence[PathLike]) -> None:
        given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        self.folders = [Path(path).expanduser() for path in given]
        if not self.folders:
            raise StoreError("paths: give at least one folder of a region store")
        manifests = [read_manifest(folder) for folder in self.folders]
        check_alike(self.folders, manifests)
        first = manifests[0]
        self.regions: int = first["regions"]
        self.width: int = first["width"]
        self.made_by: dict[str, Any] = first["made_by"]
        self.classes: tuple[str, ...] | None = None if first["classes"] is None else tuple(first["classes"])
        self.sources = [source for manifest in manifests for source in manifest["sources"]]
        self._shards = [
            (folder, shard, self._record(manifest["dtype"]))
            for folder, manifest in zip(self.folders, manifests, strict=True)
            for shard in manifest["shards"]
        ]
        self._mapped: dict[int, np.ndarray] = {}
        # [N] each, in the order of the ids: where an image's record is, and how many regions it has
        self._ids, self._shard, self._row, self._count = self._index()

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"RegionStore({', '.join(map(str, self.folders))})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}  # a mapped array would be sent with all its bytes

    @property
    def digest(self) -> str:
        """A hash of the features: of the shards' checksums."""
        named = [shard["sha256"] + shard["ids_sha256"] for _, shard, _ in self._shards]
        return hashlib.sha256(json.dumps([self.regions, self.width, named]).encode()).hexdigest()[:16]

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard["bytes"] for _, shard, _ in self._shards)

    def ids(self) -> np.ndarray:
        """`[N]` i64, sorted: the images there are."""
        return self._ids

    def counts(self) -> np.ndarray:
        """`[N]` i64: regions of each image, in the order of `ids`."""
        return self._count

    def has(self, image_id: int) -> bool:
        """Whether there is such an image."""
        return self._find(image_id) is not None

    def of(self, image_id: int) -> Regions:
        """The regions of an image; StoreError if there is no such image."""
        at = self._require(image_id)
        record = self._at(at)
        mask = np.arange(self.regions) < self._count[at]
        return Regions(record["features"].astype(np.float32), np.array(record["boxes"], np.float32), mask)

    def conf(self, image_id: int) -> np.ndarray:
        """`[R]` f32: confidences of the detector, NaN where there is none; StoreError if there is no such image."""
        return np.array(self._at(self._require(image_id))["conf"], np.float32)

    def shown(self, image_id: int) -> np.ndarray:
        """`[n]` i64: positions in `classes` of what the regions of an image show; StoreError if the store has none."""
        if self.classes is None:
            raise StoreError(f"{self}: does not say what regions show; convert with --classes")
        at = self._require(image_id)
        return np.array(self._at(at)["objects"][: self._count[at]], np.int64)

    def require(self, ids: Iterable[int], *, wanted_by: str) -> None:
        """Raise StoreError that lists the images which are not there; `wanted_by` says who needs them."""
        wanted = np.unique(np.asarray(list(ids), np.int64))
        missing = wanted[~np.isin(wanted, self._ids)]
        if len(missing):
            raise StoreError(
                f"{self}: no regions of {len(missing)} of {len(wanted)} images of {wanted_by}: image_id "
                f"{listed(missing)}. Convert or extract them too, or leave them out"
            )

    def shards(self) -> list[tuple[Path, dict[str, Any], np.dtype]]:
        """Folder, row of the manifest and record of each shard."""
        return list(self._shards)

    def _record(self, dtype: str) -> np.dtype:
        return record_dtype(
            regions=self.regions, width=self.width, dtype=dtype, objects=self.classes is not None
        )

    def _index(self) -> tuple[np.ndarray, ...]:
        tables = [read_ids(folder, shard) for folder, shard, _ in self._shards]
        table = np.concatenate([np.zeros((0, 2), np.int64), *tables])
        shard = np.repeat(np.arange(len(tables), dtype=np.int64), [len(t) for t in tables])
        row = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(t), dtype=np.int64) for t in tables)])
        ids, at = np.unique(table[:, 0], return_index=True)  # the first of those with equal ids
        return ids, shard[at], row[at], table[at, 1]

    def _find(self, image_id: int) -> int | None:
        at = int(np.searchsorted(self._ids, image_id))
        return at if at < len(self._ids) and self._ids[at] == image_id else None

    def _require(self, image_id: int) -> int:
        at = self._find(image_id)
        if at is None:
            raise StoreError(f"{self}: no regions of image_id {image_id}; convert or extract it too")
        return at

    def _at(self, at: int) -> np.ndarray:
        number = int(self._shard[at])
        if number not in self._mapped:
            self._mapped[number] = map_shard(*self._shards[number])
        return self._mapped[number][int(self._row[at])]


def check_alike(folders: Sequence[Path], manifests: Sequence[Mapping[str, Any]]) -> None:
    """Raise StoreError that says what differs, unless all stores have features of one kind."""
    for folder, manifest in zip(folders[1:], manifests[1:], strict=True):
        for name in ("regions", "width", "made_by", "classes"):
            if manifest[name] != manifests[0][name]:
                raise StoreError(
                    f"{folders[0]} and {folder} differ in {name}: {difference(manifests[0][name], manifest[name])}. "
                    "Features of two kinds must not be mixed: make both stores in the same way"
                )
    require_one_detector([source for manifest in manifests for source in manifest["sources"]])


def require_one_detector(sources: Sequence[Mapping[str, Any]]) -> None:
    """Raise StoreError if some files have a fixed number of boxes and others not, or another one.

    The bottom-up features with 36 boxes an image are of another checkpoint of the detector than those with 10 to 100.
    """
    known: dict[str, str] = {}
    for source in sources:
        if source.get("boxes", UNKNOWN) != UNKNOWN:
            known.setdefault(source["boxes"], source["file"])
    if len(known) > 1:
        (one, first), (other, second) = list(known.items())[:2]
        raise StoreError(
            f"{first} has boxes {one}, {second} has boxes {other}: such files are of two detectors, whose features "
            "must not be mixed. Convert the files of one of them only"
        )


def difference(one: Any, other: Any) -> str:
    """Two values in words; of dicts, only where they differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
        return f"{ {k: one.get(k) for k in keys} }, not { {k: other.get(k) for k in keys} }"
    return f"{one!r}, not {other!r}"


def listed(ids: Sequence[int] | np.ndarray, *, most: int = SHOWN) -> str:
    """Image ids in a line, the first `most` of them."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(str(int(i)) for i in ids[:most]) + more
