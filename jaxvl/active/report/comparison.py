"""Is a method better than another? Tests that are paired by repeat, and a bootstrap over evaluation images. NumPy only.

Repeats of equal number start from the same images, so differences are taken within a repeat (specification 9.3).

Shape legend: `P` repeats or pairs, `M` methods, `N` evaluation images, `S` resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr

from jaxvl.active.report.statistics import REFERENCE, Curves, Estimate, RunRecord, areas, estimate, quantile

ALPHA = 0.05
ENOUGH = 5  # repeats below which a report warns
EXACT = 16  # signs of up to so many differences are enumerated; of more, drawn
EVALUATION = "evaluation.npz"


class Paired(NamedTuple):
    """A paired comparison of a method with a reference.

    Attributes:
      difference: mean of method - reference over the repeats that both have, with its t interval.
      p: two-sided, of the paired t test; None for a single repeat or equal differences.
      p_holm: corrected for the number of methods; None where `p` is.
      p_wilcoxon: exact signed-rank test; None where all differences are 0.
    """

    difference: Estimate
    p: float | None
    p_holm: float | None
    p_wilcoxon: float | None

    @property
    def verdict(self) -> str:
        """What may be said: never more than the repeats allow."""
        if self.difference.n < 2:
            return "one repeat: no verdict"
        if self.p_holm is None:
            return "no spread over repeats: no verdict"
        if self.p_holm > ALPHA:
            return "no difference shown"
        return "better" if self.difference.mean > 0 else "worse"


def t_test(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t test; None for one difference, or where they are all equal."""
    d = np.asarray(differences, np.float64)
    if d.size < 2 or np.ptp(d) <= 1e-12 * max(1.0, float(np.abs(d).max())):
        return None
    t = float(d.mean()) / (float(d.std(ddof=1)) / math.sqrt(d.size))
    return float(2 * stdtr(d.size - 1, -abs(t)))


def holm(p: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down correction over the tests that gave a p."""
    known = sorted((value, name) for name, value in p.items() if value is not None)
    out: dict[str, float | None] = dict.fromkeys(p)
    highest = 0.0
    for i, (value, name) in enumerate(known):
        highest = max(highest, min(1.0, value * (len(known) - i)))
        out[name] = highest
    return out


def wilcoxon(differences: Sequence[float], rng: np.random.Generator | None = None) -> float | None:
    """Two-sided p of the signed-rank test over all sign patterns, zeros left out, ties with their mean rank.

    With n differences it cannot be below `2 / 2^n`: 0.0625 for five. More than 16 need `rng` (10,000 random patterns).
    """
    d = np.asarray(differences, np.float64)
    d = d[d != 0]
    if not d.size:
        return None
    size = np.abs(d)
    ranks = np.array([(np.sum(size < s) + np.sum(size <= s) + 1) / 2 for s in size])
    signs = _signs(d.size, rng)
    centre = ranks.sum() / 2
    sums = (signs > 0) @ ranks
    seen = abs(float(ranks[d > 0].sum()) - centre)
    return _tail(np.abs(sums - centre), seen, exact=d.size <= EXACT)


def sign_test(differences: Sequence[float], rng: np.random.Generator) -> float | None:
    """Two-sided p of the mean difference under random signs: 10,000 patterns, all of them for up to 16 differences.

    Over (repeat, round) it takes the rounds of a repeat for independent, which they are not: a check, too optimistic.
    """
    d = np.asarray(differences, np.float64)
    if not d.size or not d.any():
        return None
    return _tail(np.abs(_signs(d.size, rng) @ d), abs(float(d.sum())), exact=d.size <= EXACT)


def _signs(n: int, rng: np.random.Generator | None) -> np.ndarray:
    if n <= EXACT:
        return 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.float64)
    if rng is None:
        raise ValueError(f"{n} differences have too many sign patterns to enumerate: give a generator")
    return rng.choice([-1.0, 1.0], size=(10_000, n))


def _tail(null: np.ndarray, seen: float, *, exact: bool) -> float:
    beyond = int((null >= seen - 1e-9 * max(1.0, seen)).sum())
    return beyond / len(null) if exact else (beyond + 1) / (len(null) + 1)


def against(found: Curves, reference: str = REFERENCE, *, axis: str = "fraction") -> dict[str, Paired]:
    """The area of every other method against the reference's, paired by repeat; empty without a reference."""
    area = areas(found, axis=axis)
    base = area.get(reference)
    if base is None:
        return {}
    differences = {
        m: [mine[r] - base[r] for r in mine if r in base] for m, mine in area.items() if m != reference
    }
    differences = {m: d for m, d in differences.items() if d}
    p = {m: t_test(d) for m, d in differences.items()}
    corrected = holm(p)
    return {
        m: Paired(estimate(d), p[m], corrected[m], wilcoxon(d, np.random.default_rng(0)))
        for m, d in differences.items()
    }


def round_differences(found: Curves, method: str, reference: str) -> list[float]:
    """method - reference at every (repeat, round) that both have, but for the first round, where they are equal."""
    out = []
    for repeat, mine in found[method].items():
        other = found.get(reference, {}).get(repeat)
        if other is not None:
            theirs = dict(zip(other.rounds.tolist(), other.overall.tolist(), strict=True))
            for number, accuracy in zip(mine.rounds.tolist(), mine.overall.tolist(), strict=True):
                if number > 0 and math.isfinite(accuracy - theirs.get(number, math.nan)):
                    out.append(accuracy - theirs[number])
    return out


class Penalties(NamedTuple):
    """`share [M,M]`: of the rounds in which method i beat method j significantly; `methods` name rows and columns.

    A column's mean says how often its method was beaten. Entries without a round of two common repeats are NaN.
    """

    methods: list[str]
    share: np.ndarray


def penalties(found: Curves) -> Penalties:
    """The pairwise matrix of specification 9.4: paired t of i against j above the 97.5 % quantile, round by round."""
    names = list(found)
    share = np.full((len(names), len(names)), np.nan)
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            wins = [_beats(d) for d in _by_round(found, a, b).values() if len(d) > 1]
            if i != j and wins:
                share[i, j] = float(np.mean(wins))
    return Penalties(names, share)


def _beats(differences: Sequence[float]) -> bool:
    d = np.asarray(differences, np.float64)
    error = float(d.std(ddof=1)) / math.sqrt(d.size)
    return error > 0 and float(d.mean()) / error > quantile(d.size)


def _by_round(found: Curves, a: str, b: str) -> dict[int, list[float]]:
    out: dict[int, list[float]] = {}
    for repeat in sorted(set(found[a]) & set(found[b])):
        x, y = found[a][repeat], found[b][repeat]
        theirs = dict(zip(y.rounds.tolist(), y.overall.tolist(), strict=True))
        for number, accuracy in zip(x.rounds.tolist(), x.overall.tolist(), strict=True):
            if number > 0 and math.isfinite(accuracy - theirs.get(number, math.nan)):
                out.setdefault(number, []).append(accuracy - theirs[number])
    return out


# ---- questions as the sample --------------------------------------------------------------------------------


class Bootstrap(NamedTuple):
    """Differences to the reference in percent, with 95 % percentiles over resampled evaluation images."""

    round: int
    images: int
    resamples: int
    difference: dict[str, Estimate]


def bootstrap(
    runs: Sequence[RunRecord], *, reference: str = REFERENCE, resamples: int = 2_000, rng: np.random.Generator
) -> Bootstrap | None:
    """How much of a difference the choice of evaluation questions explains.

    Images are drawn with replacement, with all their questions; all methods are scored on the same draw, and the
    repeats of a method are averaged. It says nothing of the spread over repeats, which the t interval is for.

    Returns:
      For the last round that every run has question scores of; None without such a round or without the reference.

    Raises:
      ValueError: runs were scored on different questions.
    """
    if not runs or reference not in {r.method for r in runs}:
        return None
    last = min(max((int(m["round"]) for m in r.rounds), default=-1) for r in runs)
    scores = {(r.method, r.repeat): _scores(r.folder(last) / EVALUATION) for r in runs} if last >= 0 else {}
    if not scores or any(s is None for s in scores.values()):
        return None
    first = next(s for s in scores.values() if s is not None)
    images, place = np.unique(first["image_id"], return_inverse=True)
    sums: dict[str, list[np.ndarray]] = {}
    for (method, repeat), one in scores.items():
        if one is None or not np.array_equal(one["question_id"], first["question_id"]):
            raise ValueError(
                f"{method}, repeat {repeat}: it was scored on other questions than the first run"
            )
        sums.setdefault(method, []).append(np.bincount(place, one["value"].astype(np.float64), len(images)))
    names = list(sums)
    sum_mn = np.stack([np.mean(sums[m], axis=0) for m in names])
    drawn = _resample(sum_mn, np.bincount(place, minlength=len(images)), resamples, rng)
    seen = 100 * sum_mn.sum(1) / len(place)
    base = names.index(reference)
    out = {}
    for i, method in enumerate(names):
        if i != base:
            low, high = np.percentile(drawn[:, i] - drawn[:, base], (2.5, 97.5))
            out[method] = Estimate(float(seen[i] - seen[base]), float(low), float(high), len(sums[method]))
    return Bootstrap(last, len(images), resamples, out)


def _scores(path: Any) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    with np.load(path) as file:
        return {name: file[name] for name in ("value", "question_id", "image_id")}


def _resample(
    sum_mn: np.ndarray, count_n: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """`[S,M]` accuracy in percent of each method on each draw."""
    n = len(count_n)
    out = np.empty((resamples, len(sum_mn)))
    for s in range(resamples):
        weight = np.bincount(rng.integers(n, size=n), minlength=n)
        out[s] = 100 * (sum_mn @ weight) / (count_n @ weight)
    return out
