"""Formats: what becomes of the strings of an annotation.

Shape legend: `L` text length, `N` answers of a question, `La` answer length, `K` labels, `A` classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from jaxvl.data.alignment import aligned
from jaxvl.data.answers import soft_scores
from jaxvl.data.text import Tokenizer, clean_caption, clean_question

Arrays = dict[str, np.ndarray]
TEST_WORDS = 50  # ALBEF keeps 30 words of a question in training and 50 at test
STYLES = ("albef", "bert", "bert_clean")


@dataclass(frozen=True)
class Encoded:
    """Arrays of the strings of one example, and all the words an augmented image must stay true to."""

    arrays: Arrays
    text: str


class Annotated(Protocol):
    """What has annotations: a reader, or a part of a source."""

    def __len__(self) -> int: ...

    def annotation(self, i: int) -> Mapping[str, Any]: ...


class Format(Protocol):
    """What becomes of the strings of an annotation. `rng=None` is the evaluation form: no randomness."""

    def encode(self, annotation: Mapping[str, Any], rng: np.random.Generator | None) -> Encoded: ...

    def losses(self, reader: Annotated) -> dict[str, int]:
        """How much the fixed shapes leave out over a reader, by what it is."""
        ...


@dataclass(frozen=True)
class CaptionFormat:
    """`text`, `text_mask` [L] of a caption: a random one of the image in training, else the first.

    Args:
      style: see `text_ids`.
      teacher_tokenizer: see `text_arrays`.
    """

    tokenizer: Tokenizer
    length: int = 25
    style: str = "albef"
    teacher_tokenizer: Tokenizer | None = None

    def encode(self, annotation: Mapping[str, Any], rng: np.random.Generator | None) -> Encoded:
        """Arrays of one caption of `annotation`."""
        captions = field(annotation, "captions", "a caption reader")
        which = 0 if rng is None else int(rng.integers(len(captions)))
        return self.caption(captions[which])

    def losses(self, reader: Annotated) -> dict[str, int]:
        """Counts over a reader: `texts_cut` (captions that are too long)."""
        rows = (field(reader.annotation(i), "captions", "a caption reader") for i in range(len(reader)))
        return {"texts_cut": sum(too_long(self, text) for captions in rows for text in captions)}

    def caption(self, caption: str) -> Encoded:
        """Arrays of this caption."""
        return text_arrays(
            self.tokenizer, caption, self.length, style=self.style, teacher_tokenizer=self.teacher_tokenizer
        )


@dataclass(frozen=True)
class QuestionFormat:
    """`text`, `text_mask` [L] of a question; `answer` [N, La] and `answer_weight` [N] of its weighted answers.

    The `answers` heaviest targets are kept, equal weights in the order of the strings; their weights are not
    rescaled. Unused rows are padding with weight 0. A target beyond `answer_length` is cut (see
    `Tokenizer.answer_ids`); `losses` counts what the fixed shape leaves out.

    Args:
      length: text length in training.
      eval_length: text length in evaluation; None = `length`. ALBEF does not cut questions at test.
    """

    tokenizer: Tokenizer
    length: int = 25
    answers: int = 10
    answer_length: int = 8
    eval_length: int | None = None

    def encode(self, annotation: Mapping[str, Any], rng: np.random.Generator | None) -> Encoded:
        """Arrays of the question of `annotation` and of its answers."""
        question = field(annotation, "question", "a question reader")
        if rng is None:
            text, length = clean_question(question, max_words=TEST_WORDS), self.eval_length or self.length
        else:
            text, length = clean_question(question), self.length
        ids, mask = self.tokenizer.ids(text, length)
        answer = np.full((self.answers, self.answer_length), self.tokenizer.pad_id, np.int32)
        weight = np.zeros(self.answers, np.float32)
        for row, (string, w) in enumerate(self.kept(annotation)):
            answer[row], weight[row] = self.tokenizer.answer_ids(string, self.answer_length)[0], w
        arrays = {"text": ids, "text_mask": mask, "answer": answer, "answer_weight": weight}
        return Encoded(arrays, " ".join([text, *annotation["targets"]]))

    def kept(self, annotation: Mapping[str, Any]) -> list[tuple[str, float]]:
        """The `(answer, weight)` pairs of `annotation` that are trained on."""
        targets = field(annotation, "targets", "a question reader")
        return sorted(targets.items(), key=lambda pair: (-pair[1], pair[0]))[: self.answers]

    def losses(self, reader: Annotated) -> dict[str, int]:
        """Counts over a reader: `texts_cut`, `answers_dropped` (more than N), `answers_cut` (too long)."""
        dropped = cut = long = 0
        for i in range(len(reader)):
            annotation = reader.annotation(i)
            kept = self.kept(annotation)
            question = clean_question(field(annotation, "question", "a question reader"))
            long += len(self.tokenizer.encode(question)) > self.length - 1
            dropped += len(annotation["targets"]) - len(kept)
            cut += sum(len(self.tokenizer.encode(string)) + 2 > self.answer_length for string, _ in kept)
        return {"texts_cut": long, "answers_dropped": dropped, "answers_cut": cut}


@dataclass(frozen=True)
class ClassifyFormat:
    """`text`, `text_mask` [L] of a sentence or question, and its class or its classes with soft scores.

    Without `answers`, the class is the annotation's own: `label` i32. With `answers`, the classes are these strings:
    `label` [K] i32 and `label_score` [K] f32, unused ones class A = `len(answers)` with score 0. A score is the VQA
    accuracy of giving that answer (of ten annotators, 1, 2, 3, 4 give .3, .6, .9, 1), or what a file has already
    (`scores`). Of more than K the highest are kept. A question none of whose answers is a class has no label, and a
    task gives it no weight; `losses` counts these.

    Args:
      length: text length; longer texts are cut.
      field: the annotation's text, "sentence" or "question".
      max_labels: K.
      matching: how human answers are compared with `answers`, see `soft_scores`.
      style: see `text_ids`.
      teacher_tokenizer: see `text_arrays`.
    """

    tokenizer: Tokenizer
    length: int = 40
    field: str = "sentence"
    answers: tuple[str, ...] | None = None
    max_labels: int = 10
    matching: str = "normalised"
    style: str = "bert"
    teacher_tokenizer: Tokenizer | None = None

    def encode(self, annotation: Mapping[str, Any], rng: np.random.Generator | None) -> Encoded:
        """Arrays of the text of `annotation` and of its label or labels."""
        given = field(annotation, self.field, f"a reader of {self.field}s")
        made = text_arrays(
            self.tokenizer, given, self.length, style=self.style, teacher_tokenizer=self.teacher_tokenizer
        )
        arrays, text = made.arrays, made.text
        if self.answers is None:
            label = field(annotation, "label", "a reader of labelled sentences")
            # A test file without labels can be predicted.
            arrays["label"] = np.asarray(-1 if label is None else label, np.int32)
            return Encoded(arrays, text)
        label = np.full(self.max_labels, len(self.answers), np.int32)
        score = np.zeros(self.max_labels, np.float32)
        known = self.kept(annotation)
        label[: len(known)] = [self._places[answer] for answer, _ in known]
        score[: len(known)] = [value for _, value in known]
        return Encoded({**arrays, "label": label, "label_score": score}, " ".join([text, *dict(known)]))

    def kept(self, annotation: Mapping[str, Any]) -> list[tuple[str, float]]:
        """The `(answer, score)` pairs of `annotation` that are classes, at most `max_labels`."""
        return self._known(annotation)[: self.max_labels]

    def losses(self, reader: Annotated) -> dict[str, int]:
        """Counts over a reader: `texts_cut` (too long), and with classes `unlabelled` (no class), `labels_dropped`."""
        cut = unlabelled = dropped = 0
        for i in range(len(reader)):
            annotation = reader.annotation(i)
            cut += too_long(self, field(annotation, self.field, f"a reader of {self.field}s"))
            if self.answers is not None:
                known = self._known(annotation)
                unlabelled += not known
                dropped += max(0, len(known) - self.max_labels)
        return {"texts_cut": cut, "unlabelled": unlabelled, "labels_dropped": dropped}

    def _known(self, annotation: Mapping[str, Any]) -> list[tuple[str, float]]:
        scores = annotation.get("scores")
        if scores is None:
            answers = field(annotation, "answers", "a question reader")
            scores = soft_scores(answers, matching=self.matching)
        known = [(answer, float(score)) for answer, score in scores.items() if answer in self._places]
        return sorted(known, key=lambda pair: -pair[1])  # stable: equal scores in order of appearance

    @cached_property
    def _places(self) -> dict[str, int]:
        return {answer: i for i, answer in enumerate(self.answers or ())}


FORMATS = {"caption": CaptionFormat, "vqa": QuestionFormat, "classify": ClassifyFormat}


def text_arrays(
    tokenizer: Tokenizer,
    text: str,
    length: int,
    *,
    style: str,
    teacher_tokenizer: Tokenizer | None = None,
) -> Encoded:
    """`text`, `text_mask` [L] of `text_ids`; with a teacher's tokenizer what `alignment.aligned` gives.

    Args:
      teacher_tokenizer: of a teacher that reads other tokens than the student; None = it reads the same.

    Raises:
      ValueError: a teacher's tokenizer, and a style that ends without `[SEP]`, which would have no counterpart.
    """
    if teacher_tokenizer is None:
        ids, mask, text = text_ids(tokenizer, text, length, style=style)
        return Encoded({"text": ids, "text_mask": mask}, text)
    text = _cleaned(text, style)
    if style == "albef":
        raise ValueError('style="albef" has no [SEP] to align with a teacher\'s: use style="bert"')
    return Encoded(aligned(tokenizer, teacher_tokenizer, text, length), text)


def text_ids(
    tokenizer: Tokenizer, text: str, length: int, *, style: str
) -> tuple[np.ndarray, np.ndarray, str]:
    """`(ids [length] i32, mask [length] bool, the text as encoded)`.

    Args:
      style: "albef" = punctuation dropped (`clean_caption`), `[CLS] pieces`; "bert" = the text as it is,
        `[CLS] pieces [SEP]`, as ViLT and BridgeTower feed it; "bert_clean" = punctuation dropped, with `[SEP]`. A text
        that is too long loses its last pieces, never its `[SEP]`.
    """
    text = _cleaned(text, style)
    if style == "albef":
        return *tokenizer.ids(text, length), text
    pieces = [tokenizer.cls_id, *tokenizer.encode(text)[: length - 2], tokenizer.sep_id]
    ids = np.full(length, tokenizer.pad_id, np.int32)
    ids[: len(pieces)] = pieces
    return ids, np.arange(length) < len(pieces), text


def too_long(form: CaptionFormat | ClassifyFormat, text: str) -> bool:
    """Whether `text` has more pieces than the format has room for beside its special tokens."""
    room = form.length - (1 if form.style == "albef" else 2)
    return len(form.tokenizer.encode(_cleaned(text, form.style))) > room


def _cleaned(text: str, style: str) -> str:
    if style not in STYLES:
        raise ValueError(f"style={style!r} is none of {', '.join(STYLES)}")
    return text if style == "bert" else clean_caption(text)


def field(annotation: Mapping[str, Any], name: str, wanted: str) -> Any:
    """`annotation[name]`, or a `KeyError` that says which kind of reader has it."""
    if name not in annotation:
        raise KeyError(
            f"annotations have no {name!r} (only {', '.join(annotation)}): this format needs {wanted}"
        )
    return annotation[name]
