"""Region features from images: for data sets whose features of detected objects nobody has published.

`EXTRACTORS` is what `python launch/regions.py extract --extractor NAME` chooses from; see `base.Extractor`.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxvl.extract.base import Extracted, Extractor
from jaxvl.extract.grid import EfficientNetGrid
from jaxvl.extract.images import Images, find_images
from jaxvl.extract.loop import Done, extract

EXTRACTORS: dict[str, Callable[..., Extractor]] = {"efficientnet_grid": EfficientNetGrid}

__all__ = ["EXTRACTORS", "Done", "Extracted", "Extractor", "Images", "extract", "find_images"]
