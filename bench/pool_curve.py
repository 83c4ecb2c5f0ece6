"""How the scorer's time grows with the bank, and what a cap saves: run as `python bench/pool_scoring.py --curve`.

One pool of the first number of `--images`; banks of `PATTERNS` up to the largest of `--patterns`, and that one; with
it, caps on the patterns that count for an image, which are approximate. All cases take turns, so that a machine that
drifts hurts all alike; ratios are of the time with the largest bank, uncapped. The cost of an image should be linear in
the patterns (specification 7.2): the line and what it leaves out are printed, and with them the time of the paper's
pool.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import timing

SCHEMA = "jaxvl.pool_curve/1"
PATTERNS = (64, 256, 1024, 4096)
CAPS = (4, 16, 64)
PAPER = 120_000  # images of its pool


def run(args: argparse.Namespace, make: Callable[[int], Any]) -> dict[str, Any]:
    """Seconds of every bank and cap; prints a line for each.

    Args:
      make: patterns -> a `pool_scoring.Bench`.
    """
    images, most = args.images[0], max(args.patterns)
    banks = sorted({most, *(q for q in PATTERNS if q <= most)})
    if len(banks) < 2:
        raise SystemExit(f"--patterns={most}: a line needs two banks; give at least {PATTERNS[0] + 1}")
    benches = {q: make(q) for q in banks}
    cases: dict[str, Any] = {
        f"{q} patterns": (q, None, benches[q], benches[q].request(images, "exact")) for q in banks
    }
    for k in (k for k in CAPS if k < most):
        request = replace(benches[most].request(images, "exact"), agg="sum_capped", k_max=k)
        cases[f"{most} patterns, best {k} count"] = (most, k, benches[most], request)
    # the first turn of each compiles and is not counted
    seconds = timing.take_turns(
        {
            name: (lambda bench=bench, request=request: bench.scorer(bench.params, request))
            for name, (_, _, bench, request) in cases.items()
        },
        rounds=args.rounds,
    )
    rows = []
    for name, (patterns, k_max, _, _) in cases.items():
        median = float(np.median(seconds[name]))
        ratio = timing.median_ratio(seconds[f"{most} patterns"], seconds[name])
        rows.append(
            dict(patterns=patterns, k_max=k_max, seconds=median, images_per_second=images / median,
                 ratio=ratio.median, ratio_low=ratio.low, ratio_high=ratio.high)
        )  # fmt: skip
        print(
            f"{name:<32} {median:8.2f} s  {images / median:8.0f} images/s  {ratio} times as fast", flush=True
        )
    line = linear([r["patterns"] for r in rows if r["k_max"] is None],
                  [r["seconds"] / images for r in rows if r["k_max"] is None])  # fmt: skip
    print(
        f"an image takes {1e6 * line['start']:.0f} + {1e6 * line['slope']:.2f} x patterns microseconds (the line is "
        f"off by at most {line['off']:.0%}); {PAPER} images: "
        + ", ".join(f"{q} patterns {PAPER * (line['start'] + line['slope'] * q):.0f} s" for q in banks)
    )
    return {"images": images, "rounds": args.rounds, "rows": rows, "line": line}


def linear(patterns: list[int], seconds: list[float]) -> dict[str, float]:
    """The line through `seconds` an image over `patterns`, of least relative error: `start`, `slope`, and `off`, the
    largest relative error."""
    x, y = np.asarray(patterns, np.float64), np.asarray(seconds, np.float64)
    design = np.stack([np.ones_like(x), x], 1) / y[:, None]
    start, slope = np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0]
    off = np.abs((start + slope * x) / y - 1).max()
    return {"start": float(start), "slope": float(slope), "off": float(off)}
