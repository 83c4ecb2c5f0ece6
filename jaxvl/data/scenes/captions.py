"""Captions: true sentences about some of the things of a scene, in varied words."""

from __future__ import annotations

from collections.abc import Callable

from .dice import Dice
from .language import (
    LINE_PHRASES,
    NUMBERS,
    PICTURE_WORDS,
    SIDE_PHRASES,
    THING_WORDS,
    article,
    counted,
    phrase,
    plural,
)
from .relations import SIDES, Description, betweens, describe_by, groups, lined_up, side
from .world import Scene, Thing

ONE = ("{a}", "{a_picture} of {a}", "there is {a} in the {picture}", "{count} and one of them is {a}")
TWO = ("{a} and {b}", "{a_picture} with {a} and {b}", "there are {a} and {b}", "you can see {a} and {b}")
MANY = ("{all}", "{a_picture} of {all}", "the {picture} shows {all}", "{count} : {all}")
SIDE = ("{a} is {side} {b}", "{a} {side} {b}", "there is {a} {side} {b}")
SIZE = ("{a} is {bigger} than {b}", "{a} that is {bigger} than {b}")
COUNTED = ("there are {some}", "{some}", "{a_picture} with {some} among {count}", "{some} and {rest}")
LINE = ("{line} {things}", "{things} in {row}", "{a_picture} with {line} {things}")
BETWEEN = ("{m} between {a} and {b}", "{m} lies between {a} and {b}")
ROWS = {"row": "a row", "column": "a column"}
# Colour and shape make a caption tell one picture from another: most descriptions give both.
_ATTRIBUTES = (
    ("colour", "shape"),
    ("colour", "shape"),
    ("colour", "shape"),
    ("texture", "colour", "shape"),
    ("size", "colour", "shape"),
    ("size", "texture", "colour", "shape"),
    ("colour",),
    ("shape",),
)

Write = Callable[[Scene, Dice], "str | None"]


def captions(scene: Scene, seed: int, *, count: int = 5) -> list[str]:
    """`count` different captions of a scene; all are true, none tells everything."""
    dice = Dice("captions", seed, scene.split, scene.number)
    found: list[str] = []
    while len(found) < count:
        write = dice.weighted(_WRITERS, _WEIGHTS)
        text = write(scene, dice)
        if text is not None and text not in found:
            found.append(text)
    return found


def _a(thing: Thing, dice: Dice) -> str:
    """A noun phrase for one thing, with article."""
    attributes = dice.pick(_ATTRIBUTES)
    if thing.texture == "plain":
        attributes = tuple(name for name in attributes if name != "texture")
    description = describe_by(thing, attributes)
    return article(phrase(description, noun=dice.pick(THING_WORDS[:2]), dice=dice))


def _fields(scene: Scene, dice: Dice) -> dict[str, str]:
    n = len(scene.things)
    noun = dice.pick(THING_WORDS)
    picture = dice.pick(PICTURE_WORDS)
    return {
        "picture": picture,
        "a_picture": article(picture),
        "count": f"{NUMBERS[n]} {noun if n == 1 else plural(noun)}",
    }


def _one(scene: Scene, dice: Dice) -> str:
    return dice.pick(ONE).format(a=_a(dice.pick(scene.things), dice), **_fields(scene, dice))


def _two(scene: Scene, dice: Dice) -> str | None:
    things = dice.sample(scene.things, 2)
    if len(things) < 2:
        return None
    return dice.pick(TWO).format(a=_a(things[0], dice), b=_a(things[1], dice), **_fields(scene, dice))


def _many(scene: Scene, dice: Dice) -> str | None:
    if len(scene.things) < 3:
        return None
    phrases = [_a(t, dice) for t in dice.sample(scene.things, 4)]
    together = " , ".join(phrases[:-1]) + " and " + phrases[-1]
    # "three shapes : ..." lists them all
    templates = MANY if len(phrases) == len(scene.things) else MANY[:-1]
    return dice.pick(templates).format(all=together, **_fields(scene, dice))


def _side(scene: Scene, dice: Dice) -> str | None:
    pair, where = dice.sample(scene.things, 2), dice.pick(SIDES)
    if len(pair) < 2 or not side(pair[0], pair[1], where):
        return None
    a, b = (_a(t, dice) for t in pair)
    return dice.pick(SIDE).format(a=a, b=b, side=dice.pick(SIDE_PHRASES[where]))


def _size(scene: Scene, dice: Dice) -> str | None:
    pair = dice.sample(scene.things, 2)
    if len(pair) < 2 or pair[0].size == pair[1].size:
        return None
    bigger = dice.pick(("bigger", "larger")) if pair[0].size == "large" else "smaller"
    a, b = (article(" ".join(t.pair)) for t in pair)
    return dice.pick(SIZE).format(a=a, b=b, bigger=bigger)


def _counted(scene: Scene, dice: Dice) -> str | None:
    attribute = dice.pick(("colour", "shape"))
    sets = groups(scene, attribute)
    several = [v for v in sets if len(sets[v]) > 1]
    if not several:
        return None
    value = dice.pick(several)
    noun = dice.pick(THING_WORDS[:2])
    some = counted(len(sets[value]), Description(**{attribute: value}), noun=noun)
    others = [t for t in scene.things if t not in sets[value]]
    templates = COUNTED if others else COUNTED[:-2]
    rest = _a(dice.pick(others), dice) if others else ""
    return dice.pick(templates).format(some=some, rest=rest, **_fields(scene, dice))


def _line(scene: Scene, dice: Dice) -> str | None:
    attribute = dice.pick(("colour", "shape"))
    for value, things in groups(scene, attribute).items():
        line = lined_up(things) if len(things) == 3 else None
        if line in ROWS:
            noun = dice.pick(THING_WORDS[:2])
            description = Description(**{attribute: value})
            template = dice.pick(LINE)
            three = "{row}" in template
            words = counted(3, description, noun=noun)
            return template.format(
                line=LINE_PHRASES[line],
                things=words if three else words.partition(" ")[2],
                row=ROWS[line],
                **_fields(scene, dice),
            )
    return None


def _between(scene: Scene, dice: Dice) -> str | None:
    trios = betweens(scene)
    if not trios:
        return None
    a, middle, b = (_a(t, dice) for t in dice.pick(trios))
    return dice.pick(BETWEEN).format(m=middle, a=a, b=b)


_WRITERS: tuple[Write, ...] = (_one, _two, _many, _side, _size, _counted, _line, _between)
_WEIGHTS = (1.5, 3.0, 4.0, 2.5, 0.8, 1.8, 1.2, 1.0)
TEMPLATES = (
    *ONE,
    *TWO,
    *MANY,
    *SIDE,
    *SIZE,
    *COUNTED,
    *LINE,
    *BETWEEN,
    *ROWS.values(),
    "bigger larger smaller",
)
