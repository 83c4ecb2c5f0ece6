"""How long each strategy takes to select 2 % of a pool: the protocol of CCRL's table 2 (specification 9.1).

`bench/pool_scoring.py --strategies` runs it. The clock goes from "here is the pool" to "here are the ids": models are
trained before, for few updates, and their training has a column of its own. Time hardly depends on how well they are
trained, but for CCRL: how many patterns match, and how many images pruning leaves out, does. Predictions are NumPy
arrays, so the devices have finished when the clock stops. Reading the features is in the time, and timed alone too; the
embedded world's are kept in memory once they were made, in the warm-up that nobody times. Strategies take turns. Peak
memory is the whole process's, with the models of all strategies.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = "jaxvl.selection_times/1"
ROOT = Path(__file__).resolve().parents[1]
SHARE = 0.02


def configured(scale: str, steps: int) -> Any:
    """The config of active learning whose stages all train for about `steps` updates."""
    from jaxvl.config import override

    sys.path.insert(0, str(ROOT / "configs"))
    try:
        import ccrl
    finally:
        sys.path.remove(str(ROOT / "configs"))
    config = ccrl.get_config(f"scale={scale}")
    for name in config.stages:
        override(
            config,
            {f"stages.{name}.epochs": 1, f"stages.{name}.min_steps": steps, f"stages.{name}.plateau": None},
        )
    return config


def ready(world: Any, method: str, folder: Path) -> Any:
    """A run in its first round, with its models trained: `(run, fit seconds by stage)`."""
    from jaxvl.active.rounds import Run

    one = Run(world, method=method, repeat=0, folder=folder / method / "r0", say=lambda line: None)
    with one:
        one.advance(until="FITTED")
    models = one.folder.events(0)["FITTED"].data["models"]
    return one, {name: float(model["result"]["seconds"]) for name, model in models.items()}


def selecting(one: Any, seed: int) -> tuple[Callable[[], np.ndarray], int]:
    """A function that selects and returns the ids, and the number of images it selects from."""
    pool, labelled = one.pool(0), one.labelled(0)
    pool.cache = None  # a selection reads no scores of the one before
    budget = max(1, round(SHARE * len(pool)))

    def select() -> np.ndarray:
        found = one.strategy(one.ask, pool, labelled, budget, np.random.default_rng(seed))
        ids: np.ndarray = pool.ids[np.asarray(found.rows)]
        if len(np.unique(ids)) != budget:
            raise ValueError(f"{one.method}: {len(np.unique(ids))} images were selected instead of {budget}")
        return ids

    return select, len(pool)


def reading(one: Any) -> Callable[[], None]:
    """A function that reads the features of the pool and does nothing with them."""
    from jaxvl.data.loader import evaluation_batches

    pool = one.pool(0)

    def read() -> None:
        for _ in evaluation_batches(pool, 256):
            pass

    return read


def chosen(methods: Sequence[str] | None, config: Any) -> list[str]:
    """These methods, or all of the config: every strategy and the ablations of CCRL."""
    return list(methods or config.active.strategies)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train the models of one round, then time selections in turns."""
    import timing

    from jaxvl import build_active

    config = configured(args.scale, args.steps)
    methods = chosen(args.method, config)
    with tempfile.TemporaryDirectory() as folder:
        world = build_active.world(config, Path(folder), methods=methods)
        runs, fits, images = {}, {}, 0
        contenders: dict[str, Callable[[], object]] = {}
        for method in methods:
            print(f"training what {method} needs", flush=True)
            runs[method], fits[method] = ready(world, method, Path(folder))
            contenders[method], images = selecting(runs[method], args.repetitions)
        contenders["reading the features"] = reading(runs[methods[0]])
        seconds = timing.take_turns(contenders, rounds=args.repetitions)
    reads = seconds.pop("reading the features")
    budget = max(1, round(SHARE * images))
    rows = [row(method, seconds[method], fits[method], images=images, selected=budget) for method in methods]
    print(f"{budget} of {images} images selected; reading the features alone {np.median(reads):.3f} s")
    for each in rows:
        print(
            f"  {each['strategy']:<12} mean {each['mean']:8.3f} s  median {each['median']:8.3f}  "
            f"min {each['min']:8.3f}  max {each['max']:8.3f}  {each['selected_per_second']:9.1f} selected/s  "
            f"{each['images_per_second']:10.0f} scored/s  fit {each['fit_seconds']:7.1f} s"
        )
    return {
        "scale": args.scale, "repetitions": args.repetitions, "warmup": 1, "pool": images, "selected": budget,
        "asked": int(config.active.asked), "reading_seconds": float(np.median(reads)), "rows": rows,
        "peak_gib": timing.memory_gib("VmHWM"),
    }  # fmt: skip


def row(
    method: str, seconds: np.ndarray, fits: dict[str, float], *, images: int, selected: int
) -> dict[str, Any]:
    """A line of the table; rates are of the mean, as the paper's FPS is."""
    mean = float(seconds.mean())
    return dict(
        strategy=method, mean=mean, median=float(np.median(seconds)), min=float(seconds.min()),
        max=float(seconds.max()), seconds=[float(s) for s in seconds], selected_per_second=selected / mean,
        images_per_second=images / mean, fit_seconds=float(sum(fits.values())), fits=fits,
    )  # fmt: skip
