"""Pictures of a batch: whatever a data set gives, as files for annotators and as thumbnails for a page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Picture = bytes | Path | np.ndarray  # an encoded image, its file, or RGB `[H,W,3]` u8
Pictures = Callable[[int], Picture | None]
THUMBNAIL = 256  # longest side, pixels
SMALL = 256  # pictures up to this side are written without loss
KEPT = {"JPEG": ".jpg", "PNG": ".png"}  # formats that are written as they are


class Encoded(NamedTuple):
    """An encoded picture: `data`, its `suffix`, `width` and `height` as shown, and a `digest` of its pixels."""

    data: bytes
    suffix: str
    width: int
    height: int
    digest: str


def encode(picture: Picture, image_id: int) -> Encoded:
    """A picture as JPEG or PNG bytes; files in these formats stay as they are.

    Raises:
      ValueError: it is no picture; names the image.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(
                f"image {image_id}: an array of {picture.dtype} {picture.shape} is no picture; give [H, W, 3] uint8"
            )
        return _written(Image.fromarray(picture))
    data = picture.read_bytes() if isinstance(picture, Path) else bytes(picture)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            kind = str(opened.format)
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        where = f" ({picture})" if isinstance(picture, Path) else ""
        raise ValueError(f"image {image_id}{where}: cannot be decoded ({error}); replace the file") from error
    if kind in KEPT:
        return Encoded(data, KEPT[kind], *image.size, _digest(image))
    return _written(image)


def _written(image: Image.Image) -> Encoded:
    out = io.BytesIO()
    if max(image.size) <= SMALL:
        image.save(out, "PNG")
        return Encoded(out.getvalue(), ".png", *image.size, _digest(image))
    image.save(out, "JPEG", quality=92)
    return Encoded(out.getvalue(), ".jpg", *image.size, _digest(image))


def _digest(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def thumbnail(data: bytes) -> str:
    """A `data:` URI of at most 256 pixels a side."""
    with Image.open(io.BytesIO(data)) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
