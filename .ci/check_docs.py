"""Relative links of the documentation lead somewhere; the scripts and config keys that it tells people to use exist."""

from __future__ import annotations

import functools
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")
FENCED = re.compile(r"```.*?```", re.S)
SCRIPT = re.compile(r"\bpython3? ((?:launch|bench|configs|\.ci)/[\w/.-]+\.py)")
CONFIG = re.compile(r"--config=([\w/.-]+\.py)")
MODULE = re.compile(r"\bpython3? -m (jaxvl[\w.]*)")
COMMAND = re.compile(r"\bpython3? launch/main\.py .*")
OVERRIDE = re.compile(r"--config\.([\w.]+)(?==|$)")


@functools.cache
def config(name: str, arg: str) -> Any:
    """The config of a file of the repository with the text after the colon."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def flag_problems(command: str) -> list[str]:
    """The config argument and the dotted paths of a `launch/main.py` command that its config file does not know."""
    from jaxvl.config import ConfigError, override

    words = shlex.split(command, comments=True)
    file, _, arg = next((w.partition("=")[2] for w in words if w.startswith("--config=")), "").partition(":")
    if not (ROOT / file).is_file():  # a missing one is reported with the scripts; "..." stands for any
        return []
    found = []
    for path in ["run", *(m[1] for m in map(OVERRIDE.match, words) if m)]:
        try:
            override(config(file, arg).copy_and_resolve_references(), {path: None})
        except ConfigError as e:
            found.append(f"--config={file}{':' if arg else ''}{arg} --config.{path}: {e}")
    return found


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
    for block in FENCED.findall(text):
        found += [p for c in COMMAND.findall(block.replace("\\\n", " ")) for p in flag_problems(c)]
    return [f"{page.relative_to(ROOT)}: {p}" for p in found]


def main() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    found = [p for page in pages for p in problems(page)]
    print("\n".join(found) or f"{len(pages)} pages, no broken link or command")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
