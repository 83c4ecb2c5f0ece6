"""A pool of the embedded world for active learning: all questions of many scenes, with three knobs.

Real questions are answered unevenly, some cannot be answered from the picture at all, and most are about what it shows.
`skew`, `unlearnable` and `shown` make the balanced world so, so that strategies can be told apart (specification 12.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .annotators import targets, ten_answers
from .dice import Dice
from .hard_questions import HARD
from .language import COLOUR_WORDS, plural, the
from .questions import EASY, NUMBER, OTHER, YES_NO, Asked, asked, named
from .readers import QUESTION_LIMIT, SceneQuestions
from .world import COLOURS, MAX_THINGS, SHAPES, TEXTURES, Scene

UNLEARNABLE = "unlearnable"
_TRIES = 12  # further questions to choose from under a skew
_COUNTS = tuple(map(str, range(MAX_THINGS + 1)))
_FIRST: Mapping[str, tuple[str, ...]] = {  # the earlier, the more frequent under a skew
    YES_NO: ("yes", "no"),
    NUMBER: ("1", "2", "0", *_COUNTS[3:]),
    OTHER: (
        *(v for pair in zip(COLOURS, SHAPES, strict=False) for v in pair),
        *COLOURS[len(SHAPES) :],
        *TEXTURES,
    ),
}
_NAMES: Mapping[str, str] = {form: v for v in (*COLOURS, *SHAPES) for form in (v, plural(v))}
_SECRETS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (YES_NO, "was {the} there yesterday?", ("yes", "no")),
    (YES_NO, "does the artist like {the}?", ("yes", "no")),
    (NUMBER, "how many people own {the}?", _COUNTS),
    (OTHER, "what {color} was {the} last year?", COLOURS),
    (OTHER, "which shape did the artist want instead of {the}?", SHAPES),
)


def fits(question: str, s: Scene) -> bool:
    """Whether all colours and shapes that a question names are in the picture."""
    return named_in(question) <= {v for thing in s.things for v in (thing.colour, thing.shape)}


def named_in(question: str) -> set[str]:
    """The colours and shapes that a question names."""
    return {_NAMES[w] for w in question.replace("?", " ").split() if w in _NAMES}


def _telling(question: str, s: Scene) -> bool:
    return bool(named_in(question)) and fits(question, s)


class _Question(NamedTuple):
    kind: str  # family, or "unlearnable"
    level: str
    answer_type: str
    asked: Asked


class ScenePool(SceneQuestions):
    """Questions of the first `images` scenes of a split, `questions` of each, all different within a scene.

    Record: as of `SceneQuestions`; questions that no picture answers have the `question_type` and `level`
    "unlearnable".

    Args:
      images: number of scenes.
      questions: of each scene.
      skew: how uneven answers are, in [0, 1). Each question is chosen among several of its answer type, and an answer
        that stands one place later in a fixed list has a weight smaller by the factor 1 - skew. 0 is the balanced
        world; at 0.9, some 87 % of the yes/no questions are answered "yes".
      shown: each question names a colour or a shape, and none that is not in the picture, so that it tells something
        about the picture; the balanced world asks as often of what is not there.
      unlearnable: share of questions, in [0, 1], whose answers have nothing to do with the picture: people agree on
        them, but by what they know, not by what is shown. A scene that has no new one to ask gives another question.
      **kwargs: of `SceneQuestions`: `hard`, `seed`, `image_size`, `objects`.

    Raises:
      ValueError: an argument out of its range.
    """

    def __init__(
        self,
        split: str,
        *,
        images: int,
        questions: int = 4,
        skew: float = 0.0,
        unlearnable: float = 0.0,
        shown: bool = False,
        **kwargs: Any,
    ) -> None:
        if images < 1 or questions < 1:
            raise ValueError(f"images={images} and questions={questions} must be at least 1")
        if not 0 <= skew < 1:
            raise ValueError(f"skew={skew} must lie in [0, 1)")
        if not 0 <= unlearnable <= 1:
            raise ValueError(f"unlearnable is a share of questions, in [0, 1], got {unlearnable}")
        super().__init__(split, size=images * questions, questions_per_scene=questions, **kwargs)
        self.skew, self.unlearnable, self.shown = skew, unlearnable, shown
        self._last: tuple[int, list[dict[str, Any]]] = (-1, [])

    def annotation(self, i: int) -> dict[str, Any]:
        """Record of example `i`, without drawing it."""
        number, slot = divmod(self._index(i), self.questions_per_scene)
        kept, records = self._last
        if kept != number:  # the questions of a scene depend on each other: make them all, once
            records = self._records(self._scene(number))
            self._last = number, records
        return dict(records[slot])

    def _records(self, s: Scene) -> list[dict[str, Any]]:
        dice, earlier, out = self._dice(s.number), set[str](), []
        for slot in range(self.questions_per_scene):
            secret = self._secret(s, dice, earlier) if dice.chance(self.unlearnable) else None
            question = secret or self._answerable(s, dice, earlier)
            earlier.add(question.asked.text)
            out.append(self._record(s, slot, question))
        return out

    def _record(self, s: Scene, slot: int, question: _Question) -> dict[str, Any]:
        kind, level, answer_type, found = question
        errors = "easy" if level == "easy" else "hard"
        given = ten_answers(found.answer, answer_type, errors, self._dice("answers", s.number, slot))
        return {
            "image": s.key,
            "image_id": s.image_id,
            "question": found.text,
            "question_id": s.image_id * QUESTION_LIMIT + slot,
            "answers": given,
            "targets": targets(given),
            "answer_type": answer_type,
            "answer": found.answer,
            "question_type": kind,
            "level": level,
            "heldout": found.held_out,
        }

    def _answerable(self, s: Scene, dice: Dice, earlier: set[str]) -> _Question:
        # The first draw fixes level and answer type, whose shares a skew of the answers must leave alone.
        name, level, found = self._ask(s, dice, earlier)
        families = EASY if level == "easy" else HARD
        answer_type = families[name].answer_type
        options = [_Question(name, level, answer_type, found)]
        if not self.skew:
            return options[0]
        names = [n for n in families if families[n].answer_type == answer_type]
        for _ in range(_TRIES):
            name = dice.weighted(names, [families[n].weight for n in names])
            again = families[name].ask(s, dice)
            if again is not None and again.text not in earlier and self._may(again, name, s):
                options.append(_Question(name, level, answer_type, again))
        return dice.weighted(options, [self._weight(o.asked.answer, answer_type) for o in options])

    def _may(self, found: Asked, name: str, s: Scene) -> bool:
        """Under `shown`, what tells something about the picture; "is there a star?" would always be answered "yes"."""
        return not self.shown or (name != "exist_one" and _telling(found.text, s))

    def _secret(self, s: Scene, dice: Dice, earlier: set[str]) -> _Question | None:
        """A question about a thing in the picture that the picture does not answer; None if all are asked already."""
        options = []
        for description in named(s, dice).values():
            for answer_type, template, answers in _SECRETS:
                text = template.format(the=the(description), color=dice.pick(COLOUR_WORDS))
                if text not in earlier and (not self.shown or _telling(text, s)):
                    options.append((answer_type, text, answers))
        if not options:
            return None
        answer_type, text, answers = dice.pick(options)
        answer = dice.weighted(answers, [self._weight(a, answer_type) for a in answers])
        return _Question(UNLEARNABLE, UNLEARNABLE, answer_type, asked(text, answer, ()))

    def _weight(self, answer: str, answer_type: str) -> float:
        return (1 - self.skew) ** _FIRST[answer_type].index(answer)
