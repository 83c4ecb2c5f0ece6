"""Open a finished run and use it: `jaxvl.load(workdir).answer(image, question, top_k=5)`.

A run that generates answers gives an `Answerer`, one that classifies image-text pairs a `Classifier`, which can keep
the encoded images and texts (`jaxvl.cache`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl import build
from jaxvl import config as cfg
from jaxvl.cache import Built, CachedModel
from jaxvl.cache.asking import Asker, by_key
from jaxvl.cache.fingerprint import hash_bytes
from jaxvl.data.formats import FORMATS
from jaxvl.data.images import ImageTransform, to_rgb
from jaxvl.data.text import clean_question
from jaxvl.run import RESULT, chosen_params, enable_compilation_cache
from jaxvl.sharding import Partition
from jaxvl.train import Trainer

ImageLike = Any  # path, bytes, PIL image or uint8 array [H,W,3]
ENTAILMENT = ("contradiction", "neutral", "entailment")  # the order of the readers' labels
STATEMENT = ("False", "True")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One candidate answer and its probability among those ranked."""

    text: str
    probability: float


class Attention(NamedTuple):
    """Where a model looks when it reads a text.

    Attributes:
      tokens: the `M` tokens of the text, special ones included.
      maps: `[I,M,G,G]` f32, how much each token looks at each patch of each image, rows from the top, as a share of
        what it gives that image; see `ClassifyTask`'s predictor "attention".
      pictures: `[I,S,S,3]` f32 in [0, 1], what the model saw.
    """

    tokens: list[str]
    maps: np.ndarray
    pictures: np.ndarray


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


class Classifier:
    """A trained classifier of image-text pairs: answers to questions, entailment, statements about two images.

    Texts are padded to one of at most five lengths. Each distinct image is encoded once per call, and never if its
    states are kept: see `cache`.

    Attributes:
      names: of the classes.
      asker: the model, with the stores that it uses.
    """

    def __init__(
        self,
        asker: Asker,
        *,
        names: Sequence[str],
        independent: bool,
        trainer: Trainer,
        params: Any,
        tokenizer: Any,
    ):
        self.asker, self.names, self.independent = asker, list(names), independent
        self.trainer, self.params, self.tokenizer = trainer, params, tokenizer
        self.images = asker.cached.model.images

    def classify(
        self,
        image: ImageLike | Sequence[ImageLike],
        text: str | Sequence[str],
        *,
        image2: ImageLike | Sequence[ImageLike] | None = None,
        top_k: int = 5,
    ) -> list[Answer] | list[list[Answer]]:
        """Classes of texts about images.

        Args:
          image: the key of a kept image, a path, encoded bytes, a PIL image or a uint8 array `[H,W,3]`; or a list of
            these. A string that is a key in the store is never read as a path.
          text: one text, or a list. One image with many texts, many images with one text and lists of equal length
            are allowed.
          image2: the second images of a model that reads two, as many as `image`.
          top_k: classes to return for each text.

        Returns:
          Classes, likeliest first; a list of such lists if `image` or `text` was a list. Of answers that exclude each
          other the probabilities sum to one; those of VQA are independent.

        Raises:
          ValueError: list lengths that do not pair up, an empty text, a missing or superfluous second image, an image
            that cannot be decoded.
        """
        self._check_second(image2)
        many = isinstance(image, (list, tuple)) or isinstance(text, (list, tuple))
        texts = [text] if isinstance(text, str) else list(text)
        columns = []
        for given in (image,) if image2 is None else (image, image2):
            shown: list[ImageLike] = list(given) if isinstance(given, (list, tuple)) else [given]
            columns.append(pair_up(shown, texts))
        if len({len(column) for column, _ in columns}) > 1:
            raise ValueError(
                f"{len(columns[0][0])} images and {len(columns[1][0])} second images do not pair up"
            )
        texts = columns[0][1]
        if not all(t.strip() for t in texts):
            raise ValueError("a question is empty")
        found = [
            self._best(row, top_k) for row in self.asker.logits(texts, [column for column, _ in columns])
        ]
        return found if many else found[0]

    def answer(
        self, image: ImageLike | Sequence[ImageLike], question: str | Sequence[str], *, top_k: int = 5
    ) -> list[Answer] | list[list[Answer]]:
        """Answer questions about images; see `classify`."""
        return self.classify(image, question, top_k=top_k)

    def entail(
        self, image: ImageLike | Sequence[ImageLike], sentence: str | Sequence[str]
    ) -> list[Answer] | list[list[Answer]]:
        """Whether images contradict, leave open or entail sentences; ValueError if the model has other classes."""
        if tuple(self.names) != ENTAILMENT:
            raise ValueError(
                f"this stage has the classes {', '.join(self.names[:4])}, ...: use classify or answer"
            )
        return self.classify(image, sentence, top_k=len(ENTAILMENT))

    def attention(self, image: ImageLike, text: str, *, image2: ImageLike | None = None) -> Attention:
        """Where the model looks when it reads one text about one image, or two.

        Stores are not used: they keep no queries and keys of the towers.

        Args:
          image, image2: paths, encoded bytes, PIL images or uint8 arrays `[H,W,3]`.
          text: the text.

        Raises:
          ValueError: an empty text, a missing or superfluous second image, an image that cannot be decoded, or a model
            that was trained without images.
        """
        self._check_second(image2)
        if not text.strip():
            raise ValueError("the text is empty")
        seen = self.asker.inputs["image"]
        if "blank" in seen:
            raise ValueError("this stage was trained without images: it looks at nothing")
        ids, mask = self.asker.tokens(text)
        shown = [self.asker.pixels(to_rgb(one)) for one in (image, image2)[: self.images]]
        row = {**dict(zip(("image", "image2"), shown, strict=False)), "text": ids, "text_mask": mask}
        found = np.asarray(self.trainer.predict(self.params, "attention", Rows([row])), np.float32)[0]
        side = math.isqrt(found.shape[-1])
        pictures = np.stack(shown) * np.float32(seen["std"]) + np.float32(seen["mean"])
        maps = found[:, mask].reshape(len(shown), -1, side, side)
        return Attention(self.tokenizer.tokens(ids[mask]), maps, np.clip(pictures, 0, 1))

    def _check_second(self, image2: Any) -> None:
        if (image2 is None) == (self.images == 2):
            raise ValueError(f"this model reads {self.images} image{'s' * (self.images - 1)} with a text: "
                             f"{'give image2 too' if self.images == 2 else 'leave image2 out'}")  # fmt: skip

    def cache(self, images: Any, path: str | os.PathLike[str] | None = None, **options: Any) -> Built:
        """Encode images and keep their states, for `answer` to use.

        Args:
          images: images by key, `{key: image}`; or a list, whose keys are: of a path, the path as it is given; of
            bytes, a PIL image or an array, the hash of its pixels. States kept under a path stay if the file changes.
          path: folder of a store, which is made, or extended by what it lacks; None = the store in use, else one in
            memory.
          **options: `dtype` of a new store ("float16", "float32", "bfloat16", "int8"), `progress`, `workers`.

        Returns:
          How many are new and were there, and those that cannot be decoded, with the reason.

        Raises:
          StoreError: the store was made with other weights or another preprocessing, or another process writes to it.
        """
        return self.asker.add_images(by_key(images), path, **options)

    def cache_texts(
        self, texts: Iterable[str], path: str | os.PathLike[str] | None = None, **options: Any
    ) -> Built:
        """Encode texts and keep their states under the texts themselves; see `cache`."""
        return self.asker.add_texts(texts, path, **options)

    def _best(self, logits_a: np.ndarray, top_k: int) -> list[Answer]:
        if self.independent:
            scores = 0.5 * (1 + np.tanh(0.5 * logits_a))  # the sigmoid, without overflow
        else:
            scores = np.exp(logits_a - logits_a.max())
            scores /= scores.sum()
        order = np.argsort(-logits_a, kind="stable")[:top_k]
        return [Answer(self.names[int(i)], float(scores[i])) for i in order]


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


def load(
    workdir: str | os.PathLike[str], *, stage: str | None = None, batch_size: int = 16
) -> Answerer | Classifier:
    """Open the answering stage of a finished run.

    Args:
      workdir: as given to launch/main.py.
      stage: which stage; the default is the first finished one, in the order of the run, that answers or classifies;
        teachers come last.
      batch_size: images or questions per call of the model.

    Raises:
      ConfigError: not a workdir, no such stage, or the stage is not finished.
    """
    root = Path(workdir).expanduser()
    config = cfg.load(root / "config.json")
    enable_compilation_cache()
    name = answering_stage(config, root, stage)
    tok, theirs = build.reading(
        config, name, build.tokenizer(config, root), build.teacher_tokenizer(config, root)
    )
    answers = cfg.load_list(root / name / "answers.json") if config.stages[name].answers is not None else None
    config.precision.layers = "unroll"  # the form in which parameters are stored
    section = config.stages[name].task
    if "k_test" in section:
        section.top_n = section.k_test  # all that are ranked can be asked for
    task = build.task(config, name, tok, answers, steps_per_epoch=1, theirs=theirs)
    trainer = Trainer(
        task, partition=Partition.create(mesh=dict(data=1, model=1), rules="dp"), eval_batch_size=batch_size
    )
    params = trainer.place(chosen_params(root / name))
    images = build.images(config, name)
    if classifies(config, name):
        asker = make_asker(config, name, root, CachedModel(task.model, params, 0, batch_size), tok, images)
        return Classifier(
            asker, names=answers or class_names(task.model), independent=task.kind == "bce", trainer=trainer,
            params=params, tokenizer=tok,
        )  # fmt: skip
    text = config.stages[name].format
    assert answers is not None
    return Answerer(
        trainer,
        params,
        tokenizer=tok,
        images=blank(images) if isinstance(images, int) else images,
        answers=answers,
        length=text.eval_length or text.length,
    )


def classifies(config: Any, stage: str) -> bool:
    """Whether a stage trains a classifier of image-text pairs."""
    return config.stages[stage].task.name == "classify"


def answering_stage(config: Any, root: Path, stage: str | None) -> str:
    """The stage to use; raises ConfigError if there is none, or `stage` is none."""
    names = [n for n in config.stages if config.stages[n].answers is not None or classifies(config, n)]
    if stage is not None and stage not in names:
        raise cfg.unknown("answering stage", stage, names)
    own = config.model.name  # a stage with a model of another kind is a teacher, also where nobody is taught
    later = build.teachers(config) | {n for n in names if config.stages[n].model.get("name", own) != own}
    run = list(config.run)
    names.sort(key=lambda n: (n in later, run.index(n) if n in run else len(run)))
    done = [n for n in ([stage] if stage else names) if (root / n / RESULT).exists()]
    if not done:
        raise cfg.ConfigError(
            f"{root}: no finished stage among {', '.join(names)}; run launch/main.py to the end first"
        )
    return done[0]


def class_names(model: Any) -> list[str]:
    """Names of the classes of a stage without answers."""
    if model.images == 2 and model.classes == 2:
        return list(STATEMENT)
    return list(ENTAILMENT) if model.classes == 3 else [str(i) for i in range(model.classes)]


def make_asker(
    config: Any, stage: str, root: Path, cached: CachedModel, tok: Any, images: ImageTransform | int
) -> Asker:
    """The cached model of a stage with its transforms, and what its stores must be told apart by."""
    form = cfg.make(FORMATS, "format", config.stages[stage].format, tokenizer=tok)
    cached = dataclasses.replace(cached, length=form.length)

    def tokens(text: str) -> tuple[np.ndarray, np.ndarray]:
        arrays = form.encode({form.field: text, "label": None}, None).arrays
        return arrays["text"], arrays["text_mask"]

    if isinstance(images, int):
        pixels: Any = blank(images)
        seen: dict[str, Any] = dict(blank=images)
    else:
        pixels = images
        seen = {key: getattr(images, key) for key in ("size", "crop", "mean", "std")}
    own = stage in build.teachers(config) and (root / build.TEACHER_TOKENIZER).exists()
    vocabulary = hash_bytes([(root / (build.TEACHER_TOKENIZER if own else "tokenizer.json")).read_bytes()])
    read = dict(tokenizer=vocabulary, length=form.length, style=form.style)
    return Asker(cached, tokens=tokens, pixels=pixels, inputs={"image": seen, "text": read})
