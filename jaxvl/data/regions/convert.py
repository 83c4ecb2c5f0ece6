"""From files of region features to a store: one image after the other, and on from where an earlier run was stopped.

Before anything is written, the first images of every file are read: wrong widths, exchanged sides, files of two
detectors and boxes that cannot be chosen from are found then.

Shape legend: `n` regions of an image, `F` feature width, `R` regions of the store.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.data.regions import REGION_LAYOUTS
from jaxvl.data.regions.files import MANIFEST, read_manifest
from jaxvl.data.regions.layouts import Detections, Item, Layout, ReadOptions
from jaxvl.data.regions.rerank import METHODS, rerank
from jaxvl.data.regions.store import (
    SHARD_BYTES,
    UNKNOWN,
    PathLike,
    RecordError,
    StoreWriter,
    require_one_detector,
)
from jaxvl.data.regions.tsv import BUTD, LXMERT, fields_of

PEEKED = 32  # images of a file that are looked at before anything is written
ENOUGH = 8  # of them, to say whether a file has the same number of boxes for all images
AUTO = "auto"

Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class ConvertOptions:
    """How a store is made of files.

    Attributes:
      regions: R, the regions of an image that are kept.
      method: which ones, of images with more: see `rerank`. "none" also takes images without confidences, of which it
        keeps the first in the file's order.
      layout: a name of `REGION_LAYOUTS`, or "auto".
      read: for the readers.
      classes: names of what the detector finds, position = its number for them, to keep what each region shows; None =
        that is not kept.
      detector: a note of what made the features; stores with other notes are not mixed.
      dtype, shard_bytes: of a new store, see `StoreWriter`.
    """

    regions: int = 36
    method: str = "onepass"
    layout: str = AUTO
    read: ReadOptions = field(default_factory=ReadOptions)
    classes: tuple[str, ...] | None = None
    detector: str | None = None
    dtype: str = "float16"
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("layout", (AUTO, *REGION_LAYOUTS))):
            if getattr(self, name) not in known:
                raise DataError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}")
        if self.classes is not None:
            object.__setattr__(self, "read", replace(self.read, classes=len(self.classes)))


class Converted(NamedTuple):
    """What `convert` did.

    Attributes:
      written: images that are new in the store.
      present: images that were there.
      unwanted: images that nobody asked for.
      failed: where an image was that could not be used -> why.
      missing: ids that were asked for, and are not in the store now.
    """

    written: int
    present: int
    unwanted: int
    failed: Mapping[str, str]
    missing: Sequence[int]


def convert(
    files: Sequence[PathLike],
    store: PathLike,
    *,
    options: ConvertOptions | None = None,
    wanted: Collection[int] | None = None,
    progress: Progress = lambda done, share: None,
) -> Converted:
    """Add the images of these files to a store; of an image in several, the first is taken.

    Args:
      files: of one layout, of one detector.
      store: folder; a store that was begun with the same options goes on.
      options: see `ConvertOptions`.
      wanted: ids to take; None = all.
      progress: called with the number of images so far and the share of all files that was read.

    Raises:
      DataError: files that cannot be read at all, or of which images cannot be chosen; nothing was written, unless the
        cause lies further back in a file.
      StoreError: the store is of other options, or files of two detectors.
    """
    options = options or ConvertOptions()
    paths, folder = [Path(file).expanduser() for file in files], Path(store).expanduser()
    name, layout = chosen_layout(paths, options.layout)
    sources = [peek(path, layout, options) for path in paths]
    begun = read_manifest(folder)["sources"] if (folder / MANIFEST).is_file() else []
    require_one_detector([*begun, *sources])
    made_by = dict(kind="converted", layout=name, rerank=options.method, detector=options.detector)
    form: dict[str, Any] = {
        name: getattr(options, name) for name in ("regions", "dtype", "shard_bytes", "classes")
    }
    tally = _Tally()
    with StoreWriter(folder, width=options.read.width, made_by=made_by, **form) as writer:
        names = {source["file"] for source in writer.sources}
        writer.sources += [source for source in sources if source["file"] not in names]
        for number, path in enumerate(paths):
            for item in layout(path, options.read):
                _take(writer, item, options, wanted, tally)
                progress(tally.seen, (number + item.share) / len(paths))
        missing = sorted(i for i in wanted or () if i not in writer)
    return Converted(tally.written, tally.present, tally.unwanted, tally.failed, missing)


def chosen_layout(paths: Sequence[Path], name: str) -> tuple[str, Layout]:
    """The layout of these files, by its name or as it looks; DataError if they are of none, or of several."""
    if not paths:
        raise DataError("no file of region features is given")
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
    found = {guess(path): path for path in paths} if name == AUTO else {name: paths[0]}
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise DataError(
            f"{first} looks like {one}, {second} like {other}: convert them to stores of their own, or say --layout"
        )
    only = next(iter(found))
    return only, REGION_LAYOUTS[only]


def guess(path: Path) -> str:
    """Name of the layout that a file or folder looks like; DataError if none."""
    suffix = path.suffix.lower()
    if suffix in (".lmdb", ".mdb") or (path / "data.mdb").is_file():
        return "lmdb"
    if path.is_dir() or suffix == ".npz":
        return "openvqa_npz"
    if suffix in (".h5", ".hdf5"):
        return "hdf5"
    if suffix == ".tsv":
        known = {len(BUTD): "butd_tsv", len(LXMERT): "lxmert_tsv"}
        if fields_of(path) in known:
            return known[fields_of(path)]
        raise DataError(
            f"{path}, line 1: {fields_of(path)} tab-separated fields; tables of region features have {len(BUTD)} "
            f"({', '.join(BUTD)}) or {len(LXMERT)} ({', '.join(LXMERT)})"
        )
    raise DataError(
        f"{path}: a folder of .npz files, .tsv, .hdf5 or an LMDB is expected; say which it is with --layout"
    )


def peek(path: Path, layout: Layout, options: ConvertOptions) -> dict[str, Any]:
    """A row for the manifest, of the first images of a file: `file`, and `boxes`, how many there are of an image.

    Raises:
      DataError: none of them can be used; or boxes cannot be chosen from.
    """
    counts, first_error = [], None
    with contextlib.closing(layout(path, options.read)) as items:  # an LMDB can be open only once
        for item in itertools.islice(items, PEEKED):
            try:
                found = item.load()
            except RecordError as error:
                first_error = first_error or error
                continue
            select(found, options, where=item.where)
            if options.classes is not None and found.objects is None:
                raise DataError(
                    f"{item.where}: does not say which class each region is of; only tables of LXMERT do. Leave "
                    "--classes out, or convert such a table"
                )
            counts.append(len(found.features))
    if not counts:
        raise first_error or DataError(f"{path}: no images in there")
    boxes = UNKNOWN
    if len(counts) >= ENOUGH:
        boxes = f"{counts[0]} each" if len(set(counts)) == 1 else "varying"
    return {"file": str(path.resolve()), "boxes": boxes}


def select(found: Detections, options: ConvertOptions, *, where: str) -> Detections:
    """The regions of an image that are kept; in the file's order if it has no more than R.

    Raises:
      DataError: more than R regions without confidences, and a method that needs them.
    """
    n = len(found.features)
    if n <= options.regions:
        return found
    if found.conf is None:
        if options.method != "none":
            raise DataError(
                f"{where}: {n} boxes without confidences, of which {options.regions} cannot be chosen. Keep all with "
                "--regions 100, or the first ones in the file's order with --rerank none"
            )
        kept = np.arange(options.regions)
    else:
        kept = rerank(found.boxes, found.conf, keep=options.regions, method=options.method)
    return Detections(*(None if part is None else part[kept] for part in found))  # type: ignore[arg-type]


@dataclass
class _Tally:
    written: int = 0
    present: int = 0
    unwanted: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def seen(self) -> int:
        return self.written + self.present + self.unwanted + len(self.failed)


def _take(
    writer: StoreWriter, item: Item, options: ConvertOptions, wanted: Collection[int] | None, tally: _Tally
) -> None:
    """Add an image to the store, or count why not."""
    if wanted is not None and item.image_id not in wanted:
        tally.unwanted += 1
    elif item.image_id in writer:
        tally.present += 1
    else:
        try:
            kept = select(item.load(), options, where=item.where)
        except RecordError as error:
            tally.failed[item.where] = str(error)
            return
        try:
            writer.add(item.image_id, **kept._asdict())
        except RecordError as error:
            tally.failed[item.where] = f"{item.where}: {error}"
            return
        tally.written += 1
