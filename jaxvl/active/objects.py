"""Images and questions as mean word vectors: of what a detector names in an image, and of what a question says.

Ablation B of CCRL can match by their cosine alone, without any trained similarity (specification 8.9, A15). NumPy only.

Shape legend: `N` images, `Q` questions, `L` words, `E` width of word vectors, `K` classes of the detector, `n` regions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.data.words import Words, tokens


class ObjectWords:
    """See the module.

    Args:
      provider: of regions, with `classes`, the names of what its detector finds, and `shown(image_id)`, the class of
        each region.
      words: of the questions.
      glove, dim: where the vectors of class names come from, as for `Words`.

    Raises:
      ValueError: the provider knows no classes; says how it would.
    """

    def __init__(
        self, provider: Any, words: Words, *, glove: str | Path | None = None, dim: int = 300
    ) -> None:
        names = getattr(provider, "classes", None)
        if names is None:
            raise ValueError(
                f"match='raw_glove': {provider} does not say which objects are in its regions. Convert the features "
                "again from a table of LXMERT, with --classes and the file of its class names (launch/regions.py)"
            )
        said = [tokens(name.split(",")[0]) for name in names]  # "eyeglass,glass": the first of synonyms
        every = sorted({word for name in said for word in name})
        own = Words(every, glove=glove, dim=dim, length=1)
        row = {word: i for i, word in enumerate(own.vocab)}
        self._of_class = np.stack(
            [_mean(own.vectors[[row[word] for word in name]]) for name in said]
        )  # [K,E], not of length 1: a long name counts as one object
        self._provider, self._words = provider, words
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def images(self, ids: np.ndarray) -> np.ndarray:
        """`[N,E]` of length 1: the mean over an image's regions of their classes' mean vectors; zeros if all are."""
        found = [self._of_class[self._provider.shown(int(i))] for i in ids]
        return _unit(np.stack([_mean(rows) for rows in found]))

    def questions(self, text: np.ndarray) -> np.ndarray:
        """`[Q,E]` of length 1: the mean over a question's words `[Q,L]`; zeros if all are."""
        if self._last is None or self._last[0] is not text:  # the bank, for block after block
            table = self._words.vectors
            self._last = text, _unit(np.stack([_mean(table[row[row != 0]]) for row in text]))
        return self._last[1]


def _mean(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float64).mean(0) if len(rows) else np.zeros(rows.shape[1])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
