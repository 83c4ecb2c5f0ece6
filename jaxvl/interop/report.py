"""What an import did with every name, and when that is not good enough."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from jaxvl.interop.files import Tree, WeightsError

UNKNOWN = "unknown name"


@dataclass(frozen=True)
class Report:
    """What became of every name; `str()` is a table.

    Attributes:
      mapped: (foreign name, canonical path).
      unused: (foreign name, why it was left out).
      missing: canonical paths that the file does not fill; a module absent as a whole is one entry with a `/`.
      adapted: (foreign name, what changed besides the name).
    """

    mapped: tuple[tuple[str, str], ...] = ()
    unused: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    adapted: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        notes = dict(self.adapted)
        rows = [(f, f"-> {o}" + (f"  ({notes[f]})" if f in notes else "")) for f, o in self.mapped]
        return self._table(rows)

    def summary(self) -> str:
        """The table without the names that were mapped."""
        return self._table([])

    def _table(self, rows: list[tuple[str, str]]) -> str:
        rows = rows + [(f, f"unused: {why}") for f, why in self.unused]
        rows += [("(not in the file)", f"-> {path}") for path in self.missing]
        width = max((len(name) for name, _ in rows), default=0)
        counts = f"{len(self.mapped)} mapped, {len(self.unused)} unused, {len(self.missing)} missing"
        return "\n".join([counts, *(f"  {name:<{width}} {what}" for name, what in rows)])


@dataclass(frozen=True)
class Imported:
    """Parameters in jaxvl's names; `momentum` and `queue` are None where the file has none."""

    params: Tree
    momentum: Tree | None
    queue: Tree | None
    report: Report


def require(report: Report, *, optional: str, expected: Iterable[str] = ()) -> None:
    """Strict import.

    Args:
      report: of the import.
      optional: regular expression of the modules that may be missing, each as a whole.
      expected: foreign names, for spelling suggestions.

    Raises:
      WeightsError: something else is missing, or the file has names that nothing is known about.
    """
    lost = [path for path in report.missing if not re.fullmatch(optional, path)]
    unknown = [name for name, why in report.unused if why == UNKNOWN]
    if not lost and not unknown:
        return
    names = list(expected)
    lines = [f"  missing: {path}" for path in lost[:10]]
    for name in unknown[:10]:
        close = difflib.get_close_matches(name, names, n=1)
        lines.append(f"  unknown: {name}" + (f" (expected {close[0]}?)" if close else ""))
    raise WeightsError(
        f"strict import: {len(lost)} missing, {len(unknown)} unknown names; strict=False imports what it can\n"
        + "\n".join(lines)
    )
