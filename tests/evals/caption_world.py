"""Captioned images whose scores are read from tables, in place of a trained model."""

from __future__ import annotations

from collections import Counter

import numpy as np

from jaxvl.data.source import CaptionFormat, Examples
from jaxvl.data.text import Tokenizer

WORDS = ["one", "two", "three", "four", "five", "six"]
IDS = [30, 10, 20]  # image ids, in the order of the source


class Reader:
    """Three images; image `i` has the captions `WORDS[2 i]` and `WORDS[2 i + 1]`."""

    def __len__(self) -> int:
        return len(IDS)

    def annotation(self, i: int) -> dict:
        return {"image": f"{i}.jpg", "image_id": IDS[i], "captions": WORDS[2 * i : 2 * i + 2]}

    def image(self, i: int) -> np.ndarray:
        raise AssertionError("a constant image is shown")


def source() -> Examples:
    """The images as a source; token id of `WORDS[j]` is `5 + j`."""
    tokenizer = Tokenizer.from_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    return Examples(Reader(), CaptionFormat(tokenizer, length=4), 2)


class Predict:
    """`predict(name, source)` from tables over images and captions; counts the rows it was asked for."""

    def __init__(self, *, similarity: np.ndarray, match: np.ndarray):
        self.similarity, self.match, self.rows = similarity, match, Counter()

    def __call__(self, name: str, source) -> np.ndarray:
        rows = [source[i] for i in range(len(source))]
        self.rows[name] += len(rows)
        return np.stack([getattr(self, f"_{name}")(row) for row in rows])

    def _image_embed(self, row):
        return self.similarity[IDS.index(int(row["image_id"]))].astype(np.float32)

    def _text_embed(self, row):
        return np.eye(len(WORDS), dtype=np.float32)[row["text"][1] - 5]

    def _image_states(self, row):
        return np.full((2, 3), IDS.index(int(row["image_id"])), np.float32)

    def _match_logit(self, row):
        return self.match[int(row["image_states"][0, 0]), row["text"][..., 1] - 5]

    def _match(self, row):
        return 1 / (1 + np.exp(-self.match[IDS.index(int(row["image_id"])), row["text"][1] - 5]))
