"""Shares of what a model of the whole pool reaches, and where on its dataset map the picks of methods lie.

NumPy and matplotlib only. Specification 9.3 and 9.4: the full-data accuracy is of the same harness, never a number of a
publication.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from jaxvl.active.folder import RESULT
from jaxvl.active.items import IMAGE, UNITS
from jaxvl.active.report.curves import dress, png
from jaxvl.active.report.dataset_map import CELLS, MAP, SURE, DatasetMap, Share, share
from jaxvl.active.report.page import note, picture, table
from jaxvl.active.report.statistics import OVERALL, Curves, RunRecord, band, estimate, reaches
from jaxvl.atomic import read_json
from jaxvl.plots import MUTED

SAME = (
    "pool",
    "variant",
    "answers",
    "seed",
    "data",
)  # parts of a protocol that runs and the model of the pool share
TARGETS = (0.9, 0.95)  # shares of the full-data accuracy that are asked for
COLOURS = {"easy": "#009e73", "ambiguous": "#e69f00", "hard": "#d55e00"}
POOL = "whole pool"
HOW = "Train it with python launch/al.py full WORKDIR, or config.active.full."
ABOUT_FULL = (
    "Accuracy over that of the same model trained on the whole pool, in the same harness and repeat. The last columns "
    "say which share of the pool a method needed for that much of it, straight lines between its rounds: n/a = not "
    "all repeats reach it, and nothing is extrapolated."
)
ABOUT_MAP = (
    "Over the epochs of the model of the whole pool, a question has a mean confidence (probability of its true answer, "
    "0 where the answer is no candidate) and a variability (its deviation). Ambiguous: the third of the pool with the "
    "largest variability. Of the others, easy: mean confidence above {sure:.0%}; hard: below. Picks are all items "
    "after the initial ones; means over repeats. A method that picks many hard questions may be chasing what cannot be "
    "learned."
)


def full_accuracy(runs: Sequence[RunRecord]) -> dict[int, float]:
    """repeat -> accuracy in percent of the model of the whole pool; of runs that came so far where there is none.

    Raises:
      ValueError: a stored one is of another protocol than its run; two of a repeat are of different models.
    """
    out: dict[int, float] = {}
    reached: dict[int, list[float]] = {}
    models: dict[int, str] = {}
    for run in runs:
        if run.full is not None:
            kept = read_json(run.full / RESULT)
            differ = [k for k, v in kept["protocol"].items() if run.protocol.get(k) != v]
            if differ:
                raise ValueError(
                    f"{run.full / RESULT} is of another protocol than {run.method}, repeat {run.repeat} "
                    f"({', '.join(differ)} differ): remove it, or train it again (al.py full)"
                )
            if models.setdefault(run.repeat, kept["model"]) != kept["model"]:
                raise ValueError(
                    f"{run.full / RESULT}: another model of the whole pool than that of another run of repeat "
                    f"{run.repeat}: compare runs of one workdir, or of equal configs"
                )
            out[run.repeat] = float(kept["acc"][OVERALL])
        elif run.rounds and run.rounds[-1]["fraction"] >= 1 and OVERALL in run.rounds[-1]["acc"]:
            reached.setdefault(run.repeat, []).append(float(run.rounds[-1]["acc"][OVERALL]))
    return {**{r: float(np.mean(v)) for r, v in reached.items()}, **out}


def ratios(found: Curves, full: Mapping[int, float]) -> dict[str, Any]:
    """The curves of the repeats that have a full-data accuracy, in percent of it."""
    return {
        method: {
            r: replace(c, accuracy={OVERALL: 100 * c.overall / full[r]}) for r, c in mine.items() if r in full
        }
        for method, mine in found.items()
    }


def ratio(found: Curves, full: Mapping[int, float], method: str) -> str:
    """The share of full-data accuracy at a method's last round, `92.8 %`; "n/a" where it is not known."""
    mine = ratios(found, full)[method]
    if not mine:
        return "n/a"
    value = estimate([c.overall[-1] for c in mine.values()]).mean
    return f"{value:.1f} %" + (
        "" if len(mine) == len(found[method]) else f", {len(mine)} of {len(found[method])} repeats"
    )


def full_parts(found: Curves, full: Mapping[int, float]) -> list[str]:
    """Shares of full-data accuracy at each labelled share, and what 90 and 95 % of it take."""
    if not full:
        return [note(f"n/a: no model of the whole pool. {HOW}")]
    parts = ratios(found, full)
    bands = {m: band(mine) for m, mine in parts.items() if mine}
    longest = max(bands.values(), key=lambda b: len(b.x), default=None)
    if longest is None:
        return [note(f"n/a: no repeat of these runs has a model of the whole pool. {HOW}")]
    rows = []
    for method, mine in parts.items():
        if not mine:
            rows.append([method, 0, *["n/a"] * (len(longest.x) + len(TARGETS))])
            continue
        one = bands[method]
        cells = [
            f"{m:.1f}" if np.isnan(high) else f"{m:.1f} ± {high - m:.1f}"
            for m, high in zip(one.mean, one.high, strict=True)
        ]
        cells += ["-"] * (len(longest.x) - len(cells))
        rows.append([method, len(mine), *cells, *(_needed(mine, 100 * t) for t in TARGETS)])
    head = ["method", "repeats", *(f"{100 * x:.3g} %" for x in longest.x)]
    known = ", ".join(f"{value:.2f} % in repeat {r}" for r, value in sorted(full.items()))
    first = note(f"Accuracy of the model of the whole pool: {known}.")
    return [first, table([*head, *(f"pool for {t:.0%}" for t in TARGETS)], rows), note(ABOUT_FULL)]


def _needed(mine: Mapping[int, Any], target: float) -> str:
    found = [reaches(c.fraction, c.overall, target) for c in mine.values()]
    known = [x for x in found if x is not None]
    if len(known) < len(found):
        return f"n/a, {len(known)} of {len(found)} repeats" if known else "n/a"
    return f"{100 * np.mean(known):.1f} %"


# ---- dataset map --------------------------------------------------------------------------------------------


def picked_shares(runs: Sequence[RunRecord]) -> dict[str, Share]:
    """The pool's and each method's `Share`, means over the repeats that have a map; empty without a map."""
    maps: dict[Any, DatasetMap] = {}
    found: dict[str, list[Share]] = {}
    for run in runs:
        if run.full is None or not (run.full / MAP).exists():
            continue
        if run.full not in maps:
            maps[run.full] = DatasetMap.load(run.full / MAP)
            every = np.ones(len(maps[run.full].image_id), bool)
            found.setdefault(POOL, []).append(share(maps[run.full], every))
        last = int(run.rounds[-1]["round"])
        unit = UNITS[run.protocol.get("unit", IMAGE.name)]
        mask = maps[run.full].of(set(run.labelled(last)) - set(run.labelled(0)), unit.key)
        if mask.any():
            found.setdefault(run.method, []).append(share(maps[run.full], mask))
    return {name: Share(tuple(np.mean([s.cells for s in all_], 0).tolist()),
                        float(np.mean([s.confidence for s in all_])),
                        float(np.mean([s.variability for s in all_]))) for name, all_ in found.items()}  # fmt: skip


def map_parts(runs: Sequence[RunRecord]) -> list[str]:
    """Where on the dataset map of the pool the picks of each method lie; nothing without a map."""
    shares = picked_shares(runs)
    if not shares:
        return []
    first = min((r for r in runs if r.full is not None and (r.full / MAP).exists()), key=lambda r: r.repeat)
    assert first.full is not None
    drawn = map_figure(DatasetMap.load(first.full / MAP), shares, repeat=first.repeat)
    rows = [
        [name, *(f"{100 * c:.1f} %" for c in s.cells), f"{s.confidence:.3f}", f"{s.variability:.3f}"]
        for name, s in shares.items()
    ]
    head = ("questions of", *CELLS, "mean confidence", "mean variability")
    return [picture(drawn, "dataset map"), table(head, rows), note(ABOUT_MAP.format(sure=SURE))]


def map_figure(found: DatasetMap, shares: Mapping[str, Share], *, repeat: int) -> bytes:
    """The PNG: the pool's questions by variability and confidence, with the cells; and the cells of what was picked."""
    figure = Figure(figsize=(13.5, max(4.4, 1.8 + 0.38 * len(shares))), dpi=100, facecolor="white")
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    widest = max(float(found.variability.max()), 1e-3)
    drawn = left.hexbin(
        found.variability, found.confidence, gridsize=36, extent=(0, widest, 0, 1), norm=LogNorm(vmin=0.4),
        cmap="Greys", mincnt=1, linewidths=0.2,
    )  # fmt: skip
    figure.colorbar(drawn, ax=left, label="questions", pad=0.02)
    left.axvline(found.limit, color=COLOURS["ambiguous"], lw=1.6)
    left.plot([0, found.limit], [SURE, SURE], color=COLOURS["hard"], lw=1.6)
    for name, x, y in (("easy", 0.02, 0.97), ("hard", 0.02, 0.03), ("ambiguous", 0.98, 0.97)):
        left.text(
            x, y, name, color=COLOURS[name], fontweight="bold", transform=left.transAxes,
            bbox=dict(facecolor="white", alpha=0.8, lw=0, pad=1.5),
            ha="right" if x > 0.5 else "left", va="top" if y > 0.5 else "bottom",
        )  # fmt: skip
    dress(left, f"Questions of the pool, repeat {repeat}", "variability")
    left.set_ylabel("mean confidence in the true answer", color=MUTED)
    names = list(shares)[::-1]
    start = np.zeros(len(names))
    for i, cell in enumerate(CELLS):
        width = np.array([100 * shares[n].cells[i] for n in names])
        right.barh(names, width, left=start, color=COLOURS[cell], label=cell, height=0.72)
        for y, (at, w) in enumerate(zip(start, width, strict=True)):
            if w >= 6:
                right.text(at + w / 2, y, f"{w:.0f}", ha="center", va="center", color="white", fontsize=9)
        start += width
    dress(right, "Cells of what was picked", "share of the questions, %")
    right.set_xlim(0, 100)
    right.grid(axis="y", visible=False)
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.05), ncols=3, frameon=False, fontsize=9)
    return png(figure)
