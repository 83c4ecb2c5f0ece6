"""Words: noun phrases, plurals, numbers, synonyms, and the WordPiece vocabulary of everything the world can say."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping

from .dice import Dice
from .relations import Description
from .world import COLOURS, SHAPES, SIZES, TEXTURES

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MAX_COUNT = 10
COLOUR_WORDS = ("color", "colour")
THING_WORDS = ("thing", "object", "shape")
PICTURE_WORDS = ("picture", "image", "scene", "drawing")
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "circle": ("disc",),
    "square": ("box",),
    "cross": ("plus",),
    "purple": ("violet",),
    "plain": ("solid",),
    "striped": ("stripes",),
    "spotted": ("dots", "spots"),
    "small": ("little", "tiny"),
    "large": ("big",),
}
NOT_ATTRIBUTIVE = ("stripes", "dots", "spots")  # answers to "what pattern", not adjectives
SIDE_PHRASES: Mapping[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than", "under"),
}
LINE_PHRASES: Mapping[str, str] = {"row": "a row of three", "column": "a column of three"}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PUNCTUATION = string.punctuation


def plural(noun: str) -> str:
    """ "cross" -> "crosses"; the rest take an s."""
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def counted(count: int, description: Description, *, noun: str = "thing") -> str:
    """ "no red things", "one star", "three striped crosses"."""
    return (
        f"{NUMBERS[count]} {phrase(description, noun=noun) if count == 1 else many(description, noun=noun)}"
    )


def phrase(description: Description, *, noun: str = "thing", dice: Dice | None = None) -> str:
    """Adjectives and noun, without article: "small red circle", "striped thing".

    Args:
      noun: stands in where the description has no shape.
      dice: None always takes the plain words; otherwise synonyms are mixed in now and then.
    """
    words = [w for w in (description.size, description.texture, description.colour) if w]
    words.append(description.shape or noun)
    return " ".join(words if dice is None else [varied(w, dice) for w in words])


def many(description: Description, *, noun: str = "thing") -> str:
    """Plural phrase without article: "red circles", "small things"."""
    head, _, last = phrase(description, noun=noun).rpartition(" ")
    return f"{head} {plural(last)}".strip()


def the(description: Description, *, noun: str = "thing") -> str:
    """Definite phrase: "the red thing"."""
    return "the " + phrase(description, noun=noun)


def varied(word: str, dice: Dice, *, probability: float = 0.15) -> str:
    """`word`, or now and then a synonym that can stand before or as a noun."""
    others = [w for w in SYNONYMS.get(word, ()) if w not in NOT_ATTRIBUTIVE]
    return dice.pick(others) if others and dice.chance(probability) else word


def words_of(texts: Iterable[str]) -> set[str]:
    """Lower-case words of texts or templates (fields in braces are skipped)."""
    return {w for text in texts for w in re.findall(r"[a-z]+|[0-9]", re.sub(r"\{.*?\}", " ", text.lower()))}


def lexicon() -> set[str]:
    """Every word of noun phrases, numbers, relations and answers."""
    nouns = [*SHAPES, *THING_WORDS, *(s for shape in SHAPES for s in SYNONYMS.get(shape, ()))]
    synonyms = [s for group in SYNONYMS.values() for s in group]
    phrases = [p for group in SIDE_PHRASES.values() for p in group]
    flat = [*COLOURS, *SIZES, *TEXTURES, *nouns, *synonyms, *NUMBERS, *COLOUR_WORDS, *PICTURE_WORDS, *phrases]
    return words_of([*flat, *map(plural, nouns), *LINE_PHRASES.values(), "a an the yes"])


def wordpieces(words: Iterable[str]) -> list[str]:
    """Special tokens, then words, then characters and "##" characters: any lower-case ASCII text has pieces."""
    characters = [*string.ascii_lowercase, *string.digits]
    pieces = [*SPECIAL, *sorted(set(words)), *_PUNCTUATION, *characters, *("##" + c for c in characters)]
    return list(dict.fromkeys(pieces))
