"""The frame of the pages that people read: one HTML file, light or dark as the reader's system is."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Sequence
from typing import Any

STYLE = """
:root { --bg: #fafafa; --card: #fff; --ink: #222; --muted: #666; --line: #e6e6e6; --accent: #0072b2;
  color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #16181b; --card: #1f2226; --ink: #e6e6e6; --muted: #9aa0a6; --line: #34383d; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 19px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 22px 0 6px; }
p { max-width: 78ch; margin: 6px 0 12px; }
.lead { font-size: 16px; }
.note { color: var(--muted); font-size: 13.5px; }
.warn { border-left: 4px solid #e69f00; padding: 6px 12px; background: var(--card); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; background: var(--card); }
th, td { padding: 5px 10px 5px 8px; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; white-space: normal; vertical-align: bottom; line-height: 1.25; }
td.n, th.n { text-align: right; }
figure { margin: 12px 0; background: #fff; border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
figure img { display: block; width: 100%; height: auto; }
code { font-size: 13px; overflow-wrap: anywhere; }
"""


def document(title: str, body: str, *, style: str = "") -> str:
    """A whole page; `title` is escaped, `body` is HTML."""
    name = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n{body}\n"
        "</main>\n</body>\n</html>\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; numbers are shown short, columns of numbers are aligned to the right."""
    cells = [[x if isinstance(x, str) else number(x) for x in row] for row in rows]
    right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(columns))]

    def line(tag: str, row: Sequence[str]) -> str:
        parts = (
            f"<{tag}{' class=n' if r else ''}>{html.escape(c)}</{tag}>"
            for c, r in zip(row, right, strict=True)
        )
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line("td", row) for row in cells)
    return f'<div class="wide"><table>\n<thead>{line("th", columns)}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def section(title: str, *parts: str) -> str:
    """A heading and what is below it; nothing if there is nothing."""
    found = [p for p in parts if p]
    return "\n".join([f"<h2>{html.escape(title)}</h2>", *found]) if found else ""


def note(text: str) -> str:
    """A paragraph of small print."""
    return f'<p class="note">{html.escape(text)}</p>'


def picture(png: bytes, title: str) -> str:
    """A PNG in the page itself."""
    data = base64.b64encode(png).decode()
    return f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(title, quote=True)}"></figure>'


def number(value: Any) -> str:
    """Three decimals at most for floats below 100; "-" for None and NaN."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float):
        return (
            f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
        )
    return f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(cell: str) -> bool:
    head = re.split(r" \[| \u00b1 ", cell)[0].strip("< ").rstrip("%").replace(",", "")
    try:
        float(head)
    except ValueError:
        return cell in ("", "-", "n/a")
    return True
