"""BADGE: images whose gradients are large and point in different directions (Ash et al., ICLR 2020).

Shape legend: `N` rows to choose from: images of the pool, or pairs of an image and a question; `J` questions asked of
an image, `C` answers, `F` feature width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, enough, finite, there
from jaxvl.active.strategies.coreset import squared_within
from jaxvl.types import Predict

UNITS = ("image", "pair")


@dataclass(frozen=True)
class BADGE(Strategy):
    """k-means++ on gradient embeddings (p - onehot(argmax p)) x feature.

    Attributes:
      unit: "image" = sketches of the embeddings, summed over what is asked of an image. "pair" = exact embeddings of
        pairs, never formed; an image is taken with the first of its pairs. It keeps `J (C + F)` numbers an image.
    """

    unit: str = "image"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"badge.unit={self.unit!r}: expected one of {', '.join(UNITS)}")

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """The images in the order of choice; the note `norm` is the length of each one's (longest) gradient."""
        if self.unit == "image":
            x = finite(np.asarray(predict("task/badge", pool), np.float32), name="task/badge", ids=pool.ids)
            norms = np.einsum("nd,nd->n", x, x, dtype=np.float64)
            rows = k_means_plus_plus(norms, squared_within(x), budget, ids=pool.ids, rng=rng)
            return Selection(rows, None, {"norm": np.sqrt(norms)})
        p = finite(np.asarray(predict("task/probs", pool), np.float32), name="task/probs", ids=pool.ids)
        states: Any = predict("task/states", pool)
        norms, distance_to = gradients(*(a.reshape(-1, a.shape[-1]) for a in (p, states["fused"])))
        asked = there(pool).reshape(-1)
        image = np.repeat(np.arange(len(pool)), p.shape[1])
        norms = np.where(asked, norms, -1.0)  # what is not asked is never the longest, and never drawn
        pairs = k_means_plus_plus(norms, distance_to, budget, ids=pool.ids[image], groups=image, rng=rng)
        longest = np.sqrt(np.maximum(norms, 0.0)).reshape(len(pool), -1).max(1)
        return Selection(image[pairs], None, {"norm": longest})


def gradients(p: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, Callable[[int], np.ndarray]]:
    """Squared lengths `[N]` of `e x h` with `e = p - onehot(argmax p)`, and a function to squared distances `[N]`.

    The outer products, `C F` numbers a row, are not formed: `<e x h, e' x h'> = <e, e'> <h, h'>`.

    Args:
      p: probabilities `[N,C]`.
      h: features `[N,F]`.
    """
    e = np.array(p)
    e[np.arange(len(p)), p.argmax(1)] -= 1.0
    norms = np.einsum("nc,nc->n", e, e, dtype=np.float64) * np.einsum("nf,nf->n", h, h, dtype=np.float64)
    return norms, lambda i: np.maximum(norms - 2.0 * (e @ e[i]) * (h @ h[i]) + norms[i], 0.0)


def k_means_plus_plus(
    norms: np.ndarray,
    distance_to: Callable[[int], np.ndarray],
    k: int,
    *,
    ids: np.ndarray,
    rng: np.random.Generator,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Positions `[k]`: the longest row first, then each with probability in proportion to its squared distance from
    the nearest chosen one (D^2 sampling); distinct, also where rows are equal.

    Args:
      norms: `[N]` squared lengths; negative = a row that must not be chosen.
      distance_to: position -> its squared distances `[N]` from all rows.
      k: how many.
      ids: `[N]`; of equally long rows the one with the smaller id is first.
      rng: draws the others.
      groups: `[N]`; of rows in one group only one is chosen. None = each row for itself.

    Raises:
      ValueError: fewer than `k` rows that can be chosen.
    """
    groups = np.arange(len(norms)) if groups is None else groups
    open_ = np.asarray(norms) >= 0
    enough(k, len(np.unique(groups[open_])))
    i = int(np.lexsort((ids, -norms))[0])
    chosen, distance = [i], distance_to(i)
    while len(chosen) < k:
        open_ &= groups != groups[i]
        weights = np.where(open_, distance, 0.0)
        total = weights.sum()
        if total <= 0:  # only copies of chosen rows are left
            weights, total = open_.astype(np.float64), open_.sum()
        i = int(rng.choice(len(weights), p=weights / total))
        chosen.append(i)
        distance = np.minimum(distance, distance_to(i))
    return np.array(chosen, np.int64)
