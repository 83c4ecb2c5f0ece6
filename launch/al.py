"""Look after runs of active learning: where they stand, and labels that people make.

    python launch/al.py status   runs/ccrl                          all runs below a workdir, or one
    python launch/al.py export   runs/ccrl/ccrl/r0 [--to FOLDER]    the batch that waits for labels, as files for people
    python launch/al.py import   runs/ccrl/ccrl/r0 labels.jsonl     JSON Lines, VQA v2 JSON or a Label Studio export
    python launch/al.py commit   runs/ccrl/ccrl/r0                  end the round with the labels that are there
    python launch/al.py rollback runs/ccrl/ccrl/r0 --to 3           forget everything from round 3 on (-1: all)
    python launch/al.py verify   runs/ccrl                          checksums of all files, no image labelled twice
    python launch/al.py report   runs/ccrl [--to FOLDER]            curves, tables and a page over the runs
    python launch/al.py compare  runs/a runs/b ... --to FOLDER      the same over several workdirs
    python launch/al.py full     runs/ccrl                          train on the whole pool: shares, dataset map
    python launch/al.py score    runs/ccrl/ccrl/r0 --images ids.txt what the newest models would score these images
    python launch/al.py eval     --pred answers.json --ann annotations.json   official VQA accuracy of a result file
    python launch/al.py scores   runs/ccrl/ccrl/r0 scores.json      what EvalAI said of a run under active.protocol=test
    python launch/al.py answers  runs/ccrl/ccrl/r0 --questions questions.json --to answers.json   by its newest model
    python launch/al.py check    --pred answers.json --questions questions.json   would EvalAI take this file?
    python launch/al.py probe    runs/ccrl --rows fr_g language               linear probes of frozen features

`launch/main.py` with the run's config and workdir goes on where labels were committed. Exit codes: 0 done, 2 bad input,
3 another process works on the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    logging.getLogger("jax").setLevel(logging.WARNING)  # a machine without TPU need not be told so
    from jaxvl.active.ledger import Locked

    args = parser().parse_args(argv)
    try:
        return int(args.do(args) or 0)
    except Locked as error:
        print(error, file=sys.stderr)
        return 3
    except (ValueError, OSError, KeyError) as error:
        if os.environ.get("JAXVL_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(
            f"{type(error).__name__}: {message}\n(set JAXVL_TRACEBACK=1 for the traceback)", file=sys.stderr
        )
        return 2


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = out.add_subparsers(required=True, metavar="command")

    def add(name: str, do: Any, *, run: str | None = "run") -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=(do.__doc__ or "").split("\n")[0])
        if run is not None:
            one.add_argument(run, type=Path, help="folder of a run, or of a workdir of runs")
        one.set_defaults(do=do)
        return one

    add("status", status)
    exported = add("export", export)
    exported.add_argument("--to", type=Path, help="default: the round's own folder")
    exported.add_argument(
        "--suggest", action=argparse.BooleanOptionalAction, default=None, help="show questions"
    )
    imported = add("import", import_labels)
    imported.add_argument("file", type=Path)
    imported.add_argument(
        "--partial", action="store_true", help="take the good lines of a file with bad ones"
    )
    imported.add_argument(
        "--replace", action="store_true", help="nameless answers may replace those of a file of the same name"
    )
    add("commit", commit)
    add("rollback", rollback).add_argument("--to", type=int, required=True, metavar="ROUND")
    add("verify", verify)
    add("full", train_full)
    add("report", report).add_argument("--to", type=Path, help="default: <workdir>/report")
    compared = add("compare", compare, run=None)
    compared.add_argument("runs", type=Path, nargs="+")
    compared.add_argument("--to", type=Path, required=True)
    scored = add("score", score)
    scored.add_argument(
        "--images",
        type=Path,
        required=True,
        help="text file with an image id a line (unit qa: a question id)",
    )
    add("scores", scores).add_argument(
        "file", type=Path, help='{"phase": "test-dev", "rounds": {"0": {...}}}'
    )
    asked = add("answers", answers)
    asked.add_argument("--questions", type=Path, required=True, help="question file of VQA v2")
    asked.add_argument("--to", type=Path, required=True)
    asked.add_argument("--round", type=int, help="default: the newest with a model")
    checked = add("check", check, run=None)
    checked.add_argument("--pred", type=Path, required=True)
    checked.add_argument("--questions", type=Path, required=True)
    probed = add("probe", probe, run="workdir")
    probed.add_argument("--rows", nargs="+", default=["ccrl", "fr_g", "language"], help="kinds of features")
    probed.add_argument("--seeds", nargs="+", type=int, default=[0])
    evaluated = add("eval", evaluate, run=None)
    evaluated.add_argument("--pred", type=Path, required=True)
    evaluated.add_argument("--ann", type=Path, required=True)
    evaluated.add_argument("--variant", default="official")
    return out


def found(path: Path) -> list[Any]:
    """The runs at or below a path; FileNotFoundError if there are none."""
    from jaxvl.active.folder import runs_in

    runs = runs_in(path.resolve())
    if not runs:
        raise FileNotFoundError(f"{path}: no run of active learning in there (launch/main.py makes them)")
    return runs


def status(args: argparse.Namespace) -> None:
    """Where each run stands."""
    from jaxvl.active import people
    from jaxvl.active.folder import FINISHED
    from jaxvl.display import table

    rows = []
    for run in found(args.run):
        round, phase = run.position()
        scores = [m["acc"].get("overall") for m in run.rounds]
        now = f"next: {phase}"
        if phase is None:
            now = f"finished: {run.ledger.last(FINISHED).data['why']}"
        elif phase == "IMPORTED" and "EXPORTED" in run.events(round):
            now = people.lacking(run, round, min_fraction(run)) or now
        if run.protocol["proposer"].startswith("visible/"):
            now += " (transductive)"
        last = "-" if not scores else "n/a" if scores[-1] is None else f"{scores[-1]:.2f}"
        rows.append([run.method, str(run.repeat), str(max(round, 0)), str(len(run.labelled())), last, now])
    table(str(args.run), ("method", "repeat", "round", "labelled", "accuracy", "state"), rows)
    for run in found(args.run):
        labels_of(run)


def labels_of(run: Any) -> None:
    """Print how good the labels are that people made; nothing if they made none."""
    from jaxvl.active.report import labelling
    from jaxvl.display import table

    got = labelling.of_run(run)
    if got is not None:
        title = f"Labels that people made: {run.method}, repeat {run.repeat}"
        table(title, labelling.HEAD, labelling.annotator_rows(got))
        for line in labelling.remarks(got):
            print(line)


def min_fraction(run: Any) -> float:
    """The share of a batch that the run's config asks for."""
    from jaxvl import config as cfg

    path = run.path.parents[1] / "config.json"
    return float(cfg.load(path).active.oracle.min_fraction) if path.exists() else 1.0


def export(args: argparse.Namespace) -> None:
    """Write the batch that waits for labels as files for people."""
    from jaxvl import build_active
    from jaxvl import config as cfg
    from jaxvl.active import people

    runs = found(args.run)
    if args.to and len(runs) > 1:
        raise ValueError(
            f"{args.run} holds {len(runs)} runs, whose batches would overwrite each other in {args.to}: leave --to "
            f"out, or name one run, e.g. {runs[0].path}"
        )
    for run in runs:
        round, phase = run.position()
        if phase != "IMPORTED":
            raise ValueError(
                f"{run.path}: round {round} is at {phase or 'its end'}: no batch waits for labels"
            )
        config = cfg.load(run.path.parents[1] / "config.json")
        to = args.to or run.folder(round) / "batch"
        suggest = config.active.oracle.suggest if args.suggest is None else args.suggest
        gold, pictures = people.gold_of(run, round), build_active.picture(config)
        same = build_active.digest_of_features(config)
        copies = people.write_batch(
            run, round, gold, images=pictures, suggest=suggest, folder=to, digest=same
        )
        print(f"{len(run.selection(round)) + len(gold) - len(copies)} {run.unit.many}: {to}")


def import_labels(args: argparse.Namespace) -> None:
    """Take labels from a file; nothing is taken from one with a bad line, unless --partial."""
    from jaxvl.active import people

    (run,) = one_run(args.run)
    round, _ = run.position()
    with run.ledger.open() as ledger:
        got = people.receive(run, ledger, round, args.file, partial=args.partial, replace=args.replace)
        for problem in got.problems:
            print(f"left out: {problem}", file=sys.stderr)
        state = people.state(run, round)
    print(
        f"{len(got.records)} questions taken; {len(state.ids)} {run.unit.many} of round {round} have labels now"
    )
    labels_of(run)
    left = people.missing(run, round)
    if left:
        print(f"still without labels: {', '.join(map(str, left[:10]))}{' ...' if len(left) > 10 else ''}")


def commit(args: argparse.Namespace) -> None:
    """End the round with the labels that are there."""
    from jaxvl.active import people

    (run,) = one_run(args.run)
    round, _ = run.position()
    with run.ledger.open() as ledger:
        taken = people.commit(run, ledger, round)
    print(
        f"{len(taken.ids)} {run.unit.many} labelled, {len(taken.excluded)} excluded; launch/main.py goes on from here"
    )


def rollback(args: argparse.Namespace) -> None:
    """Forget everything from a round on; its files are overwritten when it runs again."""
    from jaxvl.active.folder import INITIAL

    (run,) = one_run(args.run)
    with run.ledger.open() as ledger:
        later = [e for e in ledger.valid() if e.data.get("round", -1) >= args.to]
        if not later or args.to < INITIAL:
            raise ValueError(
                f"{run.path}: there is no round {args.to}; the newest is {run.last_round()}, the initial one {INITIAL}"
            )
        ledger.append("ROLLED_BACK", to=later[0].seq, round=args.to)
    name = "the initial round" if args.to == INITIAL else f"round {args.to}"
    print(f"{run.path}: back at the start of {name} with {len(run.labelled())} labelled {run.unit.many}")


def verify(args: argparse.Namespace) -> int:
    """Compare all files with their checksums."""
    bad = 0
    for run in found(args.run):
        problems = run.problems()
        bad += len(problems)
        print(f"{run.path}: {len(run.ledger.events)} events, {'all right' if not problems else 'PROBLEMS'}")
        for problem in problems:
            print(f"- {problem}")
    return 2 if bad else 0


def train_full(args: argparse.Namespace) -> None:
    """Train the task model of each repeat on the whole pool, once: what accuracies are a share of."""
    from jaxvl import build_active
    from jaxvl import config as cfg
    from jaxvl.active import full
    from jaxvl.train import Sigterm

    runs = found(args.run)
    root = runs[0].path.parents[1]
    with Sigterm() as sigterm:
        world = build_active.world(cfg.load(root / "config.json"), root, methods=(), sigterm=sigterm)
        for repeat in sorted({run.repeat for run in runs}):
            full.train(world, root, repeat)


def report(args: argparse.Namespace) -> None:
    """Curves, tables and a page."""
    from jaxvl import build_active
    from jaxvl import config as cfg
    from jaxvl.active.report import report as write

    runs = found(args.run)
    config = runs[0].path.parents[1] / "config.json"
    images = build_active.picture(cfg.load(config)) if config.exists() else None
    print(write(runs, args.to or args.run / "report", images=images))


def compare(args: argparse.Namespace) -> None:
    """A report over runs of several workdirs; refused if their pools, initial sets or scores differ."""
    from jaxvl.active.report import report as write

    print(write([run for path in args.runs for run in found(path)], args.to))


def score(args: argparse.Namespace) -> None:
    """What the newest models of a run score these images, as JSON Lines; the run stays as it is."""
    ids = [int(line) for line in args.images.read_text(encoding="utf-8").split()]
    one = opened(args.run)
    round, rows = one.preview(ids)
    print(f"round {round}, {len(rows)} {one.world.unit.many}", file=sys.stderr)
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def evaluate(args: argparse.Namespace) -> None:
    """Official accuracy of `[{"question_id", "answer"}]` against VQA v2 annotations."""
    from jaxvl.active.evaluation import score_file

    for name, value in score_file(args.pred, args.ann, variant=args.variant).items():
        print(f"{name:24} {value:.2f}")


def scores(args: argparse.Namespace) -> None:
    """Take what EvalAI said of a run's rounds; reports have it from then on."""
    from jaxvl.active import evalai

    (run,) = one_run(args.run)
    found = evalai.take_scores(run.path, args.file, run.results)
    lacking = sorted(set(run.results) - set(evalai.scores_of(run.path)[1]))
    left = f"; still without: {', '.join(map(str, lacking))}" if lacking else ""
    print(f"scores of rounds {', '.join(map(str, sorted(found)))} taken{left}")


def answers(args: argparse.Namespace) -> None:
    """Answer any questions with a run's task model, as a file that EvalAI takes; the run stays as it is."""
    from jaxvl.active import evalai
    from jaxvl.active.oracle import records_of
    from jaxvl.data import SOURCES

    one = opened(args.run)
    reader = SOURCES["vqa_v2"](questions=args.questions, images=None, image_template="%012d.jpg")
    records = records_of(reader, answered=False)
    round, rows = one.answers(records, round=args.round)
    evalai.write_results(args.to, rows, ids=[int(r["question_id"]) for r in records])
    print(f"round {round}, {len(rows)} answers: {args.to}")


def check(args: argparse.Namespace) -> None:
    """Whether EvalAI would take a result file: its form, and every question of the test file once."""
    from jaxvl.active.evalai import check_results

    print(f"{args.pred}: {check_results(args.pred, args.questions)} answers, every question once")


def opened(path: Path) -> Any:
    """The run of a folder with its models and data, to be asked."""
    from jaxvl import build_active
    from jaxvl import config as cfg
    from jaxvl.active.rounds import Run

    (run,) = one_run(path)
    root = run.path.parents[1]
    world = build_active.world(cfg.load(root / "config.json"), root, methods=[run.method])
    return Run(world, method=run.method, repeat=run.repeat, folder=run.path)


def probe(args: argparse.Namespace) -> None:
    """Linear probes of frozen features (table 3 of the paper), with the data and options of a workdir's config."""
    from jaxvl import config as cfg
    from jaxvl import run_probe

    for row in args.rows:
        run_probe.unavailable(args.workdir, row)  # unknown ones are reported before the data are read
    prober = run_probe.Prober(cfg.load(args.workdir / "config.json"), args.workdir)
    for found in run_probe.fill(prober, args.rows, args.seeds):
        print(run_probe.path_of(args.workdir, found["row"], found["seed"]))


def one_run(path: Path) -> list[Any]:
    """The run of a folder; ValueError if it holds several."""
    runs = found(path)
    if len(runs) > 1:
        raise ValueError(f"{path} holds {len(runs)} runs: name one, e.g. {runs[0].path}")
    return runs


if __name__ == "__main__":
    sys.exit(main())
