"""Curves of runs: a PNG, and all points as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, FuncFormatter

from jaxvl import plots
from jaxvl.active.report.comparison import against
from jaxvl.active.report.statistics import OVERALL, REFERENCE, Curves, Estimate, areas, band, estimate, priced
from jaxvl.plots import COLOURS, MUTED

BANDS = 4  # so many methods or fewer are drawn with the intervals of their curves
MARKS = "osD^vP*X"
DASHES = ("-", ":", "-.", "--")
LABELS = {
    "fraction": "labelled share of the pool",
    "questions": "labelled questions",
    "cost": "cost of labelling",
}
Style = Mapping[str, Any]


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """How each method is drawn: the reference grey and dashed, others by colour, then by mark."""
    out: dict[str, Style] = {}
    others = [m for m in methods if m != REFERENCE]
    colours = [c for c in COLOURS if c not in ("#7f7f7f", "#000000")]
    for i, method in enumerate(others):
        again = i // len(colours)
        out[method] = {
            "color": colours[i % len(colours)], "marker": MARKS[i % len(MARKS)], "ls": DASHES[again % len(DASHES)],
        }  # fmt: skip
    if REFERENCE in methods:
        out[REFERENCE] = {"color": "#555555", "marker": "o", "ls": "--", "markerfacecolor": "white"}
    return {m: out[m] for m in methods}


def figure(found: Curves) -> bytes:
    """The PNG: accuracy over images and over questions, areas against the reference, and each answer type.

    A panel over the cost of labelling is added where that is not a fixed price of an image.
    Where there are more than two rounds, curves begin after the first, at which all methods are equal (specification
    9.4).
    """
    style = styles(list(found))
    kinds = sorted({k for mine in found.values() for c in mine.values() for k in c.accuracy} - {OVERALL})[:3]
    columns = 4 if priced(found) else 3
    figure = Figure(figsize=(5.5 * columns, 9.6 if kinds else 5.2), dpi=100, facecolor="white")
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.14))
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if kinds else 1, columns, squeeze=False)
    _lines(axes[0][0], found, style, title="All questions")
    _lines(axes[0][1], found, style, over="questions", title="All questions, over what was asked")
    if columns == 4:
        _lines(axes[0][2], found, style, over="cost", title="All questions, over what labels cost")
    _forest(axes[0][-1], found, style)
    for axis, kind in zip(axes[1] if kinds else (), kinds, strict=False):
        _lines(axis, found, style, kind=kind, title=f"Answers: {kind}")
    for axis in list(axes[1])[len(kinds) :] if kinds else ():
        axis.remove()
    handles, names = axes[0][0].get_legend_handles_labels()
    if handles:  # no curve has a point as long as EvalAI has not said anything
        figure.legend(
            handles, names, loc="outside lower center", ncols=min(10, len(names)), frameon=False, fontsize=10
        )
    return png(figure)


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _lines(
    axis: Axes,
    found: Curves,
    style: Mapping[str, Style],
    *,
    over: str = "fraction",
    kind: str = OVERALL,
    title: str,
) -> None:
    for method, mine in found.items():
        one = band(mine, axis=over, kind=kind)
        if not len(one.x):
            continue
        first = 1 if len(one.x) > 2 else 0
        few = len(one.x) <= 30
        axis.plot(
            one.x[first:],
            one.mean[first:],
            lw=1.7,
            markersize=4.5 if few else 0,
            label=method,
            clip_on=False,
            **style[method],
        )
        if len(found) <= BANDS:
            axis.fill_between(
                one.x[first:],
                one.low[first:],
                one.high[first:],
                color=style[method]["color"],
                alpha=0.13,
                lw=0,
            )
    dress(axis, title, over)
    axis.set_ylabel("accuracy, %", color=MUTED)


def dress(axis: Axes, title: str, x: str) -> None:
    """Title, grid and formats of a panel over one of `AXES`, or over "round"."""
    plots.dress(axis, title, LABELS.get(x, x), integer=x == "round")
    if x == "fraction":
        axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.3g}%"))
    elif x in ("questions", "cost"):
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def _forest(axis: Axes, found: Curves, style: Mapping[str, Style]) -> None:
    """Areas under the curves with their intervals: above the reference's if there is one."""
    compared: dict[str, Estimate] = {m: p.difference for m, p in against(found).items()}
    title, label = f"Area under the curve, minus that of {REFERENCE}", "points of accuracy, 95 % interval"
    if not compared:
        compared = {m: estimate(list(mine.values())) for m, mine in areas(found).items()}
        title, label = "Area under the curve", "mean accuracy, %, 95 % interval"
    order = sorted(compared, key=lambda m: compared[m].mean)
    for y, method in enumerate(order):
        one, look = compared[method], style[method]
        if one.low is not None and one.high is not None:
            axis.plot([one.low, one.high], [y, y], color=look["color"], lw=2.2, solid_capstyle="round")
        axis.plot([one.mean], [y], marker=look["marker"], markersize=7, color=look["color"], ls="")
    if title.endswith(REFERENCE):
        axis.axvline(0, color="#999999", lw=1, ls="--", zorder=0)
    dress(axis, title, label)
    axis.set_yticks(range(len(order)), order)
    axis.set_ylim(-0.7, max(1, len(order)) - 0.3)
    axis.grid(axis="y", visible=False)
    if not order:
        axis.text(
            0.5,
            0.5,
            "after the second round",
            ha="center",
            va="center",
            color=MUTED,
            transform=axis.transAxes,
        )
        axis.set_xticks([])


def balance_figure(rows: Mapping[str, Mapping[str, np.ndarray]], panels: Mapping[str, str]) -> bytes:
    """What was picked, over rounds.

    Args:
      rows: method -> quantity -> `[P]` means over repeats, the first for the initial images.
      panels: quantity -> title.
    """
    style = styles(list(rows))
    figure = Figure(figsize=(16.5, 4.6), dpi=100, facecolor="white")
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for method, columns in rows.items():
            values = columns[name]
            axis.plot(
                np.arange(len(values)),
                values,
                lw=1.7,
                markersize=4.5,
                label=method,
                clip_on=False,
                **style[method],
            )
        dress(axis, title, "round")
        if name == "per_image":
            axis.set_ylim(bottom=0)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=min(10, len(names)), frameon=False, fontsize=10
    )
    return png(figure)


def points_csv(found: Curves) -> str:
    """A line for each run and round: what it had labels for, and its accuracy by answer type."""
    kinds = sorted({k for mine in found.values() for c in mine.values() for k in c.accuracy} - {OVERALL})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    numbers = ("fraction", "images", "questions", "answers", "cost")
    writer.writerow(("method", "repeat", "round", *numbers, *(f"accuracy {k}" for k in (OVERALL, *kinds))))
    for method, mine in found.items():
        for repeat, c in mine.items():
            for i, number in enumerate(c.rounds.tolist()):
                acc = [c.accuracy[k][i] if k in c.accuracy else np.nan for k in (OVERALL, *kinds)]
                cells = ["" if not np.isfinite(a) else f"{a:.4f}" for a in acc]
                writer.writerow(
                    (method, repeat, number, *(f"{getattr(c, n)[i]:.10g}" for n in numbers), *cells)
                )
    return out.getvalue()
