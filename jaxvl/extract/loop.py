"""The loop over images: read and prepare in threads, extract in batches of one shape, write in the order of the ids.

Shape legend: `B` images.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np

from jaxvl.data.images import ImageError
from jaxvl.data.regions import RecordError
from jaxvl.extract.base import Arrays, Extracted, Extractor
from jaxvl.extract.images import Images

AHEAD = 2  # batches that threads prepare while one is extracted


class Sink(Protocol):
    """Takes the regions of images one after the other."""

    def __contains__(self, image_id: int) -> bool: ...

    def add(self, image_id: int, *, features: np.ndarray, boxes: np.ndarray, conf: np.ndarray) -> None:
        """Regions `[n,F]`, `[n,4]` in units of the image's sides, `[n]`; RecordError if they cannot be kept."""
        ...


class Done(NamedTuple):
    """What `extract` did: images `written`, those `present` before, and the reasons of those that `failed`, by id."""

    written: int
    present: int
    failed: Mapping[int, str]


def extract(
    extractor: Extractor,
    images: Images,
    sink: Sink,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Done:
    """Extract the images that the sink lacks; those that cannot be used are left out, with the reason.

    Args:
      extractor: see `base.Extractor`; it sees batches of `batch_size` only, so that it compiles once.
      images: to extract.
      sink: a store's writer; asked which images it has, so that a killed extraction goes on.
      batch_size: B.
      workers: threads that read and prepare.
      progress: called with images done and to do, after each batch.
    """
    wanted = [int(i) for i in images.ids if int(i) not in sink]
    failed: dict[int, str] = {}
    done = 0
    for ids, batch, reasons in _batches(extractor, images, wanted, batch_size=batch_size, workers=workers):
        failed |= reasons
        if ids:
            failed |= _add(sink, ids, extractor(batch))
        done += len(ids) + len(reasons)
        progress(done, len(wanted))
    return Done(len(wanted) - len(failed), len(images.ids) - len(wanted), failed)


class _Batch(NamedTuple):
    """Images `ids [<=B]` that were read, their arrays padded to B, and why others of the same batch were not."""

    ids: list[int]
    arrays: Arrays
    failed: Mapping[int, str]


def _batches(
    extractor: Extractor, images: Images, ids: Sequence[int], *, batch_size: int, workers: int
) -> Iterator[_Batch]:
    def prepared(image_id: int) -> Arrays:
        return extractor.prepare(images.read(image_id))

    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[list[tuple[int, Future[Arrays]]]] = deque()
        for start in range(0, len(ids), batch_size):
            chunk = ids[start : start + batch_size]
            under_way.append([(i, pool.submit(prepared, i)) for i in chunk])
            if len(under_way) > AHEAD:
                yield _gathered(under_way.popleft(), batch_size)
        while under_way:
            yield _gathered(under_way.popleft(), batch_size)


def _gathered(chunk: Sequence[tuple[int, Future[Arrays]]], batch_size: int) -> _Batch:
    ids: list[int] = []
    rows: list[Arrays] = []
    failed: dict[int, str] = {}
    for image_id, future in chunk:
        try:
            rows.append(future.result())
            ids.append(image_id)
        except ImageError as error:
            failed[image_id] = str(error)
    padded = rows + rows[-1:] * (batch_size - len(rows))  # every batch has one shape, and one program
    arrays = {name: np.stack([row[name] for row in padded]) for name in (rows[0] if rows else ())}
    return _Batch(ids, arrays, failed)


def _add(sink: Sink, ids: Sequence[int], found: Extracted) -> dict[int, str]:
    """Give the images to the sink; those that it refuses (features all zero or not finite), with the reason."""
    refused: dict[int, str] = {}
    for row, image_id in enumerate(ids):
        n = int(found.counts[row])
        regions = dict(features=found.features[row, :n], boxes=found.boxes[row, :n], conf=found.conf[row, :n])
        try:
            sink.add(image_id, **regions)
        except RecordError as error:
            refused[image_id] = str(error)
    return refused
