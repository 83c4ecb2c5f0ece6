"""Statements about pairs of pictures, true or false (as in NLVR2), by families like those of `questions`.

A family writes the words first and asks that both truth values are possible; a fair coin decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from .dice import Dice
from .language import article, counted, many, phrase
from .questions import NOUNS, VALUES
from .relations import Description, matching
from .world import HELD_OUT, Scene

BOTH = ("both pictures show {a}", "there is {a} in each image", "{a} is in both pictures")
ONLY_ONE = (
    "exactly one picture shows {a}",
    "{a} is in only one of the images",
    "only one image contains {a}",
)
MORE = ("there are more {things} in the {first} image than in the {second} image",)
HERE = ("the {first} image contains {a}", "there is {a} in the {first} picture")
TOTAL = ("there are {some} in total", "the two images show {some} altogether")
EACH = ("each image contains exactly {some}", "exactly {some} can be seen in each picture")
SIDE_NAMES = ("left", "right")
TEMPLATES = (*BOTH, *ONLY_ONE, *MORE, *HERE, *TOTAL, *EACH, *SIDE_NAMES)


class Statement(NamedTuple):
    """A sentence about two pictures, its truth, and the description that it is about."""

    text: str
    truth: bool
    about: Description

    @property
    def held_out(self) -> bool:
        """Whether it is about a held-out combination."""
        return (self.about.colour, self.about.shape) in HELD_OUT


def statement(left: Scene, right: Scene, dice: Dice) -> tuple[str, Statement]:
    """(family name, statement) about two scenes."""
    while True:
        write = dice.weighted(_FAMILIES, _WEIGHTS)
        found = write(left, right, dice)
        if found is not None:
            return write.__name__.lstrip("_"), found


def _counts(
    left: Scene, right: Scene, dice: Dice, *, anywhere: bool = False
) -> dict[Description, tuple[int, int]]:
    """How often each description of one random kind fits in the two pictures.

    Only descriptions that fit at least once; with `anywhere` also the others, of single attributes.
    """
    kind = dice.pick(
        (("colour",), ("shape",)) if anywhere else (("colour",), ("shape",), ("colour", "shape"))
    )
    found = {}
    for values in itertools.product(*(VALUES[name] for name in kind)):
        description = Description(**dict(zip(kind, values, strict=True)))
        counts = len(matching(left, description)), len(matching(right, description))
        if anywhere or any(counts):
            found[description] = counts
    return found


def _choose(
    dice: Dice, true: list[Description], false: list[Description], templates: tuple[str, ...], **fields: str
) -> Statement | None:
    if not true or not false:
        return None
    truth = dice.chance(0.5)
    about = dice.pick(true if truth else false)
    noun = dice.pick(NOUNS)
    words = {"a": article(phrase(about, noun=noun)), "things": many(about, noun=noun)}
    if "count" in fields:
        words["some"] = counted(int(fields["count"]), about, noun=noun)
    return Statement(dice.pick(templates).format(**words, **fields), truth, about)


def _both(left: Scene, right: Scene, dice: Dice) -> Statement | None:
    counts = _counts(left, right, dice)
    return _choose(
        dice, [d for d, n in counts.items() if all(n)], [d for d, n in counts.items() if 0 in n], BOTH
    )


def _only_one(left: Scene, right: Scene, dice: Dice) -> Statement | None:
    counts = _counts(left, right, dice)
    return _choose(
        dice, [d for d, n in counts.items() if 0 in n], [d for d, n in counts.items() if all(n)], ONLY_ONE
    )


def _here(left: Scene, right: Scene, dice: Dice) -> Statement | None:
    # False ones are mostly true of the other picture; some of neither, which makes this family always possible.
    counts = _counts(left, right, dice, anywhere=dice.chance(0.25))
    i = dice.below(2)
    true, false = [d for d, n in counts.items() if n[i]], [d for d, n in counts.items() if not n[i]]
    return _choose(dice, true, false, HERE, first=SIDE_NAMES[i])


def _more(left: Scene, right: Scene, dice: Dice) -> Statement | None:
    counts = _counts(left, right, dice)
    i = dice.below(2)
    true, false = ([d for d, n in counts.items() if n[j] > n[1 - j]] for j in (i, 1 - i))
    return _choose(dice, true, false, MORE, first=SIDE_NAMES[i], second=SIDE_NAMES[1 - i])


def _total(left: Scene, right: Scene, dice: Dice) -> Statement | None:
    counts = _counts(left, right, dice)
    k = dice.pick((2, 3, 4))
    true, false = [d for d, n in counts.items() if sum(n) == k], [d for d, n in counts.items() if sum(n) != k]
    return _choose(dice, true, false, TOTAL, count=str(k))


def _each(left: Scene, right: Scene, dice: Dice) -> Statement | None:
    counts = _counts(left, right, dice)
    k = dice.pick((1, 2))
    true, false = [d for d, n in counts.items() if n == (k, k)], [d for d, n in counts.items() if n != (k, k)]
    return _choose(dice, true, false, EACH, count=str(k))


Write = Callable[[Scene, Scene, Dice], "Statement | None"]
_FAMILIES: tuple[Write, ...] = (_both, _only_one, _here, _more, _total, _each)
_WEIGHTS = (2.0, 2.0, 2.0, 2.0, 1.0, 1.0)
