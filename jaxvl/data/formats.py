"""Formats: what becomes of the strings of an annotation.

Shape legend: `L` text length, `N` answers of a question, `La` answer length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jaxvl.data.text import Tokenizer, clean_caption, clean_question

if TYPE_CHECKING:
    from jaxvl.data.source import Reader

Arrays = dict[str, np.ndarray]
TEST_WORDS = 50  # ALBEF keeps 30 words of a question in training and 50 at test


@dataclass(frozen=True)
class Encoded:
    """Arrays of the strings of one example, and all the words an augmented image must stay true to."""

    arrays: Arrays
    text: str


class Format(Protocol):
    """What becomes of the strings of an annotation. `rng=None` is the evaluation form: no randomness."""

    def encode(self, annotation: Mapping[str, Any], rng: np.random.Generator | None) -> Encoded: ...


@dataclass(frozen=True)
class CaptionFormat:
    """`text`, `text_mask` [L] of a caption: a random one of the image in training, else the first."""

    tokenizer: Tokenizer
    length: int = 25

    def encode(self, annotation: Mapping[str, Any], rng: np.random.Generator | None) -> Encoded:
        """Arrays of one caption of `annotation`."""
        captions = field(annotation, "captions", "a caption reader")
        which = 0 if rng is None else int(rng.integers(len(captions)))
        return self.caption(captions[which])

    def caption(self, caption: str) -> Encoded:
        """Arrays of this caption."""
        text = clean_caption(caption)
        ids, mask = self.tokenizer.ids(text, self.length)
        return Encoded({"text": ids, "text_mask": mask}, text)


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

    def losses(self, reader: Reader) -> dict[str, int]:
        """What the fixed shape loses over a reader: `answers_dropped` (more than N), `answers_cut` (too long)."""
        dropped = cut = 0
        for i in range(len(reader)):
            annotation = reader.annotation(i)
            kept = self.kept(annotation)
            dropped += len(annotation["targets"]) - len(kept)
            cut += sum(len(self.tokenizer.encode(string)) + 2 > self.answer_length for string, _ in kept)
        return {"answers_dropped": dropped, "answers_cut": cut}


FORMATS = {"caption": CaptionFormat, "vqa": QuestionFormat}


def field(annotation: Mapping[str, Any], name: str, wanted: str) -> Any:
    """`annotation[name]`, or a `KeyError` that says which kind of reader has it."""
    if name not in annotation:
        raise KeyError(
            f"annotations have no {name!r} (only {', '.join(annotation)}): this format needs {wanted}"
        )
    return annotation[name]
