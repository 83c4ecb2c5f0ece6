"""MOCU: images whose label would most improve decisions (Zhao et al., ICLR 2021; its soft form, AISTATS 2021).

Dropout passes are the members of the posterior, with equal weights at first.

Shape legend: `N` images, `J` questions asked of each, `X` pairs of an image and a question, `P` such pairs of an
evaluation set, `T` members, `C` answers, `A` answers that are kept of them, `Y` answers that are looked ahead to, `W`
posteriors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, finite, there, top
from jaxvl.types import Predict

FORMS = ("pointwise", "lookahead", "soft")
OBJECTIVES = ("weighted", "plain", "soft")
IMAGES = 128  # images whose members are in memory at once
NUMBERS = 2**23  # of a block of posteriors


@dataclass(frozen=True)
class MOCU(Strategy):
    """Expected cost of not knowing which member is right.

    Attributes:
      form: "pointwise" = `(1 - K) K` of each image. "lookahead" = the expected fall of the mean `(1 - K) K` of an
        evaluation set when the image's answer becomes known. "soft" = the same look-ahead to the mean `K` with a
        smooth maximum.
      candidates: for the look-aheads: the best so many times the budget, by "pointwise", are looked at.
      pairs: evaluation pairs, drawn from the pool.
      answers: likeliest answers of a candidate that are looked ahead to; the rest leaves the members as they are.
      kept: likeliest answers of each member that count on an evaluation pair.
      sharpness: a of the smooth maximum `log(sum exp(a p)) / a`.
    """

    passes: ClassVar[bool] = True
    form: str = "pointwise"
    candidates: int = 10
    pairs: int = 1000
    answers: int = 5
    kept: int = 20
    sharpness: float = 10.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"mocu.form={self.form!r}: expected one of {', '.join(FORMS)}")
        for name in ("candidates", "pairs", "answers", "kept", "sharpness"):
            if not getattr(self, name) > 0:
                raise ValueError(f"mocu.{name}={getattr(self, name)!r}: expected a positive number")

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """The best `budget` images."""
        score = np.asarray(predict("task/mocu", pool), np.float64)
        if self.form == "pointwise":
            return Selection(top(score, pool.ids, budget), score)
        asked = there(pool)
        few = np.sort(top(score, pool.ids, min(len(pool), self.candidates * budget)))
        some = np.sort(rng.permutation(len(pool))[: -(-self.pairs // asked.shape[1])])
        held = _members(predict, pool, some)[asked[some]][: self.pairs]
        objective = Objective(
            held, kept=self.kept, kind="soft" if self.form == "soft" else "weighted", sharpness=self.sharpness
        )
        gain = np.full(len(pool), -np.inf)
        for at in range(0, len(few), IMAGES):
            block = few[at : at + IMAGES]
            each = np.zeros(asked[block].shape)
            pairs = _members(predict, pool, block)[asked[block]]
            each[asked[block]] = lookahead(pairs, objective, answers=self.answers)
            gain[block] = each.sum(1) / np.maximum(asked[block].sum(1), 1)
        return Selection(top(gain, pool.ids, budget), gain, {"pointwise": score})


def _members(predict: Predict, pool: Any, positions: np.ndarray) -> np.ndarray:
    """`[N,J,T,C]`, of some images."""
    name = "task/members"
    return finite(np.asarray(predict(name, pool.subset(positions))), name=name, ids=pool.ids[positions])


class Objective:
    """The mean cost of an evaluation set as a function of the members' weights.

    `K = sum_t w_t max p_t - max sum_t w_t p_t >= 0` is what is lost by deciding for the weighted mean.

    Args:
      held: members `[P,T,C]` of the evaluation pairs.
      kept: answers that count on a pair are the members' `kept` likeliest; None = all.
      kind: "weighted" = `(1 - K) K`, "plain" = `K`, "soft" = `K` with a smooth maximum.
      sharpness: of the smooth maximum.

    Raises:
      ValueError: unknown kind.
    """

    def __init__(
        self, held: np.ndarray, *, kept: int | None = None, kind: str = "weighted", sharpness: float = 10.0
    ) -> None:
        if kind not in OBJECTIVES:
            raise ValueError(f"objective {kind!r}: expected one of {', '.join(OBJECTIVES)}")
        self.kind, self.sharpness = kind, sharpness
        members, self.counted = cut(held, kept)
        self.peaks = self._peak(members).T  # [T,P]
        self.flat = np.moveaxis(members, 1, 0).reshape(members.shape[1], -1)  # [T,PA]

    def _peak(self, p: np.ndarray) -> np.ndarray:
        """The largest of `p [P,...,A]`, or a smooth form of it, over the answers that count."""
        high = p.max(-1)
        if self.kind != "soft":
            return high
        counted = self.counted.reshape(len(p), *(1,) * (p.ndim - 2), -1)
        terms = np.exp(self.sharpness * (p - high[..., None])) * counted
        return high + np.log(terms.sum(-1)) / self.sharpness

    def cost(self, weights: np.ndarray) -> np.ndarray:
        """`K [W,P]` for weights `[W,T]` that sum to 1 each."""
        mean = (weights @ self.flat).reshape(len(weights), *self.counted.shape)
        best = self._peak(np.moveaxis(mean, 0, 1)).T
        return np.maximum(weights @ self.peaks - best, 0.0)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """`[W]` for weights `[W,T]`."""
        block, out = max(1, NUMBERS // self.flat.shape[1]), np.zeros(len(weights))
        for at in range(0, len(weights), block):
            k = self.cost(weights[at : at + block])
            out[at : at + block] = ((1 - k) * k if self.kind == "weighted" else k).mean(1)
        return out


def cut(members: np.ndarray, kept: int | None) -> tuple[np.ndarray, np.ndarray]:
    """`[P,T,A]` f64 of members `[P,T,C]`, and `counted [P,A]`, False for padding: of each pair the answers that are
    among the `kept` likeliest of a member."""
    if kept is None or kept >= members.shape[-1]:
        return members.astype(np.float64), np.ones((len(members), members.shape[-1]), bool)
    best = np.argpartition(-members, kept - 1, axis=-1)[..., :kept]
    mask = np.zeros((len(members), members.shape[-1]), bool)
    np.put_along_axis(mask, best.reshape(len(members), -1), True, axis=1)
    order = np.argsort(~mask, axis=1, kind="stable")[:, : mask.sum(1).max()]
    counted = np.take_along_axis(mask, order, axis=1)
    return np.take_along_axis(members, order[:, None], axis=-1) * counted[:, None].astype(np.float64), counted


def lookahead(pairs: np.ndarray, objective: Objective, *, answers: int | None = None) -> np.ndarray:
    """`[X]`: how much the objective falls on average when the answer of a pair, members `[X,T,C]`, becomes known.

    Knowing answer y turns equal weights into ones in proportion to p_t(y).

    Args:
      answers: likeliest answers that are told apart; None = all. With all of them the gain of objectives that are
        concave in the weights, "plain" and "soft", is at least 0.
    """
    members = pairs.shape[1]
    mean = pairs.mean(1, dtype=np.float64)
    y = np.argsort(-mean, axis=1, kind="stable")[:, :answers]
    share = np.take_along_axis(mean, y, axis=1)  # [X,Y]
    likely = np.take_along_axis(pairs, y[:, None], axis=2).astype(np.float64).transpose(0, 2, 1)  # [X,Y,T]
    posterior = likely / np.where(share > 0, members * share, 1.0)[..., None]
    before = objective(np.full((1, members), 1 / members))[0]
    after = objective(posterior.reshape(-1, members)).reshape(share.shape)
    return (share * (before - after)).sum(1)
