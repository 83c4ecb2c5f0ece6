"""The page of a batch: every picture, and why it was picked. One file that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvl.active.report.page import document, number
from jaxvl.active.report.reasons import REASONS, why

STYLE = """
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 18px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden;
  display: flex; flex-direction: column; content-visibility: auto; contain-intrinsic-size: 310px 480px; }
.card .picture { background: var(--line); height: 200px; display: flex; align-items: center; justify-content: center; }
.card img { width: 100%; height: 200px; object-fit: contain; }
.card .none { color: var(--muted); }
.card .text { padding: 12px 14px 14px; }
.card .head { display: flex; align-items: baseline; gap: 8px; margin-bottom: 8px; }
.card .rank { font-weight: 650; font-size: 17px; }
.card .id { color: var(--muted); font-size: 12.5px; overflow-wrap: anywhere; }
.card .score { margin-left: auto; font-variant-numeric: tabular-nums; }
.tag { font-size: 11.5px; border-radius: 9px; padding: 1px 8px; background: var(--line); }
"""
LEGEND = (
    "Each question below a picture is one that the strategy had in mind. Its share of the score is uncertainty x "
    "balance: how unsure the answer model is, times a factor that is small for answers which are common among the "
    "labels. The match says how surely the question fits the picture."
)


def page(
    entries: Sequence[Mapping[str, Any]],
    reasons: Mapping[int, Mapping[str, Any]],
    thumbnails: Mapping[int, str],
    *,
    duplicates: Mapping[int, int],
) -> str:
    """The HTML of a batch.

    Args:
      entries: lines of `batch.jsonl`.
      reasons: image, or question if these went out -> its line of the selection; images without one are gold.
      thumbnails: image -> `data:` URI.
      duplicates: images that were left out -> the image with the same picture.
    """
    first = entries[0]
    items = [e.get("question_id", e["image_id"]) for e in entries]
    gold = sum(i not in reasons for i in items)
    noun = "questions to answer" if "question_id" in first else "images to label"
    reserve = sum(bool(e.get("reserve")) for e in entries)
    facts = [f"{len(entries) - gold - reserve} {noun}"]
    facts += [f"{reserve} in reserve, should others be unusable"] if reserve else []
    facts += [f"{gold} with known labels, to judge annotators by"] if gold else []
    facts += (
        [f"{len(duplicates)} left out, whose picture or features are in the batch already"]
        if duplicates
        else []
    )
    pairs = zip(entries, items, strict=True)
    cards = "\n".join(_card(e, reasons.get(i), thumbnails.get(e["image_id"])) for e, i in pairs)
    has_reasons = any(r.get("contributors") for r in reasons.values())
    legend = f'<p class="note">{LEGEND}</p>' if has_reasons else ""
    title = f"{first['run']}, round {first['round']}"
    body = (
        f'<p class="lead">{html.escape("; ".join(facts))}.</p>\n{legend}\n<div class="grid">\n{cards}\n</div>'
    )
    return document(f"Batch of {title}", body, style=STYLE + REASONS)


def _card(entry: Mapping[str, Any], reason: Mapping[str, Any] | None, thumbnail: str | None) -> str:
    name = f"image {entry['image_id']}"
    picture = (
        f'<img src="{thumbnail}" alt="{name}" loading="lazy">'
        if thumbnail
        else '<span class="none">no picture</span>'
    )
    tag = '<span class="tag">reserve</span>' if entry.get("reserve") else ""
    tag = '<span class="tag">known labels</span>' if reason is None else tag
    score = reason.get("score") if reason is not None else None
    shown = "" if score is None else f'<span class="score" title="score">{number(score)}</span>'
    asked = f"<p>{html.escape(entry['question'])}</p>" if "question" in entry else ""
    return (
        f'<article class="card"><div class="picture">{picture}</div><div class="text">'
        f'<div class="head"><span class="rank">{entry["rank"]}</span><span class="id">{name}</span>{tag}{shown}</div>'
        f"{asked}"
        f"{why(reason)}</div></article>"
    )
