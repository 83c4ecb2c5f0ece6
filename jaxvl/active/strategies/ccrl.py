"""CCRL: the sum over the patterns that match an image of answer uncertainty times answer balance; and its ablations.

Source: Zhang, Li, Zha, Huang, "Active learning for VQA based on cross-modal contrastive representation learning",
equation 16 and algorithm 1, as reconstructed in the specification (sections 6 to 8.9).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from jaxvl.active.balance import MODES
from jaxvl.active.request import AGG, MATCH, PRUNE, UNCERTAINTY, Request, limit_of
from jaxvl.active.strategies.base import Selection, Strategy, finite, top
from jaxvl.active.strategies.diversity import check_diversify, chosen

ENGINE = "pool/score"
ENCODERS, JOINT = ("own", "shared"), "joint"


@dataclass(frozen=True)
class CCRL(Strategy):
    """Takes the images with the largest scores.

    Where single questions are chosen it is `QuestionCCRL` with the same options.

    Attributes:
      threshold: a pattern matches above this probability ("critic"), or cosine ("contrast").
      min_k: patterns that match in any case; 0 = an image without a match has score 0.
      k_max: most patterns that count; None = all (exact).
      prefilter: stage of a separable critic that leaves `2 k_max` patterns of an image for the critic; None = all.
      agg: "sum", "mean", "topk_mean" or "sum_capped".
      rate: balance of the answers: a mode of `Shares.rate`; "none" = ablation A.
      match: "critic", "similarity" or "raw_glove" = ablation B, "contrast", or "all".
      uncertainty: "indicator", or "one": every match counts 1.
      var_ddof, at_uniform: of the indicator, see `jaxvl.objectives.uncertainty.indicator`.
      top_k: how many patterns "topk_mean" takes.
      prune: "exact" (the same selection with fewer pairs) or None.
      stage: the matcher's.
      encoders: "own" = matcher and answer model are two stages; "shared" = the stage `joint` is both (A12), and `stage`
        stays as it is.
      diversify: how `budget` images are chosen of the best `pool_factor` times as many: None = the best; "kcenter" or
        "type_quota", see `diversity.chosen`.
      pool_factor: see `diversify`.
    """

    asks: ClassVar[bool] = False  # the whole bank is its own
    reads_task: ClassVar[bool] = False

    threshold: float = 0.5
    min_k: int = 1
    k_max: int | None = None
    prefilter: str | None = None
    agg: str = "sum"
    rate: str = "one_minus"
    match: str = "critic"
    uncertainty: str = "indicator"
    var_ddof: int = 0
    at_uniform: str = "bound"
    top_k: int = 8
    prune: str | None = None
    stage: str = "vqme"
    encoders: str = "own"
    diversify: str | None = None
    pool_factor: int = 4

    def __post_init__(self) -> None:
        options = {"match": MATCH, "agg": AGG, "uncertainty": UNCERTAINTY, "prune": PRUNE, "rate": MODES,
                   "encoders": ENCODERS}  # fmt: skip
        for name, known in options.items():
            if getattr(self, name) not in known:
                raise ValueError(f"ccrl.{name}={getattr(self, name)!r}: expected one of {known}")
        check_diversify(self.diversify, self.pool_factor)
        if self.encoders == "shared" and self.stage != "vqme":
            raise ValueError(
                f"ccrl.encoders='shared' trains the stage {JOINT!r}; ccrl.stage={self.stage!r} would mean nothing"
            )

    def on(self, unit: str) -> Strategy:
        """Itself for images; for questions the product of the question's own uncertainty and balance."""
        return (
            self if unit == "image" else QuestionCCRL(**{f.name: getattr(self, f.name) for f in fields(self)})
        )

    @property
    def matcher(self) -> str:
        """The stage that matches."""
        return JOINT if self.encoders == "shared" else self.stage

    @property
    def answerer(self) -> str:
        """The stage that answers."""
        return JOINT if self.encoders == "shared" else "vaue"

    @property
    def needs(self) -> tuple[str, ...]:
        """Matcher and answer model, as far as the options use them."""
        counts_only = self.uncertainty == "one" and self.rate == "none" and self.match != "similarity"
        matches = self.match != "all" or self.diversify == "kcenter"
        rough = () if self.prefilter is None else (self.prefilter,)
        own = (*((self.matcher,) if matches else ()), *rough, *(() if counts_only else (self.answerer,)))
        return tuple(dict.fromkeys(own))

    @property
    def approximations(self) -> tuple[str, ...]:
        """A cap on the patterns, and a filter before the critic."""
        given = {"k_max": self.k_max, "prefilter": self.prefilter}
        return tuple(f"{name}={value}" for name, value in given.items() if value is not None)

    @property
    def vectors(self) -> str:
        """The matcher's vectors of images; without a matcher, mean region features."""
        return super().vectors if self.match == "all" else f"{self.matcher}/image_state"

    def __call__(
        self, predict: Any, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """Score all images, take the best, or spread the choice over the best; equal scores by image id."""
        several = budget if self.diversify is None else min(self.pool_factor * budget, len(pool))
        request = Request(
            images=pool, text=pool.bank.text, kinds=pool.bank.kinds, rates=pool.shares.rate(self.rate),
            stage=self.matcher, match=self.match, threshold=self.threshold, min_k=self.min_k, k_max=self.k_max,
            prefilter=self.prefilter, agg=self.agg, top_k=self.top_k, uncertainty=self.uncertainty,
            var_ddof=self.var_ddof, at_uniform=self.at_uniform, budget=several, prune=self.prune,
        )  # fmt: skip
        found = predict(ENGINE, request)
        score = np.where(np.isnan(found["score"]), -np.inf, found["score"])
        notes = {name: values for name, values in found.items() if name != "score"}
        rows = top(score, pool.ids, several)
        if self.diversify is not None:
            rows = chosen(self.diversify, rows, budget, self._features(predict, pool, rows, found))
        return Selection(rows, found["score"], notes)

    def _features(self, predict: Any, pool: Any, rows: np.ndarray, found: Any) -> np.ndarray:
        """What the candidates `rows` are told apart by: VQME's `v [M,D]`, or their types `[M]`."""
        if self.diversify == "kcenter":
            name, some = f"{self.matcher}/image_state", pool.subset(rows)
            return finite(np.asarray(predict(name, some), np.float32), name=name, ids=some.ids)
        kinds = np.asarray(pool.bank.kinds)
        value = np.where(found["top_pattern"] >= 0, found["top_uncertainty"] * found["top_rate"], 0.0)[rows]
        votes = np.zeros((len(rows), int(kinds.max()) + 1))
        for slot in range(value.shape[1]):  # the slots that are not used add 0
            np.add.at(votes, (np.arange(len(rows)), kinds[found["top_pattern"][rows, slot]]), value[:, slot])
        return votes.argmax(1)


@dataclass(frozen=True)
class QuestionCCRL(CCRL):
    """Takes the questions with the largest product of answer uncertainty and answer balance (specification 1.2).

    A question's answer type is that of its opening phrase (`items.opening_kinds`). It is the only pattern of its row:
    with `min_k` above 0 it counts in any case and no matcher is trained; with `min_k=0` a question that does not match
    its image ("critic", "contrast", by `threshold`) scores 0. `agg`, `k_max`, `prefilter` and `prune` mean
    nothing for one pattern.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.match in ("similarity", "raw_glove"):
            raise ValueError(
                f"match={self.match!r} ranks the patterns of an image, and a question is only one"
            )
        if (self.var_ddof, self.at_uniform) != (0, "bound"):
            raise ValueError(
                "var_ddof and at_uniform are options for images: of questions they must be 0 and 'bound'"
            )
        if self.diversify == "kcenter":
            raise ValueError(
                "diversify='kcenter' tells images apart, not questions about one image; take 'type_quota' or None"
            )
        if self.uncertainty == "one" and self.rate == "none" and not self._filters:
            raise ValueError("with uncertainty='one' and rate='none' all questions have the same score")

    @property
    def _filters(self) -> bool:
        return self.match != "all" and self.min_k == 0

    @property
    def approximations(self) -> tuple[str, ...]:
        """None: there is one pattern a row, and nothing to leave out."""
        return ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The answer model, and the matcher if it is a filter."""
        return tuple(dict.fromkeys((*((self.matcher,) if self._filters else ()), self.answerer)))

    def __call__(
        self, predict: Any, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """Score all questions, take the best, or spread the choice over the best; equal scores by question id."""
        name = f"{self.answerer}/uncertainty"
        found = predict(name, pool)
        f = finite(np.asarray(found["f"], np.float64), name=name, ids=pool.ids)
        answer, kinds = np.asarray(found["index"]), pool.asked("asked_kind")[:, 0]
        f = np.ones_like(f) if self.uncertainty == "one" else f
        rate = pool.shares.rate(self.rate)[kinds, answer]
        notes = {
            "pattern": np.zeros_like(answer),
            "kind": kinds,
            "answer": answer,
            "uncertainty": f,
            "rate": rate,
        }
        notes["p_max"] = np.asarray(found["p_max"])
        score = f * rate
        if self._filters:
            strength = self._strength(predict, pool)
            notes["match"] = 1 / (1 + np.exp(-strength)) if self.match == "critic" else strength
            score = np.where(strength > limit_of(self.match, self.threshold), score, 0.0)
        several = budget if self.diversify is None else min(self.pool_factor * budget, len(pool))
        rows = top(score, pool.ids, several)
        if self.diversify is not None:
            rows = chosen(self.diversify, rows, budget, kinds[rows])
        return Selection(rows, score, {f"top_{name}": values[:, None] for name, values in notes.items()})

    def _strength(self, predict: Any, pool: Any) -> np.ndarray:
        """`[N]` f64: how well each question matches its image."""
        if self.match == "critic":
            name = f"{self.matcher}/match"
            return finite(np.asarray(predict(name, pool), np.float64), name=name, ids=pool.ids)
        name = f"{self.matcher}/encoded"
        sides = predict(name, pool)
        cosine = np.einsum("nd,nd->n", sides["z"], sides["w"], dtype=np.float64)
        return finite(cosine, name=name, ids=pool.ids)
