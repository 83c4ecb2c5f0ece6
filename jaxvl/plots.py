"""Curves of a run, a panel for each group of metrics, and where a model looks: each as one PNG."""

from __future__ import annotations

import fnmatch
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, PercentFormatter

GROUPS: Mapping[str, tuple[str, ...]] = {  # panel -> patterns of metric names; the first match counts
    "evaluation": ("*/*",),
    "learning rate": ("lr", "*learning_rate*"),
    "examples per second": ("*examples_per_s*",),
    "share of time waiting for data": ("*data_wait*",),
    "accuracy": ("*accuracy*", "*recall*", "*r1", "*r5", "*r10", "*r_mean", "*vqa*"),
    "gradient norm": ("*grad_norm*",),
    "temperature, distillation weight": ("*temperature*", "*alpha*"),
    "divergence of attention": ("*_attn_*", "attn_*"),
    "entropy of attention, nats": ("entropy_*",),
    "losses": ("*",),
}
ORDER = (
    "losses",
    "accuracy",
    "evaluation",
    "learning rate",
    "examples per second",
)  # the other panels follow
FROM_ZERO = ("examples per second", "share of time waiting for data", "gradient norm")
INK, MUTED, GRID = "#222222", "#666666", "#e6e6e6"
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f7f7f",
    "#000000",
)  # colour-blind safe


def curves(rows: Sequence[Mapping[str, float]], *, path: str | os.PathLike[str]) -> None:
    """Draw all metrics of `rows` over their `step`.

    Args:
      rows: objects with `step` and any metrics; a metric may be absent from any row. Scores of evaluators
        (names with a slash) are drawn from their second value on: one alone is a table's business.
      path: the PNG; a reader sees the old file or the new one.

    Raises:
      ValueError: no row has a metric.
    """
    counts = Counter(name for row in rows for name in row if name != "step")
    panels = grouped({name for name, n in counts.items() if n > 1 or "/" not in name})
    if not panels:
        raise ValueError(f"{path}: no metrics to draw")
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    engine = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    figure = Figure(figsize=(6.4 * columns, 3.5 * lines + 0.3), dpi=110, facecolor="white", layout=engine)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        _panel(axis, title, names, rows)
    for axis in axes[len(panels) :]:
        axis.remove()
    _save(figure, path)


def attention(
    tokens: Sequence[str], maps: np.ndarray, pictures: np.ndarray, *, path: str | os.PathLike[str]
) -> None:
    """Draw where each token looks: each picture first, then a panel for each token, with what patches get.

    All panels have one scale, from no attention (dark) to the largest there is (clear). The percentage is of what the
    token gives the image; the rest goes to the image's class token.

    Args:
      tokens: `M` of them.
      maps: `[I,M,G,G]`, not negative.
      pictures: `[I,S,S,3]` in [0, 1].
      path: the PNG; a reader sees the old file or the new one.
    """
    panels = 1 + len(tokens)
    columns = min(8, panels)
    each = -(-panels // columns)  # lines of a picture
    figure = Figure(
        figsize=(1.6 * columns, 2.1 * each * len(maps)),
        dpi=120,
        facecolor="white",
        layout=ConstrainedLayoutEngine(),
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(each * len(maps), columns, squeeze=False).reshape(len(maps), -1)
    most = max(float(maps.max()), 1e-12)
    for row, looks, picture in zip(axes, maps, pictures, strict=True):
        row[0].set_title("picture", fontsize=9, color=MUTED)
        row[0].imshow(picture, extent=(0, 1, 0, 1))
        for axis, token, look in zip(row[1:], tokens, looks, strict=False):
            axis.imshow(picture, extent=(0, 1, 0, 1))
            veil = np.zeros((*look.shape, 4))  # black, the more opaque the less is looked at
            veil[..., 3] = 0.85 * (1 - look / most)
            axis.imshow(veil, extent=(0, 1, 0, 1), interpolation="nearest")
            axis.set_title(f"{token}\n{100 * look.sum():.0f} %", fontsize=9, color=INK, parse_math=False)
        for axis in row:
            axis.set_axis_off()
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def grouped(names: set[str]) -> dict[str, list[str]]:
    """`{panel: metric names}` in the order of the page; names are sorted, totals (`loss`) first."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda n: (n.rsplit("/", 1)[-1] != "loss", n)):
        title = next(t for t, patterns in GROUPS.items() if any(fnmatch.fnmatch(name, p) for p in patterns))
        found.setdefault(title, []).append(name)
    order = [*ORDER, *(t for t in GROUPS if t not in ORDER)]
    return {title: found[title] for title in order if title in found}


def _panel(axis: Axes, title: str, names: Sequence[str], rows: Sequence[Mapping[str, float]]) -> None:
    for i, name in enumerate(names):
        points = np.array([(row["step"], row[name]) for row in rows if name in row], np.float64)
        few = "o" if len(points) <= 30 else ""
        style = "-" if i < len(COLOURS) else "--"
        axis.plot(
            *points.T,
            style,
            marker=few,
            markersize=3.5,
            lw=1.6,
            color=COLOURS[i % len(COLOURS)],
            label=name,
            clip_on=False,
        )
    dress(axis, title, "step", integer=True)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.legend(frameon=False, fontsize=8.5, ncols=2 if len(names) > 5 else 1)
    if title in FROM_ZERO:
        axis.set_ylim(bottom=0)
    if title == "learning rate":
        axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.1e}" if v else "0"))
    if title.startswith("share"):
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def dress(axis: Axes, title: str, label: str, *, integer: bool = False) -> None:
    """Title, grid, ticks and spines of a panel; `label` is that of its x axis, `integer` whether its ticks are."""
    axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axis.set_xlabel(label, color=MUTED)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=integer))
    axis.grid(color=GRID, lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=MUTED, labelsize=9)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color("#bbbbbb")
