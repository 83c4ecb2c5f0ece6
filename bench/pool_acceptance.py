"""Which ways of scoring a pool are as good as exact: run as `python bench/pool_scoring.py --accept`.

The oracle takes every pair alone, in float64 behind the encoders; each way is compared with it on the same images:
blocks and chunks of other sizes and pruning, which must select exactly the same, and half precision and caps on the
patterns, which are approximate and are accepted within the limits of `jaxvl.active.acceptance`. Weights are random (see
`pool_scoring`), so the verdict is on the arithmetic and on caps at that match rate, not on a trained model's scores.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np

SCHEMA = "jaxvl.pool_acceptance/1"
CAPS = (16, 64)


def run(args: argparse.Namespace, bench: Any, images: int) -> dict[str, Any]:
    """Rows of all ways; prints a line for each.

    Args:
      bench: a `pool_scoring.Bench`.
      images: of the pool; 2 % are taken.
    """
    from jaxvl.active import acceptance
    from jaxvl.active.scoring import PoolScorer
    from jaxvl.active.strategies.base import top

    wanted = bench.request(images, "exact")
    exact = acceptance.oracle(bench.matcher, bench.answers, bench.params, wanted)
    rows = []
    for name, is_exact, kwargs, more in ways(args, len(bench.text)):
        scorer = PoolScorer(bench.matcher, bench.answers, partition=bench.scorer.partition, **kwargs)
        request = replace(wanted, **more)
        found, chosen = scorer.detail(bench.params, request), None
        if request.prune is not None:
            score = scorer(bench.params, request)["score"]
            chosen = top(np.nan_to_num(score, nan=-np.inf), request.images.ids, wanted.budget)
        row = acceptance.compare(exact, found, request, budget=wanted.budget, chosen=chosen)
        failures = row.failures(exact=is_exact)
        print(
            f"{name:<14} Jaccard {row.jaccard:.4f}  regret {row.regret:.1e}  Spearman {row.spearman:.5f}  flips "
            f"{row.flips:.4%}  members {row.members:.3%}  max dT {row.critic:.1e}  max df {row.uncertainty:.1e}  "
            f"{'; '.join(failures) or ('exact' if is_exact else 'accepted')}",
            flush=True,
        )
        rows.append({"way": name, "exact": is_exact, **row._asdict(), "failures": failures})
    return {"images": images, "patterns": len(bench.text), "taken": wanted.budget, "rows": rows}


def ways(args: argparse.Namespace, patterns: int) -> list[tuple[str, bool, dict[str, Any], dict[str, Any]]]:
    """Name, whether it must be exact, arguments of the scorer, changes of the request."""
    sizes = dict(block=args.block, pairs=args.pairs)
    caps = [(f"k_max={k}", False, sizes, dict(k_max=k)) for k in CAPS if k < patterns]
    return [
        ("float32", True, sizes, {}),
        ("other blocks", True, dict(block=max(1, args.block // 2 - 1), pairs=args.pairs // 2), {}),
        ("pruned", True, sizes, dict(prune="exact")),
        ("bfloat16", False, dict(sizes, compute="bfloat16"), {}),
        *caps,
    ]
