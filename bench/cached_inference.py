"""Answers from cached states against a full ViLT, at base size (12 layers, 768 wide, 224 pixels in patches of 32).

    python bench/cached_inference.py --out cached_inference.json

Both models answer the same pairs with the same types, batch and text length, heads included; ViLT also embeds patches
and words. Modes of the student: both states cached, image cached, cold; each computed whole ("plain") or with the last
layer for the class tokens only; and with the first layer's share of each modality cached too ("primed"). Models take
turns, so that a ratio is one of equal conditions: ViLT's seconds over the student's, above 1 the student is faster.

Random weights: time does not depend on them. FLOPs are XLA's count of the transformer layers alone, without embeddings
and heads. `store` feeds the fusion from a memory-mapped store on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SCHEMA = "jaxvl.speed/1"
SIZES: Mapping[str, dict[str, Any]] = {
    "base": dict(width=768, heads=12, mlp=3072, depth=12, cross=3, patch=32, image_size=224, vocab=30522),
    "tiny": dict(width=64, heads=2, mlp=128, depth=2, cross=2, patch=16, image_size=64, vocab=100),
}
CLASSES = {"vqa": 3129, "snli_ve": 3, "nlvr2": 2}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; default 1, 16 and 64")
    parser.add_argument("--task", choices=CLASSES, action="append", help="may be repeated; default vqa")
    parser.add_argument("--text_tokens", type=int, default=40, help="default %(default)s")
    parser.add_argument("--size", choices=SIZES, default="base", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each contender; default %(default)s")
    parser.add_argument(
        "--mode", action="append", help="only modes whose name contains this; may be repeated"
    )
    parser.add_argument(
        "--records", type=int, default=256, help="of the store; default %(default)s, 0 = none"
    )
    parser.add_argument("--threads", type=int, default=2, help="default %(default)s")
    parser.add_argument(
        "--out", type=Path, help="JSON file, as launch/reproduce.py --table=bridge_tower/9 reads it"
    )
    args = parser.parse_args(argv)
    args.batch, args.task = args.batch or [1, 16, 64], args.task or ["vqa"]
    return args


def use_processors(threads: int) -> None:
    """Give this process `threads` processors, before JAX counts them; a machine with an accelerator keeps it."""
    own = sorted(os.sched_getaffinity(0))
    if len(own) < threads:
        sys.exit(f"--threads {threads}: this process may only use {len(own)} processors")
    os.sched_setaffinity(0, own[:threads])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def machine(threads: int) -> dict[str, Any]:
    """What the numbers are measured with."""
    from importlib.metadata import version

    import jax

    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "unknown")
    found = {name: version(name) for name in ("jax", "jaxlib", "flax")}
    return found | {
        "platform": jax.default_backend(),
        "cpu": cpu,
        "threads": threads,
        "load": os.getloadavg()[0],
    }


def models(size: str, *, task: str, tokens: int) -> tuple[Any, Any]:
    """(ViLT, Bridge tower) of these sizes for one task."""
    from jaxvl.models import MODELS

    of = SIZES[size]
    common = dict(
        vocab_size=of["vocab"], width=of["width"], heads=of["heads"], mlp=of["mlp"], image_size=of["image_size"],
        classes=CLASSES[task], images=2 if task == "nlvr2" else 1,
    )  # fmt: skip
    teacher = MODELS["vilt"](**common, depth=of["depth"], patch=of["patch"], max_positions=tokens)
    student = MODELS["bridge_tower"](
        **common, text=dict(depth=of["depth"]), vision=dict(depth=of["depth"], patch=of["patch"]),
        cross=dict(depth=of["cross"]),
    )  # fmt: skip
    return teacher, student


class Abstract:
    """A model whose methods are only traced: nothing is computed or allocated."""

    def __init__(self, model: Any, *inputs: Any):
        import jax
        from flax import linen as nn

        self.model = model
        self.params = jax.eval_shape(lambda *x: nn.unbox(model.init(jax.random.key(0), *x)), *inputs)

    def method(self, name: str, **kwargs: Any) -> Callable[..., Any]:
        """A method of the model as a function of parameters and arrays."""
        return lambda params, *args: self.model.apply(params, *args, method=name, **kwargs)

    def shapes(self, name: str, *args: Any) -> Any:
        """What a method returns."""
        import jax

        return jax.eval_shape(self.method(name), self.params, *args)

    def flops(self, name: str, *args: Any, **kwargs: Any) -> float:
        """What XLA's cost analysis says of a method, as far as its pooled states need it."""
        import jax

        pooled = jax.jit(lambda *x: self.method(name, **kwargs)(*x).pooled)
        return float(pooled.lower(self.params, *args).cost_analysis()["flops"])


def count(size: str, *, tokens: int) -> dict[str, float]:
    """FLOPs of one pair in the transformer layers alone."""
    import jax
    import jax.numpy as jnp

    side = SIZES[size]["image_size"]
    pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    text, mask = (jax.ShapeDtypeStruct((1, tokens), kind) for kind in (jnp.int32, jnp.bool_))
    teacher, student = (
        Abstract(model, pixels, text, mask) for model in models(size, task="vqa", tokens=tokens)
    )

    def encoded(model: Abstract) -> tuple[Any, Any, Any]:
        return model.shapes("encode_text", text, mask), mask, model.shapes("encode_image", pixels)

    words, _, image = encoded(student)
    primed = student.shapes("prime_text", words, mask), mask, student.shapes("prime_image", image)
    return {
        "ViLT": teacher.flops("fuse", *encoded(teacher)),
        "plain": student.flops("fuse", words, mask, image),
        "class tokens": student.flops("fuse", words, mask, image, tokens="class"),
        "primed, class tokens": student.flops("join", *primed, tokens="class"),
    }


class Pairs:
    """Both models of one task with random weights, and one batch of pairs in every form.

    Attributes:
      calls: `{mode: function without arguments that returns device arrays}`; "ViLT" is the teacher.
    """

    def __init__(self, size: str, *, task: str, batch: int, tokens: int):
        import jax
        import jax.numpy as jnp
        import numpy as np
        from flax import linen as nn

        of, images = SIZES[size], 2 if task == "nlvr2" else 1
        self.teacher, self.student = models(size, task=task, tokens=tokens)
        rng = np.random.default_rng(0)
        shape = (batch, of["image_size"], of["image_size"], 3)
        self.pixels = [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(images)]
        self.text = jnp.asarray(rng.integers(0, of["vocab"], (batch, tokens)), jnp.int32)
        self.mask = jnp.ones((batch, tokens), bool)

        def weights(model: Any) -> Any:
            more = {"image2": self.pixels[1]} if images == 2 else {}
            return nn.unbox(model.init(jax.random.key(0), self.pixels[0], self.text, self.mask, **more))

        self.params = {
            model: jax.jit(weights, static_argnums=0)(model) for model in (self.teacher, self.student)
        }
        self.calls: dict[str, Callable[[], Any]] = {}
        self._build()

    def apply(self, model: Any, params: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        """One method of a model."""
        return model.apply(params, *args, method=method, **kwargs)

    def full(self, model: Any, params: Any, pixels: Any, text: Any, mask: Any, *, tokens: str) -> Any:
        """Logits from pixels and words."""
        words = self.apply(model, params, "encode_text", text, mask)
        images = [self.apply(model, params, "encode_image", p) for p in pixels]
        return self.logits(model, params, words, mask, images, tokens=tokens)

    def logits(self, model: Any, params: Any, words: Any, mask: Any, images: Any, *, tokens: str) -> Any:
        """Logits from encoded words and images."""
        pooled = tuple(
            self.apply(model, params, "fuse", words, mask, image, image_type=i, tokens=tokens).pooled
            for i, image in enumerate(images, start=1)
        )
        return self.apply(model, params, "class_logits", pooled)

    def primed(self, params: Any, words: Any, mask: Any, images: Any) -> Any:
        """Logits from primed words and images, class tokens only."""
        pooled = tuple(
            self.apply(self.student, params, "join", words, mask, image, tokens="class").pooled
            for image in images
        )
        return self.apply(self.student, params, "class_logits", pooled)

    def _build(self) -> None:
        import jax

        from jaxvl.types import Encoded

        student, params = self.student, self.params[self.student]
        self.words, self.images = jax.jit(
            lambda p: (
                Encoded(self.apply(student, p, "encode_text", self.text, self.mask).record),
                [Encoded(self.apply(student, p, "encode_image", x).record) for x in self.pixels],
            )
        )(params)
        raw = (self.pixels, self.text, self.mask)

        def add(mode: str, fn: Callable[..., Any], *args: Any) -> None:
            compiled = jax.jit(fn)
            self.calls[mode] = lambda: compiled(*args)

        add("ViLT", lambda p, x, t, m: self.full(self.teacher, p, x, t, m, tokens="all"),
            self.params[self.teacher], *raw)  # fmt: skip
        for tokens, label in (("all", "plain"), ("class", "class tokens")):
            self._modes(add, label, tokens)
        primed = jax.jit(
            lambda p, w, m, i: (
                self.apply(student, p, "prime_text", w, m),
                [self.apply(student, p, "prime_image", x, image_type=n) for n, x in enumerate(i, start=1)],
            )
        )(params, self.words, self.mask, self.images)
        add("both primed, class tokens", self.primed, params, primed[0], self.mask, primed[1])

    def _modes(self, add: Callable[..., None], label: str, tokens: str) -> None:
        """The student from cached states of both modalities, of images only, and of neither."""
        student, kind = self.student, dict(tokens=tokens)
        params, raw = self.params[student], (self.pixels, self.text, self.mask)

        def half(params: Any, text: Any, mask: Any, images: Any) -> Any:
            words = self.apply(student, params, "encode_text", text, mask)
            return self.logits(student, params, words, mask, images, **kind)

        add(
            f"both cached, {label}",
            lambda p, w, m, i: self.logits(student, p, w, m, i, **kind),
            *(params, self.words, self.mask, self.images),
        )
        add(f"image cached, {label}", half, params, self.text, self.mask, self.images)
        add(f"cold, {label}", lambda p, x, t, m: self.full(student, p, x, t, m, **kind), params, *raw)


def race(args: argparse.Namespace, task: str, batch: int) -> list[dict[str, Any]]:
    """Time all modes of one task and batch; prints and returns rows of the table."""
    import jax
    import numpy as np
    import timing

    pairs = Pairs(args.size, task=task, batch=batch, tokens=args.text_tokens)
    wanted = {k: v for k, v in pairs.calls.items() if k == "ViLT" or any(m in k for m in args.mode or [""])}
    calls = {name: lambda call=call: jax.block_until_ready(call()) for name, call in wanted.items()}
    seconds = timing.take_turns(calls, rounds=args.rounds, warmup=5)
    rows = []
    for name in list(calls)[1:]:
        ratio = timing.median_ratio(seconds["ViLT"], seconds[name])
        ours, theirs = (float(np.median(seconds[k])) for k in (name, "ViLT"))
        print(f"  {name:<28} {ours:8.4f} s  ViLT {theirs:8.4f} s  ratio {ratio}", flush=True)
        rows.append(
            dict(task=task, batch=batch, mode=name, teacher_seconds=theirs, student_seconds=ours, rounds=args.rounds,
                 text_tokens=args.text_tokens, dtype="float32", size=args.size,
                 ratio=ratio.median, ratio_low=ratio.low, ratio_high=ratio.high)
        )  # fmt: skip
    return rows


def fed(args: argparse.Namespace, batch: int) -> dict[str, float]:
    """Pairs a second from a store on disk, against states that lie on the device; and what the store itself gives."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import timing

    from jaxvl.types import Encoded

    pairs = Pairs(args.size, task="vqa", batch=batch, tokens=args.text_tokens)
    student, params = pairs.student, pairs.params[pairs.student]
    fuse = jax.jit(lambda p, w, m, i: pairs.logits(student, p, Encoded(w), m, [Encoded(i)], tokens="class"))
    rng, keys = np.random.default_rng(0), [str(i) for i in range(args.records)]
    with tempfile.TemporaryDirectory() as folder:
        records = dict(image=np.asarray(pairs.images[0].record), text=np.asarray(pairs.words.record))
        stores = {kind: filled(Path(folder) / kind, kind, keys, states) for kind, states in records.items()}

        def pick() -> list[str]:
            return [keys[i] for i in rng.integers(0, len(keys), batch)]

        def read() -> Any:
            return stores["text"].get(pick(), args.text_tokens), stores["image"].get(pick())

        def from_store() -> Any:
            text, image = read()
            return jax.block_until_ready(
                fuse(params, jnp.asarray(text.x), jnp.asarray(text.mask), jnp.asarray(image.x))
            )

        resident = pairs.calls["both cached, class tokens"]
        found = timing.take_turns(
            {"store": from_store, "device": lambda: jax.block_until_ready(resident()), "read": read},
            rounds=args.rounds, warmup=5,
        )  # fmt: skip
    share = timing.median_ratio(found["device"], found["store"])
    rates = {f"{k}_pairs_per_s": batch / float(np.median(v)) for k, v in found.items()}
    print(f"store, batch {batch}: {rates}, store-fed / device-resident throughput {share}", flush=True)
    return {**rates, "batch": batch, "share": share.median, "share_low": share.low, "share_high": share.high}


def filled(folder: Path, kind: str, keys: list[str], records: Any) -> Any:
    """A sealed float16 store of `records [B,Z,S,D]`, repeated for all keys, opened again."""
    import numpy as np

    from jaxvl.cache.fingerprint import Fingerprint
    from jaxvl.cache.records import Layout
    from jaxvl.cache.store import States, Store

    _, layers, tokens, width = records.shape
    layout = Layout(kind, layers, tokens if kind == "image" else None, width)
    with Store.create(folder, layout, fingerprint=Fingerprint({"weights": "random"})) as store:
        for i, key in enumerate(keys):
            x = records[i % len(records)][None]
            store.put([key], States(x) if kind == "image" else States(x, np.ones((1, tokens), bool)))
        store.seal()
    return Store.open(folder)


def main(argv: list[str] | None = None) -> None:
    """Count, race, feed from a store, report."""
    args = parse(argv)
    use_processors(args.threads)
    import gc

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    found: dict[str, Any] = {
        "schema": SCHEMA, "commit": commit.stdout.strip(), "command": " ".join(["python", *sys.argv]),
        "machine": machine(args.threads), "sizes": dict(SIZES[args.size]), "rows": [],
    }  # fmt: skip
    found["device"] = f"{args.threads} threads of {found['machine']['cpu']}"
    print(found["device"])
    flops = count(args.size, tokens=args.text_tokens)
    found["gflop_per_pair"] = {name: value / 1e9 for name, value in flops.items()}
    found["flop_ratio"] = {name: flops["ViLT"] / value for name, value in flops.items() if name != "ViLT"}
    for name, value in flops.items():
        print(f"  {name:<28} {value / 1e9:7.3f} GFLOP a pair, ViLT / this {flops['ViLT'] / value:.2f}")
    for task in args.task:
        for batch in args.batch:
            print(f"{task}, batch {batch}", flush=True)
            found["rows"] += race(args, task, batch)
            gc.collect()
    if args.records:
        found["store"] = [fed(args, batch) for batch in args.batch]
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
