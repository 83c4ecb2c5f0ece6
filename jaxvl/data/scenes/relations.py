"""What is true of a scene: counts, sides, rows, betweenness, and which descriptions pick one thing.

Relations between places come with a margin: what a careful person could doubt is neither asserted nor denied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .world import Scene, Thing

SIDES = ("left", "right", "above", "below")
CLEAR = 0.1  # centres this far apart are plainly on one side of each other
_LEVEL = 0.06  # centres this close in a coordinate are level
_SCATTERED = 0.14  # and beyond this plainly not


class Description(NamedTuple):
    """A conjunction of attributes; None says nothing about that attribute."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    texture: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether it is true of `thing`."""
        return (
            (self.colour is None or self.colour == thing.colour)
            and (self.shape is None or self.shape == thing.shape)
            and (self.size is None or self.size == thing.size)
            and (self.texture is None or self.texture == thing.texture)
        )


SUBSETS: tuple[tuple[str, ...], ...] = (
    ("shape",),
    ("colour",),
    ("colour", "shape"),
    ("size", "shape"),
    ("texture", "shape"),
    ("size", "colour"),
    ("size", "colour", "shape"),
    ("texture", "colour", "shape"),
)


def describe_by(thing: Thing, attributes: Iterable[str]) -> Description:
    """The description of `thing` by these attributes."""
    return Description(**{name: getattr(thing, name) for name in attributes})


def matching(scene: Scene, description: Description) -> list[Thing]:
    """The visible things it is true of."""
    return [t for t in scene.things if description.fits(t)]


def references(
    scene: Scene, thing: Thing, *, without: str = "", subsets: Sequence[tuple[str, ...]] = SUBSETS[:6]
) -> list[Description]:
    """The shortest descriptions that are true of `thing` alone and do not use the attribute `without`."""
    found: list[Description] = []
    length = len(SUBSETS)
    for attributes in subsets:
        if without in attributes or len(attributes) > length:
            continue
        description = describe_by(thing, attributes)
        if len(matching(scene, description)) == 1:
            found.append(description)
            length = len(attributes)
    return found


def side(a: Thing, b: Thing, where: str) -> bool | None:
    """Whether `a` lies left of / right of / above / below `b`; None if that can be doubted."""
    gap = b.x - a.x if where in ("left", "right") else b.y - a.y
    if where in ("right", "below"):
        gap = -gap
    return None if abs(gap) < CLEAR else gap > 0


def on_side(scene: Scene, anchor: Thing, where: str) -> list[Thing] | None:
    """The things on that side of `anchor`; None if some thing can be doubted."""
    found = []
    for thing in scene.things:
        if thing is anchor:
            continue
        holds = side(thing, anchor, where)
        if holds is None:
            return None
        if holds:
            found.append(thing)
    return found


def lined_up(things: Sequence[Thing]) -> str | None:
    """ "row", "column" or "none" for three things; None if that can be doubted."""
    spread_x, spread_y = (max(v) - min(v) for v in ([t.x for t in things], [t.y for t in things]))
    if spread_y <= _LEVEL < spread_x:
        return "row"
    if spread_x <= _LEVEL < spread_y:
        return "column"
    return "none" if min(spread_x, spread_y) >= _SCATTERED else None


def betweens(scene: Scene) -> list[tuple[Thing, Thing, Thing]]:
    """(end, middle, end) of every row or column of three with nothing else near the middle of its ends."""
    found = []
    for trio in itertools.combinations(scene.things, 3):
        line = lined_up(trio)
        if line not in ("row", "column"):
            continue
        a, middle, b = sorted(trio, key=lambda t: t.x if line == "row" else t.y)
        if side(a, middle, "left" if line == "row" else "above") and side(
            middle, b, "left" if line == "row" else "above"
        ):
            cx, cy, reach = (a.x + b.x) / 2, (a.y + b.y) / 2, 0.5 * max(abs(a.x - b.x), abs(a.y - b.y))
            others = [t for t in scene.things if t not in trio]
            if all((t.x - cx) ** 2 + (t.y - cy) ** 2 > (0.8 * reach) ** 2 for t in others):
                found.append((a, middle, b))
    return found


def extreme(scene: Scene, where: str) -> Thing | None:
    """The thing furthest to that side; None if another one is nearly as far."""
    ranked = sorted(scene.things, key=lambda t: t.x if where in ("left", "right") else t.y)
    if where in ("right", "below"):
        ranked.reverse()
    return ranked[0] if len(ranked) == 1 or side(ranked[0], ranked[1], where) else None


def groups(scene: Scene, attribute: str) -> dict[str, list[Thing]]:
    """Things by their value of `attribute`."""
    found: dict[str, list[Thing]] = {}
    for thing in scene.things:
        found.setdefault(getattr(thing, attribute), []).append(thing)
    return found
