"""Questions about a scene, balanced so that the words of a question do not tell its answer.

Every family first fixes what the words depend on, then tosses a fair coin (or draws the answer) among what the
scene allows, and only asks if each outcome is possible. As the world treats all words of a kind alike, the answer
is then independent of the question as a string, and "yes" of the picture too. Nothing is counted across examples:
a question is a function of its scene.

Easy families need one look (presence, colour, shape, pattern, size, counts); the hard ones, in `hard_questions`,
need several things at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from .dice import Dice
from .language import COLOUR_WORDS, PICTURE_WORDS, article, many, phrase, the
from .relations import Description, groups, matching, references
from .world import COLOURS, HELD_OUT, SHAPES, SIZES, TEXTURES, Scene, Thing, allowed

YES_NO, NUMBER, OTHER = "yes/no", "number", "other"
NOUNS = ("thing", "object")
VALUES: Mapping[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "texture": TEXTURES,
}
SEEN = (
    "is there {a}?",
    "can you see {a}?",
    "do you see {a} in the {picture}?",
    "does the {picture} show {a}?",
)
COUNT = (
    "how many {things} are there?",
    "how many {things} do you see?",
    "what number of {things} is in the {picture}?",
)
VERIFY = ("is {the} {value}?", "would you say that {the} is {value}?")
BIGGER = ("is {a} {bigger} than {b}?", "does {a} look {bigger} than {b}?")
COLOUR_OF = ("what {color} is {the}?", "what is the {color} of {the}?", "which {color} does {the} have?")
SHAPE_OF = (
    "what shape is {the}?",
    "what is the shape of {the}?",
    "which shape does {the} have?",
    "what is {the}?",
)
TEXTURE_OF = ("what pattern does {the} have?", "what is the pattern of {the}?", "which pattern is on {the}?")
BIGGER_WORDS = ("bigger", "larger", "smaller")
# How often to prefer each answer where a scene offers several, so that the answers come out about equally often.
COUNT_WEIGHTS = {
    "colour": (0.5, 0.55, 1.3, 3.0, 3.0, 3.0),
    "shape": (0.5, 0.55, 1.3, 3.0, 3.0, 3.0),
    "size": (0.9, 0.6, 1.0, 1.6, 1.6, 1.0),
    "texture": (0.6, 0.6, 1.1, 2.0, 2.0, 1.0),
}
COUNT_ALL_SHARE = {2: 0.58, 3: 0.8}  # fuller pictures allow more questions of other kinds
TEXTURE_WEIGHTS = {"plain": 0.72, "striped": 1.0, "spotted": 1.0}
UNIQUE = (
    ("shape",),
    ("colour",),
    ("size",),
    ("texture",),
    ("colour", "shape"),
    ("size", "shape"),
    ("size", "colour"),
)


class Asked(NamedTuple):
    """A question, its true answer, and the (colour, shape) pairs that it involves."""

    text: str
    answer: str
    pairs: tuple[tuple[str, str], ...]

    @property
    def held_out(self) -> bool:
        """Whether a held-out combination is involved."""
        return not HELD_OUT.isdisjoint(self.pairs)


Ask = Callable[[Scene, Dice], "Asked | None"]


class Family(NamedTuple):
    """A kind of question; `ask` returns None where the scene does not allow it."""

    ask: Ask
    answer_type: str
    weight: float


def asked(text: str, answer: object, things: Iterable[Thing], *pairs: tuple[str, str]) -> Asked:
    """An `Asked` that involves these things and pairs."""
    return Asked(text, str(answer), (*(t.pair for t in things), *pairs))


def named(
    scene: Scene, dice: Dice, *, without: str = "", subsets: Sequence[tuple[str, ...]] = UNIQUE
) -> dict[Thing, Description]:
    """Things that a description without that attribute picks, each with one of its shortest descriptions."""
    found = {}
    for thing in scene.things:
        options = references(scene, thing, without=without, subsets=subsets)
        if options:
            found[thing] = dice.pick(options)
    return found


def exist_pair(scene: Scene, dice: Dice) -> Asked | None:
    """Is there a red square? For "no", red and squares are there, but apart."""
    present = {t.pair for t in scene.things}
    colours, shapes = ([v for v in VALUES[a] if v in groups(scene, a)] for a in ("colour", "shape"))
    absent = [(c, s) for c in colours for s in shapes if (c, s) not in present and allowed(scene.split, c, s)]
    if not absent:
        return None
    truth = dice.chance(0.5)
    pair = dice.pick(sorted(present) if truth else absent)
    text = dice.pick(SEEN).format(a=article(" ".join(pair)), picture=dice.pick(PICTURE_WORDS))
    return asked(text, "yes" if truth else "no", (), pair)


def exist_one(scene: Scene, dice: Dice) -> Asked | None:
    """Is there a star? Is there a red thing?"""
    attribute = dice.pick(("colour", "shape"))
    present = [v for v in VALUES[attribute] if v in groups(scene, attribute)]
    absent = [v for v in VALUES[attribute] if v not in present]
    truth = dice.chance(0.5)
    target = Description(**{attribute: dice.pick(present if truth else absent)})
    a = article(phrase(target, noun=dice.pick(NOUNS)))
    text = dice.pick(SEEN).format(a=a, picture=dice.pick(PICTURE_WORDS))
    return asked(text, "yes" if truth else "no", matching(scene, target))


def verify(scene: Scene, dice: Dice) -> Asked | None:
    """Is the circle red? Is the red thing a star? Is the square striped?"""
    attribute = dice.pick(("colour", "colour", "shape", "texture"))
    things = named(scene, dice, without=attribute, subsets=UNIQUE[:2])
    options = []
    for value in VALUES[attribute]:
        right = [t for t in things if getattr(t, attribute) == value]
        wrong = [t for t in things if getattr(t, attribute) != value and _sayable(scene, t, attribute, value)]
        if right and wrong:
            options.append((value, right, wrong))
    if not options:
        return None
    value, right, wrong = dice.pick(options)
    truth = dice.chance(0.5)
    thing = dice.pick(right if truth else wrong)
    stated = article(value) if attribute == "shape" else value
    text = dice.pick(VERIFY).format(the=the(things[thing], noun=dice.pick(NOUNS)), value=stated)
    return asked(text, "yes" if truth else "no", [thing], _changed(thing, attribute, value))


def _changed(thing: Thing, attribute: str, value: str) -> tuple[str, str]:
    return (value if attribute == "colour" else thing.colour, value if attribute == "shape" else thing.shape)


def _sayable(scene: Scene, thing: Thing, attribute: str, value: str) -> bool:
    return allowed(scene.split, *_changed(thing, attribute, value))


def compare_size(scene: Scene, dice: Dice) -> Asked | None:
    """Is the star bigger than the heart?"""
    things = named(scene, dice, without="size", subsets=(("shape",), ("colour",), ("colour", "shape")))
    large, small = ([t for t in things if t.size == size] for size in ("large", "small"))
    if not large or not small:
        return None
    pair = [dice.pick(large), dice.pick(small)]
    word = dice.pick(BIGGER_WORDS)
    truth = dice.chance(0.5)
    if truth == (word == "smaller"):
        pair.reverse()
    noun = dice.pick(NOUNS)
    a, b = (the(things[t], noun=noun) for t in pair)
    return asked(dice.pick(BIGGER).format(a=a, b=b, bigger=word), "yes" if truth else "no", pair)


def count_all(scene: Scene, dice: Dice) -> Asked | None:
    """How many things are there?"""
    if not dice.chance(COUNT_ALL_SHARE.get(len(scene.things), 1.0)):
        return None
    things = dice.pick(("things", "objects", "shapes"))
    text = dice.pick(COUNT).format(things=things, picture=dice.pick(PICTURE_WORDS))
    return asked(text, len(scene.things), scene.things)


def count_some(scene: Scene, dice: Dice) -> Asked | None:
    """How many red things are there? How many stars, how many small things, how many striped things?"""
    attribute = dice.weighted(("colour", "shape", "size", "texture"), (4, 4, 1, 1))
    by_count: dict[int, list[str]] = {}
    for value in VALUES[attribute]:
        by_count.setdefault(sum(getattr(t, attribute) == value for t in scene.things), []).append(value)
    counts = sorted(by_count)
    count = dice.weighted(counts, [COUNT_WEIGHTS[attribute][c] for c in counts])
    target = Description(**{attribute: dice.pick(by_count[count])})
    things = many(target, noun=dice.pick(NOUNS))
    text = dice.pick(COUNT).format(things=things, picture=dice.pick(PICTURE_WORDS))
    return asked(text, count, matching(scene, target))


def colour_of(scene: Scene, dice: Dice) -> Asked | None:
    """What color is the circle?"""
    return _attribute_of(scene, dice, "colour", COLOUR_OF)


def shape_of(scene: Scene, dice: Dice) -> Asked | None:
    """What shape is the green thing?"""
    return _attribute_of(scene, dice, "shape", SHAPE_OF)


def texture_of(scene: Scene, dice: Dice) -> Asked | None:
    """What pattern does the star have?"""
    return _attribute_of(scene, dice, "texture", TEXTURE_OF)


def _attribute_of(scene: Scene, dice: Dice, attribute: str, templates: tuple[str, ...]) -> Asked | None:
    things = named(scene, dice, without=attribute)
    # Where all things agree, the picture answers without the question.
    if not things or len(scene.things) > 1 == len(groups(scene, attribute)):
        return None
    values = [v for v in VALUES[attribute] if any(getattr(t, attribute) == v for t in things)]
    weights = [TEXTURE_WEIGHTS.get(v, 1.0) for v in values]
    value = dice.weighted(values, weights)
    thing = dice.pick([t for t in things if getattr(t, attribute) == value])
    reference = the(things[thing], noun=dice.pick(NOUNS))
    text = dice.pick(templates).format(the=reference, color=dice.pick(COLOUR_WORDS))
    return asked(text, value, [thing])


EASY: Mapping[str, Family] = {
    "exist_pair": Family(exist_pair, YES_NO, 1.8),
    "exist_one": Family(exist_one, YES_NO, 1.0),
    "verify": Family(verify, YES_NO, 2.2),
    "compare_size": Family(compare_size, YES_NO, 0.9),
    "count_all": Family(count_all, NUMBER, 0.8),
    "count_some": Family(count_some, NUMBER, 1.2),
    "colour_of": Family(colour_of, OTHER, 2.8),
    "shape_of": Family(shape_of, OTHER, 2.4),
    "texture_of": Family(texture_of, OTHER, 0.6),
}
TEMPLATES = (*SEEN, *COUNT, *VERIFY, *BIGGER, *BIGGER_WORDS, *COLOUR_OF, *SHAPE_OF, *TEXTURE_OF)
