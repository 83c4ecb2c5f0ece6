"""Active learning from a config: all methods and repeats, then the curves. Called by `run.run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxvl import build_active
from jaxvl import config as cfg
from jaxvl.active import full, loop
from jaxvl.active.folder import RunFolder
from jaxvl.active.items import IMAGE
from jaxvl.active.proposers import caution
from jaxvl.active.report import report
from jaxvl.active.report.statistics import estimate
from jaxvl.display import table
from jaxvl.train import Sigterm


def run_active(config: ConfigDict, root: Path) -> dict[str, Any]:
    """Run the methods of `config.run` for all repeats in `root`, as far as they go; write curves and report.

    Returns:
      `{"<method>/r<repeat>": {"state": ..., "accuracy": of the last round}}`.
    """
    methods, repeats, pause = (
        list(config.run),
        wanted_repeats(config),
        cfg.plain(config.active.get("pause", {})),
    )
    with Sigterm() as sigterm:
        try:
            world = build_active.world(config, root, methods=methods, sigterm=sigterm)
        except FileNotFoundError as error:
            raise FileNotFoundError(build_active.all_missing(config) or str(error)) from error
        root.mkdir(parents=True, exist_ok=True)
        cfg.save(config, root / "config.json")
        size, step = len(world.oracle.ids), world.counts
        print(f"{size} {world.unit.many} in the pool; labelled at the rounds: {', '.join(map(str, step))}")
        said = caution(world.options.proposer)
        if said is not None:
            print(f"active.proposer={world.options.proposer}: {said}")
        outcomes = loop.run(world, root, methods=methods, repeats=repeats, **pause)
        for repeat in repeats if config.active.full else ():
            if all(outcomes[method, repeat].state != "paused" for method in methods):
                full.train(world, root, repeat)
    found = loop.runs(root, methods, repeats)
    if any(run.rounds for run in found):
        summary(found)
        print(f"curves, statistics and picked images: {report(found, root / 'report', images=world.picture)}")
    waiting = {key: o.why for key, o in outcomes.items() if o.state == "waiting"}
    for (method, repeat), why in waiting.items():
        print(f"{method} r{repeat} waits for people: {why}")
    return {
        f"{run.method}/r{run.repeat}": {
            "state": outcomes[run.method, run.repeat].state,
            "accuracy": last(run),
        }
        for run in found
    }


def wanted_repeats(config: ConfigDict) -> list[int]:
    """The repeats to run: `active.repeats` is their number, `active.only` names some of them (a job of an array)."""
    only = config.active.only
    return list(range(config.active.repeats)) if only is None else [int(r) for r in only]


def summary(runs: Sequence[RunFolder]) -> None:
    """Print a table of accuracies: a row a method, a column a round, mean over repeats with a 95 % t interval.

    "n/a" are rounds whose answers EvalAI has not scored, or nobody has passed on its scores (al.py scores).
    """
    points: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        for row in run.rounds:
            count = row["n_images"] if run.unit == IMAGE else row["n_qas"]
            known = points.setdefault((run.method, count), [])
            if "overall" in row["acc"]:
                known.append(row["acc"]["overall"])
    counts = sorted({n for _, n in points})
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        found = [points.get((method, n)) for n in counts]
        texts = ("-" if v is None else estimate(v).text(1) if v else "n/a" for v in found)
        rows.append([method, *texts])
    unit = runs[0].unit.many
    title = f"VQA accuracy (official metric) by labelled {unit}: mean over repeats and 95 % t interval"
    table(title, ("method", *map(str, counts)), rows)


def last(run: Any) -> float | None:
    """Accuracy of a run's last evaluated round; None if there is none, or EvalAI has not said it."""
    rounds = run.rounds
    return rounds[-1]["acc"].get("overall") if rounds else None
