"""Referring expressions: words that pick one thing, its box, and proposals to choose from."""

from __future__ import annotations

from typing import NamedTuple

from .dice import Dice
from .hard_questions import PLACES
from .language import SIDE_PHRASES, phrase, the
from .questions import NOUNS
from .relations import SIDES, SUBSETS, describe_by, matching, on_side, references
from .render import box
from .world import Box, Scene, Thing

BESIDE = ("the {thing} {side} {b}", "the {thing} that is {side} {b}")
TEMPLATES = BESIDE
OVERLAP = 0.5  # a proposal that overlaps the right box more would count as right
_DISTRACTORS = 3


class Reference(NamedTuple):
    """An expression, the one thing that it fits, and the things it mentions."""

    text: str
    thing: Thing
    things: tuple[Thing, ...]


def refer(scene: Scene, dice: Dice) -> Reference:
    """An expression that fits exactly one thing of `scene`; every thing that has one is equally likely."""
    for thing in dice.shuffled(scene.things):
        options = references(scene, thing, subsets=(*SUBSETS, ("size", "texture", "colour", "shape")))
        beside = _beside(scene, thing, dice)
        if beside is not None and (not options or dice.chance(0.4)):
            return beside
        if options:
            # Longer than need be now and then, as people are.
            shortest = dice.pick(options)
            description = shortest._replace(colour=thing.colour) if dice.chance(0.4) else shortest
            return Reference(the(description, noun=dice.pick(NOUNS)), thing, (thing,))
    # Things alike in everything, and none plainly beside another: there still is one at the far left.
    thing = min(scene.things, key=lambda t: t.x)
    return Reference(f"the thing {PLACES['left'][0]}", thing, (thing,))


def _beside(scene: Scene, thing: Thing, dice: Dice) -> Reference | None:
    """ "the star left of the red circle": only one star is there."""
    for where in dice.shuffled(SIDES):
        for anchor in dice.shuffled(scene.things):
            found = on_side(scene, anchor, where) if anchor is not thing else None
            names = references(scene, anchor)
            if found is None or thing not in found or not names:
                continue
            short = describe_by(thing, dice.pick((("shape",), ("colour",), ())))
            if [t for t in matching(scene, short) if t in found] == [thing]:
                words = {
                    "thing": phrase(short),
                    "side": dice.pick(SIDE_PHRASES[where]),
                    "b": the(dice.pick(names)),
                }
                return Reference(dice.pick(BESIDE).format(**words), thing, (thing, anchor))
    return None


def proposals(scene: Scene, target: Thing, dice: Dice, *, image_size: int) -> tuple[list[Box], int]:
    """Boxes to choose from, in random order, and which of them is the one of `target`.

    The boxes of all things, and a few that hold no thing well; those that overlap the right one by half are left
    out, so that exactly one proposal is right at the usual threshold.
    """
    right = box(target, image_size=image_size)
    others = [box(t, image_size=image_size) for t in scene.things if t is not target]
    while len(others) < len(scene.things) - 1 + _DISTRACTORS:
        w, h = (dice.uniform(0.2, 0.4) * image_size for _ in range(2))
        x, y = dice.uniform(0, image_size - w), dice.uniform(0, image_size - h)
        others.append((x, y, x + w, y + h))
    boxes = dice.shuffled([right, *(b for b in others if iou(b, right) < OVERLAP)])
    return boxes, boxes.index(right)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inside = max(w, 0.0) * max(h, 0.0)
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)
