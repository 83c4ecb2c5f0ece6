"""How far an accelerated way of scoring a pool is from the exact one, and how far it may be (specification 7.3, 7.5).

The oracle takes every pair alone, without blocks, chunks or devices: encoders in float32, everything behind them,
the critic on the concatenated sides, softmax and indicator, in float64. It is for small pools.

Shape legend: `N` images, `Q` patterns, `C` answers, `P` pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kendalltau, spearmanr

from jaxvl.active.request import Request, collect, limit, matched
from jaxvl.active.strategies.base import top
from jaxvl.objectives.uncertainty import EVEN
from jaxvl.tasks.momentum import call
from jaxvl.types import PyTree

SPEARMAN, JACCARD, FLIPS = (
    0.995,
    0.98,
    0.001,
)  # what an approximate way must reach, must reach, and may not exceed
AT_ONCE = 4096  # pairs whose logits are in memory


class Agreement(NamedTuple):
    """How a way of scoring compares with the exact one.

    Attributes:
      critic: largest difference of a critic value, of the pairs that were looked at.
      flips: share of the pairs that were looked at and lie on the other side of the threshold.
      members: share of all pairs that count here and not there, or the other way round.
      uncertainty: largest difference of `f`, of pairs that count in both.
      spearman, kendall: rank correlations of the scores.
      jaccard: of the images that are taken.
      regret: how much exact score the images that are taken lack, as a share of what is to be had.
    """

    critic: float
    flips: float
    members: float
    uncertainty: float
    spearman: float
    kendall: float
    jaccard: float
    regret: float

    def failures(self, *, exact: bool) -> list[str]:
        """What is not good enough, in words: of a way that should be exact, or of an approximate one."""
        if exact:
            out = [f"Jaccard index {self.jaccard:.4f}, not 1"] if self.jaccard < 1 else []
            return out + ([f"regret {self.regret:.2e}, not 0"] if self.regret != 0 else [])
        out = [f"Spearman {self.spearman:.4f} < {SPEARMAN}"] if not self.spearman >= SPEARMAN else []
        out += [f"Jaccard index {self.jaccard:.4f} < {JACCARD}"] if self.jaccard < JACCARD else []
        return out + ([f"{self.flips:.3%} of pairs flip, > {FLIPS:.1%}"] if self.flips > FLIPS else [])


def oracle(
    matcher: Any, answers: Any, params: Mapping[str, PyTree], request: Request
) -> dict[str, np.ndarray]:
    """What `PoolScorer.detail` gives, of every pair alone; `f [N,Q]` of all pairs, in float64.

    Raises:
      ValueError: a request that has no single definition here: another match than "critic", or a cap.
    """
    if request.match != "critic" or request.k_max is not None or request.prefilter is not None:
        raise ValueError("the oracle is of the exact way: match='critic' without k_max and prefilter")
    rows = [request.images[i] for i in range(len(request.images))]
    regions, masks = (jnp.asarray(np.stack([r[k] for r in rows])) for k in ("regions", "region_mask"))
    text = jnp.asarray(request.text)
    v = jax.jit(lambda p, *a: call(matcher, p, "encode_image", *a))(params[request.stage], regions, masks)
    s = jax.jit(lambda p, *a: call(matcher, p, "encode_text", *a))(params[request.stage], text, text != 0)
    plain = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(params[request.stage]))
    strength = concatenated(matcher.critic, plain, np.asarray(v, np.float64), np.asarray(s, np.float64))
    n, q = strength.shape
    run = jax.jit(lambda p, r, m, t: call(answers, p, "__call__", r, m, t, t != 0).logits)
    f, best = np.zeros(n * q), np.zeros(n * q, np.int64)
    for start in range(0, n * q, AT_ONCE):
        at = np.minimum(np.arange(start, start + AT_ONCE), n * q - 1)  # one shape
        logits = np.asarray(run(params["vaue"], regions[at // q], masks[at // q], text[at % q]), np.float64)
        f[at], best[at] = defined(logits, request), logits.argmax(1)
    f, best = f.reshape(n, q), best.reshape(n, q)
    counts = matched(request, strength)
    image, pattern = np.nonzero(counts)
    rate = request.rates[request.kinds[pattern], best[image, pattern]]
    own = np.ones(len(image)) if request.uncertainty == "one" else f[image, pattern]
    pair = {"f": own, "p_max": own, "answer": best[image, pattern], "rate": rate, "value": own * rate}
    score = collect(request, image, pattern, pair, strength)["score"]
    return {"strength": strength, "counts": counts, "f": f, "score": score}


def concatenated(critic: str, p: Mapping[str, Any], v: np.ndarray, s: np.ndarray) -> np.ndarray:
    """`[N,Q]` f64: the critic of each image's `v [N,D]` beside each question's `s [Q,D]`, an image at a time."""
    out = np.zeros((len(v), len(s)))
    if critic in ("separable", "cosine"):
        part, sides = ("factor" if critic == "separable" else "head"), []
        for side, x in (("image", v), ("text", s)):
            first, second = p[f"{side}_{part}_0"], p[f"{side}_{part}_1"]
            hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
            sides.append(hidden @ second["kernel"] + second["bias"])
        if critic == "cosine":
            one, two = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in sides)
            return p["critic_weight"] * (one @ two.T) + p["critic_offset"]
        return sides[0] @ sides[1].T + p["critic_offset"]
    kernel = np.concatenate([p["image_side"]["kernel"], p["text_side"]["kernel"]])
    for i, row in enumerate(v):
        both = np.concatenate([np.broadcast_to(row, (len(s), len(row))), s], 1)
        hidden = np.maximum(both @ kernel + p["text_side"]["bias"], 0)
        if critic == "concat2":
            hidden = np.maximum(hidden @ p["second"]["kernel"] + p["second"]["bias"], 0)
        out[i] = hidden @ p["critic_weight"] + p["critic_offset"]
    return out


def defined(logits: np.ndarray, request: Request) -> np.ndarray:
    """`[P]` f64: the indicator by its definition, of logits `[P,C]` f64."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    m, size = p.max(1), p.shape[1]
    if size == 1:
        return np.zeros(len(p))
    least = ((1 / size - m) ** 2 + (size - 1) * (1 / size - (1 - m) / (size - 1)) ** 2) / size
    even = size * np.square(p).sum(1) - 1 < EVEN
    kappa = np.minimum(least / np.where(even, 1.0, p.var(1)), 1.0)
    kappa = np.where(even, 1.0 if request.at_uniform == "bound" else 0.0, kappa)
    return 1 - kappa * m * ((size - 1) / size if request.var_ddof else 1.0)


def compare(
    exact: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    request: Request,
    *,
    budget: int,
    chosen: np.ndarray | None = None,
) -> Agreement:
    """How `other` agrees with `exact`, both as `PoolScorer.detail` gives them.

    Args:
      request: whose threshold decides.
      budget: images that are taken.
      chosen: rows that `other` takes; None = those with its best scores.
    """
    seen = np.isfinite(other["strength"])
    edge = limit(request)
    flips = (exact["strength"] > edge) != (other["strength"] > edge)
    both = exact["counts"] & other["counts"]
    off = np.abs(exact["f"] - other["f"])[both]
    ids = np.asarray(request.images.ids)
    ours = top(exact["score"], ids, budget)
    theirs = top(other["score"], ids, budget) if chosen is None else np.asarray(chosen)
    common, total = len(np.intersect1d(ours, theirs)), float(exact["score"][ours].sum())
    lost = 0.0 if common == budget else total - float(exact["score"][theirs].sum())
    return Agreement(
        critic=float(np.abs(exact["strength"] - other["strength"])[seen].max()),
        flips=float(flips[seen].mean()),
        members=float((exact["counts"] != other["counts"]).mean()),
        uncertainty=float(off.max()) if len(off) else 0.0,
        spearman=float(spearmanr(exact["score"], other["score"]).statistic),
        kendall=float(kendalltau(exact["score"], other["score"]).statistic),
        jaccard=common / (2 * budget - common),
        regret=lost / total if total else 0.0,
    )
