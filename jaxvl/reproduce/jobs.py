"""From a table to jobs: each job trains one stage once, whichever cells need it.

A job is known by a hash of all that its stage depends on: its section, its model, its teacher's model, text, precision,
the seed, and the jobs that its start and its teacher come from. Cells that agree in these share the work.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvl import build
from jaxvl import config as cfg
from jaxvl.config import ConfigError, unknown
from jaxvl.reproduce.tables import Column, Data, Row, Table
from jaxvl.run import teacher_of


@dataclasses.dataclass(frozen=True)
class Job:
    """One stage of one seed.

    Attributes:
      key: hash of what the stage depends on.
      config: config file, relative to the repository; `arg` and `overrides` give the config of the row that first
        needed the job.
      needs: what the stage takes from finished jobs: "init_from" and "teacher.params".
    """

    stage: str
    key: str
    seed: int
    config: str
    arg: str
    overrides: Mapping[str, Any]
    needs: Mapping[str, Job]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.stage}-{self.key}"

    def before(self) -> list[Job]:
        """All jobs that must be finished first, in order of running, without repetition."""
        found: dict[str, Job] = {}
        for need in self.needs.values():
            found |= {job.name: job for job in (*need.before(), need)}
        return list(found.values())


@dataclasses.dataclass(frozen=True)
class Cell:
    """One score: a row, a column and a seed. `job` is None where there is nothing to train; `reason` says why."""

    row: str
    column: str
    seed: int
    metric: str
    job: Job | None
    reason: str = ""


def load_config(root: Path, file: str, arg: str) -> cfg.ConfigDict:
    """What `get_config(arg)` of a config file returns.

    Raises:
      ConfigError: no such file, or a bad argument.
    """
    path = root / file
    if not path.exists():
        there = ", ".join(f"configs/{p.name}" for p in sorted((root / "configs").glob("*.py")))
        raise ConfigError(f"no config file {file} in {root}; there are: {there}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def choice(table: Table, data: str) -> Data:
    """The table's `data`; an unknown one is reported with the closest."""
    if data not in table.data:
        raise unknown("data", data, table.data)
    return table.data[data]


def argument(row: Row, data: Data, scale: str) -> str:
    """The argument of the config file for a row: scale, data and ablation."""
    return ",".join(
        filter(None, (f"scale={scale}", data.arg, f"ablation={row.ablation}" if row.ablation else ""))
    )


def row_config(
    table: Table, row: Row, *, root: Path, data: str, scale: str
) -> tuple[cfg.ConfigDict, str, dict[str, Any]]:
    """(config of a row, the argument and the overrides it comes from).

    Raises:
      ConfigError: the config file refuses; names the table and the row.
    """
    chosen = choice(table, data)
    arg, overrides = argument(row, chosen, scale), {**table.at_scale.get(scale, {}), **row.overrides}
    try:
        return cfg.override(load_config(root, chosen.config, arg), overrides), arg, overrides
    except ConfigError as e:
        raise ConfigError(f"table {table.name}, row {row.label!r} ({chosen.config}:{arg}): {e}") from e


def key_of(config: cfg.ConfigDict, stage: str, needs: Mapping[str, str]) -> str:
    """The hash of a stage, given those of the jobs it needs; what `run.FREE` names does not enter."""
    section = cfg.to_dict(config.stages[stage])
    section |= {
        "model": build.merged(config, stage),
        "init_from": needs.get("init_from", section["init_from"]),
    }
    teacher = section.get("teacher")
    if teacher is not None:
        params = needs.get("teacher.params", teacher["params"])
        section["teacher"] = {"model": build.merged(config, teacher["stage"]), "params": params}
    facts = [stage, section, cfg.to_dict(config.text), cfg.to_dict(config.precision), config.seed]
    return hashlib.sha256(json.dumps(_plain(facts), sort_keys=True).encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """The value with 2 for 2.0, which flags write for an int where the config has a float."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def sources(config: cfg.ConfigDict, stage: str) -> dict[str, str]:
    """Where a stage takes parameters from, if these are other stages: "init_from", "teacher.params" -> stage."""
    found = {"init_from": config.stages[stage].init_from, "teacher.params": teacher_of(config, stage)[1]}
    return {key: source for key, source in found.items() if source is not None and source in config.stages}


def job(
    config: cfg.ConfigDict, stage: str, *, seed: int, file: str, arg: str, overrides: Mapping[str, Any]
) -> Job:
    """The job of a stage, with all that come before it.

    Raises:
      ConfigError: stages that start from each other.
    """

    def make(name: str, path: tuple[str, ...]) -> Job:
        if name in path:
            raise ConfigError(f"{file}:{arg}: stages start from each other: {' <- '.join([*path, name])}")
        needs = {key: make(source, (*path, name)) for key, source in sources(seeded, name).items()}
        key = key_of(seeded, name, {k: need.key for k, need in needs.items()})
        return Job(name, key, seed, file, arg, overrides, needs)

    seeded = copy.deepcopy(config)
    seeded.seed = seed
    return make(stage, ())


def cells(
    table: Table, rows: Iterable[Row], *, seeds: Sequence[int], root: Path, data: str, scale: str
) -> list[Cell]:
    """Cells of these rows in the order of running: all rows with the first seed, then with the second.

    Raises:
      ConfigError: unknown data, or a row that its config file refuses.
    """
    file = choice(table, data).config
    rows = list(rows)
    known = {
        r.label: row_config(table, r, root=root, data=data, scale=scale)
        for r in rows
        if r.ablation is not None
    }
    out = []
    for seed in seeds:
        for row in rows:
            for column in table.columns:
                if row.ablation is None:
                    out.append(Cell(row.label, column.name, seed, column.metric, None, row.note))
                    continue
                config, arg, overrides = known[row.label]
                out.append(_cell(row, column, config, seed=seed, file=file, arg=arg, overrides=overrides))
    return out


def _cell(
    row: Row,
    column: Column,
    config: cfg.ConfigDict,
    *,
    seed: int,
    file: str,
    arg: str,
    overrides: Mapping[str, Any],
) -> Cell:
    stage = row.stages.get(column.name, column.stage)
    if stage not in config.stages:
        reason = f"{file}:{arg} has no stage {stage!r}"
        return Cell(row.label, column.name, seed, column.metric, None, reason)
    made = job(config, stage, seed=seed, file=file, arg=arg, overrides=overrides)
    return Cell(row.label, column.name, seed, column.metric, made)


def in_order(cells: Iterable[Cell]) -> list[Job]:
    """The distinct jobs of some cells, each after those it needs."""
    found: dict[str, Job] = {}
    for cell in cells:
        if cell.job is not None:
            for step in (*cell.job.before(), cell.job):
                found.setdefault(step.name, step)
    return list(found.values())
