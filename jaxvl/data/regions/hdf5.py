"""HDF5 files in which all images are one array (Hengyuan Hu), or all regions one list (Jin-Hwa Kim's adaptive ones).

The pixel boxes there come without sizes of images, so the boxes are taken from `spatial_features`, which are relative.
Which image is where says an index beside the file: a JSON object, or a pickle of Python 2.

Shape legend: `N` images, `n` regions of an image, `F` feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.data.records import DataError, read_json
from jaxvl.data.regions.layouts import (
    Detections,
    Item,
    Items,
    ReadOptions,
    checked,
    extra,
    in_sides,
)
from jaxvl.data.regions.legacy import read_pickle

FEATURES, SPATIAL, SPANS = "image_features", "spatial_features", "pos_boxes"


def read_hdf5(path: Path, options: ReadOptions) -> Items:
    """Images of an HDF5 file, without confidences, in the order of the file; a `Layout`."""
    h5py = extra("h5py", why=f"{path}: HDF5")
    index = read_index(path, options)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error}); fetch it again") from error
    with file:
        images = _check(path, file)
    outside = [key for key, place in index.items() if not 0 <= place < images]
    if outside:
        raise DataError(
            f"{path}: its index puts image_id {outside[0]} at {index[outside[0]]}, but there are {images} images; give "
            "the index of this file (--index)"
        )
    return _items(path, index, options, h5py)


def read_index(path: Path, options: ReadOptions) -> dict[int, int]:
    """image_id -> place in the file.

    Raises:
      DataError: no index, not one, or a pickle without leave to read pickles.
    """
    stem = path.with_suffix("")
    near = [Path(f"{stem}_imgid2idx{suffix}") for suffix in (".json", ".pkl")]
    found = [options.index] if options.index is not None else [file for file in near if file.is_file()]
    if not found or not found[0].is_file():
        raise DataError(
            f"{path}: no index of its images ({found[0] if found else ' or '.join(f.name for f in near)} is not "
            "there); give it with --index"
        )
    file = found[0]
    if file.suffix == ".json":
        table = read_json(file)
    elif options.legacy_pickle:
        table = read_pickle(file.read_bytes(), where=str(file))
    else:
        raise DataError(
            f"{file}: a pickle. Pickles are read only with --allow-legacy-pickle (with a list of what they may "
            f"hold), or write the index as JSON: {stem.name}_imgid2idx.json, an object of image_id: place"
        )
    try:
        return {int(key): int(place) for key, place in table.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(f"{file}: not an index of image_id: place ({error})") from error


def _check(path: Path, file: Any) -> int:
    """How many images there are; DataError if the arrays are not what this layout has."""
    missing = [name for name in (FEATURES, SPATIAL) if name not in file]
    if missing:
        raise DataError(
            f"{path}: no array {missing[0]!r} (there are {', '.join(file) or 'none'}); convert the original TSV instead"
        )
    features, spatial = file[FEATURES], file[SPATIAL]
    ranks = (2 if SPANS in file else 3), spatial.shape[-1]
    if features.ndim != ranks[0] or spatial.shape != (*features.shape[:-1], 6):
        raise DataError(
            f"{path}: {FEATURES} {list(features.shape)} with {SPATIAL} {list(spatial.shape)}; expected [N,n,F] with "
            f"[N,n,6], or with {SPANS} [N,2] a list of all regions [n,F] with [n,6]"
        )
    if SPANS in file and (file[SPANS].ndim != 2 or file[SPANS].shape[1] != 2):
        raise DataError(f"{path}: {SPANS} {list(file[SPANS].shape)}, expected [N,2]")
    return len(file[SPANS]) if SPANS in file else len(features)


def _items(path: Path, index: Mapping[int, int], options: ReadOptions, h5py: Any) -> Items:
    with h5py.File(path, "r") as file:
        spans = np.asarray(file[SPANS]) if SPANS in file else None
        for done, (key, place) in enumerate(sorted(index.items(), key=lambda pair: pair[1]), start=1):
            where = f"{path}, image {place}"
            at: Any = place if spans is None else slice(int(spans[place, 0]), int(spans[place, 1]))
            yield Item(key, where, partial(_load, file, at, options, where), done / len(index))


def _load(file: Any, at: Any, options: ReadOptions, where: str) -> Detections:
    features = np.asarray(file[FEATURES][at], np.float32)
    boxes = np.asarray(file[SPATIAL][at], np.float32)[:, :4]
    found = Detections(features, in_sides(boxes, width=1, height=1, where=where))
    return checked(found, options, where=where)
