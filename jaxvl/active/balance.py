"""How common each answer is among the labels of its kind, and the factors that balance it (specification 6.4).

Shape legend: `K` kinds of answers, `C` answers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MODES = ("one_minus", "printed", "inverse", "sqrt_inverse", "effective", "none")
BETA = 0.999  # of "effective"


class Shares(NamedTuple):
    """`counts [K,C]` f64 of labelled questions of each kind with each hard label; `share [K,C]`, their rows over
    their sums.

    A kind without labels has shares 0.
    """

    counts: np.ndarray
    share: np.ndarray

    @classmethod
    def from_counts(cls, counts: np.ndarray) -> Shares:
        """Shares of these counts `[K,C]`."""
        counts = np.asarray(counts, np.float64)
        total = counts.sum(1, keepdims=True)
        return cls(counts, np.divide(counts, total, out=np.zeros_like(counts), where=total > 0))

    def rate(self, mode: str = "one_minus") -> np.ndarray:
        """Factors `[K,C]` in [0, 1].

        Args:
          mode: "one_minus" = 1 - share; "printed" = share, as the paper prints it; "inverse" = the even share of the
            answers that occur over the share, at most 1; "sqrt_inverse" = its root; "effective" = (1 - b)/(1 - b^n) of
            n labels, at least 1; "none" = 1.

        Raises:
          ValueError: unknown mode.
        """
        if mode not in MODES:
            raise ValueError(f"rate={mode!r}: expected one of {', '.join(MODES)}")
        share = self.share
        if mode == "one_minus":
            return 1 - share
        if mode == "printed":
            return share.copy()
        if mode == "none":
            return np.ones_like(share)
        if mode == "effective":
            return (1 - BETA) / (1 - BETA ** np.maximum(self.counts, 1))
        even = 1 / np.maximum((self.counts > 0).sum(1, keepdims=True), 1)
        inverse = np.minimum(1.0, np.divide(even, share, out=np.ones_like(share), where=share > 0))
        return inverse if mode == "inverse" else np.sqrt(inverse)


def spread(counts: np.ndarray) -> dict[str, float]:
    """How even counts `[C]` of answers are.

    Returns:
      `entropy`: over the log of the number of answers that occur, 1 = even (1 if there is one answer only); `gini`:
        over all C answers, 0 = even; `answers`: how many occur.
    """
    counts = np.asarray(counts, np.float64)
    there = counts[counts > 0]
    if not there.size:
        return {"entropy": 0.0, "gini": 0.0, "answers": 0}
    p = there / there.sum()
    entropy = float(-(p * np.log(p)).sum() / np.log(len(p))) if len(p) > 1 else 1.0
    rising, places = np.sort(counts), np.arange(1, len(counts) + 1)
    gini = float(((2 * places - len(counts) - 1) * rising).sum() / (len(counts) * counts.sum()))
    return {"entropy": entropy, "gini": gini, "answers": len(p)}


def summary(counts: np.ndarray, kinds: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """`spread` of the labels of each kind and of all, from counts `[K,C]`."""
    found = {kind: spread(row) for kind, row in zip(kinds, counts, strict=True)}
    return {"overall": spread(counts.sum(0)), **found}
