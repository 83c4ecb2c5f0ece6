"""What readers of region features have in common: items that are read when they are wanted, and checks of their fields.

Shape legend: `n` regions of an image, `F` feature width.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxvl.data.records import DataError
from jaxvl.data.regions.store import RecordError

MOST_REGIONS = 1000
SLACK = 0.02  # of a side, by which detectors let boxes leave the image; more is another image's size


class Detections(NamedTuple):
    """Regions of an image as a file has them.

    Attributes:
      features: `[n,F]` f32.
      boxes: `[n,4]` f32, x1, y1, x2, y2 in units of the image's sides.
      conf: `[n]` f32; None = the file has no confidences.
      objects: `[n]` i64, the detector's class of each region; None = they were not asked for, or are not there.
    """

    features: np.ndarray
    boxes: np.ndarray
    conf: np.ndarray | None = None
    objects: np.ndarray | None = None


class Item(NamedTuple):
    """An image in a file.

    Attributes:
      image_id: of it.
      where: file and place, for messages.
      load: reads it; raises RecordError if it is damaged.
      share: how much of the file has been read, 0 to 1.
    """

    image_id: int
    where: str
    load: Callable[[], Detections]
    share: float


Items = Generator[Item, None, None]


@dataclass(frozen=True)
class ReadOptions:
    """What a reader may need to know.

    Attributes:
      width: F, the feature width: it says how some files are laid out.
      legacy_pickle: whether parts that are pickles may be read, with a list of what they may hold (see `legacy`).
      classes: how many classes the detector has; 0 = the classes of regions are not read.
      index: file that says which image is where, for layouts that have one; None = beside the data.
    """

    width: int = 2048
    legacy_pickle: bool = False
    classes: int = 0
    index: Path | None = None


class Layout(Protocol):
    """A reader: checks at the call that the file can be read at all, then gives its images one after the other.

    It raises DataError for a file that is of no use. An image that is damaged is reported by its `Item.load`, so that
    the others can be read.
    """

    def __call__(self, path: Path, options: ReadOptions) -> Items:
        """The images of a file or a folder."""
        ...


def image_id(name: str, *, where: str) -> int:
    """The id at the end of a name: `COCO_train2014_000000000009.jpg` and `9` are 9; RecordError if there is none."""
    found = re.search(r"(\d{1,18})(\.[A-Za-z]{1,5})?$", name.strip())
    if found is None:
        raise RecordError(f"{where}: {name[:80]!r} does not end with an image_id; rename it")
    return int(found[1])


def decoded(text: str | bytes, dtype: str, shape: tuple[int, ...], *, where: str, name: str) -> np.ndarray:
    """An array from base64; one entry of `shape` may be -1. RecordError names the field."""
    try:
        raw = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError(f"{where}, field {name!r}: not base64 ({error}); fetch the file again") from error
    kind = np.dtype(dtype)
    known = kind.itemsize * int(np.prod([n for n in shape if n >= 0]))
    if not known or len(raw) % known or (-1 not in shape and len(raw) != known):
        raise RecordError(
            f"{where}, field {name!r}: {len(raw)} bytes, which are no {kind} {list(shape)}; the file is damaged or of "
            "another layout"
        )
    return np.frombuffer(raw, kind).reshape(shape)


def number(value: Any, *, where: str, name: str, most: int = 2**31) -> int:
    """A whole number from 1 on; RecordError names the field."""
    try:
        found = int(value)
    except (TypeError, ValueError):
        found = 0
    if not 1 <= found <= most:
        raise RecordError(f"{where}, field {name!r}: {str(value)[:40]!r} is no whole number from 1 to {most}")
    return found


def in_sides(boxes: np.ndarray, *, width: float, height: float, where: str) -> np.ndarray:
    """Boxes `[n,4]` in pixels -> f32 in units of the image's sides; those that leave it by a little are cut.

    Raises:
      RecordError: boxes leave the image by more than 2 % of its side, so it is not this image's size.
    """
    if not len(boxes):
        raise RecordError(f"{where}, boxes: there are none; leave this image out")
    with np.errstate(over="ignore"):
        out = np.asarray(boxes, np.float32) / np.array([width, height, width, height], np.float32)
    if not np.isfinite(out).all():
        raise RecordError(f"{where}, boxes: not finite; extract this image again")
    if out.min() < -SLACK or out.max() > 1 + SLACK:
        x, y = (float(np.abs(boxes[:, side::2]).max()) for side in (0, 1))
        raise RecordError(
            f"{where}, boxes: reach x={x:g}, y={y:g} of an image of {width:g} x {height:g}; look whether width and "
            "height are exchanged"
        )
    return np.clip(out, 0.0, 1.0)


def checked(found: Detections, options: ReadOptions, *, where: str) -> Detections:
    """`found` if its shapes fit; RecordError names what does not."""
    n = len(found.features)
    if found.features.ndim != 2 or found.features.shape[1] != options.width:
        raise RecordError(
            f"{where}: features {list(found.features.shape)} are not {options.width} wide; say --width if they are "
            "right"
        )
    if found.boxes.shape != (n, 4) or (found.conf is not None and found.conf.shape != (n,)):
        conf = "" if found.conf is None else f", conf {list(found.conf.shape)}"
        raise RecordError(f"{where}: boxes {list(found.boxes.shape)}{conf} for {n} regions")
    return found


def extra(module: str, *, why: str) -> Any:
    """An optional package; DataError says how to install it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{why} needs the package {module}: pip install 'jaxvl[regions]' (or pip install {module})"
        ) from error
