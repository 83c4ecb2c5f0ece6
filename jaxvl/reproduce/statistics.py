"""Means and paired differences over seeds with t intervals. Plain floats; nothing here knows a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxvl.active.report.statistics import Estimate, estimate, quantile

__all__ = ["Estimate", "estimate", "paired", "quantile", "ratio", "verdict"]

Repeats = Mapping[Any, float]  # repeat (a seed) -> score


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
