"""Does CCRL do what it is made for, where the truth is known? The oracles of specification 12.8 on the embedded world.

    python bench/toy_world.py --workdir runs/toy --out toy_world.json

Questions of `variant=shown` name only colours and shapes that their scene shows, so it is known of every scene and
pattern whether the pattern fits. Reported, each with what it is to be above:

- the matcher: balanced accuracy on held-out images, and with other images' features (the specification's baseline, a
  cosine of word vectors, needs detected names of things, which scenes have not);
- matched patterns: how many fit, beside the share of all patterns that fit;
- the answer model: how often its likeliest answer is the hard label of evaluation questions, beside the most frequent
  answer of each type;
- methods: how much of what CCRL picks is also picked by `count_only`, `match_all`, and at random;
- balance: entropy of the answers after one round where answers are uneven (`skew` 0.9), with the factor one minus the
  share and with the printed one, by repeat.

Whether active learning beats Random is no oracle: see `launch/reproduce.py --table=ccrl/figures4-8 --data=shown`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "jaxvl.toy_world/1"
METHODS = ("ccrl", "count_only", "match_all", "random")
IMAGES = 100  # unlabelled ones whose patterns are checked


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", type=Path, required=True, help="models are kept there; run again to go on")
    add("--scale", choices=("tiny", "small"), default="small", help="default %(default)s")
    add("--repeats", type=int, default=5, help="of the balance factors, 0 = none; default %(default)s")
    add(
        "--labelled",
        type=float,
        default=0.4,
        help="share of the images that models are trained on; default %(default)s",
    )
    add("--skew", type=float, default=0.9, help="of the answers, for balance; default %(default)s")
    add("--out", type=Path, help="JSON file")
    return parser.parse_args(argv)


def config(arg: str, **values: Any) -> Any:
    """`configs/ccrl.py` with overrides of its section `active`."""
    from jaxvl.config import override

    spec = importlib.util.spec_from_file_location("ccrl", ROOT / "configs" / "ccrl.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.get_config(arg)
    override(made, {f"active.{name.replace('__', '.')}": value for name, value in values.items()})
    return made


def matching(args: argparse.Namespace) -> dict[str, Any]:
    """The matcher, its matches, the answer model, and what methods pick, after one round."""
    from jaxvl import build_active
    from jaxvl.active.loop import folder_of
    from jaxvl.active.rounds import Run

    c = config(
        f"{','.join(METHODS)},variant=shown,scale={args.scale}", init=args.labelled, step=0.1,
        budget=args.labelled + 0.1, repeats=1,
    )  # fmt: skip
    root = args.workdir / "shown"
    world = build_active.world(c, root, methods=list(METHODS))
    picked, found = {}, {}
    for method in METHODS:
        with Run(world, method=method, repeat=0, folder=folder_of(root, method, 0)) as run:
            while "SELECTED" not in run.folder.events(0):  # the initial images are selected, too
                run.advance(until="SELECTED")
            picked[method] = {row["image_id"] for row in run.folder.selection(0)}
            if method == "ccrl":
                found = of_models(run, c)
    others = {m: len(picked["ccrl"] & picked[m]) / len(picked["ccrl"]) for m in METHODS if m != "ccrl"}
    return {**found, "picked_too": others}


def of_models(run: Any, c: Any) -> dict[str, Any]:
    """Held-out scores of the matcher, how many of its matches fit, and accuracy of the answer model."""
    from jaxvl.active.bank import KINDS
    from jaxvl.data.region_source import RegionQuestions
    from jaxvl.data.scenes.pool import ScenePool, fits

    world, models = run.world, run.folder.events(0)["FITTED"].data["models"]
    held = models["vqme"]["result"]["held_out"]

    def ask(stage: str, name: str, source: Any) -> Any:
        fitter = world.fitter
        return fitter.stages[stage].trainer.predict(fitter.load(stage, models[stage]["key"]), name, source)

    pool = ScenePool(**{k: v for k, v in c.active.pool.to_dict().items() if k != "name"})
    scenes = {s.image_id: s for s in (pool.scene(i) for i in range(0, len(pool), pool.questions_per_scene))}
    images = run.pool(0).ids[:IMAGES].tolist()
    patterns = [p.question for p in run.labelled(0).bank.patterns]
    truth = np.array([[fits(q, scenes[i]) for q in patterns] for i in images])
    rows = [
        dict(image_id=i, question=q, answers=["yes"], answer_type=KINDS[0]) for i in images for q in patterns
    ]
    pairs = RegionQuestions(world.provider, rows, world.words, world.answers, kinds=KINDS)
    matched = np.asarray(ask("vqme", "match", pairs)).reshape(truth.shape) > 0
    said = np.asarray(ask("vaue", "answer", world.val)["index"])[:, 0]
    label, kind = (np.asarray(world.val.array(name)) for name in ("hard_label", "answer_kind"))
    known = label >= 0
    said, label, kind = said[known], label[known], kind[known]
    prior = sum(Counter(label[kind == k].tolist()).most_common(1)[0][1] for k in np.unique(kind)) / len(label)
    return {
        "matcher": {k: held[k] for k in ("balanced_accuracy", "balanced_accuracy_text", "match_rate", "ece")},
        "matches": {"precision": float(truth[matched].mean()), "recall": float(matched[truth].mean()),
                    "fit": float(truth.mean()), "rate": float(matched.mean())},
        "answers": {"accuracy": float((said == label).mean()), "prior": prior},
    }  # fmt: skip


def balance(args: argparse.Namespace) -> dict[str, Any]:
    """Entropy of labelled answers after one round, by factor and repeat."""
    from jaxvl.active.folder import RunFolder
    from jaxvl.active.loop import folder_of
    from jaxvl.active.report.picked import picks_of
    from jaxvl.run_active import run_active

    out: dict[str, list[float]] = {}
    for rate in ("one_minus", "printed"):
        arg = f"ccrl,variant=shown,scale={args.scale}" + (f",ablation=rate={rate}" * (rate != "one_minus"))
        c = config(arg, init=0.1, step=0.1, budget=0.2, repeats=args.repeats, pool__skew=args.skew)
        root = args.workdir / f"balance-{rate}"
        run_active(c, root)
        runs = [RunFolder(folder_of(root, "ccrl", r)) for r in range(args.repeats)]
        out[rate] = [float(picks_of(run).rows[-1]["entropy"]) for run in runs]
    better = [a > b for a, b in zip(out["one_minus"], out["printed"], strict=True)]
    return {**out, "one_minus_above_printed": int(sum(better)), "of": len(better)}


def main(argv: list[str] | None = None) -> None:
    """Measure, report."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    from jaxvl.run import enable_compilation_cache

    enable_compilation_cache()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "commit": commit,
        "command": " ".join(["python", "bench/toy_world.py", *argv]),
    }
    found |= matching(args)
    m, t, a = found["matcher"], found["matches"], found["answers"]
    print(f"matcher: balanced accuracy {m['balanced_accuracy']:.3f} on held-out images, "
          f"{m['balanced_accuracy_text']:.3f} with other images' features")  # fmt: skip
    print(
        f"matched patterns: {t['precision']:.3f} fit, of all {t['fit']:.3f}; {t['recall']:.3f} of those that fit match"
    )
    print(f"answers: {a['accuracy']:.3f} are the hard label; the most frequent of each type {a['prior']:.3f}")
    print("picked by CCRL and also by: " + ", ".join(f"{k} {v:.2f}" for k, v in found["picked_too"].items()))
    if args.repeats:
        b = found["balance"] = balance(args)
        print(
            f"entropy of labelled answers: one minus the share is above the printed factor in "
            f"{b['one_minus_above_printed']} of {b['of']} repeats"
        )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
