"""Means and paired differences over seeds with t intervals. Plain floats; nothing here knows a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95
Repeats = Mapping[Any, float]  # repeat (a seed) -> score


class Estimate(NamedTuple):
    """A mean over `n` repeats with its interval; `low` and `high` are None for a single one."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def text(self, digits: int = 2, *, sign: bool = False) -> str:
        """`55.20 [53.10, 57.30]`, or the mean alone."""
        plus = "+" if sign else ""
        head = f"{self.mean:{plus}.{digits}f}"
        if self.low is None or self.high is None:
            return head
        return f"{head} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def quantile(n: int, level: float = LEVEL) -> float:
    """The factor on the standard error in a two-sided t interval of `n` repeats (2.776 for 5 at 95 %)."""
    return float(stdtrit(n - 1, 0.5 + level / 2))


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """Mean and t interval `mean +- t(n - 1) sd / sqrt n` over repeats; no interval for a single one.

    Raises:
      ValueError: no values, or one that is not finite.
    """
    x = np.asarray(values, np.float64)
    if not x.size or not np.isfinite(x).all():
        raise ValueError(f"an estimate needs finite values, and at least one: {list(values)}")
    mean, n = float(x.mean()), int(x.size)
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = quantile(n, level) * float(x.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def paired(a: Repeats, b: Repeats) -> Estimate | None:
    """The mean of `a - b` over the repeats that both have; None if they share none."""
    both = [key for key in a if key in b]
    return estimate([a[key] - b[key] for key in both]) if both else None


def ratio(a: Repeats, b: Repeats, *, scale: float = 1.0) -> Estimate | None:
    """The mean of `scale a / b` over the repeats that both have; None if they share none where `b` is positive."""
    both = [key for key in a if b.get(key, 0.0) > 0]
    return estimate([scale * a[key] / b[key] for key in both]) if both else None


def verdict(difference: Estimate | None) -> str:
    """What a paired difference says of the claim that it is positive.

    "shown" and "reversed" only where the whole interval is on one side of 0; equal differences in all repeats leave
    nothing to take an interval from (and are more likely a seed that reaches nothing).
    """
    if difference is None:
        return "no data"
    low, high = difference.low, difference.high
    if low is None or high is None or low == high:
        return (
            "not shown (no spread over seeds)" if difference.n > 1 else "not shown (one seed has no interval)"
        )
    if low > 0:
        return "shown"
    return "reversed" if high < 0 else "not shown"
