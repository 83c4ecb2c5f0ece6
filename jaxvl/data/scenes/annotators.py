"""Ten simulated people answer a question: most agree, some prefer another word, a few are wrong."""

from __future__ import annotations

from collections import Counter

from .dice import Dice
from .language import SYNONYMS
from .questions import NUMBER, VALUES
from .world import COLOURS, MAX_THINGS, SHAPES, TEXTURES

ANNOTATORS = 10
MAJORITY = 6  # at least so many give the true answer in its plain word
ERROR = {"easy": 0.025, "hard": 0.06}  # share of wrong answers
SYNONYM = 0.12  # share of other words for the right thing, where there are any


def answers() -> list[str]:
    """Every answer that an annotator can give, plain words first: the candidates of a generative model."""
    plain = ["yes", "no", *map(str, range(MAX_THINGS + 2)), *COLOURS, *SHAPES, *TEXTURES]
    others = [s for word in (*COLOURS, *SHAPES, *TEXTURES) for s in SYNONYMS.get(word, ())]
    return plain + others


def ten_answers(truth: str, answer_type: str, level: str, dice: Dice) -> list[str]:
    """Answers of ten people to a question whose true answer is `truth`.

    Args:
      answer_type: "yes/no", "number" or "other".
      level: "easy" or "hard"; people err more often on hard questions.
    """
    given = []
    for _ in range(ANNOTATORS):
        if dice.chance(ERROR[level]):
            given.append(_wrong(truth, answer_type, dice))
        elif truth in SYNONYMS and dice.chance(SYNONYM):
            given.append(dice.pick(SYNONYMS[truth]))
        else:
            given.append(truth)
    slips = [i for i, answer in enumerate(given) if answer != truth]
    for i in slips[ANNOTATORS - MAJORITY :]:
        given[i] = truth
    return given


def targets(given: list[str]) -> dict[str, float]:
    """Weight of each distinct answer: its share of the annotators."""
    return {answer: count / len(given) for answer, count in Counter(given).items()}


def _wrong(truth: str, answer_type: str, dice: Dice) -> str:
    if truth in ("yes", "no"):
        return "no" if truth == "yes" else "yes"
    if answer_type == NUMBER:
        return str(int(truth) + 1 if truth == "0" else int(truth) + dice.pick((-1, 1)))
    kind = next(values for values in VALUES.values() if truth in values)
    return dice.pick([v for v in kind if v != truth])
