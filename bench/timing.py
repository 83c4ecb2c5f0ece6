"""Timing that compares: contenders take turns, a round gives one ratio, and the median of rounds has an interval.

Load on the machine, clock and temperature drift over seconds; within a round they are nearly the same for all
contenders, so ratios of one round are steadier than times. Every other round runs in reverse order, so that
being first or second favours nobody.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Interval:
    """A median with the bounds of its bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray]:
    """Run each contender once a round: A B, B A, A B, ...

    Args:
      contenders: functions that return only after their work is done.
      rounds: measured rounds.
      warmup: rounds before them that do not count.
      clock: in seconds.

    Returns:
      `{name: seconds [rounds]}`.

    Raises:
      ValueError: fewer than one round.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: expected at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(-warmup, rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            start = clock()
            contenders[name]()
            if turn >= 0:
                seconds[name].append(clock() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def median_ratio(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Median over rounds of `numerator / denominator`, with a percentile bootstrap interval over rounds.

    Args:
      numerator: seconds of each round.
      denominator: seconds of the same rounds.
      level: coverage of the interval, in (0, 1).
      resamples: bootstrap samples.
      seed: of the resampling.

    Raises:
      ValueError: the rounds do not match.
    """
    if numerator.shape != denominator.shape or numerator.ndim != 1 or not len(numerator):
        raise ValueError(f"rounds of shapes {numerator.shape} and {denominator.shape} cannot be paired")
    ratios = numerator / denominator
    draws = np.random.default_rng(seed).integers(0, len(ratios), (resamples, len(ratios)))
    tail = 50 * (1 - level)
    low, high = np.percentile(np.median(ratios[draws], axis=1), [tail, 100 - tail])
    return Interval(float(np.median(ratios)), float(low), float(high))


def memory_gib(field: str = "VmHWM") -> float:
    """Memory of this process in GiB as Linux reports it: `VmHWM` the peak so far, `VmRSS` now."""
    with open("/proc/self/status", encoding="ascii") as file:
        kib = next(int(line.split()[1]) for line in file if line.startswith(field + ":"))
    return kib / 2**20
