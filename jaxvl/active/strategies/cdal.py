"""CDAL: images whose mixtures of answers differ, from each other and, with k-center, from the labelled ones'.

Source: Agarwal et al., ECCV 2020, in both forms.

Shape legend: `N` images of the pool, `M` labelled images, `K` answer types, `C` answers, `S` sequences of `T` images,
`F` width of embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, enough, finite, images_only, top
from jaxvl.active.strategies.coreset import k_center, squared
from jaxvl.types import Predict

FLOOR = 1e-8
BLOCK = 256
POLICY = "pool/policy"
FORMS = ("k_center", "policy")


@dataclass(frozen=True)
class PolicyOptions:
    """How a policy is learned; none of these numbers is the paper's.

    Attributes:
      width: of its LSTMs; length: `T`; batch: sequences of an update; episodes: choices that are drawn of a sequence.
      epochs: over the pool; lr: of Adam.
    """

    width: int = 256
    length: int = 128
    batch: int = 16
    episodes: int = 5
    epochs: int = 20
    lr: float = 1e-4

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if value <= 0]
        if wrong:
            raise ValueError(f"cdal.policy.{wrong[0]}={getattr(self, wrong[0])}: expected a positive number")


class Sequences(NamedTuple):
    """A pool for a policy to learn on.

    Attributes:
      features: `[S,T,F]` f32, zeros beyond a sequence; there: `[S,T]` bool.
      diversity, squared: `[S,T,T]` f32: contextual diversity, and squared distance of the embeddings, of two images.
      share: of the images that will be taken; seed: of all randomness.
    """

    features: np.ndarray
    there: np.ndarray
    diversity: np.ndarray
    squared: np.ndarray
    share: float
    seed: int
    options: PolicyOptions


@dataclass(frozen=True)
class CDAL(Strategy):
    """Images that are far apart by the contextual diversity: symmetric KL of answer mixtures, summed over shared types.

    The published code starts from a random image; here the first is the farthest from the labelled set. Mixtures and
    their logarithms, `2 K C` numbers an image, are kept in memory: 6 GB for the training images of VQA v2.

    Attributes:
      form: "k_center" = greedy k-center; "policy" = a policy of two LSTMs, which learns on the pool in random sequences
        that choices are worth more the more diverse they are and the nearer they are to all (engine "pool/policy"); it
        does not look at the labelled set.
      policy: fields of `PolicyOptions`.
    """

    form: str = "k_center"
    policy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"cdal.form={self.form!r}: expected one of {', '.join(FORMS)}")
        PolicyOptions(**self.policy)

    def on(self, unit: str) -> Strategy:
        """Itself, for images."""
        why = "it compares mixtures of answers type by type, and questions of different types have none in common"
        return images_only(self, unit, why)

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """In the order of choice with the note `distance`, what each image had at the start; or by the policy."""
        enough(budget, len(pool))
        if self.form == "policy":
            return self._by_policy(predict, pool, budget, rng)
        x, y = (_predicted(predict, source) for source in (pool, labelled))
        start = np.full(len(pool), np.inf)
        for at in range(0, len(labelled), BLOCK):
            block = contextual_diversity(x, y.rows(slice(at, at + BLOCK)))
            start = np.minimum(start, block.min(1))
        rows = k_center(
            start, lambda i: contextual_diversity(x, x.rows(slice(i, i + 1)))[:, 0], pool.ids, budget
        )
        return Selection(rows, None, {"distance": start})

    def _by_policy(self, predict: Predict, pool: Any, budget: int, rng: np.random.Generator) -> Selection:
        options = PolicyOptions(**self.policy)
        order = rng.permutation(len(pool))
        parts = np.array_split(order, -(-len(order) // options.length))
        embedded = finite(
            np.asarray(predict("task/embed", pool), np.float32), name="task/embed", ids=pool.ids
        )
        asked = sequences(_predicted(predict, pool), embedded, parts, length=options.length)._replace(
            share=budget / len(pool), seed=int(rng.integers(2**31)), options=options
        )
        engine: Any = predict  # an engine takes what it needs in the place of a source
        score = np.zeros(len(pool))
        for at, p in zip(parts, np.asarray(engine(POLICY, asked)), strict=True):
            score[at] = p[: len(at)]
        return Selection(top(score, pool.ids, budget), score)


def sequences(
    x: Mixtures, embedded: np.ndarray, parts: Sequence[np.ndarray], *, length: int | None = None
) -> Sequences:
    """The images of a pool in these parts; share, seed and options are left open.

    Args:
      embedded: `[N,F]`; the policy sees them standardised, distances are of them as they are.
      parts: positions `[T]` or fewer.
      length: T, so that all rounds of a run have one shape; None = that of the longest part.
    """
    shape = (len(parts), max(map(len, parts)) if length is None else length)
    features = np.zeros((*shape, embedded.shape[1]), np.float32)
    there = np.arange(shape[1]) < np.array([[len(at)] for at in parts])
    diversity, apart = (np.zeros((*shape, shape[1]), np.float32) for _ in range(2))
    middle, spread = embedded.mean(0), np.maximum(embedded.std(0), 1e-6)
    for i, at in enumerate(parts):
        own, n = Mixtures(*(a[at] for a in x)), len(at)
        features[i, :n] = (embedded[at] - middle) / spread
        diversity[i, :n, :n] = contextual_diversity(own, own)
        apart[i, :n, :n] = squared(embedded[at] - middle, embedded[at] - middle)
    diagonal = np.arange(shape[1])
    diversity[:, diagonal, diagonal] = apart[:, diagonal, diagonal] = 0.0  # but for rounding, they are
    return Sequences(features, there, diversity, apart, 0.0, 0, PolicyOptions())


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
