"""Learning curves of runs and what is said of them: intervals, areas, savings (specification 9.3, 9.4). NumPy only.

Shape legend: `P` points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.95
OVERALL = "overall"
AXES = ("fraction", "questions", "cost")  # what a curve is drawn over
REFERENCE = "random"


class RunRecord(Protocol):
    """What a report reads of a run: a method and a repeat (`jaxvl.active.folder.RunFolder` is one).

    `rounds` are the metrics of every round that was evaluated: `round`, `fraction`, `n_images`, `n_qas`, `n_answers`,
    `cost {total}` and `acc {overall, yes/no, ...}` in percent. `protocol` is what runs that are compared must agree on,
    `options` what repeats of a method must. `full` is the folder of the model of the whole pool of this repeat, if
    there is one.
    """

    @property
    def method(self) -> str: ...

    @property
    def repeat(self) -> int: ...

    @property
    def protocol(self) -> dict[str, Any]: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    @property
    def full(self) -> Path | None: ...

    @property
    def rounds(self) -> list[dict[str, Any]]: ...

    def labelled(self, round: int | None = None) -> list[int]:
        """Ids of images (or questions) with labels at the start of a round."""
        ...

    def selection(self, round: int) -> list[dict[str, Any]]:
        """Images that a round selected: `rank`, `image_id`, `score`, `contributors`, `reserve`."""
        ...

    def questions(self, round: int) -> list[dict[str, Any]]:
        """Question records that came in at the end of a round; round -1: those a run starts with."""
        ...

    def folder(self, round: int) -> Path:
        """The folder of a round; it may hold `evaluation.npz` and `scores.npz`."""
        ...

    def events(self, round: int) -> Mapping[str, Any]:
        """The phases of a round that are done; `.data` of each has `seconds`."""
        ...


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
        return f"{head} [{self.low:{plus}.{digits}f}, {self.high:{plus}.{digits}f}]"


@dataclass(frozen=True)
class Curve:
    """Accuracy of one run after each round; all arrays are `[P]` and in the order of the rounds.

    Attributes:
      fraction: share of the pool that has labels: of its images, or of its questions where these are chosen.
      questions, images, answers, cost: how many, and what they cost.
      accuracy: percent, by answer type and "overall"; NaN where a round has no such questions.
    """

    method: str
    repeat: int
    rounds: np.ndarray
    fraction: np.ndarray
    images: np.ndarray
    questions: np.ndarray
    answers: np.ndarray
    cost: np.ndarray
    accuracy: Mapping[str, np.ndarray]

    @property
    def overall(self) -> np.ndarray:
        """`[P]` percent over all questions."""
        return self.accuracy[OVERALL]

    def x(self, axis: str) -> np.ndarray:
        """`[P]` f64: one of `AXES`."""
        if axis not in AXES:
            raise ValueError(f"axis={axis!r}: expected one of {AXES}")
        return np.asarray(getattr(self, axis), np.float64)


class Span(NamedTuple):
    """An interval of the x axis."""

    low: float
    high: float


Curves = Mapping[str, Mapping[int, Curve]]  # method -> repeat -> curve


def curves(runs: Sequence[RunRecord]) -> dict[str, dict[int, Curve]]:
    """The curves of runs that have at least one evaluated round, by method and repeat.

    Raises:
      ValueError: two runs are of one method and repeat, or metrics lack a field; names run, round and field.
    """
    out: dict[str, dict[int, Curve]] = {}
    for run in runs:
        if run.rounds:
            mine = out.setdefault(run.method, {})
            if run.repeat in mine:
                raise ValueError(
                    f"{run.method}, repeat {run.repeat}: two runs of it were given; leave one out"
                )
            mine[run.repeat] = curve(run)
    return {
        method: dict(sorted(found.items()))
        for method, found in sorted(out.items(), key=lambda x: first(x[0]))
    }


def priced(found: Curves) -> bool:
    """Whether cost says something that the number of images does not: no common price of an image explains it."""
    prices = [c.cost / np.maximum(c.images, 1) for mine in found.values() for c in mine.values()]
    each = np.concatenate(prices) if prices else np.zeros(1)
    return bool(np.ptp(each) > 1e-9 * np.abs(each).max())


def first(method: str) -> tuple[bool, str]:
    """Sorts methods by name, the reference first."""
    return method != REFERENCE, method


def curve(run: RunRecord) -> Curve:
    """The curve of one run."""
    rows = run.rounds
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name in ("round", "fraction", "n_images", "n_qas", "n_answers", "cost", "acc"):
            if name not in row:
                raise ValueError(
                    f"{run.method}, repeat {run.repeat}, round {row.get('round', '?')}: its metrics have no {name!r}; "
                    "run the round again (al.py rollback)"
                )
            value = row[name]["total"] if name == "cost" else row[name]
            if name != "acc":
                columns.setdefault(name, []).append(value)
    kinds = [OVERALL, *sorted({k for row in rows for k in row["acc"]} - {OVERALL})]
    flat = {k: np.array([float(row["acc"].get(k, math.nan)) for row in rows]) for k in kinds}
    number = {name: np.array(values) for name, values in columns.items()}
    return Curve(
        run.method, run.repeat, number["round"].astype(int), number["fraction"].astype(float), number["n_images"],
        number["n_qas"], number["n_answers"], number["cost"].astype(float), flat,
    )  # fmt: skip


# ---- intervals ----------------------------------------------------------------------------------------------


def quantile(n: int, level: float = LEVEL) -> float:
    """The factor on the standard error in a two-sided t interval of `n` repeats (2.776 for 5 at 95 %)."""
    return float(stdtrit(n - 1, 0.5 + level / 2))


def estimate(values: Sequence[float] | np.ndarray, level: float = LEVEL) -> Estimate:
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


class Band(NamedTuple):
    """A mean curve over repeats: abscissae `x`, `mean`, `low`, `high` (NaN for fewer than two) and `n`, all `[P]`."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray


def band(found: Mapping[int, Curve], *, axis: str = "fraction", kind: str = OVERALL) -> Band:
    """Mean and 95 % t interval of a method's repeats, round by round.

    Repeats that have not come so far, or have no questions of that kind, do not count at a point.
    """
    last = max(int(c.rounds[-1]) for c in found.values())
    rows = []
    for number in range(last + 1):
        points = [
            (c.x(axis)[i], c.accuracy[kind][i])
            for c in found.values()
            if kind in c.accuracy
            for i in np.flatnonzero(c.rounds == number)
            if np.isfinite(c.accuracy[kind][i])
        ]
        if points:
            x, y = np.array(points, np.float64).T
            one = estimate(y)
            bounds = (math.nan, math.nan) if one.low is None or one.high is None else (one.low, one.high)
            rows.append((x.mean(), one.mean, *bounds, one.n))
    return Band(*np.array(rows, np.float64).reshape(-1, 5).T)


# ---- areas --------------------------------------------------------------------------------------------------


def span(found: Curves, axis: str = "fraction") -> Span | None:
    """The interval that all curves with two points or more have in common; None if there is none."""
    long = [c for mine in found.values() for c in mine.values() if len(c.rounds) > 1]
    if not long:
        return None
    low, high = max(float(c.x(axis)[0]) for c in long), min(float(c.x(axis)[-1]) for c in long)
    return Span(low, high) if high > low else None


def aulc(x: np.ndarray, y: np.ndarray, within: Span | None = None) -> float:
    """Mean height of a curve: the area under its straight lines over the width (specification 9.4).

    Args:
      x: ascending abscissae `[P]`, at least two.
      y: heights `[P]`.
      within: the part that counts; its ends are interpolated. Default: all of it.

    Raises:
      ValueError: `x` does not ascend, has one point, or does not cover `within`.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 2 or (np.diff(x) <= 0).any():
        raise ValueError(f"an area needs ascending abscissae, at least two: {x.tolist()}")
    low, high = within if within is not None else (float(x[0]), float(x[-1]))
    if low < x[0] - 1e-12 or high > x[-1] + 1e-12 or high <= low:
        raise ValueError(f"a curve from {x[0]:g} to {x[-1]:g} has no area from {low:g} to {high:g}")
    inner = (x > low) & (x < high)
    grid = np.concatenate([[low], x[inner], [high]])
    return float(np.trapezoid(np.interp(grid, x, y), grid) / (high - low))


def areas(found: Curves, *, axis: str = "fraction", kind: str = OVERALL) -> dict[str, dict[int, float]]:
    """`{method: {repeat: area}}` over the common interval, of the curves with two points or more.

    Of rounds that stand at one abscissa (images can come without questions, and cost nothing) the last one counts.
    """
    within = span(found, axis)
    if within is None:
        return {}
    out: dict[str, dict[int, float]] = {}
    for method, mine in found.items():
        for repeat, c in mine.items():
            if len(c.rounds) > 1 and kind in c.accuracy and np.isfinite(c.accuracy[kind]).all():
                x = c.x(axis)
                last = np.append(np.diff(x) > 0, True)
                out.setdefault(method, {})[repeat] = aulc(x[last], c.accuracy[kind][last], within)
    return out


def reaches(x: np.ndarray, y: np.ndarray, target: float) -> float | None:
    """The first abscissa at which the straight lines of a curve are at `target` or above; None if they never are."""
    above = np.flatnonzero(np.asarray(y) >= target)
    if not len(above):
        return None
    i = int(above[0])
    if i == 0:
        return float(x[0])
    share = (target - y[i - 1]) / (y[i] - y[i - 1])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


def saving(mine: Curve, reference: Curve, *, axis: str = "fraction") -> float | None:
    """Share of labels that a method saves: `1 - t / t_ref` at the accuracy that the reference ends with.

    Negative where it needs more. None where the method does not reach it within its own curve: nothing is extrapolated.
    """
    target = float(reference.overall[-1])
    t, t_ref = (
        reaches(mine.x(axis), mine.overall, target),
        reaches(reference.x(axis), reference.overall, target),
    )
    return None if t is None or t_ref is None else 1 - t / t_ref


def average_gain(found: Curves, method: str) -> float | None:
    """Mean over the rounds after the first of (the method's mean accuracy - the best other one); None without others.

    Only rounds that all methods have reached count.
    """
    means = {name: dict(_means(mine)) for name, mine in found.items()}
    shared = set.intersection(*(set(m) for m in means.values())) - {0}
    if len(means) < 2 or not shared:
        return None
    gains = [means[method][r] - max(m[r] for name, m in means.items() if name != method) for r in shared]
    return float(np.mean(gains))


def _means(mine: Mapping[int, Curve]) -> list[tuple[int, float]]:
    values: dict[int, list[float]] = {}
    for c in mine.values():
        for number, accuracy in zip(c.rounds.tolist(), c.overall.tolist(), strict=True):
            if math.isfinite(accuracy):
                values.setdefault(number, []).append(accuracy)
    return [(number, float(np.mean(v))) for number, v in values.items()]
