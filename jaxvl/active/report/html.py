"""The page over runs: curves, what may be said of them, what was picked and why. One file that needs nothing else."""

from __future__ import annotations

import hashlib
import html
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active.report import labelling
from jaxvl.active.report import picked as picks
from jaxvl.active.report.checks import cautions, warnings
from jaxvl.active.report.comparison import Bootstrap
from jaxvl.active.report.curves import balance_figure
from jaxvl.active.report.full import full_parts, map_parts
from jaxvl.active.report.matchers import (
    ANSWER_COLUMNS,
    COLUMNS,
    approximate_lines,
    matcher_rows,
    matcher_warnings,
)
from jaxvl.active.report.page import document, note, picture, section, table
from jaxvl.active.report.pictures import Pictures, encode, thumbnail
from jaxvl.active.report.reasons import REASONS, why
from jaxvl.active.report.statistics import REFERENCE, Curves, RunRecord
from jaxvl.active.report.tables import (
    accuracy_table,
    area_tables,
    bootstrap_table,
    forecast_table,
    penalty_table,
    reference_tables,
)

TOP = 6  # picked images that are shown for a method
ABOUT_CURVES = (
    "Means over repeats. All methods of a repeat start from the same labels, so the curves begin after the first "
    "round, where there are more than two; curves.csv has every point, by answer type too."
)
ABOUT_BALANCE = (
    "Round 0 is the initial set. Entropy is over the log of how many answers occur, 1 = all equally often; Gini is "
    "over all answers that any run has labels of, 0 = all equally often."
)
ABOUT_OVERLAP = (
    "Of what two methods picked in the same round of the same repeat; on the diagonal, of a method's own repeats, "
    "which start from different images: how stable it is."
)
ABOUT_MATCHERS = (
    "Means over rounds and repeats, of held-out images: true pairs against pairs that a shuffle made. With another "
    "image's features in each pair only the question can tell; without a gap, a match carries no visual evidence. "
    "The match rate is that of random pairs."
)
ABOUT_TIME = (
    "Means over rounds and repeats. Models that were kept from another run are left out; - = all of them were, or "
    "the method needs none. Selection is from trained models to image ids, the first round with compilation."
)
ABOUT_SPREAD = (
    "New: labels of a round after the initial one, mean over rounds; all: at the end of a run; both are means over "
    "repeats. Gini runs over the answers of the type that any run has labels of."
)
SPREAD = ("method", "answer type", "new: entropy", "new: Gini", "all: entropy", "all: Gini")
ABOUT_ANSWER_MODELS = (
    "Means over rounds and repeats, of questions of held-out images. Accuracy is not the official one, but how often "
    "the likeliest answer is the consensus. Calibrated: all logits over a temperature that the other half of images "
    "chose."
)
NEWEST = {
    "images": ("images", ",.0f"), "questions": ("questions", ",.0f"), "per_image": ("questions of an image", ".2f"),
    "answer_entropy": ("entropy of answers", ".2f"),
}  # fmt: skip
PHASES = ("task model", "evaluation", "sampler models", "selection")
STYLE = """
.picks { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 14px; }
.pick { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.pick img { width: 96px; height: 96px; object-fit: contain; float: right; margin: 0 0 6px 10px; border-radius: 6px; }
.pick h4 { margin: 0 0 4px; font-size: 14px; }
.pick .why { clear: both; }
.pick .facts { min-height: 20px; }
"""


class Content(NamedTuple):
    """What a page is made of."""

    runs: Sequence[RunRecord]
    curves: Curves
    picked: Sequence[picks.Picked]
    bootstrap: Bootstrap | None
    figure: bytes
    images: Pictures | None
    full: Mapping[int, float]


def page(content: Content) -> str:
    """The HTML."""
    found = content.curves
    count = sum(map(len, found.values()))
    lead = f"{_count(len(found), 'method')}, {_count(count, 'run')}: official accuracy of the task model, by round."
    parts = [f'<p class="lead">{html.escape(lead)}</p>']
    said = [*cautions(content.runs), *warnings(found), *approximate_lines(content.runs)]
    said += matcher_warnings(content.runs)
    parts += [f'<p class="warn">{html.escape(line)}</p>' for line in said]
    parts += [
        section("Learning curves", picture(content.figure, "learning curves"), note(ABOUT_CURVES)),
        section("Accuracy", accuracy_table(found)),
        section("Areas under the curves", *area_tables(found, content.full)),
        section("Share of full-data accuracy", *full_parts(found, content.full)),
        section(f"Against {REFERENCE}", *reference_tables(found)),
        section("Who beats whom", penalty_table(found)),
        section("Choice of evaluation questions", bootstrap_table(content.bootstrap)),
        section("Forecast", forecast_table(found)),
        section("What was picked", *picked_parts(content)),
        section("Dataset map of what was picked", *map_parts(content.runs)),
        section("Matching of questions and images", matcher_table(content.runs)),
        section("Calibration of answer models", answer_model_table(content.runs)),
        section("Answers that are no candidates", outside_table(content.runs)),
        section("Score and number of matches", match_table(content.runs)),
        section("Images that were picked, and why", reasons(content)),
        section("Labels that people made", *labelling.parts(content.runs)),
        section("Run time", time_table(content.runs)),
        section("Protocol", protocol(content.runs)),
    ]  # fmt: skip
    return document(
        "Active learning: comparison of methods", "\n".join(p for p in parts if p), style=STYLE + REASONS
    )


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def picked_parts(content: Content) -> list[str]:
    """Balance over rounds, the last round's composition, overlaps."""
    found = content.picked
    if not found:
        return []
    figure = balance_figure(picks.over_rounds(found), picks.QUANTITIES)
    kinds = sorted({k for p in found for k in p.rows[-1]["types"]})
    rows = []
    for method in dict.fromkeys(p.method for p in found):
        last = [p.rows[-1] for p in found if p.method == method]
        shares = [f"{100 * np.mean([r['types'].get(k, 0.0) for r in last]):.0f} %" for k in kinds]
        means = [f"{np.mean([r[k] for r in last]):{digits}}" for k, (_, digits) in NEWEST.items()]
        rows.append([method, *means, *shares])
    return [
        picture(figure, "balance of what was picked"), note(ABOUT_BALANCE), "<h3>The newest labels</h3>",
        table(["method", *(title for title, _ in NEWEST.values()), *kinds], rows), *_spread(found), *_overlaps(content),
    ]  # fmt: skip


def _spread(found: Sequence[picks.Picked]) -> list[str]:
    rows = [
        [method, kind, *("-" if v is None else f"{v:.3f}" for v in values)]
        for method, kind, *values in picks.spread_rows(found)
    ]
    return ["<h3>How evenly answers are spread</h3>", table(SPREAD, rows), note(ABOUT_SPREAD)]


def _overlaps(content: Content) -> list[str]:
    names = list(dict.fromkeys(p.method for p in content.picked))
    values = [[picks.overlap(content.picked, a, b) for b in names] for a in names]
    if all(v is None for row in values for v in row):
        return []
    cells = [
        [a, *("-" if v is None else f"{v:.3f}" for v in row)] for a, row in zip(names, values, strict=True)
    ]
    first = {(m, r): c.fraction[0] for m, mine in content.curves.items() for r, c in mine.items()}
    sizes = [round(len(p.images[0]) / first[p.method, p.repeat]) for p in content.picked]
    by_chance = picks.chance(content.picked, int(np.median(sizes)))
    random = "" if by_chance is None else f" Two random picks would have about {by_chance:.3f}."
    head = ["Jaccard index", *names]
    return ["<h3>Overlap of picks</h3>", table(head, cells), note(ABOUT_OVERLAP + random)]


def matcher_table(runs: Sequence[RunRecord]) -> str:
    """Held-out scores of the matchers."""
    rows = matcher_rows(runs)
    if not rows:
        return ""
    return table(("method", "stage", *COLUMNS.values()), rows) + note(ABOUT_MATCHERS)


def answer_model_table(runs: Sequence[RunRecord]) -> str:
    """Held-out scores of the answer models that have some."""
    rows = matcher_rows(runs, ANSWER_COLUMNS)
    if not rows:
        return ""
    return table(("method", "stage", *ANSWER_COLUMNS.values()), rows) + note(ABOUT_ANSWER_MODELS)


def match_table(runs: Sequence[RunRecord]) -> str:
    """Whether scores collapse to counts of matches."""
    rows = picks.match_counts(runs)
    if not rows:
        return ""
    head = ("method", "matches of an image", "matches of a picked one", "rank correlation with the score")
    return table(head, rows) + note(
        "A score that sums over matching questions can come down to how many match: a correlation near 1 says it does."
    )


def outside_table(runs: Sequence[RunRecord]) -> str:
    """Labelled questions whose answer the model cannot give, at each run's last round; nothing if there are none."""
    rows = []
    for run in runs:
        found = run.rounds[-1].get("vocabulary")
        if found is not None and found["outside"]["questions"]:
            most = ", ".join(f"{a or '(blank)'} ({n})" for a, n in found["outside"]["most"].items())
            counts = (found["answers"], found["outside"]["questions"], found["outside"]["distinct"])
            rows.append([run.method, run.repeat, *counts, most])
    head = ("method", "repeat", "candidate answers", "questions outside", "answers outside", "most frequent")
    return table(head, rows) if rows else ""


def reasons(content: Content) -> str:
    """The best images of each method's newest selection, first repeat."""
    out = []
    for method in content.curves:
        run = min((r for r in content.runs if r.method == method and r.rounds), key=lambda r: r.repeat)
        for number in reversed([int(m["round"]) for m in run.rounds]):
            chosen = [row for row in run.selection(number) if not row.get("reserve")]
            rows = [r for r in chosen if r.get("contributors") or r.get("stands_for") is not None][:TOP]
            if rows:
                title = html.escape(f"{method}, repeat {run.repeat}, round {number}")
                cards = "\n".join(_pick(row, content.images) for row in rows)
                out.append(f'<h3>{title}</h3>\n{standing(chosen)}<div class="picks">{cards}</div>')
                break
    return "\n".join(out)


def standing(rows: Sequence[Any]) -> str:
    """How many unselected images the picks of a round stand for."""
    counts = [r["stands_for"] for r in rows if r.get("stands_for") is not None]
    if not counts:
        return ""
    q = np.quantile(counts, (0.25, 0.5, 0.75))
    return note(
        f"An unselected image is stood for by the picked one that is nearest to it. The {len(counts)} picks stand for "
        f"{sum(counts):,} images: half of them for {q[0]:.0f} to {q[2]:.0f} each (median {q[1]:.0f}), at most "
        f"{max(counts):,}, {sum(c == 0 for c in counts)} for none."
    )


def _pick(row: Any, images: Pictures | None) -> str:
    image_id = int(row["image_id"])
    found = images(image_id) if images is not None else None
    shown = (
        f'<img src="{thumbnail(encode(found, image_id).data)}" alt="image {image_id}">'
        if found is not None
        else ""
    )
    score = f", score {row['score']:.2f}" if row.get("score") is not None else ""
    name = (
        f"image {image_id}"
        if "question_id" not in row
        else f"question {row['question_id']}, image {image_id}"
    )
    return f'<div class="pick">{shown}<h4>{row["rank"]}. {name}{score}</h4>{why(row)}</div>'


def time_table(runs: Sequence[RunRecord]) -> str:
    """Mean seconds of a round."""
    found = picks.seconds(runs)
    rows = [
        [m, *(f"{times[p]:.1f}" if p in times else "-" for p in PHASES)]
        for m, times in found.items()
        if times
    ]
    if not rows:
        return ""
    return table(["method", *(f"{p}, s" for p in PHASES)], rows) + note(ABOUT_TIME)


def protocol(runs: Sequence[RunRecord]) -> str:
    """What all runs have in common with its hash, the versions and memory of their rounds, and who wrote the report."""
    shared = json.dumps(runs[0].protocol, sort_keys=True)
    versions = f"jaxvl {version('jaxvl')}, Python {platform.python_version()}, NumPy {np.__version__}"
    seeds = sorted({json.dumps(m["seeds"]["master"]) for r in runs for m in r.rounds[:1] if "seeds" in m})
    said = f"Protocol {hashlib.sha256(shared.encode()).hexdigest()[:16]}. "
    said += f"Master seed {', '.join(seeds)}. " if seeds else ""
    rounds = [m for r in runs for m in r.rounds]
    for line in sorted({json.dumps(m["versions"]) for m in rounds if "versions" in m}):
        said += f"Rounds by {', '.join(f'{k} {v}' for k, v in json.loads(line).items())}. "
    peaks = [m["peak_mem"]["host"] for m in rounds if "peak_mem" in m]
    said += f"Peak memory of a process {max(peaks):.2f} GiB. " if peaks else ""
    return f"<p><code>{html.escape(shared)}</code></p>" + note(f"{said}Report by {versions}.")
