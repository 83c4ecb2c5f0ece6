"""Core-set: images that leave no image of the pool far from a labelled one (Sener and Savarese, ICLR 2018).

Shape legend: `N` images of the pool, `M` labelled images, `D` width of embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, enough, finite, images_only
from jaxvl.types import Predict

FEATURES = {"fused": "embed", "vision": "vision"}
BLOCK = 1024


@dataclass(frozen=True)
class Coreset(Strategy):
    """Greedy k-center: again and again the image that is farthest from all that are labelled or chosen.

    Attributes:
      feature: "fused" = mean over the asked questions of the vector before the classifier; "vision" = mean region
        feature.
      pca: distances are those of this many principal components of pool and labelled images; None = of all.
      refreshes: how often distances are renewed; in between, the farthest images are taken many at a time. None =
        after every image, which is k-center. Karamcheti et al. (2021) use 32 components and 20 renewals.
    """

    feature: str = "fused"
    pca: int | None = None
    refreshes: int | None = None

    def __post_init__(self) -> None:
        if self.feature not in FEATURES:
            raise ValueError(f"coreset.feature={self.feature!r}: expected one of {', '.join(FEATURES)}")
        for option in ("pca", "refreshes"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise ValueError(f"coreset.{option}={value}: expected at least 1, or None")

    def on(self, unit: str) -> Strategy:
        """Itself; with feature="vision", for images."""
        why = "with feature='vision' all questions about an image are the same point (feature='fused' tells them apart)"
        return images_only(self, unit, why) if self.feature == "vision" else self

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
        if self.pca is not None:
            x, y = principal(x, y, most=self.pca)
        start = nearest(x, y)
        if self.refreshes is None:
            rows = k_center(start, squared_within(x), pool.ids, budget)
        else:
            rows = amortised(start, lambda at: nearest(x, x[at]), pool.ids, budget, refreshes=self.refreshes)
        return Selection(rows, None, {"distance": np.sqrt(start)})


def principal(x: np.ndarray, y: np.ndarray, *, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `most` principal components of the rows of both, `[N,most]` and `[M,most]` f32; all, if fewer."""
    middle = (x.sum(0, dtype=np.float64) + y.sum(0, dtype=np.float64)) / (len(x) + len(y))
    moments = np.zeros((x.shape[1], x.shape[1]))
    for part in (x, y):
        for start in range(0, len(part), BLOCK):
            block = part[start : start + BLOCK].astype(np.float64) - middle
            moments += block.T @ block
    axes = np.linalg.eigh(moments)[1][:, ::-1][:, :most]  # eigenvalues come smallest first
    return tuple(((part - middle) @ axes).astype(np.float32) for part in (x, y))


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


def amortised(
    start: np.ndarray,
    distance_to: Callable[[np.ndarray], np.ndarray],
    ids: np.ndarray,
    k: int,
    *,
    refreshes: int,
) -> np.ndarray:
    """`k_center` whose distances are renewed `refreshes` times: positions `[k]` in the order of choice.

    Between two renewals the images that are farthest by the present distances are taken together, though they may be
    near each other.

    Args:
      start, ids, k: as for `k_center`.
      distance_to: positions -> distances `[N]` of all images from the nearest of them.
      refreshes: at most k; more mean k.
    """
    enough(k, len(start))
    left, chosen = np.array(start, np.float64), np.zeros(0, np.int64)
    ends = [round(k * (i + 1) / min(refreshes, k)) for i in range(min(refreshes, k))]
    for end in ends:
        new = np.lexsort((ids, -left))[: end - len(chosen)]
        chosen = np.concatenate([chosen, new])
        if end < k:
            left = np.minimum(left, distance_to(new))
            left[chosen] = -np.inf
    return chosen
