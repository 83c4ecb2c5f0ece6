"""The embedded world as region features: what an object detector would make of its pictures.

Shape legend: `R` regions, `F` feature width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvl.data.region_source import Regions
from jaxvl.data.words import tokens

from .dice import Dice
from .language import SYNONYMS, plural
from .render import box, check_image_size, render
from .world import (
    _PER_SPLIT,
    BACKDROPS,
    COLOURS,
    MAX_THINGS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    Scene,
    Thing,
    check_objects,
    check_split,
    scene,
)

VALUES: Mapping[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "size": SIZES,
    "texture": TEXTURES,
    "backdrop": BACKDROPS,
}
PARTS = 5  # shape, colour, size, texture and position make up the feature of a thing
CACHED = 16_384  # images whose regions are kept: 33 MB at 8 regions of 64


class SceneRegions:
    """Region features of scenes; a provider as in `jaxvl.data.region_source`.

    A thing's feature is a sum of Gaussian vectors, one for each of its shape, colour, size and texture and one that is
    linear in its position, plus noise. Some more regions show the backdrop. The rest are empty: zeros, mask False.
    All is a function of the arguments and the image id; the scenes are those of readers with equal `seed` and
    `objects`.

    Args:
      split: "train", "val" or "test", the only images there are; None = those of all splits.
      images: how many the split has; None = no end.
      seed, objects: see `scene`.
      regions: R, at least the most objects.
      width: F.
      noise: standard deviation of each entry's noise; that of the sum without it is about 1.
      background: regions that show the backdrop, if there is room.
      image_size: side of `picture` in pixels.

    Raises:
      ValueError: an argument out of its range.
    """

    def __init__(
        self,
        split: str | None = None,
        *,
        images: int | None = None,
        seed: int = 0,
        objects: tuple[int, int] = (2, MAX_THINGS),
        regions: int = 8,
        width: int = 64,
        noise: float = 0.3,
        background: int = 2,
        image_size: int = 64,
    ) -> None:
        if split is not None:
            check_split(split)
        elif images is not None:
            raise ValueError(f"images={images} needs a split")
        check_objects(objects)
        check_image_size(image_size)
        if regions < objects[1]:
            raise ValueError(f"regions={regions} is too few for up to {objects[1]} objects")
        if width < 1 or noise < 0 or background < 0 or (images is not None and images < 1):
            raise ValueError(
                f"width={width} and images={images} must be at least 1, noise={noise} and background={background} not "
                "negative"
            )
        self.split, self.images, self.seed, self.objects = split, images, seed, (objects[0], objects[1])
        self.regions, self.width, self.noise = regions, width, noise
        self.background, self.image_size = background, image_size
        self._vectors = {
            (name, value): _gaussian("region vector", seed, name, value, size=width)
            for name, values in VALUES.items()
            for value in values
        }
        self._place = np.stack([_gaussian("region place", seed, axis, size=width) for axis in "xy"])
        self._cache: dict[int, Regions] = {}

    def __repr__(self) -> str:
        names = ("split", "images", "seed", "objects", "regions", "width", "noise", "background")
        return f"SceneRegions({', '.join(f'{n}={getattr(self, n)!r}' for n in names)})"

    @property
    def digest(self) -> str:
        """A hash of all that the features depend on."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def has(self, image_id: int) -> bool:
        """Whether there is such an image."""
        place, number = divmod(int(image_id), _PER_SPLIT)
        if not 0 <= place < len(SPLITS) or (self.split is not None and SPLITS[place] != self.split):
            return False
        return self.images is None or number < self.images

    def ids(self) -> np.ndarray:
        """`[images]` i64: the ids of the split's images.

        Raises:
          TypeError: without `images`, there is no end of them.
        """
        if self.split is None or self.images is None:
            raise TypeError(f"{self} has no end of images: give split and images")
        return SPLITS.index(self.split) * _PER_SPLIT + np.arange(self.images, dtype=np.int64)

    def require_world(self, reader: Any) -> None:
        """Raise ValueError if a reader of the embedded world asks about other scenes than these."""
        for name in ("seed", "objects"):
            if hasattr(reader, name) and getattr(reader, name) != getattr(self, name):
                raise ValueError(
                    f"the regions are of scenes with {name}={getattr(self, name)}, the questions of scenes with "
                    f"{name}={getattr(reader, name)}: give both the same {name}"
                )

    def scene(self, image_id: int) -> Scene:
        """The scene of an image.

        Raises:
          KeyError: there is no such image.
        """
        if not self.has(image_id):
            raise KeyError(f"{self} has no image {image_id}")
        place, number = divmod(int(image_id), _PER_SPLIT)
        return scene(SPLITS[place], number, self.seed, objects=self.objects)

    def of(self, image_id: int) -> Regions:
        """The regions of an image: things in drawing order, backdrop, empty ones."""
        found = self._cache.get(image_id)
        if found is None:
            found = self._make(self.scene(image_id))
            for array in found:
                array.flags.writeable = False  # they are handed out again
            if len(self._cache) < CACHED:
                self._cache[image_id] = found
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what regions show: shapes, then backdrops."""
        return (*SHAPES, *BACKDROPS)

    def shown(self, image_id: int) -> np.ndarray:
        """`[n]` i64: positions in `classes` of what the regions of an image show."""
        s = self.scene(image_id)
        front = [SHAPES.index(t.shape) for t in s.things]
        behind = len(SHAPES) + BACKDROPS.index(s.backdrop.kind)
        return np.array([*front, *[behind] * min(self.background, self.regions - len(front))], np.int64)

    def picture(self, image_id: int) -> np.ndarray:
        """The picture, uint8 RGB [image_size, image_size, 3]."""
        return render(self.scene(image_id), image_size=self.image_size)

    def applies(self, question: str, image_id: int) -> bool:
        """Whether every shape and every colour that the question names occurs in the image, not necessarily together.

        It is the truth that matching images with questions is measured against.
        """
        there = {v for thing in self.scene(image_id).things for v in thing.pair}
        return all(_NAMES[word] in there for word in tokens(question) if word in _NAMES)

    def _make(self, s: Scene) -> Regions:
        dice = Dice("background regions", self.seed, s.split, s.number)
        rows = [(self._thing(t), box(t, image_size=1)) for t in s.things]
        for _ in range(min(self.background, self.regions - len(rows))):
            x, y, w, h = (
                dice.uniform(0, 0.6),
                dice.uniform(0, 0.6),
                dice.uniform(0.2, 0.4),
                dice.uniform(0.2, 0.4),
            )
            backdrop = self._vectors["backdrop", s.backdrop.kind] + self._at(x + w / 2, y + h / 2)
            rows.append((backdrop, (x, y, x + w, y + h)))
        features = np.zeros((self.regions, self.width), np.float32)
        boxes = np.zeros((self.regions, 4), np.float32)
        noise = _gaussian("region noise", self.seed, s.image_id, size=len(rows) * self.width)
        features[: len(rows)] = [f for f, _ in rows] + self.noise * noise.reshape(len(rows), self.width)
        boxes[: len(rows)] = [b for _, b in rows]
        return Regions(features, boxes, np.arange(self.regions) < len(rows))

    def _thing(self, thing: Thing) -> np.ndarray:
        parts = [self._vectors[name, getattr(thing, name)] for name in ("shape", "colour", "size", "texture")]
        return (np.sum(parts, axis=0) + self._at(thing.x, thing.y)) / PARTS**0.5

    def _at(self, x: float, y: float) -> np.ndarray:
        return np.array([2 * x - 1, 2 * y - 1]) @ self._place


def _names() -> dict[str, str]:
    """Words of questions for shapes and colours, with plurals and synonyms, and what they stand for."""
    out = {colour: colour for colour in COLOURS}
    out |= {word: colour for colour in COLOURS for word in SYNONYMS.get(colour, ())}
    for shape in SHAPES:
        for word in (shape, *SYNONYMS.get(shape, ())):
            out[word] = out[plural(word)] = shape
    return out


_NAMES = _names()


def _gaussian(*key: str | int, size: int) -> np.ndarray:
    # RandomState's stream is frozen by NumPy, unlike that of Generator.
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "little")
    return np.random.RandomState(seed).standard_normal(size)
