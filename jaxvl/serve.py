"""Open a finished run and use it: `jaxvl.load(workdir).answer(image, question, top_k=5)`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl import build
from jaxvl import config as cfg
from jaxvl.checkpoint import Checkpoints
from jaxvl.data.images import to_rgb
from jaxvl.data.text import clean_question
from jaxvl.run import RESULT, enable_compilation_cache
from jaxvl.sharding import Partition
from jaxvl.train import Trainer

ImageLike = Any  # path, bytes, PIL image or uint8 array [H,W,3]


@dataclasses.dataclass(frozen=True)
class Answer:
    """One candidate answer and its probability among those ranked."""

    text: str
    probability: float


class Rows:
    """A source over a list of dicts of arrays."""

    def __init__(self, rows: Sequence[dict[str, np.ndarray]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self.rows[i]

    def augmented(self, i: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return self.rows[i]

    def annotation(self, i: int) -> dict[str, Any]:
        return {}


class Answerer:
    """A trained VQA model. Each distinct image is encoded once per call, however many questions it gets."""

    def __init__(
        self, trainer: Trainer, params: Any, *, tokenizer: Any, images: Any, answers: list[str], length: int
    ):
        self.trainer, self.params = trainer, params
        self.tokenizer, self.images, self.answers, self.length = tokenizer, images, answers, length

    def answer(
        self, image: ImageLike | Sequence[ImageLike], question: str | Sequence[str], *, top_k: int = 5
    ) -> list[Answer] | list[list[Answer]]:
        """Answer questions about images.

        Args:
          image: a path, encoded bytes, a PIL image or a uint8 array `[H,W,3]`; or a list of these.
          question: one question, or a list. One image with many questions, many images with one question and
            lists of equal length are allowed.
          top_k: answers to return for each question.

        Returns:
          Answers, best first; a list of such lists if either argument was a list.

        Raises:
          ValueError: list lengths that do not pair up, an empty question, an image that cannot be decoded.
        """
        many = isinstance(image, (list, tuple)) or isinstance(question, (list, tuple))
        images: list[ImageLike] = list(image) if isinstance(image, (list, tuple)) else [image]
        questions = [question] if isinstance(question, str) else list(question)
        images, questions = pair_up(images, questions)
        index, pixels = self.distinct(images)
        states = np.asarray(self.trainer.predict(self.params, "image_states", Rows(pixels)))
        rows = []
        for row, text in zip(index, questions, strict=True):
            if not text.strip():
                raise ValueError("a question is empty")
            ids, mask = self.tokenizer.ids(clean_question(text, max_words=50), self.length)
            rows.append({"image_states": states[row], "text": ids, "text_mask": mask})
        out: Any = self.trainer.predict(self.params, "answer", Rows(rows))
        found = [
            [
                Answer(self.answers[int(a)], float(p))
                for a, p in zip(picks[:top_k], scores[:top_k], strict=True)
            ]
            for picks, scores in zip(out["index"], out["score"], strict=True)
        ]
        return found if many else found[0]

    def distinct(self, images: list[ImageLike]) -> tuple[list[int], list[dict[str, np.ndarray]]]:
        """(row of each image among the distinct ones, model-ready rows)."""
        index: list[int] = []
        seen: dict[bytes, int] = {}
        rows: list[dict[str, np.ndarray]] = []
        for image in images:
            rgb = to_rgb(image)
            key = hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).digest()
            if key not in seen:
                seen[key] = len(rows)
                rows.append({"image": self.images(rgb)})
            index.append(seen[key])
        return index, rows


def pair_up(images: list[Any], questions: list[str]) -> tuple[list[Any], list[str]]:
    """Repeat a single image or a single question to the other's length."""
    if len(images) == 1:
        images = images * len(questions)
    if len(questions) == 1:
        questions = questions * len(images)
    if len(images) != len(questions) or not images:
        raise ValueError(f"{len(images)} images and {len(questions)} questions do not pair up")
    return images, questions


def blank(size: int) -> Callable[[np.ndarray], np.ndarray]:
    """What a blind stage makes of any image: the constant that it was trained on."""
    pixels_hwc = np.zeros((size, size, 3), np.float32)
    return lambda rgb: pixels_hwc


def load(workdir: str | os.PathLike[str], *, stage: str | None = None, batch_size: int = 16) -> Answerer:
    """Open the answering stage of a finished run.

    Args:
      workdir: as given to launch/main.py.
      stage: which stage; the default is the first finished one that answers questions.
      batch_size: images or questions per call of the model.

    Raises:
      ConfigError: not a workdir, no such stage, or the stage is not finished.
    """
    root = Path(workdir).expanduser()
    config = cfg.load(root / "config.json")
    enable_compilation_cache()
    names = [n for n in config.stages if config.stages[n].answers is not None]
    if stage is not None and stage not in names:
        raise cfg.unknown("answering stage", stage, names)
    done = [n for n in ([stage] if stage else names) if (root / n / RESULT).exists()]
    if not done:
        raise cfg.ConfigError(
            f"{root}: no finished stage among {', '.join(names)}; run launch/main.py to the end first"
        )
    name = done[0]
    tok = build.tokenizer(config, root)
    answers = cfg.load_list(root / name / "answers.json")
    config.precision.layers = "unroll"  # the form in which parameters are stored
    config.stages[name].task.top_n = config.stages[name].task.k_test  # all that are ranked can be asked for
    text = config.stages[name].format
    task = build.task(config, name, tok, answers, steps_per_epoch=1)
    trainer = Trainer(
        task, partition=Partition.create(mesh=dict(data=1, model=1), rules="dp"), eval_batch_size=batch_size
    )
    params = Checkpoints.last_params(root / name / "checkpoints")
    params = trainer.place(params)
    images = build.images(config, name)
    return Answerer(
        trainer,
        params,
        tokenizer=tok,
        images=blank(images) if isinstance(images, int) else images,
        answers=answers,
        length=text.eval_length or text.length,
    )
