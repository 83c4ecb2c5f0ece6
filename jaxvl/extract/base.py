"""What an extractor of region features is.

Shape legend: `B` images, `R` regions, `F` feature width, `H`, `W` pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Extracted(NamedTuple):
    """Regions of a batch of images.

    Attributes:
      features: `[B,R,F]` f32; zeros beyond the image's own.
      boxes: `[B,R,4]` f32, x1, y1, x2, y2 in units of the image's sides.
      conf: `[B,R]` f32, confidence of the detector; NaN where regions are not detections.
      counts: `[B]` i32, regions of each image, which come first.
    """

    features: np.ndarray
    boxes: np.ndarray
    conf: np.ndarray
    counts: np.ndarray


class Extractor(Protocol):
    """Images to regions in two steps: `prepare` on the host, in threads, and a call for a batch on the device.

    A new one (Faster R-CNN, say) is a class with these members and a line in `EXTRACTORS`: images that keep their
    aspect are padded to one shape by `prepare`, which can give their true size as a further array.
    """

    @property
    def regions(self) -> int:
        """R, of every image; those with fewer say so in `counts`."""
        ...

    @property
    def width(self) -> int:
        """F."""
        ...

    @property
    def made_by(self) -> Mapping[str, Any]:
        """Plain JSON of all that decides the features: kind, hash of the weights, options. Kept in the store."""
        ...

    def prepare(self, image: np.ndarray) -> Arrays:
        """`[H,W,3]` uint8 RGB -> named arrays, of the same shapes for every image."""
        ...

    def __call__(self, batch: Arrays) -> Extracted:
        """What `prepare` gave, stacked along a first axis `B` that never changes -> regions."""
        ...
