"""A report over runs of active learning: curves, statistics, and what was picked. NumPy and matplotlib only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxvl.active.report import html, statistics
from jaxvl.active.report.checks import require_comparable
from jaxvl.active.report.comparison import bootstrap
from jaxvl.active.report.curves import figure, points_csv
from jaxvl.active.report.full import full_accuracy
from jaxvl.active.report.picked import picks_of
from jaxvl.active.report.pictures import Pictures
from jaxvl.active.report.statistics import RunRecord
from jaxvl.atomic import write_file

PAGE, FIGURE, POINTS = "report.html", "curves.png", "curves.csv"

__all__ = ["RunRecord", "report"]


def report(runs: Sequence[RunRecord], folder: Path, *, images: Pictures | None = None) -> Path:
    """Write `curves.png`, `curves.csv` and `report.html` over runs; the page's path.

    Args:
      runs: of one protocol; those without an evaluated round are left out.
      images: picture of an image id, for the picked images that are shown.

    Raises:
      ValueError: no run has an evaluated round; or runs differ in pool, initial images, evaluation or proposer.
    """
    some = sorted(
        (run for run in runs if run.rounds), key=lambda run: (*statistics.first(run.method), run.repeat)
    )
    if not some:
        raise ValueError("no run has been evaluated yet: a report needs at least one round (launch/main.py)")
    require_comparable(some)
    found, full = statistics.curves(some), full_accuracy(some)
    png = figure(found)
    table = points_csv(found)
    drawn = bootstrap(some, rng=np.random.default_rng(0))
    page = html.page(html.Content(some, found, [picks_of(run) for run in some], drawn, png, images, full))
    write_file(folder / FIGURE, lambda path: path.write_bytes(png))
    write_file(folder / POINTS, lambda path: path.write_text(table, encoding="utf-8"))
    write_file(folder / PAGE, lambda path: path.write_text(page, encoding="utf-8"))
    return folder / PAGE
