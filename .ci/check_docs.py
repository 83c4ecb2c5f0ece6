"""Relative links of the documentation lead somewhere, and the scripts that it tells people to run exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
FENCED = re.compile(r"```.*?```", re.S)
SCRIPT = re.compile(r"\bpython3? ((?:launch|bench|configs|\.ci)/[\w/.-]+\.py)")
CONFIG = re.compile(r"--config=([\w/.-]+\.py)")
MODULE = re.compile(r"\bpython3? -m (jaxvl[\w.]*)")


def problems(page: Path) -> list[str]:
    """What a reader of `page` would stumble over."""
    text = page.read_text(encoding="utf-8")
    prose = FENCED.sub("", text)
    found = [f"broken link {m}" for m in LINK.findall(prose) if not (page.parent / m).exists()]
    found += [
        f"no such script {m}" for m in SCRIPT.findall(text) + CONFIG.findall(text) if not (ROOT / m).exists()
    ]
    for module in MODULE.findall(text):
        path = ROOT / module.replace(".", "/")
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            found.append(f"no such module {module}")
    return [f"{page.relative_to(ROOT)}: {p}" for p in found]


def main() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found = [p for page in pages for p in problems(page)]
    print("\n".join(found) or f"{len(pages)} pages, no broken link or command")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
