"""Contenders take turns in alternating order, ratios pair rounds, and the bootstrap interval behaves."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def timing() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "bench" / "timing.py"
    spec = importlib.util.spec_from_file_location("bench_timing", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_contenders_alternate_and_warmup_does_not_count(timing):
    calls: list[str] = []
    ticks = itertools.count()
    seconds = timing.take_turns(
        {name: lambda name=name: calls.append(name) for name in "ab"},
        rounds=3,
        warmup=1,
        clock=lambda: float(next(ticks)),
    )
    assert "".join(calls) == "ba" + "ab" + "ba" + "ab"
    assert {name: list(values) for name, values in seconds.items()} == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_ratio_is_taken_round_by_round(timing):
    """A load that doubles both times of a round leaves the ratio alone."""
    load = np.array([1.0, 2.0, 4.0, 8.0, 1.0])
    interval = timing.median_ratio(3.0 * load, 2.0 * load)
    assert interval == timing.Interval(1.5, 1.5, 1.5)


def test_interval_holds_the_median_and_covers_the_truth(timing):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        noise = rng.lognormal(sigma=0.1, size=(2, 25))
        interval = timing.median_ratio(1.2 * noise[0], noise[1], resamples=400)
        assert interval.low <= interval.median <= interval.high
        covered += interval.low <= 1.2 <= interval.high
    assert covered >= 88, "a 95 % interval must hold the true ratio about 95 times of 100"


def test_one_outlier_does_not_move_the_median(timing):
    ratio = timing.median_ratio(np.array([1.0, 1.0, 1.0, 1.0, 50.0]), np.ones(5))
    assert ratio.median == 1.0


@pytest.mark.parametrize("shapes", [((3,), (2,)), ((0,), (0,)), ((2, 2), (2, 2))])
def test_unpaired_rounds_are_refused(timing, shapes):
    with pytest.raises(ValueError, match="cannot be paired"):
        timing.median_ratio(*(np.ones(shape) for shape in shapes))


def test_no_round_is_refused(timing):
    with pytest.raises(ValueError, match="rounds=0"):
        timing.take_turns({"a": lambda: None}, rounds=0)


def test_peak_memory_is_at_least_what_is_held(timing):
    held = np.ones(2**24, np.float64)  # 1/8 GiB
    assert timing.memory_gib("VmHWM") >= timing.memory_gib("VmRSS") - 0.01 > held.nbytes / 2**30 - 0.01
