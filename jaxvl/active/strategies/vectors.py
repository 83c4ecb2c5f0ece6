"""Vectors of images as sources: what samplers that are trained beside the task model learn from.

Shape legend: `N` unlabelled images, `M` labelled images or rows, `F` feature width, `J` asked questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active.strategies.base import finite
from jaxvl.types import Predict

Arrays = dict[str, np.ndarray]
LEAST = (
    0.1  # deviation that features are divided by, as a share of the mean one: rare features do not explode
)


class Vectors:
    """A source with a row for each image or pair.

    Args:
      image_ids: `[M]`, of the rows.
      arrays: name -> `[M,...]`.
      shared: name -> (array, `[M]` row of it), for what many rows have in common.
    """

    def __init__(
        self,
        image_ids: np.ndarray,
        arrays: Mapping[str, np.ndarray],
        *,
        shared: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ):
        self.image_ids, self.arrays, self.shared = np.asarray(image_ids), dict(arrays), dict(shared or {})
        lengths = {len(a) for a in self.arrays.values()} | {len(at) for _, at in self.shared.values()}
        if lengths != {len(self.image_ids)}:
            raise ValueError(f"arrays of {sorted(lengths)} rows for {len(self.image_ids)} images")

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> Arrays:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of a source with {len(self)} rows")
        own = {name: array[i] for name, array in self.arrays.items()}
        looked_up = {name: array[at[i]] for name, (array, at) in self.shared.items()}
        return {**own, **looked_up, "image_id": np.asarray(self.image_ids[i], np.int32)}

    def augmented(self, i: int, rng: np.random.Generator) -> Arrays:
        """The same as `[i]`."""
        return self[i]

    def annotation(self, i: int) -> dict[str, Any]:
        """`image_id` of row `i`."""
        return {"image_id": int(self.image_ids[i])}


class Beside:
    """A labelled row beside each unlabelled one: the labelled row's arrays, and the other's as `pool_<name>`.

    An epoch shows each row of the larger set once; in training, the labelled row is drawn at random.
    """

    def __init__(self, labelled: Vectors, unlabelled: Vectors):
        self.labelled, self.unlabelled = labelled, unlabelled

    def __len__(self) -> int:
        return max(len(self.labelled), len(self.unlabelled))

    def __getitem__(self, i: int) -> Arrays:
        return self._pair(i, i % len(self.labelled))

    def augmented(self, i: int, rng: np.random.Generator) -> Arrays:
        """Row `i` with a random labelled one."""
        return self._pair(i, int(rng.integers(len(self.labelled))))

    def annotation(self, i: int) -> dict[str, Any]:
        """`image_id` of the labelled row."""
        return self.labelled.annotation(i % len(self.labelled))

    def _pair(self, i: int, row: int) -> Arrays:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of a source with {len(self)} rows")
        other = self.unlabelled[i % len(self.unlabelled)]
        return {**self.labelled[row], **{f"pool_{name}": array for name, array in other.items()}}


class States(NamedTuple):
    """Mean region features of unlabelled `[N,F]` and labelled `[M,F]` images, f32, in units of the labelled ones'."""

    pool: np.ndarray
    labelled: np.ndarray


def states(predict: Predict, pool: Any, labelled: Any) -> States:
    """The mean region features, minus the mean of the labelled images', over their deviation.

    The labelled images alone give the units, so that an image's state does not depend on which others are asked about.
    """
    name = "task/vision"
    x, y = (finite(np.asarray(predict(name, s), np.float32), name=name, ids=s.ids) for s in (pool, labelled))
    mean, deviation = y.mean(0, dtype=np.float64), y.std(0, dtype=np.float64)
    unit = np.maximum(deviation, LEAST * deviation.mean())
    unit[unit == 0] = 1.0
    return States(*(((v - mean) / unit).astype(np.float32) for v in (x, y)))
