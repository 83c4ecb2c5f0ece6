"""Reading a whole store: checksums, and whether every record is what a writer would have kept; and ids that are wanted.

Shape legend: `N` images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl.atomic import sha256
from jaxvl.data.records import DataError, NotJson, read_json, read_rows
from jaxvl.data.regions.files import MANIFEST, StoreError, map_shard, read_ids, read_manifest
from jaxvl.data.regions.store import PathLike, RegionStore, problem

SHOWN = 20


class Verified(NamedTuple):
    """What `verify` has read.

    Attributes:
      images: N.
      shards, bytes: of all stores.
      regions: fewest, mean and most regions of an image.
      with_conf: images that have a confidence.
    """

    images: int
    shards: int
    bytes: int
    regions: tuple[int, float, int]
    with_conf: int


def verify(
    store: RegionStore, *, progress: Callable[[int, float], None] = lambda done, share: None
) -> Verified:
    """Read everything.

    Args:
      store: to read.
      progress: called with images so far and the share of all, after each shard.

    Raises:
      StoreError: all that is wrong, a line each, up to 20.
    """
    problems = [line for folder in store.folders for line in _table_problems(folder)]
    with_conf = done = 0
    for folder, shard, dtype in store.shards():
        try:
            records, table = map_shard(folder, shard, dtype), read_ids(folder, shard)
        except StoreError as error:
            problems.append(str(error))
            continue
        if sha256(folder / shard["file"]) != shard["sha256"]:
            problems.append(f"{folder / shard['file']}: the checksum is not the one in {MANIFEST}")
        for record, (image_id, count) in zip(records, table.tolist(), strict=True):
            wrong = problem(record, count) if 1 <= count <= store.regions else f"{count} regions"
            if wrong:
                problems.append(f"{folder / shard['file']}: image_id {image_id}: {wrong}")
            with_conf += bool(np.isfinite(record["conf"][:count]).any())
        done += len(table)
        progress(done, done / len(store))
    if problems:
        more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        lines = "".join(f"\n- {line}" for line in problems[:SHOWN])
        raise StoreError(f"{store}: {len(problems)} problems; make the store again:{lines}{more}")
    counts = store.counts()
    spread = (int(counts.min()), float(counts.mean()), int(counts.max())) if len(counts) else (0, 0.0, 0)
    return Verified(len(store), len(store.shards()), store.nbytes, spread, with_conf)


def image_ids(files: Sequence[PathLike]) -> set[int]:
    """The images that these files name.

    Args:
      files: VQA v2 JSON ("questions" or "annotations"), a JSON list or JSON Lines of objects with `image_id`, or `.txt`
        with an id a line.

    Raises:
      DataError: another content; names file, row and field.
    """
    found: set[int] = set()
    for file in map(Path, files):
        rows = 0
        for row, value in _values(file):
            rows += 1
            if isinstance(value, bool) or not (isinstance(value, int) or str(value).strip().isdigit()):
                raise DataError(
                    f"{file}, row {row}, field 'image_id': {str(value)[:40]!r} is no whole number; stores have their "
                    "images by numbers"
                )
            found.add(int(value))
        if not rows:
            raise DataError(f"{file}: names no images")
    return found


def _values(file: Path) -> Iterator[tuple[int, Any]]:
    """Row from 1, and what it has as image_id."""
    if file.suffix == ".txt":
        lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        yield from ((row, line) for row, line in lines if line.strip())
        return
    rows: Any = read_rows(file)
    if file.suffix == ".json":
        whole = read_json(file)
        lists = (
            [whole[name] for name in ("questions", "annotations") if name in whole]
            if isinstance(whole, dict)
            else [whole]
        )
        if not lists or not isinstance(lists[0], list):
            raise DataError(f"{file}: neither a list nor an object with 'questions' or 'annotations'")
        rows = enumerate(lists[0], start=1)
    for row, value in rows:
        if isinstance(value, NotJson):
            raise DataError(f"{file}, row {row}: {value.what}. {value.fix}")
        yield row, value.get("image_id") if isinstance(value, dict) else None


def _table_problems(folder: Path) -> list[str]:
    manifest = read_manifest(folder)
    ids = [read_ids(folder, shard)[:, 0] for shard in manifest["shards"]]
    every = np.concatenate([np.zeros(0, np.int64), *ids])
    problems = []
    if len(every) != manifest["count"]:
        problems.append(f"{folder / MANIFEST}: {manifest['count']} images, the shards have {len(every)}")
    values, times = np.unique(every, return_counts=True)
    problems += [f"{folder}: image_id {i} is there twice" for i in values[times > 1]]
    return problems
