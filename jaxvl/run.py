"""The composition root: config -> stages -> train, evaluate, report.

Stages run in order in `workdir/<stage>/`. A finished stage is skipped, an unfinished one resumes from its last
checkpoint, and a workdir that belongs to another config is refused.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxvl import build
from jaxvl import config as cfg
from jaxvl.atomic import write_file, write_json
from jaxvl.checkpoint import Checkpoints
from jaxvl.data.text import Tokenizer
from jaxvl.interop import class_labels, foreign_params, load_params
from jaxvl.log import Alarm, Log, Progress, table
from jaxvl.models.layers import stack_layers, unstack_layers
from jaxvl.models.transfer import adapt, check_trained, check_whole, lacking
from jaxvl.sharding import Partition
from jaxvl.train import Evaluation, Sigterm, Trainer, TrainState, bind
from jaxvl.types import PyTree

FREE = (
    "run",
    "log",
    "loader",
    "checkpoint",
    "sharding",
    "report",
    "probe",
)  # may differ between two runs of a workdir
FREE_KEYS = (
    "active.repeats",
    "active.only",
    "active.pause",
    "active.stop",
    "active.cost",
    "active.full",
    "active.stands_for",
    "active.oracle.suggest",
    "active.oracle.gold",
    "active.scoring",
)
LATER = {  # keys that older workdirs do not have, and what those were run with
    "active.protocol": "val", "active.proposer": "bank_random", "active.share_task_model": "plain",
    "active.warm_start": False, "active.answers.scope": "fixed", "active.answers.grow": False,
    "active.unit": "image", "active.allow_approx": False, "active.scoring.compute": "float32",
    "active.*.shown": False, "active.strategies.*.encoders": "own", "model.cross.cumulative_scope": "block",
    "model.cross.share_projection": True, "model.cross.eps": 1e-12, "model.temp": 0.07, "model.head_scale": 1,
    "model.mlm_tied": False, "stages.*.model.mlm_tied": True, "stages.*.model.eps": 1e-12,
}  # fmt: skip
RESULT = "result.json"


def run(config: ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Run the stages of `config.run` in `workdir`; finished ones are only reported.

    Returns:
      `{stage: {"metric": value}}` of every finished stage of the workdir.

    Raises:
      ConfigError, ValueError, FileNotFoundError: bad input, before any work starts.
      Preempted: SIGTERM; a checkpoint is on disk.
    """
    root = Path(workdir).expanduser()
    enable_compilation_cache()
    logging.getLogger("absl").setLevel(logging.WARNING)
    check_same_run(config, root)
    if "active" in config:
        from jaxvl.run_active import run_active  # stages need nothing of it

        return run_active(config, root)
    partition = Partition.create(**cfg.plain(config.sharding))
    waiting = [name for name in config.run if not (root / name / RESULT).exists()]
    check_order(config, waiting, root)
    try:
        tok = build.tokenizer(config, root if begun(root) else None)
        theirs = build.teacher_tokenizer(config, root if begun(root) else None)
        stages = [build.stage(config, name, tok, root, theirs) for name in waiting]
        for name in waiting:
            check_words(config, name, *build.reading(config, name, tok, theirs))
    except FileNotFoundError as e:
        raise FileNotFoundError(all_missing(config, waiting, root) or str(e)) from e
    if stages and jax.process_index() == 0:
        root.mkdir(parents=True, exist_ok=True)
        cfg.save(config, root / "config.json")
        write_file(root / "tokenizer.json", tok.save)
        if theirs is not None:
            write_file(root / build.TEACHER_TOKENIZER, theirs.save)
        for stage in stages:
            if line := build.lost(stage):
                print(line, file=sys.stderr)
    with Sigterm() as sigterm:  # one that comes between two stages stops the next one at its first step
        for stage in stages:
            run_stage(config, stage, partition, root, sigterm)
    results = read_results(config, root)
    if jax.process_index() == 0:
        report(config, results, root)
    return results


def enable_compilation_cache() -> None:
    """Keep compiled programs between runs, unless JAX is told where already."""
    if not jax.config.values.get("jax_compilation_cache_dir"):
        home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "jaxvl" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def check_same_run(config: ConfigDict, root: Path) -> None:
    """Refuse a workdir that was begun with another config; names the keys that differ."""
    path = root / "config.json"
    if not path.exists() or not begun(root):
        return
    before, now = flat(cfg.to_dict(cfg.load(path))), flat(cfg.to_dict(config))
    before = {k: v for name, v in LATER.items() for k in now if fnmatch.fnmatch(k, name)} | before
    stages = {k.split(".")[1] for k in before if k.startswith("stages.")}  # a later one has never run there
    keys = sorted(
        k
        for k in before.keys() | now.keys()
        if k.split(".")[0] not in FREE
        and not k.startswith(FREE_KEYS)
        and before.get(k) != now.get(k)
        and not (k.startswith("stages.") and k.split(".")[1] not in stages)
    )
    if keys:
        shown = "; ".join(f"{k}: {before.get(k)!r} there, {now.get(k)!r} now" for k in keys[:5])
        raise cfg.ConfigError(
            f"{root} holds a run with another config ({shown}{' ...' if len(keys) > 5 else ''}). "
            "Give another --workdir, or the same config to resume it."
        )


def begun(root: Path) -> bool:
    """Whether a workdir holds anything that was computed: a checkpoint, a result or a run of active learning."""
    return any(next(root.glob(p), None) for p in (f"*/{RESULT}", "*/checkpoints/*/meta.json", "*/*/run.json"))


def all_missing(config: ConfigDict, waiting: list[str], root: Path) -> str:
    """Every input that the stages lack, one a line, and how to get them."""
    wanted: list[Callable[[], Any]] = [
        functools.partial(find, config, root) for find in (build.tokenizer, build.teacher_tokenizer)
    ]
    for name in waiting:
        section = config.stages[name]
        wanted += [
            functools.partial(build.weights_file, f"config.stages.{name}.weights.{kind}", path)
            for kind, path in build.weights_files(section).items()
        ]
        taught_by = section.get("teacher")
        if taught_by is not None and taught_by.params is not None:
            wanted.append(
                functools.partial(
                    build.weights_file, f"config.stages.{name}.teacher.params", taught_by.params
                )
            )
        for part in ("train", "val"):
            if section[part] is not None:
                wanted.append(functools.partial(build.reader, section[part], f"config.stages.{name}.{part}"))
        if section.answers is not None and section.answers.file:
            wanted.append(functools.partial(build.answer_list, config, name, None))
    missing = build.missing(wanted)
    lines = "".join(f"\n- {line}" for line in missing)
    return (
        lines
        and f"{len(missing)} inputs are missing (paths are relative to {Path.cwd()}):{lines}\n{config.hint}"
    )


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted paths of the leaves of nested dicts."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        k: v
        for name, sub in tree.items()
        for k, v in flat(sub, f"{prefix}.{name}" if prefix else name).items()
    }


def check_order(config: ConfigDict, waiting: list[str], root: Path) -> None:
    """What a stage starts from, and its teacher, must be finished, run before it, or be an existing file."""
    for i, name in enumerate(waiting):
        for key, source in (("init_from", config.stages[name].init_from), teacher_of(config, name)):
            if source is None or source in waiting[:i]:
                continue
            if source in config.stages:
                if not (root / source / RESULT).exists():
                    verb = "starts" if key == "init_from" else "learns"
                    raise cfg.ConfigError(
                        f"stage {name!r} {verb} from stage {source!r}, which is not finished in {root}. Run that first "
                        f"(--config=...:{source}), or set --config.stages.{name}.{key} to a params file, or to None."
                    )
            elif not (Path(source).suffix == ".safetensors" and Path(source).exists()):
                raise FileNotFoundError(
                    f"config.stages.{name}.{key}={source!r} is neither a stage ({', '.join(config.stages)}) nor a "
                    ".safetensors file, e.g. runs/a/pretrain/checkpoints/1000/params.safetensors"
                )


def teacher_of(config: ConfigDict, stage: str) -> tuple[str, str | None]:
    """The config key that names the parameters of a stage's teacher, and where they are; None without a teacher."""
    teacher = config.stages[stage].get("teacher")
    if teacher is None:
        return "teacher", None
    return ("teacher.params", teacher.params) if teacher.params is not None else ("teacher", teacher.stage)


def run_stage(
    config: ConfigDict, stage: build.Stage, partition: Partition, root: Path, sigterm: Sigterm
) -> None:
    """Train one stage to its end, evaluate, write `result.json`."""
    folder = root / stage.name
    started = time.monotonic()
    schedule = build.schedule(stage)
    trainer = Trainer(
        stage.task,
        build.optimizer(stage, schedule),
        partition=partition,
        seed=config.seed,
        accumulate=stage.config.accumulate,
        eval_batch_size=stage.config.eval.batch_size,
    )
    best = stage.config.eval.get("best")
    checkpoints = Checkpoints(
        folder / "checkpoints",
        keep=config.checkpoint.keep,
        best=best,
        unstack=unstack_layers,
        stack=stack_layers,
    )
    step = checkpoints.latest()
    load = initial_params(stage, root) if step is None else None
    state = trainer.init(build.first_batch(stage), load=load, frozen=teacher_params(config, stage, root))
    if step is not None:
        state = checkpoints.restore(step, trainer.abstract).replace(frozen=state.frozen)
    watch = Alarm(stage.task, name=stage.name, steps=stage.steps)
    log = Log(folder, append_from_step=step, watch=watch)
    try:
        state = fit(config, stage, trainer, state, checkpoints, log, schedule, sigterm)
        metrics = evaluate(stage, trainer, state.params)
        log.write_scalars(stage.steps, metrics)
        if stage.steps:  # one evaluation is no curve
            log.plot()
        result: dict[str, Any] = {"steps": stage.steps}
        if best is not None:
            result["chosen"] = better(checkpoints, metrics, last=stage.steps)
            if result["chosen"] != stage.steps:
                metrics = evaluate(
                    stage, trainer, checkpoints.restore(result["chosen"], trainer.abstract).params
                )
            print(f"{stage.name}: {best} is best after update {result['chosen']} of {stage.steps}")
    finally:
        checkpoints.close()
        log.close()
    if jax.process_index() == 0:
        if stage.answers is not None:
            write_json(folder / "answers.json", stage.answers)
        seconds = round(time.monotonic() - started, 1)
        write_json(folder / RESULT, {**result, "seconds": seconds, "metrics": metrics})


def better(checkpoints: Checkpoints, metrics: Mapping[str, float], *, last: int) -> int:
    """The step of the best evaluation so far: `last`, whose scores are `metrics`, unless an earlier one beats it."""
    name, step = str(checkpoints.best_name), checkpoints.best()
    if name not in metrics:
        raise cfg.unknown("eval.best", name, metrics)
    return step if step is not None and checkpoints.meta(step)["metrics"][name] > metrics[name] else last


def chosen_params(folder: Path) -> PyTree:
    """Parameters of a finished stage: those of its result's `chosen` step (`eval.best`), else the last ones."""
    path = folder / RESULT
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return Checkpoints.last_params(folder / "checkpoints", step=found.get("chosen"))


def fit(
    config: ConfigDict,
    stage: build.Stage,
    trainer: Trainer,
    state: TrainState,
    checkpoints: Checkpoints,
    log: Log,
    schedule: Callable[[int], Any],
    sigterm: Sigterm,
) -> TrainState:
    """`Trainer.fit` with the stage's loader, display and evaluation."""
    loader = build.loader(config, stage, trainer.partition)
    every = stage.config.eval.every_epochs
    evaluation = None
    if every:
        evaluation = Evaluation(
            lambda s: evaluate(stage, trainer, s.params, share=int(s.step) / max(1, stage.steps)),
            every=max(1, int(every * stage.steps_per_epoch)),
        )
    with Progress(stage.name, total=stage.steps, start=int(state.step)) as progress:
        return trainer.fit(
            state,
            loader,
            steps=stage.steps,
            log=log,
            progress=progress,
            checkpoints=checkpoints,
            meta={"stage": stage.name, "seed": config.seed, "steps_per_epoch": stage.steps_per_epoch},
            log_every=config.log.every_steps,
            save_every_steps=config.checkpoint.every_steps,
            save_every_seconds=config.checkpoint.every_seconds,
            evaluation=evaluation,
            scalars=lambda step: (
                {"learning_rate": float(schedule(step - 1))}
                | ({"replaced_images": loader.replaced} if loader.replaced else {})
            ),
            sigterm=sigterm,
        )


def evaluate(stage: build.Stage, trainer: Trainer, params: PyTree, *, share: float = 1.0) -> dict[str, float]:
    """All evaluators of a stage on its validation source; keys are `evaluator/metric`.

    An evaluator with `alarm(scores, share=)` may say that something is wrong after this `share` of the updates.
    """
    if stage.val is None:
        return {}
    predict = bind(trainer, params)
    scores = {name: evaluator(predict, stage.val) for name, evaluator in stage.evals.items()}
    for name, evaluator in stage.evals.items() if jax.process_index() == 0 else ():
        if hasattr(evaluator, "alarm") and (said := evaluator.alarm(scores[name], share=share)):
            print(f"{stage.name}: warning: {said}", file=sys.stderr)
    return {f"{name}/{key}": float(v) for name, group in scores.items() for key, v in group.items()}


def initial_params(stage: build.Stage, root: Path) -> Callable[[PyTree], PyTree] | None:
    """How the stage's fresh parameters are replaced: by an earlier stage, a params file or foreign weights.

    What is returned raises ValueError if its source does not hold all of the model that it should.
    """
    where = f"config.stages.{stage.name}"
    source = stage.config.init_from
    weights, take = build.weights_files(stage.config), cfg.plain(stage.config.weights.get("take"))
    if source is None and not weights:
        return None

    def load(fresh: PyTree) -> PyTree:
        params = unstack_layers(fresh)
        filled: set[str] = set()
        untouched: Sequence[str] = ()
        if weights:
            params, note = adapt(foreign_params(weights, params, take=take), params)
            towers = set(weights) & {"vision", "text"}  # any other kind holds the whole model
            check_whole(note, f"{where}.weights={weights}", lacking(note, towers))
            if "class_head/fc2/kernel" in note.taken:
                for path in weights.values():
                    check_answers(f"{where}.weights={weights}", class_labels(path), stage.answers)
            print(f"{stage.name}: weights from {', '.join(weights.values())}\n{note}")
            filled.update(note.taken, note.resized)
            untouched = note.fresh
        if source is not None:
            found = stage_params(source, root)
            params, note = adapt(found, params, renames=stage.task.renames)
            # A teacher has no towers, but what one can be started from.
            needed = () if "text_encoder" in found else ("vision", "text")
            lost = [path for path in lacking(note, needed) if path not in filled]
            check_whole(note, f"{where}.init_from={source!r}", lost)
            print(f"{stage.name}: parameters from {source}\n{note}")
            untouched = [path for path in note.fresh if path not in filled]
        check_trained(f"{where}.steps={stage.steps}", untouched, steps=stage.steps)
        return stack_layers(params, fresh)

    return load


def teacher_params(config: ConfigDict, stage: build.Stage, root: Path) -> Callable[[PyTree], PyTree] | None:
    """How the parameters of the stage's teacher are read; None without a teacher.

    What is returned raises ValueError if the teacher lacks a tensor, or was trained on another list of answers.
    """
    key, source = teacher_of(config, stage.name)
    if source is None:
        return None
    where = f"config.stages.{stage.name}.{key}={source!r}"

    def load(abstract: PyTree) -> PyTree:
        check_answers(where, teacher_answers(source, root), stage.answers)
        found, note = adapt(stage_params(source, root), unstack_layers(abstract))
        if note.fresh:
            shown = ", ".join(note.fresh[:4]) + (", ..." if len(note.fresh) > 4 else "")
            raise ValueError(
                f"{where}: the teacher lacks {len(note.fresh)} tensors ({shown}). Give the stage, or a file of one, "
                f"that was trained for the same task as {stage.name!r}."
            )
        return stack_layers(found, abstract)

    return load


def teacher_answers(source: str, root: Path) -> list[str] | None:
    """The answers that a teacher was trained on; None if it has none, or if its file does not lie in a workdir."""
    path = Path(source)
    folder = path.parents[2] if path.suffix == ".safetensors" and len(path.parents) > 2 else root / source
    return cfg.load_list(folder / "answers.json") if (folder / "answers.json").exists() else None


def check_answers(where: str, theirs: list[str] | None, ours: list[str] | None) -> None:
    """Raise ValueError unless teacher and student have one list of answers, in one order; say if it is not known."""
    if ours is not None and theirs is None:
        print(
            f"{where}: no list of answers is with it; its classes are taken to be in this stage's order",
            file=sys.stderr,
        )
    if theirs is None or ours is None or theirs == ours:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours))
    )
    raise ValueError(
        f"{where}: its list of answers differs from this stage's, first at position {at} ({len(theirs)} and "
        f"{len(ours)} answers): every class would mean another answer. Use one answers.file; the config.json of a "
        "Hugging Face model (id2label) can be that file."
    )


def check_words(config: ConfigDict, stage: str, ours: Tokenizer, theirs: Tokenizer | None) -> None:
    """Raise ConfigError if a file of another workdir was trained on other words than the stage reads.

    Two learnt vocabularies can be of one size: shapes would fit, and every word would mean another.

    Args:
      ours, theirs: what the stage reads and what its teacher reads, if that is another (`build.reading`).
    """
    for (key, source), reads in (
        (("init_from", config.stages[stage].init_from), ours),
        (teacher_of(config, stage), theirs or ours),
    ):
        path = Path(source or "").absolute()  # workdir/stage/checkpoints/step/params.safetensors
        if path.suffix != ".safetensors" or len(path.parents) < 4:
            continue
        folder, name = path.parents[3], path.parents[2].name
        if not ((folder / "config.json").exists() and (folder / "tokenizer.json").exists()):
            continue
        before = cfg.load(folder / "config.json")
        if name not in before.get("stages", {}):
            continue
        wrote, _ = build.reading(
            before, name, build.tokenizer(before, folder), build.teacher_tokenizer(before, folder)
        )
        if difference := reads.difference(wrote):
            raise cfg.ConfigError(
                f"config.stages.{stage}.{key}={source!r} was trained on other words: {difference}. Give config.text."
                f"vocab={str(folder / 'tokenizer.json')!r}, or a file that was trained on this run's words."
            )


def stage_params(source: str, root: Path) -> PyTree:
    """Parameters of a finished stage of this workdir, or of a `.safetensors` file in jaxvl's names."""
    if Path(source).suffix == ".safetensors":
        return load_params(source)
    return chosen_params(root / source)


def read_results(config: ConfigDict, root: Path) -> dict[str, Any]:
    """`{stage: metrics}` of the finished stages of the workdir."""
    found = {name: root / name / RESULT for name in config.stages}
    return {k: json.loads(p.read_text(encoding="utf-8"))["metrics"] for k, p in found.items() if p.exists()}


def report(config: ConfigDict, results: Mapping[str, Mapping[str, float]], root: Path) -> None:
    """Print the tables of `config.report` from the finished stages and write them to `report.md`."""
    path = root / "report.md"
    path.unlink(missing_ok=True)
    for section in config.report:
        rows = []
        for label, stage, prefix in section["rows"]:
            if stage in results:
                values = [results[stage].get(prefix + column) for column in section["columns"]]
                rows.append([label, *(f"{v:.2f}" if v is not None else "-" for v in values)])
        if rows:
            table(section["title"], ["", *section["columns"]], rows, path=path)
    drawn = ", ".join(str(p) for p in sorted(root.glob("*/curves.png")))
    print(f"report: {path}" + (f"   curves: {drawn}" if drawn else ""))
