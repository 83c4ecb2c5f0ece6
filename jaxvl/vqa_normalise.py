"""Answer normalisation of the official VQA evaluator, with its quirks: scores are only comparable if they are kept.

Source: the GT-Vision-Lab/VQA evaluation code (`vqaEval.py`). Reproduced quirks: the period rule also removes
every period that is not followed by a digit, at most 32 of them; a mark next to a space is deleted everywhere,
otherwise it becomes a space; capitalised contractions can never match because words are lower-cased first.
"""

from __future__ import annotations

import re
from functools import lru_cache

MARKS = (
    ";",
    "/",
    "[",
    "]",
    '"',
    "{",
    "}",
    "(",
    ")",
    "=",
    "+",
    "\\",
    "_",
    "-",
    ">",
    "<",
    "@",
    "`",
    ",",
    "?",
    "!",
)
ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}

# Whose key is the value without apostrophes.
_REGULAR = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm
I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've
shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're
there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd
where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're
you've
"""

# Value, then the partly contracted spellings that lead to it.
_PARTIAL = """
couldn't've couldn'tve couldnt've
hadn't've hadnt've hadn'tve
he'd've hed've he'dve
I'd've Id've I'dve
it'd've itd've it'dve
mightn't've mightnt've mightn'tve
'ow's'at ow's'at 'ows'at 'ow'sat
she'd've shed've she'dve
shouldn't've shouldnt've shouldn'tve
somebody'd've somebodyd've somebody'dve
someone'd've someoned've someone'dve
something'd've somethingd've something'dve
there'd've thered've there'dve
they'd've theyd've they'dve
we'd've wed've we'dve
who'd've whod've who'dve
wouldn't've wouldnt've wouldn'tve
y'all'll yall'll y'allll
y'all'd've yall'd've y'alld've y'all'dve
you'd've youd've you'dve
"""

CONTRACTIONS: dict[str, str] = (
    {value.replace("'", ""): value for value in _REGULAR.split()}
    | {key: line.split()[0] for line in _PARTIAL.strip().splitlines() for key in line.split()[1:]}
    | {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}
)

_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIOD_LIMIT = 32  # the reference passes a regex flag where `re.sub` expects a count


def strip(text: str) -> str:
    """Newlines and tabs become spaces; outer spaces go."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def punctuation(text: str) -> str:
    """The punctuation step of the reference: marks are deleted or become spaces, periods go unless decimal."""
    digits = _DIGIT_COMMA.search(text) is not None
    out = text
    for mark in MARKS:
        if mark in text:
            drop = digits or f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if drop else " ")
    return _PERIOD.sub("", out, count=_PERIOD_LIMIT)


def words(text: str) -> str:
    """The word step of the reference: lower-case, number words to digits, no articles, apostrophes restored."""
    kept = [w for w in (NUMBERS.get(w, w) for w in text.lower().split()) if w not in ARTICLES]
    return " ".join(CONTRACTIONS.get(w, w) for w in kept)


@lru_cache(maxsize=1 << 17)
def normalise(text: str) -> str:
    """Official normal form of an answer: `strip`, `punctuation`, `words`, in this order."""
    return words(punctuation(strip(text)))
