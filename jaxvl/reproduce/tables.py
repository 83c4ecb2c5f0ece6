"""What a table of a paper is: rows, columns, printed numbers and claimed orderings, as data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from jaxvl.config import ConfigError, unknown


@dataclasses.dataclass(frozen=True)
class Data:
    """A choice of `--data`: the config file that trains on it and what it adds to that file's argument."""

    title: str
    config: str
    arg: str = ""


@dataclasses.dataclass(frozen=True)
class Column:
    """One score of ours, and the columns of the paper that stand beside it.

    Attributes:
      name: short, for the CSV file.
      title: what is scored.
      stage: the stage of the config whose `metric` (a key of its result.json) fills the column.
      paper: titles of the paper's columns.
    """

    name: str
    title: str
    stage: str
    metric: str
    paper: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
      label: unique in the table.
      paper: the printed numbers, one for each of the paper's columns from left to right.
      ablation: choices of the config file, joined by +; None where the method is not implemented.
      stages: column name -> stage, where it is not the column's.
      overrides: dotted config paths, for what no ablation of the config file says.
      note: how ours differs from the paper's, or why there is none of ours.
    """

    label: str
    paper: tuple[float | None, ...] = ()
    ablation: str | None = ""
    stages: Mapping[str, str] = dataclasses.field(default_factory=dict)
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """The paper says that row `better` scores above row `worse`, in every column."""

    better: str
    worse: str


@dataclasses.dataclass(frozen=True)
class Kept:
    """The paper says which share of row `of` the row `row` reaches; `paper` is the percentage of each column."""

    row: str
    of: str
    paper: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose cells are trained: rows x columns x seeds.

    Attributes:
      source: where the paper prints it.
      at_scale: scale -> overrides of all rows, e.g. the number of epochs of the paper's ablations.
      notes: what a reader must know to compare.

    Raises:
      ConfigError: rows, claims and printed numbers do not fit together.
    """

    name: str
    title: str
    source: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    data: Mapping[str, Data]
    claims: tuple[Claim, ...] = ()
    kept: tuple[Kept, ...] = ()
    at_scale: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        labels = [row.label for row in self.rows]
        if len(set(labels)) < len(labels):
            raise ConfigError(f"table {self.name}: two rows have one label: {labels}")
        for row in self.rows:
            if len(row.paper) != len(self.paper_columns):
                raise ConfigError(
                    f"table {self.name}, row {row.label!r}: {len(row.paper)} printed numbers for "
                    f"{len(self.paper_columns)} columns of the paper"
                )
        pairs = [(c.better, c.worse) for c in self.claims] + [(k.row, k.of) for k in self.kept]
        for label in (x for pair in pairs for x in pair):
            if label not in labels:
                raise unknown(f"row in a claim of table {self.name}:", label, labels)

    @property
    def paper_columns(self) -> tuple[str, ...]:
        """Titles of the paper's columns, from left to right."""
        return tuple(title for column in self.columns for title in column.paper)


def chain(*labels: str) -> tuple[Claim, ...]:
    """Each of these rows is said to score above the next."""
    return tuple(Claim(a, b) for a, b in itertools.pairwise(labels))


def select(rows: tuple[Row, ...], only: str | None) -> tuple[Row, ...]:
    """Rows whose label contains `only`, whatever its case.

    Raises:
      ConfigError: none does; lists the labels.
    """
    found = tuple(row for row in rows if (only or "").lower() in row.label.lower())
    if not found:
        raise ConfigError(f"--only={only}: no row contains it; rows: {'; '.join(r.label for r in rows)}")
    return found
