"""CDAL: images whose mixtures of answers differ from the labelled ones' (Agarwal et al., ECCV 2020), core-set form.

Shape legend: `N` images of the pool, `M` labelled images, `K` answer types, `C` answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, finite, images_only
from jaxvl.active.strategies.coreset import k_center
from jaxvl.types import Predict

FLOOR = 1e-8
BLOCK = 256


@dataclass(frozen=True)
class CDAL(Strategy):
    """Greedy k-center under the contextual diversity: symmetric KL of the answer mixtures, summed over shared types.

    The published code starts from a random image; here the first is the farthest from the labelled set. Mixtures and
    their logarithms, `2 K C` numbers an image, are kept in memory: 6 GB for the training images of VQA v2.
    """

    def on(self, unit: str) -> Strategy:
        """Itself, for images."""
        why = "it compares mixtures of answers type by type, and questions of different types have none in common"
        return images_only(self, unit, why)

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """The images in the order of choice; the note `distance` is what each image had at the start."""
        x, y = (_predicted(predict, source) for source in (pool, labelled))
        start = np.full(len(pool), np.inf)
        for at in range(0, len(labelled), BLOCK):
            block = contextual_diversity(x, y.rows(slice(at, at + BLOCK)))
            start = np.minimum(start, block.min(1))
        rows = k_center(
            start, lambda i: contextual_diversity(x, x.rows(slice(i, i + 1)))[:, 0], pool.ids, budget
        )
        return Selection(rows, None, {"distance": start})


class Mixtures(NamedTuple):
    """Answer distributions of images by answer type: `p` and `log_p [N,K,C]`, `own [N,K]` = sum of p log p, and
    `there [N,K]` bool, whether the type is asked for."""

    p: np.ndarray
    log_p: np.ndarray
    own: np.ndarray
    there: np.ndarray

    def rows(self, at: slice) -> Mixtures:
        """Those of some images."""
        return Mixtures(*(a[at] for a in self))


def mixtures(p: np.ndarray, there: np.ndarray) -> Mixtures:
    """From distributions `[N,K,C]`, which are floored at 1e-8, and `there [N,K]`."""
    p = np.maximum(p, FLOOR)
    log_p = np.log(p)
    return Mixtures(p, log_p, np.einsum("nkc,nkc->nk", p, log_p), np.asarray(there, bool))


def contextual_diversity(x: Mixtures, y: Mixtures) -> np.ndarray:
    """`[N,M]`: sum over types that both have of `(KL(P|Q) + KL(Q|P)) / 2 = sum (P - Q)(log P - log Q) / 2`."""
    out = np.zeros((len(x.p), len(y.p)))
    for kind in range(x.p.shape[1]):
        cross = x.p[:, kind] @ y.log_p[:, kind].T + x.log_p[:, kind] @ y.p[:, kind].T
        part = 0.5 * (x.own[:, kind, None] + y.own[:, kind] - cross)
        out += np.maximum(part, 0.0) * (x.there[:, kind, None] & y.there[:, kind])
    return out


def _predicted(predict: Predict, source: Any) -> Mixtures:
    name = "task/kind_mixture"
    p = finite(np.asarray(predict(name, source)), name=name, ids=source.ids)
    return mixtures(p, np.asarray(predict("task/kind_present", source)))
