"""Why an image was picked, as HTML: for the page of a batch and for the report."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

REASONS = """
.facts { color: var(--muted); font-size: 12.5px; margin: 0 0 8px; }
.why { list-style: none; margin: 0; padding: 0; }
.why li { padding: 7px 0 6px; border-top: 1px solid var(--line); }
.why .q { display: flex; gap: 8px; line-height: 1.3; }
.why .q b { margin-left: auto; font-weight: 600; font-variant-numeric: tabular-nums; }
.why .bar { height: 4px; border-radius: 2px; background: var(--line); margin: 5px 0 4px; }
.why .bar i { display: block; height: 4px; border-radius: 2px; background: var(--accent); }
.why .how { color: var(--muted); font-size: 12.5px; }
"""


def why(reason: Mapping[str, Any] | None) -> str:
    """Why an image was picked, as HTML: its facts and the questions that gave it most of its score."""
    if reason is None:
        return '<p class="facts">mixed in to judge annotators by</p>'
    facts = [f"{reason['n_match']} questions match"] if reason.get("n_match") is not None else []
    found = reason.get("contributors") or []
    if not found and not facts:
        facts = ["picked by its score" if reason.get("score") is not None else "picked without a score"]
    count = reason.get("stands_for")
    if count is not None:
        facts.append(f"stands for {count} unselected image{'' if count == 1 else 's'}")
    values = [float(c["uncertainty"]) * float(c["rate"]) for c in found]
    score = reason.get("score")
    if found and score and len(found) < (reason.get("n_match") or 0) and sum(values) <= score:
        facts.append(f"these {len(found)} give {sum(values) / score:.0%} of the score")
    head = f'<p class="facts">{"; ".join(facts)}</p>' if facts else ""
    most = max(values, default=0.0)
    items = "".join(_item(c, value, most) for c, value in zip(found, values, strict=True))
    return head + (f'<ul class="why">{items}</ul>' if items else "")


def _item(contributor: Mapping[str, Any], value: float, most: float) -> str:
    c = contributor
    width = 100 * value / most if most > 0 else 0
    told = [f"uncertainty {c['uncertainty']:.2f} &times; balance {c['rate']:.2f}"]
    if "match" in c:
        told.append(f"match {c['match']:.2f}")
    if "answer" in c:  # a method that only counts has no model to ask
        told.append(f"best guess &ldquo;{html.escape(str(c['answer']))}&rdquo; at {c['p_max']:.0%}")
    how = "; ".join(told)
    return (
        f'<li><div class="q"><span>{html.escape(str(c["question"]))}</span><b>{value:.2f}</b></div>'
        f'<div class="bar"><i style="width:{width:.0f}%"></i></div><div class="how">{how}</div></li>'
    )
