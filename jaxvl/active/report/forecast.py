"""Where a curve goes: `a - b n^-c` fitted to each repeat, and what it says of the next rounds (specification 11.3).

Shape legend: `P` points of a curve, `G` exponents that are tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxvl.active.report.statistics import Curve, Estimate, estimate

EXPONENTS = np.geomspace(0.02, 4.0, 200)
LEAST = 4  # points that three parameters need at least


class Power(NamedTuple):
    """`a - b n^-c`, with `b >= 0`; `n` is relative to `scale`, the first abscissa."""

    a: float
    b: float
    c: float
    scale: float

    def __call__(self, x: float) -> float:
        """The height at an abscissa, at most 100."""
        return float(min(100.0, self.a - self.b * (x / self.scale) ** -self.c))


def fit(x: np.ndarray, y: np.ndarray) -> Power | None:
    """Least squares over a grid of exponents; None below four points.

    A curve that falls, and so has no such form, becomes its mean (`b = 0`).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < LEAST:
        return None
    z_gp = (x / x[0])[None] ** -EXPONENTS[:, None]
    z = z_gp - z_gp.mean(1, keepdims=True)
    b_g = np.maximum(0.0, -(z @ (y - y.mean())) / (z**2).sum(1))
    a_g = y.mean() + b_g * z_gp.mean(1)
    error = ((a_g[:, None] - b_g[:, None] * z_gp - y) ** 2).sum(1)
    i = int(error.argmin())
    return Power(float(a_g[i]), float(b_g[i]), float(EXPONENTS[i]), float(x[0]))


def forecast(found: Mapping[int, Curve], *, steps: Sequence[float]) -> list[Estimate] | None:
    """Expected accuracy at the next abscissae.

    Args:
      found: the repeats of one method.
      steps: labelled shares.

    Returns:
      An estimate for each step: the mean over the fits of the repeats, with a t interval over them. It does not know
      that the curve may bend otherwise. None if no repeat has four rounds.
    """
    known_at = {repeat: np.isfinite(c.overall) for repeat, c in found.items()}
    fits = [fit(c.fraction[known_at[r]], c.overall[known_at[r]]) for r, c in found.items()]
    known = [f for f in fits if f is not None]
    return [estimate([f(x) for f in known]) for x in steps] if known else None


def next_steps(found: Sequence[Curve], count: int = 3) -> list[float]:
    """The next labelled shares, in the steps of the last two rounds, as far as there are images; empty if unknown."""
    longest = max(found, key=lambda c: len(c.rounds))
    if len(longest.rounds) < 2:
        return []
    last, step = longest.fraction[-1], longest.fraction[-1] - longest.fraction[-2]
    return [float(last + k * step) for k in range(1, count + 1) if last + k * step <= 1 + 1e-9]
