"""Core-set: images that leave no image of the pool far from a labelled one (Sener and Savarese, ICLR 2018).

Shape legend: `N` images of the pool, `M` labelled images, `D` width of embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, enough, finite
from jaxvl.types import Predict

FEATURES = {"fused": "embed", "vision": "vision"}
BLOCK = 1024


@dataclass(frozen=True)
class Coreset(Strategy):
    """Greedy k-center: again and again the image that is farthest from all that are labelled or chosen.

    Attributes:
      feature: "fused" = mean over the asked questions of the vector before the classifier; "vision" = mean region
        feature.
    """

    feature: str = "fused"

    def __post_init__(self) -> None:
        if self.feature not in FEATURES:
            raise ValueError(f"coreset.feature={self.feature!r}: expected one of {', '.join(FEATURES)}")

    @property
    def vectors(self) -> str:
        """The vectors in whose space the centres are."""
        return f"task/{FEATURES[self.feature]}"

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """The images in the order in which they are chosen; the note `distance` is what each image had at the start."""
        name = self.vectors
        x, y = (
            finite(np.asarray(predict(name, s), np.float32), name=name, ids=s.ids) for s in (pool, labelled)
        )
        middle = x.mean(0)  # distances of vectors that share a large part lose digits in float32
        x, y = x - middle, y - middle
        start = nearest(x, y)
        return Selection(
            k_center(start, squared_within(x), pool.ids, budget), None, {"distance": np.sqrt(start)}
        )


def squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distances `[N,M]` of `x [N,D]` and `y [M,D]`, at least 0."""
    found = (x * x).sum(1)[:, None] - 2 * (x @ y.T) + (y * y).sum(1)
    return np.maximum(found, 0.0)


def squared_within(x: np.ndarray) -> Callable[[int], np.ndarray]:
    """A function from a row's position to its squared distances `[N]` from all rows of `x [N,D]`."""
    norms = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return lambda i: np.maximum(norms - 2.0 * (x @ x[i]) + norms[i], 0.0)


def nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`[N]`: squared distance of each row of `x` from the nearest row of `y`; infinite if there is none."""
    best = np.full(len(x), np.inf)
    for start in range(0, len(y), BLOCK):
        best = np.minimum(best, squared(x, y[start : start + BLOCK]).min(1))
    return best


def k_center(
    start: np.ndarray, distance_to: Callable[[int], np.ndarray], ids: np.ndarray, k: int
) -> np.ndarray:
    """Greedy k-center: positions `[k]` in the order of choice, at most twice the radius of the best choice.

    Args:
      start: `[N]` distance of each image from the nearest centre there is already; infinite = none.
      distance_to: position -> its distances `[N]` from all images.
      ids: `[N]`; of equally far images the one with the smaller id is taken.
      k: how many.

    Raises:
      ValueError: fewer than `k` images.
    """
    enough(k, len(start))
    left, chosen = np.array(start, np.float64), []
    order = np.argsort(ids, kind="stable")  # argmax takes the first of equals
    for _ in range(k):
        i = int(order[left[order].argmax()])
        chosen.append(i)
        left = np.minimum(left, distance_to(i))
        left[chosen] = -np.inf
    return np.array(chosen, np.int64)
