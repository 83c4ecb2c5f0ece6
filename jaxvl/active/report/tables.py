"""The tables of the page that compare methods, as HTML, each with what to make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvl.active.report.comparison import Bootstrap, Paired, against, penalties, round_differences, sign_test
from jaxvl.active.report.forecast import forecast, next_steps
from jaxvl.active.report.full import ratio
from jaxvl.active.report.page import note, table
from jaxvl.active.report.statistics import (
    OVERALL,
    REFERENCE,
    Curve,
    Curves,
    areas,
    average_gain,
    estimate,
    priced,
    saving,
    span,
)

ABOUT_TESTS = (
    "Paired by repeat: equal repeats start from the same images. The verdict goes by the t test after Holm's "
    "correction over {methods} methods.{limit} The sign test takes (repeat, round) as independent, which rounds of a "
    "repeat are not: too optimistic, a check only. Labels saved: 1 - t/t(random) at the accuracy that random ends "
    "with; n/a = not all repeats reach it, which a mean over those that do would hide, and nothing is extrapolated."
)
ABOUT_PENALTIES = (
    "Share of rounds, after the first, in which the row's method is above the column's by a paired t test at 95 % "
    "over repeats, without a correction for the number of tests. The last row is the mean of each column."
)
ABOUT_BOOTSTRAP = (
    "95 % percentiles over {resamples:,} draws of the {images:,} evaluation images, with all their questions; all "
    "methods on the same draw, repeats averaged. How much the choice of questions matters; not the spread over repeats."
)
ABOUT_FORECAST = (
    "a - b n^-c, fitted to each repeat. The interval is over repeats; it does not cover that curves may bend "
    "otherwise, and does not know what is left in the pool."
)


def accuracy_table(found: Curves) -> str:
    """Accuracy of each method at each labelled share."""
    longest = max((c for mine in found.values() for c in mine.values()), key=lambda c: len(c.rounds))
    rows = []
    for method, mine in found.items():
        cells = [_accuracy(list(mine.values()), int(number)) for number in longest.rounds]
        rows.append([method, len(mine), *cells])
    text = (
        "Percent, mean over repeats \u00b1 half of its 95 % t interval, at each labelled share of the pool."
    )
    return table(["method", "repeats", *(f"{100 * x:.3g} %" for x in longest.fraction)], rows) + note(text)


def _accuracy(repeats: Sequence[Curve], number: int) -> str:
    """The cell of a round: "-" if no repeat has come so far, "n/a" if none has a score of it yet."""
    values = np.concatenate([c.overall[c.rounds == number] for c in repeats])
    known = values[np.isfinite(values)]
    if not len(known):
        return "n/a" if len(values) else "-"
    one = estimate(known)
    return f"{one.mean:.2f}" if one.high is None else f"{one.mean:.2f} \u00b1 {one.high - one.mean:.2f}"


def area_tables(found: Curves, full: Mapping[int, float]) -> list[str]:
    """Area under the curve over the labelled share, over questions, over cost if it says more, and by answer type."""
    within, asked = span(found), span(found, "questions")
    if within is None:
        return [note("Areas need two rounds.")]
    over = {"images": areas(found), "questions": areas(found, axis="questions")}
    if costs := priced(found):
        over["cost"] = areas(found, axis="cost")
    kinds = sorted({k for mine in found.values() for c in mine.values() for k in c.accuracy} - {OVERALL})
    over |= {kind: areas(found, kind=kind) for kind in kinds}
    rows = []
    for method in found:
        cells = [estimate(list(a[method].values())).text() if method in a else "-" for a in over.values()]
        gain = average_gain(found, method)
        rows.append([method, *cells, "n/a" if gain is None else f"{gain:+.2f}", ratio(found, full, method)])
    head = ["method", "over the pool", "over questions", *(["over cost"] if costs else [])]
    head += [f"{k}, over the pool" for k in kinds]
    reach = f"Mean height of the curve from {100 * within.low:.3g} to {100 * within.high:.3g} % of the pool"
    reach += f", and from {asked.low:,.0f} to {asked.high:,.0f} questions" if asked is not None else ""
    text = (
        f"{reach}: what all runs have reached. The gain is the mean over rounds of the difference to the best other "
        "method. Full-data accuracy is that of a model of the whole pool in the same harness, else n/a."
    )
    return [table([*head, "gain on the best other", "share of full-data accuracy"], rows), note(text)]


def reference_tables(found: Curves) -> list[str]:
    """Tests of every method against random selection."""
    compared = against(found)
    if not compared:
        return []
    rows = [_reference_row(found, m, p) for m, p in compared.items()]
    head = (
        "method", "repeats", f"area minus {REFERENCE}'s", "p (paired t)", "p (Holm)", "p (Wilcoxon)", "p (signs)",
        "labels saved", "verdict",
    )  # fmt: skip
    most = max(p.difference.n for p in compared.values())
    least = 2 / 2**most
    limit = f" With {most} repeats the exact Wilcoxon test cannot go below {least:.3g}" if most > 1 else ""
    limit += (
        ", so nothing is called significant by it." if most > 1 and least > 0.05 else "." if limit else ""
    )
    return [table(head, rows), note(ABOUT_TESTS.format(methods=len(compared), limit=limit))]


def _reference_row(found: Curves, method: str, paired: Paired) -> list[Any]:
    base = found[REFERENCE]
    saved = [saving(c, base[r]) for r, c in found[method].items() if r in base]
    known = [s for s in saved if s is not None]
    share = (
        f"{100 * np.mean(known):+.0f} %"
        if len(known) == len(saved)
        else f"n/a, {len(known)} of {len(saved)} repeats"
    )
    signs = sign_test(round_differences(found, method, REFERENCE), np.random.default_rng(0))
    enough = paired.difference.n > 1
    p = [paired.p, paired.p_holm, paired.p_wilcoxon if enough else None, signs if enough else None]
    cells = ["-" if x is None else f"{x:.3f}" if x >= 0.001 else "< 0.001" for x in p]
    return [method, paired.difference.n, paired.difference.text(sign=True), *cells, share, paired.verdict]


def penalty_table(found: Curves) -> str:
    """The pairwise matrix; empty without two methods of two common repeats."""
    names, share = penalties(found)
    if np.isnan(share).all():
        return ""
    cells = [
        [n, *("" if i == j else _percent(share[i, j]) for j in range(len(names)))]
        for i, n in enumerate(names)
    ]
    beaten = [_percent(np.nanmean(c)) if not np.isnan(c).all() else "-" for c in share.T]
    return table(["wins over", *names], [*cells, ["is beaten", *beaten]]) + note(ABOUT_PENALTIES)


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.0f} %"


def bootstrap_table(found: Bootstrap | None) -> str:
    """Differences to random over resampled evaluation images."""
    if found is None or not found.difference:
        return ""
    rows = [[m, found.difference[m].text(sign=True)] for m in sorted(found.difference)]
    text = ABOUT_BOOTSTRAP.format(resamples=found.resamples, images=found.images)
    return table(["method", f"minus {REFERENCE}, round {found.round}"], rows) + note(text)


def forecast_table(found: Curves) -> str:
    """Expected accuracy of the next rounds; empty where curves are short or the pool is spent."""
    steps = next_steps([c for mine in found.values() for c in mine.values()])
    rows = []
    for method, mine in found.items():
        ahead = forecast(mine, steps=steps) if steps else None
        if ahead is not None:
            rows.append([method, *(e.text() for e in ahead)])
    head = ["method", *(f"{100 * s:.3g} %" for s in steps)]
    return table(head, rows) + note(ABOUT_FORECAST) if rows else ""
