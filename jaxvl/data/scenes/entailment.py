"""Hypotheses about a picture with a screen: entailed, contradicted, or left open by what can be seen.

A striped screen may hide more things, so that what is not seen may still be there: "there is a star" is neutral if
no star is seen beside a screen, and contradicted if there is no screen. Each sentence form occurs with all three
labels equally often, so that words alone say nothing; the screen alone allows 58 % (a screen suggests neutral),
words and screen together 67 %, the rest takes a look at the things.
"""

from __future__ import annotations

from typing import NamedTuple

from .dice import Dice
from .language import NUMBERS, PICTURE_WORDS, article, counted, many, phrase
from .questions import NOUNS, VALUES
from .relations import Description, matching
from .render import box
from .world import HELD_OUT, Box, Scene, Thing, allowed

LABELS = ("contradiction", "neutral", "entailment")  # the order of ALBEF's SNLI-VE labels
SOME = ("there is {a} in the {picture}", "the {picture} contains {a}", "somewhere in the {picture} is {a}")
NONE = ("there is no {thing} in the {picture}", "the {picture} contains no {thing}")
AT_LEAST = ("there are at least {some} in the {picture}", "the {picture} contains {count} or more {things}")
AT_MOST = ("there are at most {some} in the {picture}", "the {picture} contains {count} {things} or fewer")
AT_MOST_ONE = (
    "there is at most one {thing} in the {picture}",
    "the {picture} contains no more than one {thing}",
)
TEMPLATES = (*SOME, *NONE, *AT_LEAST, *AT_MOST, *AT_MOST_ONE)
KINDS = (("colour",), ("shape",), ("colour", "shape"))
_SCREEN = 0.36  # side of the screen


class Hypothesis(NamedTuple):
    """A sentence, its label (one of `LABELS`), the description it is about, and the scene that shows it."""

    text: str
    label: str
    about: Description
    scene: Scene

    @property
    def held_out(self) -> bool:
        """Whether it is about a held-out combination."""
        return (self.about.colour, self.about.shape) in HELD_OUT


def hypothesis(scene: Scene, dice: Dice) -> Hypothesis:
    """A hypothesis about `scene` or about what a screen leaves of it."""
    screened = _with_screen(scene, dice)
    kind, count = dice.pick(KINDS), dice.pick((1, 1, 2, 3))
    # More than one only where every label is possible: "at least two" must not hint at a label.
    if not all(_descriptions(s, kind, count, seen=seen) for s in (scene, screened) for seen in (True, False)):
        count = 1
    label = dice.pick(LABELS)
    negative = dice.chance(0.5)
    # What is seen settles "there is" and refutes "there is no" with and without a screen; what is not seen
    # settles nothing beside a screen.
    seen = label == ("contradiction" if negative else "entailment")
    shown = screened if label == "neutral" or (seen and dice.chance(0.5)) else scene
    about = dice.pick(_descriptions(shown, kind, count, seen=seen))
    return Hypothesis(_sentence(about, count, dice, negative=negative), label, about, shown)


def _sentence(about: Description, count: int, dice: Dice, *, negative: bool) -> str:
    """That at least `count` things fit, or that fewer do."""
    noun = dice.pick(NOUNS)
    thing = phrase(about, noun=noun)
    stated = count - 1 if negative else count
    templates: tuple[str, ...]
    if negative:
        templates = (NONE, AT_MOST_ONE, AT_MOST)[min(stated, 2)]
    else:
        templates = SOME if count == 1 else AT_LEAST
    return dice.pick(templates).format(
        a=article(thing),
        thing=thing,
        things=many(about, noun=noun),
        some=counted(stated, about, noun=noun),
        count=NUMBERS[stated],
        picture=dice.pick(PICTURE_WORDS),
    )


def _descriptions(shown: Scene, kind: tuple[str, ...], count: int, *, seen: bool) -> list[Description]:
    """Descriptions of that kind that fit at least `count` visible things, or else just miss it."""
    values = [tuple(getattr(t, name) for name in kind) for t in shown.things]
    if not seen and count == 1:
        values = _absent(shown, kind)
    found = []
    for value in dict.fromkeys(values):
        description = Description(**dict(zip(kind, value, strict=True)))
        visible = len(matching(shown, description))
        if visible >= count if seen else visible == count - 1:
            found.append(description)
    return found


def _absent(shown: Scene, kind: tuple[str, ...]) -> list[tuple[str, ...]]:
    if len(kind) == 1:
        return [(v,) for v in VALUES[kind[0]] if all(getattr(t, kind[0]) != v for t in shown.things)]
    return [(c, s) for c in VALUES["colour"] for s in VALUES["shape"] if allowed(shown.split, c, s)]


def _with_screen(scene: Scene, dice: Dice) -> Scene:
    """The scene with a screen; things that touch it are taken out, so that each is seen whole or not at all."""
    boxes = [(t, box(t, image_size=1)) for t in scene.things]
    things: tuple[Thing, ...] = ()
    width = _SCREEN
    while not things:
        for _ in range(6):
            x, y = dice.uniform(0.01, 0.99 - width), dice.uniform(0.01, 0.99 - width)
            place = (x, y, x + width, y + width)
            clear = tuple(t for t, b in boxes if not _touches(b, place))
            if len(clear) > len(things):
                things, screen = clear, place
        width *= 0.9  # a single large thing in the middle leaves no room for a wide screen
    return scene._replace(things=things, screen=screen)


def _touches(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
