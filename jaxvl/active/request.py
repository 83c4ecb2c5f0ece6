"""What a strategy asks of the pool scorer, and how pairs become scores of images. NumPy only.

Shape legend: `B` images of a block, `N` images, `Q` patterns, `C` answers, `T` kept contributors.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MATCH = ("critic", "contrast", "similarity", "raw_glove", "all")
COUNTED = ("similarity", "raw_glove")  # as many patterns of each image as the critic matches on average
AGG = ("sum", "mean", "topk_mean", "sum_capped")
UNCERTAINTY = ("indicator", "one")
AT_UNIFORM = ("bound", "one")
PRUNE = (None, "exact")
TOP = 5  # contributors that are kept for each image


@dataclass(frozen=True)
class Request:
    """What to score, and how; a strategy fills it in.

    Attributes:
      images: source of image rows (`Candidates`): `ids`, `cache`.
      text: patterns `[Q,L]` i32.
      kinds: their answer types `[Q]`.
      rates: balance factor of each answer, `[kinds,C]` f64 in [0, 1].
      stage: the matcher's stage.
      match: "critic" (probability above `threshold`), "contrast" (cosine of the contrastive heads above `threshold`),
        "similarity" (cosine of the answer model's pooled states of image and question: each image's best patterns, as
        many as the critic matches on average), "raw_glove" (likewise; cosine of the mean word vectors of what the
        detector names in the image and of the question) or "all".
      threshold: of the match probability, or of the cosine.
      min_k: patterns that match in any case, the best ones.
      k_max: most patterns that count, the best ones; None = all.
      prefilter: stage of a separable critic, one product for all pairs: only its `2 k_max` best patterns of an image
        are looked at by the critic of `stage`. An approximation.
      agg: "sum", "mean", "topk_mean" (of the `top_k` largest), or "sum_capped" (sum with `k_max`, an approximation).
      uncertainty: "indicator", or "one" (every match counts 1).
      var_ddof, at_uniform: of the indicator, see `jaxvl.objectives.uncertainty.indicator`.
      top_k: how many patterns "topk_mean" takes.
      budget: images that will be taken: what pruning may rely on.
      prune: "exact" = images whose number of matches is below the budget-th best score are not looked at further, as no
        factor exceeds 1; None = all are. It has an effect with agg="sum", a budget, and a `match` not in `COUNTED`.
    """

    images: Any
    text: np.ndarray
    kinds: np.ndarray
    rates: np.ndarray
    stage: str = "vqme"
    match: str = "critic"
    threshold: float = 0.5
    min_k: int = 1
    k_max: int | None = None
    prefilter: str | None = None
    agg: str = "sum"
    uncertainty: str = "indicator"
    var_ddof: int = 0
    at_uniform: str = "bound"
    top_k: int = 8
    budget: int | None = None
    prune: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for unknown choices, numbers out of range and choices that contradict each other."""
        for name, known in (("match", MATCH), ("agg", AGG), ("uncertainty", UNCERTAINTY), ("prune", PRUNE)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected one of {known}")
        if self.var_ddof not in (0, 1) or self.at_uniform not in AT_UNIFORM:
            raise ValueError(
                f"var_ddof={self.var_ddof}, at_uniform={self.at_uniform!r}: expected 0 or 1, and one of {AT_UNIFORM}"
            )
        text, kinds, rates = (list(np.shape(x)) for x in (self.text, self.kinds, self.rates))
        if len(text) != 2 or 0 in text or kinds != text[:1]:
            raise ValueError(
                f"text {text} with kinds {kinds}: expected [Q,L] with [Q], and at least one pattern"
            )
        if len(rates) != 2 or not 0 <= np.min(self.kinds) <= np.max(self.kinds) < rates[0]:
            raise ValueError(f"rates {rates}: expected [kinds,C], with a row for every number in `kinds`")
        if self.match == "critic" and not 0 < self.threshold < 1:
            raise ValueError(f"threshold={self.threshold}: expected a probability in (0, 1)")
        for name, least in (("min_k", 0), ("k_max", 1), ("budget", 1), ("top_k", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: expected at least {least}")
        if self.k_max is not None and self.match == "all":
            raise ValueError("k_max needs a match that ranks the patterns; match='all' ranks none")
        if self.k_max is not None and self.k_max < self.min_k:
            raise ValueError(f"k_max={self.k_max} is below min_k={self.min_k}")
        if self.prefilter is not None and (self.match != "critic" or self.k_max is None):
            raise ValueError(
                f"prefilter={self.prefilter!r} needs match='critic' and k_max, which it takes twice of"
            )
        if self.prune is not None and (self.rates.max() > 1 or self.rates.min() < 0):
            raise ValueError("prune='exact' needs balance factors in [0, 1]")
        if self.agg == "sum_capped" and self.k_max is None:
            raise ValueError("agg='sum_capped' needs k_max, the number of patterns that count")


def limit(request: Request) -> float:
    """The value that the strength of a match must exceed: a probability of the critic is a logit."""
    return limit_of(request.match, request.threshold)


def limit_of(match: str, threshold: float) -> float:
    """`limit` of this way to match."""
    if match == "critic":
        return float(np.log(threshold) - np.log1p(-threshold))
    return threshold


def matched(request: Request, strength_bq: np.ndarray) -> np.ndarray:
    """`[B,Q]` bool: the patterns that count for each image."""
    mask = np.ones(strength_bq.shape, bool)
    if request.match in ("critic", "contrast"):
        mask = strength_bq > limit(request)
    few = np.flatnonzero(mask.sum(1) < request.min_k)
    mask[few] |= best(strength_bq[few], request.min_k)
    if request.k_max is not None:
        many = np.flatnonzero(mask.sum(1) > request.k_max)
        mask[many] &= best(strength_bq[many], request.k_max)
    return mask


def best(strength_bq: np.ndarray, k: int) -> np.ndarray:
    """`[B,Q]` bool: the `k` largest of each row, equal ones in the order of the patterns."""
    mask = np.zeros(strength_bq.shape, bool)
    order = np.argsort(-strength_bq, axis=1, kind="stable")[:, :k]
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def collect(
    request: Request,
    image: np.ndarray,
    pattern: np.ndarray,
    pair: Mapping[str, np.ndarray],
    strength_bq: np.ndarray,
) -> dict[str, np.ndarray]:
    """Per-image results from the pairs of a block, which are ordered by image."""
    rows = len(strength_bq)
    count = np.bincount(image, minlength=rows)
    total = functools.partial(np.bincount, image, minlength=rows)
    out: dict[str, np.ndarray] = {
        "n_match": count.astype(np.int32),
        "sum_f": total(weights=pair["f"].astype(np.float64)),
    }
    out["sum_rate"] = total(weights=pair["rate"])
    # Within an image the most valuable pairs first, equal ones in the order of the patterns.
    order = np.lexsort((pattern, -pair["value"], image))
    place = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    out["score"] = aggregate(request, pair["value"][order], image[order], place, count)
    kept = order[place < TOP]
    at = (image[kept], place[place < TOP])
    match = strength_bq[image, pattern]
    match = np.exp(-np.logaddexp(0, -match.astype(np.float64))) if request.match == "critic" else match
    if request.match == "all":
        match = np.full_like(match, np.nan)  # nobody was asked
    kept_of: tuple[tuple[str, np.ndarray, Any], ...] = (
        ("pattern", pattern, np.int32), ("answer", pair["answer"], np.int32), ("match", match, np.float32),
        ("uncertainty", pair["f"], np.float32), ("p_max", pair["p_max"], np.float32),
        ("rate", pair["rate"], np.float32),
    )  # fmt: skip
    for name, values, kind in kept_of:
        table = np.full((rows, TOP), -1, kind)
        table[at] = values[kept]
        out[f"top_{name}"] = table
    return out


def aggregate(
    request: Request, value: np.ndarray, image: np.ndarray, place: np.ndarray, count: np.ndarray
) -> np.ndarray:
    """The score of each image from its pairs' values, which come largest first within each image."""
    if request.agg == "topk_mean":
        kept, most = place < request.top_k, np.clip(count, 1, request.top_k)
        return np.bincount(image[kept], weights=value[kept], minlength=len(count)) / most
    # Added in the order of value, so that float64 sums are the same whatever block an image is in.
    total = np.bincount(image, weights=value, minlength=len(count))
    return total / np.maximum(count, 1) if request.agg == "mean" else total
