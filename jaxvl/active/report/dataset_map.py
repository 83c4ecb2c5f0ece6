"""Dataset maps: how surely, and how steadily, a model learns each question of a pool; and what of it methods pick.

Over the epochs of a model that is trained on the whole pool, a question has a mean confidence, that of the probability
of its true answer, and a variability, its standard deviation. Active learners are known to chase questions that nobody
can learn. Sources: Swayamdipta et al., "Dataset Cartography", EMNLP 2020; Karamcheti et al., "Mind Your Outliers!",
ACL 2021. NumPy only.

Shape legend: `E` epochs, `Q` questions.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

CELLS = ("easy", "ambiguous", "hard")
MAP = "map.npz"
STEADY = 2 / 3  # share of the questions that are not ambiguous
SURE = 0.5  # mean confidence above which a steady question is easy


class DatasetMap(NamedTuple):
    """`question_id`, `image_id` `[Q]` i64; `confidence`, `variability` `[Q]` f32 in [0, 1]."""

    question_id: np.ndarray
    image_id: np.ndarray
    confidence: np.ndarray
    variability: np.ndarray

    @classmethod
    def of_epochs(cls, question_id: np.ndarray, image_id: np.ndarray, truth_eq: np.ndarray) -> DatasetMap:
        """From the probability of the true answer after each epoch, `[E,Q]`."""
        p = np.asarray(truth_eq, np.float64)
        return cls(question_id, image_id, p.mean(0).astype(np.float32), p.std(0).astype(np.float32))

    @property
    def limit(self) -> float:
        """The variability above which a question is ambiguous: two thirds of the pool are at it or below."""
        return float(np.quantile(self.variability, STEADY))

    def cells(self) -> np.ndarray:
        """`[Q]` i8, positions in `CELLS`: ambiguous above `limit`; the others easy if surely right, else hard."""
        steady = np.where(self.confidence > SURE, 0, 2)
        return np.where(self.variability > self.limit, 1, steady).astype(np.int8)

    def of(self, items: Collection[int], key: str = "image_id") -> np.ndarray:
        """`[Q]` bool: the questions of these images, or, with the key "question_id", these questions."""
        return np.isin(getattr(self, key), np.fromiter(items, np.int64))

    def save(self, path: Path) -> None:
        """Write an `.npz` file under exactly this name."""
        with path.open("wb") as file:
            np.savez(file, **self._asdict())

    @classmethod
    def load(cls, path: Path) -> DatasetMap:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(*(arrays[name] for name in cls._fields))


class Share(NamedTuple):
    """Of some questions: their share `cells` of each cell, in the order of `CELLS`, and their mean confidence and
    variability."""

    cells: tuple[float, ...]
    confidence: float
    variability: float


def share(found: DatasetMap, mask: np.ndarray) -> Share:
    """The `Share` of the questions where `mask [Q]` is True, at least one."""
    counts = np.bincount(found.cells()[mask], minlength=len(CELLS))
    means = (float(x[mask].mean(dtype=np.float64)) for x in (found.confidence, found.variability))
    return Share(tuple((counts / counts.sum()).tolist()), *means)
