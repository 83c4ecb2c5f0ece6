"""jaxvl against PyTorch on a CPU, at the width of the paper (ViT-B/16 at 256, BERT-base halves, texts of 25).

    python bench/train_step.py --out results.json

For each batch: `bare`, forward and backward of the three encoders; `step`, the whole ALBEF pre-training step with
AdamW (jaxvl with `hypergraph=None`, as the peer is ALBEF); `hypergraph`, jaxvl's step with the default hypergraph
over the one without. First it shows that both sides compute the same losses. Both run in this process on the same
processors and take turns. A ratio is PyTorch's seconds over jaxvl's: above 1, jaxvl is faster.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PARTS = ("bare", "step", "hypergraph")
DEPTHS = {"vision_depth": 12, "text_depth": 6, "fusion_depth": 6}
TOLERANCE = {"bare": 1e-4, "update 1": 1e-4, "update 2": 1e-3}  # the second comes after an update of its own


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; default 2 and 4")
    parser.add_argument("--what", choices=PARTS, action="append", help="may be repeated; default everything")
    for name, depth in DEPTHS.items():
        parser.add_argument(f"--{name}", type=int, default=depth, help="default %(default)s")
    parser.add_argument("--image_size", type=int, default=256, help="default %(default)s")
    parser.add_argument(
        "--check_depth", type=int, default=2, help="layers of each encoder when losses are compared"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender; default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="processors for both; default %(default)s")
    parser.add_argument("--queue", type=int, default=65536, help="default %(default)s")
    parser.add_argument("--out", type=Path, help="JSON file for all numbers, the single rounds included")
    args = parser.parse_args(argv)
    args.batch, args.what = args.batch or [2, 4], args.what or list(PARTS)
    if min(args.batch) < 2:
        parser.error("--batch 1 has no negatives: take 2 or more")
    return args


def use_processors(threads: int) -> None:
    """Give this process `threads` processors, before JAX counts them: XLA starts one thread for each that it sees.

    PyTorch's pool is set to the same number. Each pool sleeps while the other side has its turn.
    """
    own = sorted(os.sched_getaffinity(0))
    if len(own) < threads:
        sys.exit(f"--threads {threads}: this process may only use {len(own)} processors")
    os.sched_setaffinity(0, own[:threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import torch

    torch.set_num_threads(threads)


def machine(threads: int) -> dict[str, Any]:
    """What the numbers were measured with."""
    from importlib.metadata import version

    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "unknown")
    found = {name: version(name) for name in ("jax", "flax", "torch", "transformers")}
    return found | {
        "python": platform.python_version(),
        "cpu": cpu,
        "threads": threads,
        "load": os.getloadavg()[0],
    }


def sizes_of(args: argparse.Namespace) -> dict[str, int]:
    """Depths and image size, as both models take them."""
    return {name: getattr(args, name) for name in (*DEPTHS, "image_size")}


def check(args: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Print both sides' losses; exits with an error if they differ by more than `TOLERANCE`, relative above 1."""
    import equal

    sizes = {k: min(v, args.check_depth) if k in DEPTHS else v for k, v in sizes_of(args).items()}
    found = equal.compare(sizes, queue=args.queue)
    print(f"equal weights, inputs, negatives and masks; dropout 0; {sizes}")
    wrong = []
    for name, (theirs, ours) in found.items():
        print(f"  {name:<40} PyTorch {theirs:.6f}  jaxvl {ours:.6f}  difference {ours - theirs:+.1e}")
        if not abs(ours - theirs) <= TOLERANCE[name.split(":")[0]] * max(1.0, abs(theirs)):
            wrong.append(name)
    if wrong:
        sys.exit(f"the two sides do not compute the same: {', '.join(wrong)}")
    return found


def torch_flops(run: Callable[[], object]) -> float:
    """What PyTorch's counter sees in one call: matrix products, convolutions and attention."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def race(
    contenders: Mapping[str, Callable[[], object]], flops: Mapping[str, float], *, rounds: int
) -> dict[str, Any]:
    """Time two contenders; the ratio is that of the first's seconds to the second's."""
    import timing

    seconds = timing.take_turns(contenders, rounds=rounds)
    first, second = contenders
    ratio = timing.median_ratio(seconds[first], seconds[second])
    for name, values in seconds.items():
        rate = flops[name] / 1e9
        print(f"  {name:<18} {float(sorted(values)[len(values) // 2]):8.3f} s  {rate:8.1f} GFLOP")
    print(f"  {first} / {second}: time {ratio}, FLOPs {flops[first] / flops[second]:.3f}")
    print(f"  peak memory of the process so far {timing.memory_gib():.1f} GiB", flush=True)
    return {
        "seconds": {name: values.tolist() for name, values in seconds.items()},
        "flops": dict(flops),
        "ratio": [ratio.median, ratio.low, ratio.high],
        "peak_gib": timing.memory_gib(),
    }


def bare(args: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Forward and backward of the encoders, dropout active, gradients kept until the next call."""
    import equal
    import jaxvl_albef
    import torch_albef

    sizes, rows = sizes_of(args), jaxvl_albef.example(batch, image_size=args.image_size)
    peer = torch_albef.Albef(**sizes, dropout=0.1)
    ours = jaxvl_albef.Bare(jaxvl_albef.build(sizes, dropout=0.1), equal.params_of(peer), rows, train=True)
    tensors = equal.tensors_of(rows)

    def theirs() -> None:
        peer.zero_grad(set_to_none=True)
        torch_albef.bare_loss(peer, *tensors).backward()

    flops = {"PyTorch": torch_flops(theirs), "jaxvl": jaxvl_albef.flops(ours)}
    return race({"PyTorch": theirs, "jaxvl": ours}, flops, rounds=args.rounds)


def step(args: argparse.Namespace, batch: int) -> dict[str, Any]:
    """The whole pre-training step without hypergraph."""
    import equal
    import jaxvl_albef
    import torch_albef

    sizes, rows = sizes_of(args), jaxvl_albef.example(batch, image_size=args.image_size)
    peer = torch_albef.Albef(**sizes, dropout=0.1)
    model = jaxvl_albef.build(sizes, dropout=0.1)
    ours = jaxvl_albef.Step(model, rows, queue=args.queue, load=lambda fresh: equal.params_of(peer))
    pretrain, tensors = torch_albef.PretrainStep(peer, queue=args.queue), equal.tensors_of(rows)

    def theirs() -> None:
        pretrain(*tensors)

    flops = {"PyTorch": torch_flops(theirs), "jaxvl": jaxvl_albef.flops(ours)}
    return race({"PyTorch": theirs, "jaxvl": ours}, flops, rounds=args.rounds)


def hypergraph(args: argparse.Namespace, batch: int) -> dict[str, Any]:
    """The whole step with the default hypergraph in every fusion layer, against none."""
    import jaxvl_albef

    sizes, rows = sizes_of(args), jaxvl_albef.example(batch, image_size=args.image_size)
    options = {"with hypergraph": {}, "without": None}
    steps = {
        name: jaxvl_albef.Step(
            jaxvl_albef.build(sizes, dropout=0.1, hypergraph=value), rows, queue=args.queue
        )
        for name, value in options.items()
    }
    flops = {name: jaxvl_albef.flops(step) for name, step in steps.items()}
    return race(steps, flops, rounds=args.rounds)


def main(argv: list[str] | None = None) -> None:
    """Check, race, report."""
    args = parse(argv)
    use_processors(args.threads)
    results: dict[str, Any] = {"machine": machine(args.threads), "sizes": sizes_of(args)}
    print(json.dumps(results))
    results["losses"] = check(args)
    races = {"bare": bare, "step": step, "hypergraph": hypergraph}
    for what in args.what:
        for batch in args.batch if what != "hypergraph" else args.batch[:1]:
            print(f"{what}, batch {batch}", flush=True)
            results[f"{what}/{batch}"] = races[what](args, batch)
            gc.collect()
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
