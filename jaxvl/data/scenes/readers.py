"""Readers of the embedded world: captions and questions. Records are made when asked for; nothing is stored."""

from __future__ import annotations

from typing import Any

import numpy as np

from .annotators import targets, ten_answers
from .captions import captions
from .dice import Dice
from .hard_questions import HARD
from .questions import EASY, Asked, Family
from .render import check_image_size, render
from .world import HELD_OUT, MAX_THINGS, Scene, check_objects, check_split, scene

QUESTION_LIMIT = 16


class SceneReader:
    """What all readers of the world share.

    Args:
      split: "train", "val" or "test".
      size: number of examples.
      seed: another seed is another world.
      image_size: side of the pictures in pixels, at least 32.
      objects: smallest and largest number of things in a picture.

    Raises:
      ValueError: for an unknown split, a size below 1, an image_size below 32, or impossible `objects`.
    """

    def __init__(
        self,
        split: str,
        *,
        size: int,
        seed: int = 0,
        image_size: int = 64,
        objects: tuple[int, int] = (2, MAX_THINGS),
    ) -> None:
        check_split(split)
        check_image_size(image_size)
        check_objects(objects)
        if size <= 0:
            raise ValueError(f"size of {type(self).__name__} must be at least 1 example, got {size}")
        self.split, self.size, self.seed = split, size, seed
        self.image_size, self.objects = image_size, (objects[0], objects[1])

    def __len__(self) -> int:
        return self.size

    def scene(self, i: int) -> Scene:
        """The scene of example `i`."""
        return self._scene(self._index(i))

    def image(self, i: int) -> np.ndarray:
        """Picture of example `i`, uint8 RGB [image_size, image_size, 3]."""
        return render(self.scene(i), image_size=self.image_size)

    def annotation(self, i: int) -> dict[str, Any]:
        """Record of example `i`, without drawing it."""
        raise NotImplementedError

    def _scene(self, index: int) -> Scene:
        return scene(self.split, index, self.seed, objects=self.objects)

    def _index(self, i: int) -> int:
        if not 0 <= i < self.size:
            raise IndexError(f"example {i} of {type(self).__name__} with {self.size} examples")
        return int(i)

    def _dice(self, *key: str | int) -> Dice:
        return Dice(type(self).__name__, self.seed, self.split, *key)


class SceneCaptions(SceneReader):
    """Pictures with five captions each.

    Record: `image` (key), `image_id`, `captions` [str] * 5, `heldout` (a held-out pair is in the picture).
    """

    def annotation(self, i: int) -> dict[str, Any]:
        """Record of example `i`, without drawing it."""
        s = self.scene(i)
        return {
            "image": s.key,
            "image_id": s.image_id,
            "captions": captions(s, self.seed),
            "heldout": any(t.pair in HELD_OUT for t in s.things),
        }


class SceneQuestions(SceneReader):
    """Questions with ten human-like answers each.

    Record: `image` (key), `image_id`, `question`, `question_id`, `answers` [str] * 10, `targets` {answer: share},
    `answer_type` ("yes/no", "number", "other"), `answer` (the truth), `question_type` (family), `level` ("easy",
    "hard"), `heldout` (the question is about a held-out pair).

    Args:
      size: number of questions.
      questions_per_scene: example i asks question i % n about scene i // n.
      hard: share of questions that need several things at once, in [0, 1].
    """

    def __init__(
        self, split: str, *, size: int, questions_per_scene: int = 1, hard: float = 0.25, **kwargs: Any
    ) -> None:
        super().__init__(split, size=size, **kwargs)
        if not 1 <= questions_per_scene <= QUESTION_LIMIT:
            raise ValueError(
                f"questions_per_scene must lie in 1..{QUESTION_LIMIT}, got {questions_per_scene}"
            )
        if not 0 <= hard <= 1:
            raise ValueError(f"hard is the share of hard questions, in [0, 1], got {hard}")
        self.questions_per_scene, self.hard = questions_per_scene, hard

    def scene(self, i: int) -> Scene:
        """The scene of example `i`."""
        return self._scene(self._index(i) // self.questions_per_scene)

    def annotation(self, i: int) -> dict[str, Any]:
        """Record of example `i`, without drawing it."""
        s = self.scene(i)
        slot = i % self.questions_per_scene
        dice = self._dice(s.number)
        earlier: set[str] = set()
        for _ in range(slot + 1):
            name, level, found = self._ask(s, dice, earlier)
            earlier.add(found.text)
        answer_type = (EASY if level == "easy" else HARD)[name].answer_type
        given = ten_answers(found.answer, answer_type, level, self._dice("answers", s.number, slot))
        return {
            "image": s.key,
            "image_id": s.image_id,
            "question": found.text,
            "question_id": s.image_id * QUESTION_LIMIT + slot,
            "answers": given,
            "targets": targets(given),
            "answer_type": answer_type,
            "answer": found.answer,
            "question_type": name,
            "level": level,
            "heldout": found.held_out,
        }

    def _ask(self, s: Scene, dice: Dice, earlier: set[str]) -> tuple[str, str, Asked]:
        """Family, level and question: the first, in a random order, that the scene allows and `_may` too."""
        levels = [("hard", HARD), ("easy", EASY)]
        # A scene may allow no hard question; every scene allows easy ones.
        for level, families in levels if dice.chance(self.hard) else levels[1:]:
            for name in _order(families, dice):
                found = families[name].ask(s, dice)
                if found is not None and found.text not in earlier and self._may(found, name, s):
                    return name, level, found
        return self._ask(s, dice, earlier)

    def _may(self, found: Asked, name: str, s: Scene) -> bool:
        """Whether this question of family `name` is wanted."""
        return True


def _order(families: dict[str, Family] | Any, dice: Dice) -> list[str]:
    """Names in a random order in which heavier families tend to come first."""
    return sorted(families, key=lambda name: -(dice.random() ** (1 / families[name].weight)))
