"""The embedded world: small scenes of coloured shapes, each a pure function of (seed, split, index).

Attributes are drawn so that no word is more likely than another of its kind: this exchangeability is what
makes the questions balanced (see `questions`). Lengths are in units of the image side, y grows downwards.

Six (colour, shape) pairs are held out, one for each shape and each in another colour: they never occur in
`train` and are as frequent as any other pair in `val` and `test`, which therefore measure composition.
"""

from __future__ import annotations

import difflib
from typing import NamedTuple

from .dice import Dice

SPLITS = ("train", "val", "test")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "spotted")
BACKDROPS = ("flat", "gradient", "clouds", "grain")
HELD_OUT = frozenset(
    {
        ("purple", "circle"),
        ("orange", "square"),
        ("yellow", "triangle"),
        ("blue", "star"),
        ("green", "heart"),
        ("red", "cross"),
    }
)
RADII = {"small": (0.105, 0.122), "large": (0.168, 0.19)}
ROOMY, CLOSE_UP = 2, 1.45  # pictures of at most so many things show them so much larger
MAX_THINGS = 5
_TEXTURE_WEIGHTS = (0.5, 0.25, 0.25)
_APART = 1.02  # centre distance over the sum of radii
_TOUCHING = 0.8  # the nearest allowed: about a tenth of the hidden disc is covered
_PER_SPLIT = 500_000_000  # image ids of the three splits fit in int32

Box = tuple[float, float, float, float]


class Thing(NamedTuple):
    """One object; `x`, `y` its centre, `radius` about that of its circumscribed circle, `angle` in radians."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def pair(self) -> tuple[str, str]:
        """(colour, shape), the unit of held-out combinations."""
        return self.colour, self.shape


class Backdrop(NamedTuple):
    """Background: one of `BACKDROPS`, two RGB tones (0..255), and a number that fixes its details."""

    kind: str
    tone: tuple[float, float, float]
    tone2: tuple[float, float, float]
    variant: int


class Scene(NamedTuple):
    """Scene `number` of a split: things in drawing order (later ones cover earlier ones) before a backdrop.

    `screen` is an opaque rectangle (xyxy) that may hide more things, or None.
    """

    split: str
    number: int
    things: tuple[Thing, ...]
    backdrop: Backdrop
    screen: Box | None = None

    @property
    def image_id(self) -> int:
        """Unique over the splits, below 2**31."""
        return SPLITS.index(self.split) * _PER_SPLIT + self.number

    @property
    def key(self) -> str:
        """Readable name of the picture, such as `scenes/train/000012`."""
        return f"scenes/{self.split}/{self.number:06d}" + ("" if self.screen is None else "-screen")


def scene(split: str, index: int, seed: int = 0, *, objects: tuple[int, int] = (2, MAX_THINGS)) -> Scene:
    """Scene `index` of `split`.

    Args:
      split: "train", "val" or "test"; their scenes never coincide.
      index: 0-based, below 500 million.
      seed: another seed is another world.
      objects: smallest and largest number of things, both within 1..5; every number is equally likely. Where at
        most two are asked for, they are half again as large.

    Raises:
      ValueError: for an unknown split, a negative index or an impossible number of objects.
    """
    check_split(split)
    check_objects(objects)
    if not 0 <= index < _PER_SPLIT:
        raise ValueError(f"scene index must lie in 0..{_PER_SPLIT - 1}, got {index}")
    dice = Dice("scene", seed, split, index)
    n = objects[0] + dice.below(objects[1] - objects[0] + 1)
    pairs = _pairs(dice, n, split)
    sizes = [SIZES[dice.chance(0.5 if n < 4 else 0.4)] for _ in range(n)]
    zoom = CLOSE_UP if objects[1] <= ROOMY else 1.0
    radii = [zoom * dice.uniform(*RADII[size]) for size in sizes]
    places = _places(dice, radii)
    things = [
        Thing(
            shape, colour, size, dice.weighted(TEXTURES, _TEXTURE_WEIGHTS), x, y, r, dice.uniform(-0.2, 0.2)
        )
        for (colour, shape), size, r, (x, y) in zip(pairs, sizes, radii, places, strict=True)
    ]
    return Scene(split, index, tuple(dice.shuffled(things)), _backdrop(dice))


def allowed(split: str, colour: str, shape: str) -> bool:
    """Whether `split` may show or mention this pair."""
    return split != "train" or (colour, shape) not in HELD_OUT


def check_split(split: str) -> None:
    """Raise ValueError unless `split` exists."""
    if split not in SPLITS:
        near = difflib.get_close_matches(str(split), SPLITS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown split {split!r} of the embedded world: choose one of {SPLITS}{hint}")


def check_objects(objects: tuple[int, int]) -> None:
    """Raise ValueError unless `objects` = (fewest, most) lies within 1..5."""
    low, high = objects
    if not 1 <= low <= high <= MAX_THINGS:
        raise ValueError(
            f"objects=(fewest, most) must satisfy 1 <= fewest <= most <= {MAX_THINGS}, got {objects}"
        )


def _pairs(dice: Dice, n: int, split: str) -> list[tuple[str, str]]:
    """Colour and shape of each thing; the first few may share one of the two, so that there is something to count."""
    colours: list[str | None] = [None] * n
    shapes: list[str | None] = [None] * n
    group = 1 + dice.weighted(range(n), (0.34, 0.26, 0.26, 0.09, 0.05)[:n])
    if dice.chance(0.5):
        colours[:group] = [dice.pick(COLOURS)] * group
    else:
        shapes[:group] = [dice.pick(SHAPES)] * group
    return [_pair(dice, split, c, s) for c, s in zip(colours, shapes, strict=True)]


def _pair(dice: Dice, split: str, colour: str | None, shape: str | None) -> tuple[str, str]:
    # A shape misses one colour and a colour at most one shape: drawing the missing attribute among those that
    # the given one allows keeps both marginals uniform.
    if shape is None:
        colour = colour or dice.pick(COLOURS)
        shape = dice.pick([s for s in SHAPES if allowed(split, colour, s)])
    else:
        colour = dice.pick([c for c in COLOURS if allowed(split, c, shape)])
    return colour, shape


def _places(dice: Dice, radii: list[float]) -> list[tuple[float, float]]:
    """Centres; half of the scenes with three or more things start with a row or a column of three."""
    line = dice.pick((None, None, "row", "column")) if len(radii) >= 3 else None
    gap = _TOUCHING if dice.chance(0.3) else _APART
    while True:
        places = _line(dice, radii[:3], line) if line else []
        for r in radii[len(places) :]:
            place = _free_place(dice, r, places, radii, gap)
            if place is None:
                break
            places.append(place)
        if len(places) == len(radii):
            return places
        gap = _TOUCHING


def _line(dice: Dice, radii: list[float], line: str) -> list[tuple[float, float]]:
    widest = max(radii)
    step = dice.uniform(max(0.25, _TOUCHING * 2 * widest), 0.31)
    centre = dice.uniform(step + widest, 1 - step - widest)
    across = dice.uniform(widest + 0.02, 0.98 - widest)
    along = dice.shuffled((centre - step, centre, centre + step))
    wobble = [across + dice.uniform(-0.012, 0.012) for _ in along]
    return list(zip(along, wobble, strict=True) if line == "row" else zip(wobble, along, strict=True))


def _free_place(
    dice: Dice, r: float, places: list[tuple[float, float]], radii: list[float], gap: float
) -> tuple[float, float] | None:
    for _ in range(24):
        x, y = dice.uniform(r + 0.01, 0.99 - r), dice.uniform(r + 0.01, 0.99 - r)
        if all(
            (x - u) ** 2 + (y - v) ** 2 >= (gap * (r + q)) ** 2
            for (u, v), q in zip(places, radii, strict=False)
        ):
            return x, y
    return None


def _backdrop(dice: Dice) -> Backdrop:
    # Wide in brightness and tint, poor in saturation: the mean colour of a picture then says next to nothing
    # about its things, while every colour of a thing stands out.
    grey = dice.uniform(95, 185)
    tone = tuple(grey + dice.uniform(-30, 30) for _ in range(3))
    tone2 = tuple(min(max(t + dice.uniform(-45, 45), 70), 205) for t in tone)
    return Backdrop(dice.pick(BACKDROPS), tone, tone2, dice.below(1 << 16))  # type: ignore[arg-type]
