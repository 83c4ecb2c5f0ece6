"""CCRL's pool scorer: images a second and memory by the sizes of pool and bank, and against pair by pair.

    python bench/pool_scoring.py --images 10000,100000 --patterns 256,1024 --out pool_scoring.json
    python bench/pool_scoring.py --strategies --out selection_times.json
    python bench/pool_scoring.py --accept --images 2000 --patterns 256 --out acceptance.json
    python bench/pool_scoring.py --curve --images 2048 --patterns 1024 --rounds 3 --out curve.json

Every case has a process of its own, whose peak memory is therefore that case's. The pool's features are a small
memory-mapped file, whose rows serve image after image. "exact" scores every image, "pruned" only those that can still
be among the best 2 %; both select the same. "naive" encodes image and question of every pair anew; it takes turns with
the scorer on a subset, and the ratio is of times an image, above 1 the scorer is faster.

Weights are random, so two things are set that trained models decide: the share of the pairs that match (`--match`) and
how sure the answers are (`--sharpness`, a factor on the logits). How much pruning saves depends on both.

`--strategies` times one selection of each strategy instead, with models of the real config; see selection_times.py.
`--accept` compares accelerated ways of scoring with the oracle instead, for the first number of images and of
patterns; see pool_acceptance.py. `--curve` shows how time grows with the bank; see pool_curve.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SCHEMA = "jaxvl.pool_scoring/1"
SIZES: dict[str, dict[str, int]] = {
    "small": dict(
        width=64, regions=8, features=64, heads=2, words=14, word_dim=64, answers=30, vocabulary=200
    ),
    "base": dict(
        width=512, regions=36, features=2048, heads=8, words=14, word_dim=300, answers=3129, vocabulary=15000
    ),
    "tiny": dict(width=8, regions=4, features=6, heads=2, words=5, word_dim=4, answers=6, vocabulary=20),
}
MAPPED = 32 << 20  # bytes of features on disk
SHARE = 0.02  # of the pool that is selected


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=numbers, default=[10_000, 100_000, 1_000_000], help="default 10000,100000,1000000")
    add("--patterns", type=numbers, default=[256, 1024], help="default 256,1024")
    add("--mode", choices=("exact", "pruned"), action="append", help="may be repeated; default both")
    add("--size", choices=SIZES, default="small", help="default %(default)s")
    add("--base", dest="size", action="store_const", const="base", help="width 512, 36 regions of 2048")
    add("--block", type=int, default=256, help="images of a block; default %(default)s")
    add("--pairs", type=int, default=2048, help="matched pairs of a chunk; default %(default)s")
    add("--match", type=float, default=0.2, help="share of the pairs that match; default %(default)s")
    add("--sharpness", type=float, default=30.0, help="factor on the logits; default %(default)s")
    add("--rounds", type=int, default=5, help="turns against naive; default %(default)s, 0 = none")
    add("--subset", type=int, default=8, help="images that naive scores in a turn; default %(default)s")
    add("--threads", type=int, default=2, help="default %(default)s")
    add("--strategies", action="store_true", help="time one selection of each strategy instead")
    add("--accept", action="store_true", help="compare accelerated ways of scoring with the oracle instead")
    add("--curve", action="store_true", help="time banks and caps of several sizes instead")
    add("--scale", choices=("tiny", "small"), default="small", help="of --strategies; default %(default)s")
    add("--steps", type=int, default=50, help="updates of each model of --strategies; default %(default)s")
    add("--repetitions", type=int, default=10, help="of --strategies; default %(default)s")
    add("--method", action="append", help="of --strategies; may be repeated; default all")
    add("--out", type=Path, help="JSON file")
    add("--case", help=argparse.SUPPRESS)  # what a child process measures, as JSON
    args = parser.parse_args(argv)
    args.mode = args.mode or ["exact", "pruned"]
    return args


def numbers(text: str) -> list[int]:
    """Positive numbers from "10,20"."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected positive numbers")
    return found


class Pool:
    """A source of `images` rows of regions; row `i` of a memory-mapped file serves all images that are `i` modulo its
    rows."""

    cache = None

    def __init__(self, features: np.ndarray, ids: np.ndarray):
        self.features, self.ids = features, ids
        self._all = np.ones(features.shape[1], bool)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        row = np.asarray(self.features[self.ids[i] % len(self.features)], np.float32)
        return {"regions": row, "region_mask": self._all}

    def augmented(self, i: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The same as `[i]`."""
        return self[i]

    def annotation(self, i: int) -> dict[str, Any]:
        """The image's id."""
        return {"image_id": int(self.ids[i])}

    def subset(self, rows: np.ndarray) -> Pool:
        """The images at these positions."""
        return Pool(self.features, self.ids[rows])


def mapped(path: Path, size: dict[str, int]) -> np.ndarray:
    """The features `[rows,R,F]` f16 of a file, written if it is not there; read only."""
    each = size["regions"] * size["features"] * 2
    rows = max(64, min(8192, MAPPED // each))
    shape = (rows, size["regions"], size["features"])
    if not path.exists():
        made = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        rng = np.random.default_rng(0)
        for start in range(0, rows, 256):
            made[start : start + 256] = rng.normal(size=(min(256, rows - start), *shape[1:]))
        made.flush()
    return np.load(path, mmap_mode="r")


class Bench:
    """Both models with random weights, a bank, the scorer, and the pair-by-pair computation of the same scores."""

    def __init__(self, args: argparse.Namespace, features: np.ndarray, patterns: int):
        from jaxvl.active.scoring import PoolScorer
        from jaxvl.models.vaue import VAUE
        from jaxvl.models.vqme import VQME
        from jaxvl.sharding import Partition

        of = SIZES[args.size]
        rng = np.random.default_rng(1)
        self.args, self.features = args, features
        self.text = rng.integers(3, of["vocabulary"], (patterns, of["words"])).astype(np.int32)
        self.kinds = rng.integers(0, 3, patterns)
        self.rates = 1 - rng.dirichlet(np.full(of["answers"], 0.3), 3)
        sizes: dict[str, Any] = dict(
            words=of["vocabulary"], feat_dim=of["features"], width=of["width"], heads=of["heads"],
            word_dim=of["word_dim"], dropout=0.0,
        )  # fmt: skip
        self.matcher = VQME(critic_width=of["width"], **sizes)
        self.answers = VAUE(classes=of["answers"], **sizes)
        partition = Partition.create(mesh=dict(data=1, model=1))
        self.scorer = PoolScorer(
            self.matcher, self.answers, partition=partition, block=args.block, pairs=args.pairs
        )
        self.params = self._weights()

    def _weights(self) -> dict[str, Any]:
        import jax
        from flax import linen as nn

        regions = np.asarray(self.features[:64], np.float32)
        rows = (regions[:1], np.ones(regions.shape[:2], bool)[:1], self.text[:1], self.text[:1] != 0)
        out = {}
        for n, (name, model) in enumerate((("vqme", self.matcher), ("vaue", self.answers))):
            out[name] = nn.unbox(jax.jit(model.init)(jax.random.key(n), *rows))["params"]
        rng = np.random.default_rng(2)
        i, q = rng.integers(0, len(regions), 1024), rng.integers(0, len(self.text), 1024)
        logits = self._match(out["vqme"], regions[i], self.text[q])
        out["vqme"]["critic_offset"] = (
            out["vqme"]["critic_offset"] - np.quantile(logits, 1 - self.args.match)
        ).astype(np.float32)
        for half in ("image_half", "text_half"):
            out["vaue"][half] = {k: v * self.args.sharpness for k, v in out["vaue"][half].items()}
        return out

    def _match(self, weights: Any, regions: np.ndarray, text: np.ndarray) -> np.ndarray:
        import jax

        mask = np.ones(regions.shape[:2], bool)
        run = jax.jit(lambda w, *rows: self.matcher.apply({"params": w}, *rows)["match"])
        return np.asarray(run(weights, regions, mask, text, text != 0))

    def request(self, images: int, mode: str) -> Any:
        """A selection of 2 % of a pool of this many images."""
        from jaxvl.active.request import Request

        pool = Pool(self.features, np.arange(images))
        return Request(
            images=pool, text=self.text, kinds=self.kinds, rates=self.rates, budget=max(1, round(SHARE * images)),
            prune="exact" if mode == "pruned" else None,
        )  # fmt: skip

    def score(self, images: int, mode: str = "exact") -> dict[str, np.ndarray]:
        """What the scorer finds."""
        return self.scorer(self.params, self.request(images, mode))

    def naive(self, images: int) -> np.ndarray:
        """Scores `[images]` of the first images: every pair encoded anew, `block` pairs at a time."""
        import jax

        from jaxvl.objectives.uncertainty import indicator

        if not hasattr(self, "_pairs"):

            def pairs(weights: Any, *rows: Any) -> Any:
                match = self.matcher.apply({"params": weights["vqme"]}, *rows)["match"]
                return match, indicator(self.answers.apply({"params": weights["vaue"]}, *rows).logits)

            self._pairs = jax.jit(pairs)
        size, total = self.args.block, images * len(self.text)
        match, f, answer = (np.zeros(-(-total // size) * size, kind) for kind in (float, float, int))
        for start in range(0, total, size):
            i, q = np.divmod(np.minimum(np.arange(start, start + size), total - 1), len(self.text))
            regions = np.asarray(self.features[i % len(self.features)], np.float32)
            rows = (regions, np.ones(regions.shape[:2], bool), self.text[q], self.text[q] != 0)
            found = jax.device_get(self._pairs(self.params, *rows))
            at = slice(start, start + size)
            match[at], f[at], answer[at] = found[0], found[1].f, found[1].index
        match, f, answer = (x[:total].reshape(images, -1) for x in (match, f, answer))
        counts = (match > 0) | ((match == match.max(1, keepdims=True)) & (match <= 0).all(1, keepdims=True))
        return np.where(counts, f * self.rates[self.kinds[None], answer], 0).sum(1)


def measure(args: argparse.Namespace, case: dict[str, Any]) -> dict[str, Any]:
    """One case, in a process that has measured nothing else."""
    import time

    import timing

    features = mapped(Path(case["features"]), SIZES[args.size])
    bench = Bench(args, features, case["patterns"])
    if case["mode"] == "naive":
        return against_naive(args, bench)
    for mode in {"exact", case["mode"]}:
        bench.score(args.block, mode)  # compiles
    before = timing.memory_gib("VmRSS")
    start = time.perf_counter()
    found = bench.score(case["images"], case["mode"])
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return dict(
        images=case["images"], patterns=case["patterns"], mode=case["mode"], seconds=seconds,
        images_per_second=case["images"] / seconds, matches=float(found["n_match"].mean()),
        scored=float(np.mean(~np.isnan(found["score"]))), peak_gib=peak, mapped_gib=features.nbytes / 2**30,
        before_gib=before, programs=bench.scorer.traces,
    )  # fmt: skip


def against_naive(args: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    """Times an image, in turns: the scorer on one block, naive on a subset; their scores must agree."""
    import timing

    few = min(args.subset, args.block)
    ours, theirs = bench.score(args.block)["score"][:few], bench.naive(few)
    error = float(np.abs(ours - theirs).max() / theirs.mean())
    if error > 1e-4:
        sys.exit(f"scores of the scorer and of pair by pair differ by {error:.1e} of their mean")
    seconds = timing.take_turns(
        {"scorer": lambda: bench.score(args.block), "naive": lambda: bench.naive(few)}, rounds=args.rounds
    )
    ours, theirs = seconds["scorer"] / args.block, seconds["naive"] / few
    ratio = timing.median_ratio(theirs, ours)
    return dict(
        patterns=len(bench.text), naive_images_per_second=1 / float(np.median(theirs)),
        scorer_images_per_second=1 / float(np.median(ours)), ratio=ratio.median, ratio_low=ratio.low,
        ratio_high=ratio.high, rounds=args.rounds, subset=few, score_error=error,
    )  # fmt: skip


def child(args: argparse.Namespace, argv: list[str], case: dict[str, Any]) -> dict[str, Any]:
    """Measure a case in a new process."""
    command = [sys.executable, str(Path(__file__).resolve()), *argv, "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{case}: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
    """All cases."""
    found: dict[str, Any] = {"sizes": SIZES[args.size], "rows": [], "naive": []}
    with tempfile.TemporaryDirectory() as folder:
        features = str(Path(folder) / "features.npy")
        mapped(Path(features), SIZES[args.size])
        for patterns in args.patterns:
            case: dict[str, Any] = dict(features=features, patterns=patterns)
            if args.rounds:
                row = child(args, argv, {**case, "mode": "naive"})
                print(
                    f"{patterns} patterns: {row['scorer_images_per_second']:.0f} images/s, pair by pair "
                    f"{row['naive_images_per_second']:.1f}: {row['ratio']:.1f} times "
                    f"[{row['ratio_low']:.1f}, {row['ratio_high']:.1f}]",
                    flush=True,
                )
                found["naive"].append(row)
            for images in args.images:
                for mode in args.mode:
                    row = child(args, argv, {**case, "mode": mode, "images": images})
                    print(
                        f"{images:>9} images x {patterns} {mode:<6} {row['seconds']:8.1f} s "
                        f"{row['images_per_second']:8.0f} images/s  peak {row['peak_gib']:.2f} GiB "
                        f"({row['peak_gib'] - row['mapped_gib']:.2f} without features), {row['scored']:.0%} scored",
                        flush=True,
                    )
                    found["rows"].append(row)
    return found


def main(argv: list[str] | None = None) -> None:
    """Measure, report."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    import cached_inference  # its view of the machine

    cached_inference.use_processors(args.threads)
    if args.case:
        print(json.dumps(measure(args, json.loads(args.case))))
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    options = {k: v for k, v in vars(args).items() if k not in ("out", "case")}
    about = {
        "commit": commit,
        "command": " ".join(["python", "bench/pool_scoring.py", *argv]),
        "options": options,
    }
    if args.strategies:
        import selection_times

        found = {"schema": selection_times.SCHEMA, **about, **selection_times.run(args)}
    elif args.accept:
        import pool_acceptance

        with tempfile.TemporaryDirectory() as folder:
            features = mapped(Path(folder) / "features.npy", SIZES[args.size])
            bench = Bench(args, features, args.patterns[0])
            found = {"schema": pool_acceptance.SCHEMA, **about}
            found |= pool_acceptance.run(args, bench, args.images[0])
    elif args.curve:
        import pool_curve

        with tempfile.TemporaryDirectory() as folder:
            features = mapped(Path(folder) / "features.npy", SIZES[args.size])
            found = {"schema": pool_curve.SCHEMA, **about}
            found |= pool_curve.run(args, lambda patterns: Bench(args, features, patterns))
    else:
        found = {"schema": SCHEMA, **about, "load": os.getloadavg()[0], **run(args, argv)}
    found["machine"] = cached_inference.machine(
        args.threads
    )  # last: a parent that held JAX would pass its peak on
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
