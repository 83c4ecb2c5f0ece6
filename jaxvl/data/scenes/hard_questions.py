"""Questions that need several things at once: sides, rows, betweenness, comparisons of counts and attributes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from .dice import Dice
from .language import COLOUR_WORDS, LINE_PHRASES, NUMBERS, SIDE_PHRASES, many, the
from .questions import NOUNS, NUMBER, OTHER, UNIQUE, YES_NO, Asked, Family, asked, named
from .relations import SIDES, Description, betweens, extreme, groups, lined_up, on_side, side
from .world import Scene, Thing

RELATION = ("is {a} {side} {b}?", "does {a} lie {side} {b}?")
LINE = ("is there {line} {things}?", "can you see {line} {things}?", "do {line} {things} appear?")
MORE = ("are there more {a} than {b}?", "do you see more {a} than {b}?")
FEWER = ("are there fewer {a} than {b}?", "do you see fewer {a} than {b}?")
SAME = {
    "colour": ("are {a} and {b} the same {color}?", "do {a} and {b} have the same {color}?"),
    "shape": ("are {a} and {b} the same shape?", "do {a} and {b} have the same shape?"),
}
EXACT = ("are there exactly {count} {things}?", "do you see exactly {count} {things}?")
COUNT_SIDE = ("how many {things} are {side} {b}?", "how many {things} can you find {side} {b}?")
SIDE_COLOUR = ("what {color} is the {noun} {side} {b}?", "what is the {color} of the {noun} {side} {b}?")
SIDE_SHAPE = ("what is {side} {b}?", "what shape is {side} {b}?")
BETWEEN_COLOUR = ("what {color} is the {noun} between {a} and {b}?", "which {color} is between {a} and {b}?")
BETWEEN_SHAPE = ("what is between {a} and {b}?", "what shape is between {a} and {b}?")
EXTREME_COLOUR = ("what {color} is the {noun} {place}?", "which {color} does the {noun} {place} have?")
EXTREME_SHAPE = ("what shape is {place}?", "what is the shape of the {noun} {place}?")
PLACES = {
    "left": ("furthest to the left", "on the far left"),
    "right": ("furthest to the right", "on the far right"),
    "above": ("at the top", "highest up"),
    "below": ("at the bottom", "lowest down"),
}
_OTHER_LINE = {"row": "column", "column": "row"}
# Scattered threes are more frequent than rows of one kind, and a row asks now and then for a column: with these
# shares "yes" and "no" come out even.
_ASK_OTHER_LINE = 0.15
_ASK_SCATTERED = 0.42
_COUNT_SIDE_WEIGHTS = (0.5, 0.6, 1.7, 3.5, 3.5)
_BY_NAME = (("colour", "shape"),)


def _name(scene: Scene, dice: Dice) -> dict[Thing, Description]:
    return named(scene, dice, subsets=_BY_NAME if dice.chance(0.5) else UNIQUE)


def relation(scene: Scene, dice: Dice) -> Asked | None:
    """Is the red square left of the blue circle?"""
    things = _name(scene, dice)
    options = [(a, b, w) for a, b in itertools.permutations(things, 2) for w in SIDES if side(a, b, w)]
    if not options:
        return None
    a, b, where = dice.pick(options)
    truth = dice.chance(0.5)
    first, second = (a, b) if truth else (b, a)
    noun = dice.pick(NOUNS)
    text = dice.pick(RELATION).format(
        a=the(things[first], noun=noun), side=dice.pick(SIDE_PHRASES[where]), b=the(things[second], noun=noun)
    )
    return asked(text, "yes" if truth else "no", (a, b))


def line(scene: Scene, dice: Dice) -> Asked | None:
    """Is there a row of three circles? There are three circles in any case."""
    options = []
    for attribute in ("colour", "shape"):
        for value, things in groups(scene, attribute).items():
            states = {lined_up(trio) or "doubtful" for trio in itertools.combinations(things, 3)}
            lines = states & {"row", "column"}
            if states and "doubtful" not in states and len(lines) <= 1:
                options.append((Description(**{attribute: value}), min(lines, default="none"), things))
    if not options:
        return None
    target, state, things = dice.pick(options)
    if state == "none":
        if not dice.chance(_ASK_SCATTERED):
            return None
        wanted = dice.pick(("row", "column"))
    else:
        wanted = _OTHER_LINE[state] if dice.chance(_ASK_OTHER_LINE) else state
    text = dice.pick(LINE).format(line=LINE_PHRASES[wanted], things=many(target, noun=dice.pick(NOUNS)))
    return asked(text, "yes" if wanted == state else "no", things)


def more(scene: Scene, dice: Dice) -> Asked | None:
    """Are there more circles than squares? Both are there, in unequal numbers."""
    attribute = dice.pick(("colour", "shape"))
    sets = groups(scene, attribute)
    options = [(a, b) for a, b in itertools.permutations(sets, 2) if len(sets[a]) > len(sets[b])]
    if not options:
        return None
    a, b = dice.pick(options)
    truth, templates = dice.chance(0.5), dice.pick((MORE, FEWER))
    first, second = (a, b) if truth == (templates is MORE) else (b, a)
    noun = dice.pick(NOUNS)
    a_text, b_text = (many(Description(**{attribute: v}), noun=noun) for v in (first, second))
    return asked(dice.pick(templates).format(a=a_text, b=b_text), "yes" if truth else "no", sets[a] + sets[b])


def same(scene: Scene, dice: Dice) -> Asked | None:
    """Are the star and the heart the same color?"""
    attribute, by = dice.pick((("colour", "shape"), ("shape", "colour")))
    things = named(scene, dice, subsets=((by,),))
    pairs = list(itertools.permutations(things, 2))
    equal = [p for p in pairs if getattr(p[0], attribute) == getattr(p[1], attribute)]
    unequal = [p for p in pairs if getattr(p[0], attribute) != getattr(p[1], attribute)]
    if not equal or not unequal:
        return None
    truth = dice.chance(0.5)
    pair = dice.pick(equal if truth else unequal)
    a, b = (the(things[t]) for t in pair)
    text = dice.pick(SAME[attribute]).format(a=a, b=b, color=dice.pick(COLOUR_WORDS))
    return asked(text, "yes" if truth else "no", pair)


def exact(scene: Scene, dice: Dice) -> Asked | None:
    """Are there exactly two red things? There are some."""
    attribute = dice.pick(("colour", "shape"))
    sets = groups(scene, attribute)
    counts = [k for k in (2, 3) if 0 < sum(len(s) == k for s in sets.values()) < len(sets)]
    if not counts:
        return None
    count = dice.pick(counts)
    truth = dice.chance(0.5)
    value = dice.pick([v for v in sets if (len(sets[v]) == count) == truth])
    things = many(Description(**{attribute: value}), noun=dice.pick(NOUNS))
    text = dice.pick(EXACT).format(count=NUMBERS[count], things=things)
    return asked(text, "yes" if truth else "no", sets[value])


def count_side(scene: Scene, dice: Dice) -> Asked | None:
    """How many red things are left of the blue square?"""
    things = _name(scene, dice)
    attribute = dice.pick(("", "colour", "shape"))
    by_count: dict[int, list[tuple[Thing, str, Description, list[Thing]]]] = {}
    for anchor, where in itertools.product(things, SIDES):
        beside = on_side(scene, anchor, where)
        if beside is None:
            continue
        values = [v for v in groups(scene, attribute)] if attribute else [None]
        for target in [Description(**{attribute: v}) if v else Description() for v in values]:
            found = [t for t in beside if target.fits(t)]
            by_count.setdefault(len(found), []).append((anchor, where, target, found))
    if not by_count:
        return None
    counts = sorted(by_count)
    count = dice.weighted(counts, [_COUNT_SIDE_WEIGHTS[c] for c in counts])
    anchor, where, target, found = dice.pick(by_count[count])
    noun = dice.pick(NOUNS)
    b = the(things[anchor], noun=noun)
    phrase = dice.pick(SIDE_PHRASES[where])
    text = dice.pick(COUNT_SIDE).format(things=many(target, noun=noun), side=phrase, b=b)
    return asked(text, count, [anchor, *found])


def beside(scene: Scene, dice: Dice) -> Asked | None:
    """What color is the thing left of the red star? It is the only one there."""
    things = _name(scene, dice)
    options = []
    for anchor, where in itertools.product(things, SIDES):
        found = on_side(scene, anchor, where)
        if found is not None and len(found) == 1:
            options.append((anchor, where, found[0]))
    if not options:
        return None
    anchor, where, thing = dice.pick(options)
    noun = dice.pick(NOUNS)
    fields = {"side": dice.pick(SIDE_PHRASES[where]), "b": the(things[anchor], noun=noun), "noun": noun}
    return _colour_or_shape(dice, thing, SIDE_COLOUR, SIDE_SHAPE, fields, (thing, anchor))


def between(scene: Scene, dice: Dice) -> Asked | None:
    """What is between the red square and the green circle?"""
    things = _name(scene, dice)
    options = [trio for trio in betweens(scene) if trio[0] in things and trio[2] in things]
    if not options:
        return None
    a, thing, b = dice.pick(options)
    if dice.chance(0.5):
        a, b = b, a
    noun = dice.pick(NOUNS)
    fields = {"a": the(things[a], noun=noun), "b": the(things[b], noun=noun), "noun": noun}
    return _colour_or_shape(dice, thing, BETWEEN_COLOUR, BETWEEN_SHAPE, fields, (a, thing, b))


def outermost(scene: Scene, dice: Dice) -> Asked | None:
    """What shape is at the top?"""
    where = dice.pick(SIDES)
    thing = extreme(scene, where)
    if thing is None or len(scene.things) == 1:
        return None
    fields = {"place": dice.pick(PLACES[where]), "noun": dice.pick(NOUNS)}
    return _colour_or_shape(dice, thing, EXTREME_COLOUR, EXTREME_SHAPE, fields, (thing,))


def _colour_or_shape(
    dice: Dice,
    thing: Thing,
    colour: tuple[str, ...],
    shape: tuple[str, ...],
    fields: dict[str, str],
    things: tuple[Thing, ...],
) -> Asked:
    templates, answer = dice.pick(((colour, thing.colour), (shape, thing.shape)))
    return asked(dice.pick(templates).format(color=dice.pick(COLOUR_WORDS), **fields), answer, things)


HARD: Mapping[str, Family] = {
    "relation": Family(relation, YES_NO, 1.3),
    "line": Family(line, YES_NO, 2.5),
    "more": Family(more, YES_NO, 0.7),
    "same": Family(same, YES_NO, 0.8),
    "exact": Family(exact, YES_NO, 0.5),
    "count_side": Family(count_side, NUMBER, 1.7),
    "beside": Family(beside, OTHER, 1.4),
    "between": Family(between, OTHER, 2.2),
    "outermost": Family(outermost, OTHER, 0.9),
}
TEMPLATES = (
    *(*RELATION, *LINE, *MORE, *FEWER, *SAME["colour"], *SAME["shape"], *EXACT, *COUNT_SIDE),
    *(*SIDE_COLOUR, *SIDE_SHAPE, *BETWEEN_COLOUR, *BETWEEN_SHAPE, *EXTREME_COLOUR, *EXTREME_SHAPE),
    *(place for places in PLACES.values() for place in places),
)
