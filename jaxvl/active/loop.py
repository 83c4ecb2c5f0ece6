"""The loop over methods and repeats: the Python driver of active learning, outside of any jitted step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxvl.active.folder import RunFolder
from jaxvl.active.rounds import Outcome, Run
from jaxvl.active.world import World


def run(
    world: World,
    workdir: Path,
    *,
    methods: Sequence[str],
    repeats: Sequence[int],
    rounds: int | None = None,
    until: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[tuple[str, int], Outcome]:
    """Drive every method and repeat as far as it goes; repeats outside, so that early results compare all methods.

    Args:
      world: what the runs share.
      workdir: a run's folder is `workdir/<method>/r<repeat>`.
      methods: keys of `world.strategies`.
      repeats: numbers from 0.
      rounds: rounds to commit in each run before it pauses; None = to the budget.
      until: phase to pause after.
      say: takes a line for each phase.
    """
    found: dict[tuple[str, int], Outcome] = {}
    for repeat in repeats:
        for method in methods:
            started = time.monotonic()
            with Run(
                world, method=method, repeat=repeat, folder=folder_of(workdir, method, repeat), say=say
            ) as one:
                outcome = one.advance(rounds=rounds, until=until)
            found[method, repeat] = outcome
            say(
                f"{method}  repeat {repeat}  {outcome.state}: {outcome.why}  ({time.monotonic() - started:.0f} s)"
            )
    return found


def folder_of(workdir: Path, method: str, repeat: int) -> Path:
    """Where a run is."""
    return workdir / method / f"r{repeat}"


def runs(workdir: Path, methods: Sequence[str], repeats: Sequence[int]) -> list[RunFolder]:
    """The runs of a config that were begun."""
    paths = [folder_of(workdir, m, r) for m in methods for r in repeats]
    return [RunFolder(p) for p in paths if (p / "run.json").exists()]
