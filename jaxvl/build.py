"""From config sections to objects. Everything that can be wrong with a config is found here, before any work.

A stage's section is read once into a `Stage`; nothing below this file sees a config.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvl import optim
from jaxvl.config import ConfigError, make, plain, unknown
from jaxvl.data import SOURCES, scenes
from jaxvl.data.answers import build_answers, read_answers
from jaxvl.data.images import ImageError, ImageTransform
from jaxvl.data.loader import Loader
from jaxvl.data.records import DataError
from jaxvl.data.source import FORMATS, Examples, FalseImages, Subset
from jaxvl.data.text import Tokenizer, answer_array
from jaxvl.evals import EVALS
from jaxvl.interop import minilm_dir
from jaxvl.models import MODELS
from jaxvl.sharding import Partition
from jaxvl.tasks import TASKS

TEACHER_TOKENIZER = "teacher_tokenizer.json"  # in a workdir


@dataclasses.dataclass(frozen=True)
class Stage:
    """One `Trainer.fit`: what it trains on, with what, and how it is scored."""

    name: str
    config: ConfigDict
    task: Any
    train: Examples
    val: Examples | Subset | None
    evals: Mapping[str, Any]
    answers: list[str] | None
    steps: int
    steps_per_epoch: int


def tokenizer(config: ConfigDict, workdir: Path | None = None) -> Tokenizer:
    """The run's tokenizer: the workdir's copy if there is one, else from `config.text.vocab`."""
    if workdir and (workdir / "tokenizer.json").exists():
        return Tokenizer.from_vocab(workdir / "tokenizer.json")
    vocab = config.text.vocab
    if vocab == "scenes":
        return Tokenizer.from_vocab(scenes.vocabulary())
    return Tokenizer.from_vocab(minilm_dir() if vocab == "minilm" else Path(vocab))


def teacher_tokenizer(config: ConfigDict, workdir: Path | None = None) -> Tokenizer | None:
    """The tokenizer of the stages that teach, where they have one of their own (`config.text.teacher_vocab`)."""
    if config.text.get("teacher_vocab") is None:
        return None
    if workdir and (workdir / TEACHER_TOKENIZER).exists():
        return Tokenizer.from_vocab(workdir / TEACHER_TOKENIZER)
    return Tokenizer.from_vocab(Path(config.text.teacher_vocab))


def teachers(config: ConfigDict) -> set[str]:
    """Names of the stages that teach others, and of untaught ones that start from them or that they start from."""
    taught = {name for name, s in config.stages.items() if s.get("teacher") is not None}
    found = {config.stages[name].teacher.stage for name in taught}
    untaught = set(config.stages) - taught
    links = [{name, config.stages[name].get("init_from")} & untaught for name in untaught]
    while more := {name for link in links if found & link for name in link} - found:
        found |= more
    return found


def reading(
    config: ConfigDict, stage: str, tok: Tokenizer, theirs: Tokenizer | None
) -> tuple[Tokenizer, Tokenizer | None]:
    """The tokenizer of a stage, and that of its teacher if it is another one.

    Raises:
      ConfigError: one of `text.teacher_vocab` and `task.distill.word_align` is given without the other.
    """
    if theirs is not None and stage in teachers(config):
        return theirs, None
    section = config.stages[stage]
    if section.get("teacher") is None:
        return tok, None
    aligned = bool((section.task.get("distill") or {}).get("word_align"))
    if aligned != (theirs is not None):
        given = f"config.text.teacher_vocab={config.text.get('teacher_vocab')!r}"
        raise ConfigError(
            f"config.stages.{stage}.task.distill.word_align={aligned} with {given}: a teacher with a tokenizer of its "
            "own is compared word by word; set both or none"
        )
    return tok, theirs


def tokens(tok: Tokenizer) -> dict[str, Any]:
    """The special ids, the size and what continues a word, as tasks take them."""
    special = dict(pad=tok.pad_id, cls=tok.cls_id, sep=tok.sep_id, mask=tok.mask_id)
    return dict(special, size=tok.size, continues=tok.continues)


def model(config: ConfigDict, stage: str, vocab_size: int, answers: list[str] | None = None) -> Any:
    """The stage's model: `config.model` under the stage's own `model` section, in the run's precision.

    A model with a classification head gets as many classes as there are `answers`; ConfigError if it asks for others.
    """
    section = merged(config, stage)
    if answers is not None and "classes" in section:
        if section["classes"] not in (None, len(answers)):
            raise ConfigError(
                f"stage {stage}: model.classes={section['classes']}, but config.stages.{stage}.answers has "
                f"{len(answers)}: give the list that the model is meant for, or classes=None"
            )
        section["classes"] = len(answers)
    precision = config.precision
    if precision.compute not in ("float32", "bfloat16"):
        raise unknown("precision.compute", precision.compute, ("float32", "bfloat16"))
    if precision.layers not in ("auto", "scan", "unroll"):
        raise unknown("precision.layers", precision.layers, ("auto", "scan", "unroll"))
    # Unrolled layers are 1.7 times as fast on a CPU; scanned ones compile in reasonable time on a pod.
    scan = precision.layers == "scan" or (precision.layers == "auto" and jax.default_backend() != "cpu")
    return make(
        MODELS,
        "model",
        section,
        vocab_size=vocab_size,
        dtype=jnp.dtype(precision.compute),
        remat=precision.remat,
        scan=scan,
    )


def merged(config: ConfigDict, stage: str) -> dict[str, Any]:
    """The model section of a stage. What the stage gives replaces the key; in a section of the same name, its keys."""
    common, own = plain(config.model), plain(config.stages[stage].model)
    if own.get("name", common["name"]) != common["name"]:
        return dict(own)
    both = {k for k in own if isinstance(own[k], dict) and isinstance(common.get(k), dict)}
    return {**common, **own, **{k: {**common[k], **own[k]} for k in both}}


def given(
    registry: Mapping[str, Any], kind: str, section: Mapping[str, Any], extra: Mapping[str, Any]
) -> Any:
    """`config.make`, with those of `extra` that the constructor takes and the section does not set."""
    found = registry.get(section.get("name", ""))
    takes = inspect.signature(found).parameters if found is not None else {}
    return make(
        registry, kind, section, **{k: v for k, v in extra.items() if k in takes and k not in section}
    )


def reader(section: Mapping[str, Any], where: str) -> Any:
    """A reader of `SOURCES`; a missing file is reported with the config key that names it."""
    try:
        return make(SOURCES, "source", section)
    except (FileNotFoundError, ValueError) as e:
        # Not type(e): some errors (of decoding, say) cannot be made from a message.
        known = (FileNotFoundError, ConfigError, DataError, ImageError, ValueError)
        raise next(kind for kind in known if isinstance(e, kind))(f"{where}: {e}") from e


def annotated(config: ConfigDict, stage: str, part: str) -> Any:
    """The reader of the stage's `train` or `val` part; None where the config has none."""
    section = config.stages[stage][part]
    return None if section is None else reader(section, f"config.stages.{stage}.{part}")


def examples(
    config: ConfigDict,
    stage: str,
    records: Any,
    tok: Tokenizer,
    answers: list[str] | None = None,
    theirs: Tokenizer | None = None,
) -> Examples:
    """What a reader gives in the stage's model-ready form; formats of classes map answers to their positions.

    `theirs`: tokenizer of a teacher that reads other tokens.
    """
    section = config.stages[stage].format
    extra: dict[str, Any] = dict(tokenizer=tok) | ({} if theirs is None else dict(teacher_tokenizer=theirs))
    if answers is not None and "answers" not in section:
        extra["answers"] = tuple(answers)
    return Examples(records, make(FORMATS, "format", section, **extra), images=images(config, stage))


def images(config: ConfigDict, stage: str) -> ImageTransform | int:
    """The stage's image transform; where `images` is None, the model sees a constant image of that size."""
    section = config.stages[stage]
    size = merged(config, stage)["image_size"]
    blind = section.images is None
    return size if blind else ImageTransform(size=size, **plain(section.images))


def weights_files(section: ConfigDict) -> dict[str, str]:
    """The foreign files that a stage starts from, by kind; `weights.take` is no file but a choice in one."""
    return {k: path for k, path in section.weights.items() if k != "take" and path is not None}


def weights_file(key: str, path: str | None) -> None:
    """Raise FileNotFoundError, naming the config key, if there is no such file of foreign weights."""
    if path is None:
        return
    if path == "minilm":
        minilm_dir()
    elif not Path(path).exists():
        raise FileNotFoundError(f"{key}: no file or folder {path}")


def answer_list(config: ConfigDict, stage: str, train: Any) -> list[str] | None:
    """Candidate answers of an answering stage: the embedded world's, a file's, or built from its training reader.

    Returns None for other stages.
    """
    section = config.stages[stage].answers
    if section is None:
        return None
    if section.file == "scenes":
        return scenes.answers()
    if section.file:
        return read_answers(Path(section.file))
    if train is None:
        raise ConfigError(f"config.stages.{stage}.answers: give a file, there are no training annotations")
    return build_answers(train, **{k: v for k, v in plain(section).items() if k != "file"})


def task(
    config: ConfigDict,
    stage: str,
    tok: Tokenizer,
    answers: list[str] | None,
    steps_per_epoch: int,
    theirs: Tokenizer | None = None,
) -> Any:
    """The stage's task with its model, and its teacher's; warm-ups given in epochs become optimiser updates.

    `theirs`: tokenizer of a teacher that reads other tokens.
    """
    chosen = config.stages[stage]
    section = plain(chosen.task)
    if (section.get("distill") or {}).get("warmup_epochs") is not None:
        section["distill"] = dict(section["distill"])
        epochs = section["distill"].pop("warmup_epochs")
        section["distill"]["warmup_updates"] = int(epochs * steps_per_epoch)
    more: dict[str, Any] = dict(
        model=model(config, stage, tok.size, answers), tokens=tokens(tok), blind=chosen.images is None
    )
    if answers is not None:
        more["answers"] = answer_array(tok, answers, length=chosen.format.get("answer_length", 8))
        for key, most in (("k_test", len(answers)), ("top_n", section.get("k_test", len(answers)))):
            if key in section:
                section[key] = min(section[key], most)
    taught_by = chosen.get("teacher")
    if taught_by is not None:
        if taught_by.stage not in config.stages:
            raise unknown(f"config.stages.{stage}.teacher.stage", str(taught_by.stage), config.stages)
        more["teacher"] = model(config, taught_by.stage, (theirs or tok).size, answers)
    if (
        "teacher" in more
        and "teacher" not in inspect.signature(TASKS.get(section.get("name"), dict)).parameters
    ):
        raise ConfigError(f"config.stages.{stage}.teacher: the task {section.get('name')!r} has no teacher")
    return given(TASKS, "task", section, more)


def stage(
    config: ConfigDict, name: str, tok: Tokenizer, workdir: Path, theirs: Tokenizer | None = None
) -> Stage:
    """Build one stage; raises on anything that does not fit, before any work.

    `theirs`: of `teacher_tokenizer`.
    """
    section = config.stages[name]
    tok, theirs = reading(config, name, tok, theirs)
    files = weights_files(section)
    for kind, path in files.items():
        weights_file(f"config.stages.{name}.weights.{kind}", path)
    if section.weights.get("take") is not None and set(files) != {"bridgetower"}:
        raise ConfigError(
            f"config.stages.{name}.weights.take chooses cross-modal layers of weights.bridgetower, but the stage "
            f"starts from {files}: set it to None"
        )
    seen, held = (annotated(config, name, part) for part in ("train", "val"))
    if seen is None:
        raise ConfigError(f"config.stages.{name}.train is None: a stage needs training data")
    answers = answer_list(config, name, seen)
    train = examples(config, name, seen, tok, answers, theirs)
    val: Examples | Subset | None = (
        None if held is None else examples(config, name, held, tok, answers, theirs)
    )
    if val is not None and section.eval.examples is not None:
        val = Subset(val, range(min(section.eval.examples, len(val))))
    updates = len(train) // section.batch_size
    if updates < 1:
        raise ConfigError(
            f"stage {name}: {len(train)} examples make no full batch of {section.batch_size}; "
            f"lower config.stages.{name}.batch_size"
        )
    if section.batch_size % section.accumulate:
        raise ConfigError(
            f"stage {name}: accumulate={section.accumulate} must divide batch_size={section.batch_size}"
        )
    best = section.eval.get("best")
    if best is not None and best.split("/")[0] not in section.evals:
        raise unknown(f"evaluator in config.stages.{name}.eval.best:", best.split("/")[0], section.evals)
    # No steps at all: the stage only loads weights and evaluates them.
    steps = section.steps if section.steps is not None else math.ceil(section.epochs * updates)
    made = task(config, name, tok, answers, updates, theirs)
    if getattr(made, "false_images", False):  # its negatives are drawn from the whole data set
        train = FalseImages(train.reader, train.format, train.images)
    built = Stage(
        name=name,
        config=section,
        task=made,
        train=train,
        val=val,
        evals=evaluators(config, name, train, answers, workdir),
        answers=answers,
        steps=steps,
        steps_per_epoch=updates,
    )
    check_pixels(built)
    jax.eval_shape(built.task.init, jax.random.key(0), first_batch(built))  # what only the model can refuse
    return built


def lost(stage: Stage, *, first: int = 2_000) -> str | None:
    """What fixed lengths leave out of the stage's first training examples, in words; None if nothing."""
    count = getattr(stage.train.format, "losses", None)
    if count is None:  # a format of another package
        return None
    known = Subset(stage.train, range(min(first, len(stage.train))))
    found = {what.replace("_", " "): n for what, n in count(known).items() if n}
    if not found:
        return None
    counts = ", ".join(f"{n:,} {what}" for what, n in found.items())
    return (
        f"{stage.name}: note: fixed lengths leave out of the first {len(known):,} training examples: {counts}"
    )


def check_pixels(stage: Stage) -> None:
    """Raise ConfigError if images are normalised otherwise than the stage's model, if it says so, expects."""
    model, images = stage.task.model, stage.train.images
    for name in ("mean", "std"):
        wanted = getattr(model, f"pixel_{name}", None)
        given = getattr(images, name, None)
        if wanted is not None and given is not None and tuple(given) != tuple(wanted):
            raise ConfigError(
                f"config.stages.{stage.name}.images.{name} is {tuple(given)}, but the image encoder was made for "
                f"{tuple(wanted)}: set it to that"
            )


def evaluators(
    config: ConfigDict, name: str, train: Examples, answers: list[str] | None, workdir: Path
) -> dict[str, Any]:
    """The stage's evaluators; each gets what it asks for of the candidates, the training source and a results file.

    Diagnostics of the hypergraph are left out where the model has none.
    """
    out = {}
    section = config.stages[name]
    graph = merged(config, name).get("hypergraph")
    more = dict(answers=answers, results=workdir / name / "vqa_results.json", train=train)
    for key, kwargs in section.evals.items():
        if kwargs["name"] == "hypergraph" and not (graph is not None and graph["layers"]):
            continue
        out[key] = given(EVALS, "evaluator", kwargs, more)
    return out


def schedule(stage: Stage) -> Any:
    """Learning rate of update `n`; schedules count optimiser updates."""
    section = plain(stage.config.optim.schedule)
    return optim.make_schedule(steps=max(stage.steps, 1), steps_per_epoch=stage.steps_per_epoch, **section)


def optimizer(stage: Stage, rate: Any) -> Any:
    """The stage's optimiser under a schedule."""
    kwargs = {k: v for k, v in plain(stage.config.optim).items() if k != "schedule"}
    return optim.make_optimizer(schedule=rate, **kwargs)


def loader(config: ConfigDict, stage: Stage, partition: Partition) -> Loader:
    """The stage's training batches for this process."""
    return Loader(
        stage.train,
        batch_size=stage.config.batch_size,
        seed=config.seed,
        processes=partition.reader(),
        **plain(config.loader),
    )


def first_batch(stage: Stage) -> dict[str, np.ndarray]:
    """Example arrays with a batch axis, for shapes."""
    row = stage.train.shapes()
    n = stage.config.batch_size // stage.config.accumulate
    batch = {k: np.zeros((n, *v.shape), v.dtype) for k, v in row.items()}
    return {**batch, "id": np.zeros(n, np.int32), "mask": np.ones(n, bool)}


def missing(wanted: Iterable[Callable[[], Any]]) -> list[str]:
    """What files the calls lack, each once; other faults of theirs are reported once the files are there."""
    found: dict[str, None] = {}
    for need in wanted:
        try:
            need()
        except FileNotFoundError as error:
            found[str(error)] = None
        except ValueError:
            pass
    return list(found)
