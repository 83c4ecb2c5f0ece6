"""Spreading a choice over the best candidates, so that one batch does not hold the same thing many times. NumPy only.

The seed paper takes the best images and nothing else; these are options (specification 7.1).

Shape legend: `M` candidates, best first, `k` chosen, `D` width of vectors, `T` types.
"""

from __future__ import annotations

import numpy as np

from jaxvl.active.strategies.base import enough
from jaxvl.active.strategies.coreset import k_center, squared_within

DIVERSIFY = (None, "kcenter", "type_quota")


def check_diversify(how: str | None, factor: int) -> None:
    """Raise ValueError for an unknown way, and for a number of candidates below what is chosen."""
    if how not in DIVERSIFY:
        raise ValueError(f"diversify={how!r}: expected one of {', '.join(map(repr, DIVERSIFY))}")
    if factor < 1:
        raise ValueError(f"pool_factor={factor}: must be at least 1, so many times the budget are looked at")


def chosen(how: str, rows: np.ndarray, k: int, features: np.ndarray) -> np.ndarray:
    """`k` of the candidates.

    "kcenter": the best one; then again and again the one that is farthest from all chosen ones, of equally far ones the
    better. Labelled images are no centres: the batch is spread in itself.

    "type_quota": again and again the best candidate of the type that was chosen least often, of types that were chosen
    equally often the best candidate of all. So each type that occurs has `k / T` places or all that it can fill.

    The order is that of choice: the first of the choice are the choice of fewer among the same candidates.

    Args:
      how: one of these.
      rows: positions `[M]` in the pool, best first.
      k: how many.
      features: of the candidates: `[M,D]` vectors, or `[M]` types.

    Returns:
      Positions `[k]` in the pool.

    Raises:
      ValueError: fewer than `k` candidates.
    """
    enough(k, len(rows))
    if how == "kcenter":
        return rows[_spread(np.asarray(features, np.float64), k)]
    return rows[_by_quota(np.asarray(features), k)]


def _spread(x: np.ndarray, k: int) -> np.ndarray:
    x = x - x.mean(0)  # distances of vectors that share a large part lose digits
    distance_to = squared_within(x)
    if k == 1:
        return np.zeros(1, np.int64)
    start = distance_to(0)
    start[0] = -np.inf  # the best is the first centre
    rest = k_center(start, distance_to, np.arange(len(x)), k - 1)
    return np.concatenate([[0], rest])


def _by_quota(kinds: np.ndarray, k: int) -> np.ndarray:
    seen = np.zeros(len(kinds), np.int64)  # better candidates of the same type
    for kind in np.unique(kinds):
        seen[kinds == kind] = np.arange((kinds == kind).sum())
    return np.argsort(seen, kind="stable")[:k]
