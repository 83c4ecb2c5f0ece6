"""A second, slow reading of the world: parses its sentences and looks the truth up in the things of a scene.

It shares no code with the generators. Places are compared without their margins, so that a sentence passes only
if it is true to the letter.
"""

from __future__ import annotations

import itertools
import math
import re

CANONICAL = {
    "disc": "circle",
    "box": "square",
    "plus": "cross",
    "violet": "purple",
    "solid": "plain",
    "little": "small",
    "tiny": "small",
    "big": "large",
}
KNOWN = {"cross", *CANONICAL}
FILLER = {"a", "an", "the", "thing", "object", "shape"}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SIDE = r"(?:to the )?(left|right|above|below|higher|lower|under)(?: of| than)?"
WHERE = {"higher": "above", "lower": "below", "under": "below"}


def words(phrase: str) -> set[str]:
    """Attribute words of a noun phrase, singular and without synonyms."""
    out = set()
    for word in phrase.split():
        singular = word if word in KNOWN else re.sub(r"(?<=[sx])es$|(?<=[^s])s$", "", word)
        out.add(CANONICAL.get(singular, singular))
    return out - FILLER


def pick(scene, phrase: str) -> list:
    """The visible things that a noun phrase fits."""
    return [t for t in scene.things if words(phrase) <= {t.shape, t.colour, t.size, t.texture}]


def the(scene, phrase: str):
    """The one thing that a definite phrase fits."""
    (thing,) = pick(scene, phrase)
    return thing


def is_side(a, b, where: str) -> bool:
    where = WHERE.get(where, where)
    return {"left": a.x < b.x, "right": a.x > b.x, "above": a.y < b.y, "below": a.y > b.y}[where]


def in_line(things, line: str) -> bool:
    """Whether some three of the things stand in a row or a column."""
    axis = {"row": "y", "column": "x"}[line]
    spreads = [[getattr(t, axis) for t in trio] for trio in itertools.combinations(things, 3)]
    return any(max(v) - min(v) < 0.07 for v in spreads)


def between(scene, a, b):
    """The thing nearest to the segment from `a` to `b`, among those beside its inner part."""
    length = math.hypot(b.x - a.x, b.y - a.y)
    found = []
    for t in scene.things:
        along = ((t.x - a.x) * (b.x - a.x) + (t.y - a.y) * (b.y - a.y)) / length
        off = abs((t.x - a.x) * (b.y - a.y) - (t.y - a.y) * (b.x - a.x)) / length
        if t not in (a, b) and 0.1 * length < along < 0.9 * length and off < 0.08:
            found.append(t)
    (thing,) = found
    return thing


def yes(truth: bool) -> str:
    return "yes" if truth else "no"


def attribute(kind: str, thing) -> str:
    return {"color": thing.colour, "colour": thing.colour, "pattern": thing.texture}.get(kind, thing.shape)


def answer(scene, question: str) -> str:
    """The true answer of a question."""
    for pattern, look in QUESTIONS:
        found = re.fullmatch(pattern, question.removesuffix("?"))
        if found:
            return look(scene, *found.groups())
    raise AssertionError(f"cannot read {question!r}")


def _furthest(scene, kind: str, place: str) -> str:
    key = {"left": lambda t: t.x, "right": lambda t: -t.x, "top": lambda t: t.y, "highest up": lambda t: t.y}
    low = {"bottom": lambda t: -t.y, "lowest down": lambda t: -t.y}
    return attribute(kind, min(scene.things, key={**key, **low}[place]))


def _count_side(s, what, side, b):
    anchor = the(s, b)
    return str(sum(is_side(t, anchor, side) for t in pick(s, what) if t is not anchor))


def _beside(s, kind, side, b):
    anchor = the(s, b)
    (thing,) = [t for t in s.things if t is not anchor and is_side(t, anchor, side)]
    return attribute(kind, thing)


def _same(s, a, b, kind):
    return yes(attribute(kind, the(s, a)) == attribute(kind, the(s, b)))


def _more(s, a, word_, c):
    x, y = len(pick(s, a)), len(pick(s, c))
    return yes(x < y if word_ == "fewer" else x > y)


def _bigger(s, a, word_, b):
    one, two = the(s, a), the(s, b)
    return yes(one.radius < two.radius if word_ == "smaller" else one.radius > two.radius)


KIND = "(colou?r|shape|pattern)"
ATTRIBUTE_OF = (rf"what {KIND} is (the .+)", rf"(?:what|which) {KIND} (?:does|is on) (the .+?)(?: have)?")
FURTHEST = r"(?:furthest to the |on the far |at the )?(left|right|top|bottom|highest up|lowest down)"
NOUN = "(?:thing|object)"
QUESTIONS = [
    (
        r"(?:is there|can you see|do) a (row|column) of three (.+?)(?: appear)?",
        lambda s, line, p: yes(in_line(pick(s, p), line)),
    ),
    (
        r"(?:is there|can you see|do you see|does the \w+ show) (an? .+?)(?: in the \w+)?",
        lambda s, p: yes(bool(pick(s, p))),
    ),
    (
        r"(?:are there|do you see) exactly (\w+) (.+)",
        lambda s, n, p: yes(len(pick(s, p)) == NUMBERS.index(n)),
    ),
    (r"(?:are there|do you see) (?=more|fewer)(\w+) (.+) than (.+)", lambda s, w, a, b: _more(s, a, w, b)),
    (r"(?:are|do) (the .+) and (the .+?)(?: have)? the same (\w+)", _same),
    (r"(?:is|does) (the .+?)(?: look)? (bigger|larger|smaller) than (the .+)", _bigger),
    (
        rf"(?:is|does) (the .+?)(?: lie)? {SIDE} (the .+)",
        lambda s, a, w, b: yes(is_side(the(s, a), the(s, b), w)),
    ),
    (
        rf"(?:is|would you say that) (the \S+(?: {NOUN})?) (?:is )?(.+)",
        lambda s, a, v: yes(the(s, a) in pick(s, v)),
    ),
    (rf"how many (.+) (?:are|can you find) {SIDE} (the .+)", _count_side),
    (
        r"(?:how many|what number of) (.+?) (?:are there|do you see|is in the \w+)",
        lambda s, p: str(len(pick(s, p))),
    ),
    (
        rf"(?:what|which) {KIND} is the {NOUN} between (the .+) and (the .+)",
        lambda s, k, a, b: attribute(k, between(s, the(s, a), the(s, b))),
    ),
    (
        rf"(?:what|which)(?: {KIND})? is between (the .+) and (the .+)",
        lambda s, k, a, b: attribute(k, between(s, the(s, a), the(s, b))),
    ),
    (rf"what is the {KIND} of the {NOUN} {SIDE} (the .+)", _beside),
    (rf"what(?: {KIND})? is(?: the {NOUN})? {SIDE} (the .+)", _beside),
    (rf"what is the {KIND} of the {NOUN} {FURTHEST}", _furthest),
    (rf"(?:what|which) {KIND} (?:is|does)(?: the {NOUN})? {FURTHEST}(?: have)?", _furthest),
    (rf"what is the {KIND} of (the .+)", lambda s, k, p: attribute(k, the(s, p))),
    *((pattern, lambda s, k, p: attribute(k, the(s, p))) for pattern in ATTRIBUTE_OF),
    (r"what is (the .+)", lambda s, p: the(s, p).shape),
]


def distinct(scene, phrases: list[str]) -> bool:
    """Whether the phrases fit that many different things."""
    fits = [pick(scene, p) for p in phrases]
    return any(len(set(choice)) == len(choice) for choice in itertools.product(*fits))


def amount(scene, phrase: str) -> bool:
    """ "three red things": exactly so many are there."""
    number, _, rest = phrase.partition(" ")
    return len(pick(scene, rest)) == NUMBERS.index(number)


def caption(scene, text: str) -> bool:
    """Whether a caption is true."""
    text = re.sub(
        r"^an? (?:picture|image|scene|drawing) (?:of|with) |^the \w+ shows |^you can see |^there (?:is|are) ",
        "",
        text,
    )
    text = re.sub(r" in the (?:picture|image|scene|drawing)$", "", text)
    if found := re.fullmatch(r"(.+?) (?:lies )?between (.+) and (.+)", text):
        m, a, b = (pick(scene, p) for p in found.groups())
        return any(between(scene, x, y) in m for x, y in itertools.product(a, b) if _has_middle(scene, x, y))
    if found := re.fullmatch(r"a (row|column) of three (.+)", text):
        return in_line(pick(scene, found[2]), found[1])
    if found := re.fullmatch(r"three (.+) in a (row|column)", text):
        return in_line(pick(scene, found[1]), found[2])
    if found := re.fullmatch(r"(.+?) (?:that )?is (bigger|larger|smaller) than (.+)", text):
        a, b = (pick(scene, found[i]) for i in (1, 3))
        return any(
            (x.radius < y.radius) == (found[2] == "smaller") for x, y in itertools.product(a, b) if x is not y
        )
    if found := re.fullmatch(rf"(.+?)(?: is)? {SIDE} (an? .+)", text):
        a, b = (pick(scene, found[i]) for i in (1, 3))
        return any(is_side(x, y, found[2]) for x, y in itertools.product(a, b))
    if found := re.fullmatch(r"(\w+ \w+) (?:and one of them is|:) (.+)", text):
        return amount(scene, found[1]) and _listed(scene, found[2])
    if found := re.fullmatch(r"(.+) among (.+)", text):
        return amount(scene, found[1]) and amount(scene, found[2])
    return _listed(scene, text)


def _has_middle(scene, x, y) -> bool:
    try:
        return x is not y and between(scene, x, y) is not None
    except ValueError:
        return False


def _listed(scene, text: str) -> bool:
    parts = re.split(r" , | and ", text)
    counted_ = [p for p in parts if p.split()[0] in NUMBERS]
    return all(amount(scene, p) for p in counted_) and distinct(
        scene, [p for p in parts if p not in counted_]
    )


def statement(left, right, text: str) -> bool:
    """Whether a statement about two scenes is true."""
    n = lambda phrase: (len(pick(left, phrase)), len(pick(right, phrase)))  # noqa: E731
    picture = {"left": 0, "right": 1}
    if found := re.fullmatch(r"there are more (.+) in the (\w+) image than in the (\w+) image", text):
        counts = n(found[1])
        return counts[picture[found[2]]] > counts[picture[found[3]]]
    if found := re.fullmatch(r"(?:there are|the two images show) (\w+) (.+) (?:in total|altogether)", text):
        return sum(n(found[2])) == NUMBERS.index(found[1])
    if found := re.fullmatch(
        r"(?:each image contains )?exactly (\w+) ((?!picture shows).+?)(?: can be seen in each picture)?",
        text,
    ):
        return set(n(found[2])) == {NUMBERS.index(found[1])}
    if found := re.fullmatch(r"the (\w+) image contains (.+)|there is (.+) in the (\w+) picture", text):
        side, phrase = (found[1], found[2]) if found[1] else (found[4], found[3])
        return n(phrase)[picture[side]] > 0
    if found := re.fullmatch(
        r"both pictures show (.+)|there is (.+) in each image|(.+) is in both pictures", text
    ):
        return all(n(next(filter(None, found.groups()))))
    one = r"exactly one picture shows (.+)|(.+) is in only one of the images|only one image contains (.+)"
    counts = n(next(filter(None, re.fullmatch(one, text).groups())))
    return (counts[0] > 0) != (counts[1] > 0)


def entailment(scene, text: str) -> str:
    """The label of a hypothesis."""
    text = re.sub(r" in the \w+$|^somewhere in the \w+ is |^the \w+ contains |^there (?:is|are) ", "", text)
    at_least, at_most = None, None
    number = "|".join(NUMBERS)
    if found := re.fullmatch(
        rf"no (?!more)(.+)|(?:at most|no more than) (?:{number}) (.+)|(?:{number}) (.+) or fewer", text
    ):
        phrase = next(filter(None, found.groups()))
        at_most = max((NUMBERS.index(w) for w in text.split() if w in NUMBERS), default=0)
    elif found := re.fullmatch(rf"at least ({number}) (.+)|({number}) or more (.+)", text):
        phrase, at_least = found[2] or found[4], NUMBERS.index(found[1] or found[3])
    else:
        phrase, at_least = text, 1
    seen = len(pick(scene, phrase))
    if at_least is not None and seen >= at_least:
        return "entailment"
    if at_most is not None and seen > at_most:
        return "contradiction"
    if scene.screen is not None:
        return "neutral"
    return "contradiction" if at_most is None else "entailment"


def refers_to(scene, text: str):
    """The one thing that an expression fits."""
    if found := re.fullmatch(rf"(the .+?)(?: that is)? {SIDE} (the .+)", text):
        anchor = the(scene, found[3])
        (thing,) = [t for t in pick(scene, found[1]) if t is not anchor and is_side(t, anchor, found[2])]
        return thing
    if text == "the thing furthest to the left":
        return min(scene.things, key=lambda t: t.x)
    return the(scene, text)
