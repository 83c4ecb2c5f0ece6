"""Files with an image each: those of openvqa (features transposed), and of its extractor for PyTorch (not transposed).

Both have `x`, `bbox` in pixels, `num_bbox`, `image_h` and `image_w`. The extractor adds a pickled dict `info`, where
the confidences are; without leave to read pickles it is not touched.

Shape legend: `n` regions of an image, `F` feature width.
"""

from __future__ import annotations

import zipfile
import zlib
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
    image_id,
    in_sides,
    number,
)
from jaxvl.data.regions.legacy import UnsafePickleError, read_pickle
from jaxvl.data.regions.store import RecordError

WANTED = ("x", "bbox", "image_w", "image_h")
LARGEST = 256 * 2**20  # bytes of a file's arrays; 100 regions of 2048 numbers take 0.8 MB
UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, NotImplementedError)


def read_npz(path: Path, options: ReadOptions) -> Items:
    """Images of a folder of `.npz` files, also in folders below, or of one such file; a `Layout`."""
    files = sorted(path.rglob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no .npz file in there")
    return _items(files, options)


def _items(files: Sequence[Path], options: ReadOptions) -> Items:
    for done, file in enumerate(files, start=1):
        name = file.name.removesuffix(".npz")
        yield Item(
            image_id(name, where=str(file)), str(file), partial(_load, file, options), done / len(files)
        )


def _load(file: Path, options: ReadOptions) -> Detections:
    try:
        found = _arrays(file, options)
    except (RecordError, UnsafePickleError):
        raise
    except UNREADABLE as error:
        raise RecordError(f"{file}: cannot be read ({error}); fetch it again") from error
    return checked(found, options, where=str(file))


def _arrays(file: Path, options: ReadOptions) -> Detections:
    where = str(file)
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > LARGEST:
        raise RecordError(f"{where}: {size:,} bytes of arrays; no file of an image has more than {LARGEST:,}")
    with np.load(file) as arrays:
        missing = [name for name in WANTED if name not in arrays]
        if missing:
            raise RecordError(f"{where}, field {missing[0]!r}: missing (there are {', '.join(arrays.files)})")
        x, bbox = np.asarray(arrays["x"], np.float32), np.asarray(arrays["bbox"], np.float32)
        w, h = (number(arrays[name].item(), where=where, name=name) for name in ("image_w", "image_h"))
        n = len(bbox)
        if "num_bbox" in arrays:
            n = number(arrays["num_bbox"].item(), where=where, name="num_bbox", most=MOST_REGIONS)
    x = _rows_of_regions(x, n, options.width, where=where)
    conf = _confidences(file, n, where=where) if options.legacy_pickle else None
    return Detections(x[:n], in_sides(bbox[:n], width=w, height=h, where=where), conf)


def _rows_of_regions(x: np.ndarray, n: int, width: int, *, where: str) -> np.ndarray:
    """`[n,F]`, whichever way it is stored: F says which axis is which."""
    across = [axis for axis in range(x.ndim) if x.shape[axis] == width]
    if x.ndim != 2 or len(across) != 1:
        raise RecordError(
            f"{where}, field 'x': {list(x.shape)}; one of two axes must be the feature width {width} (say --width)"
        )
    rows = x if across == [1] else np.ascontiguousarray(x.T)
    if len(rows) < n:
        raise RecordError(f"{where}, field 'x': {len(rows)} regions, num_bbox says {n}")
    return rows


def _confidences(file: Path, n: int, *, where: str) -> np.ndarray | None:
    """`objects_conf [n]` of the dict `info`; None if there is none."""
    with zipfile.ZipFile(file) as archive:
        if "info.npy" not in archive.namelist():
            return None
        with archive.open("info.npy") as member:
            version = np.lib.format.read_magic(member)
            header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            header(member)
            held: Any = read_pickle(member.read(), where=f"{where}, field 'info'")
    info = held[0] if isinstance(held, list) and len(held) == 1 else held
    if not isinstance(info, dict) or "objects_conf" not in info:
        return None
    conf = np.asarray(info["objects_conf"], np.float32)
    if conf.ndim != 1 or len(conf) < n or not np.isfinite(conf[:n]).all():
        raise RecordError(
            f"{where}, field 'info.objects_conf': {list(conf.shape)}, expected {n} finite numbers"
        )
    return conf[:n]
