"""From config sections to objects. Everything that can be wrong with a config is found here, before any work.

A stage's section is read once into a `Stage`; nothing below this file sees a config.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
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
from jaxvl.data.source import FORMATS, Examples, Subset
from jaxvl.data.text import Tokenizer, answer_array
from jaxvl.evals import EVALS
from jaxvl.interop import minilm_dir
from jaxvl.models import MODELS
from jaxvl.sharding import Partition
from jaxvl.tasks import TASKS


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


def tokens(tok: Tokenizer) -> dict[str, int]:
    """The special ids and the size, as tasks take them."""
    return dict(pad=tok.pad_id, cls=tok.cls_id, sep=tok.sep_id, mask=tok.mask_id, size=tok.size)


def model(config: ConfigDict, stage: str, vocab_size: int) -> Any:
    """The stage's model: `config.model` under the stage's own `model` section, in the run's precision."""
    section = {**config.model, **config.stages[stage].model}
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


def reader(section: Mapping[str, Any], where: str) -> Any:
    """A reader of `SOURCES`; a missing file is reported with the config key that names it."""
    try:
        return make(SOURCES, "source", section)
    except (FileNotFoundError, ValueError) as e:
        # Not type(e): some errors (of decoding, say) cannot be made from a message.
        known = (FileNotFoundError, ConfigError, DataError, ImageError, ValueError)
        raise next(kind for kind in known if isinstance(e, kind))(f"{where}: {e}") from e


def examples(config: ConfigDict, stage: str, part: str, tok: Tokenizer) -> Examples | None:
    """The stage's `train` or `val` source in model-ready form; None where the config has none."""
    section = config.stages[stage]
    if section[part] is None:
        return None
    records = reader(section[part], f"config.stages.{stage}.{part}")
    text_format = make(FORMATS, "format", section.format, tokenizer=tok)
    return Examples(records, text_format, images=images(config, stage))


def images(config: ConfigDict, stage: str) -> ImageTransform | int:
    """The stage's image transform; where `images` is None, the model sees a constant image of that size."""
    section = config.stages[stage]
    size = {**config.model, **section.model}["image_size"]
    blind = section.images is None
    return size if blind else ImageTransform(size=size, **plain(section.images))


def weights_file(key: str, path: str | None) -> None:
    """Raise FileNotFoundError, naming the config key, if there is no such file of foreign weights."""
    if path is None:
        return
    if path == "minilm":
        minilm_dir()
    elif not Path(path).exists():
        raise FileNotFoundError(f"{key}: no file or folder {path}")


def answer_list(config: ConfigDict, stage: str, train: Examples | None) -> list[str] | None:
    """Candidate answers of a generative stage: the embedded world's, a file's, or the training set's most frequent."""
    section = config.stages[stage].answers
    if section is None:
        return None
    if section.file == "scenes":
        return scenes.answers()
    if section.file:
        return read_answers(Path(section.file))
    if train is None:
        raise ConfigError(f"config.stages.{stage}.answers: give a file, there are no training annotations")
    return build_answers(train.reader, top=section.top)


def task(
    config: ConfigDict, stage: str, tok: Tokenizer, answers: list[str] | None, steps_per_epoch: int
) -> Any:
    """The stage's task with its model; warm-ups given in epochs become optimiser updates."""
    section = plain(config.stages[stage].task)
    if section.get("distill") is not None:
        section["distill"] = dict(section["distill"])
        epochs = section["distill"].pop("warmup_epochs")
        section["distill"]["warmup_updates"] = int(epochs * steps_per_epoch)
    extra: dict[str, Any] = dict(model=model(config, stage, tok.size), tokens=tokens(tok))
    if answers is not None:
        extra["answers"] = answer_array(tok, answers, length=config.stages[stage].format.answer_length)
        extra["blind"] = config.stages[stage].images is None
        section["k_test"] = min(section["k_test"], len(answers))
        section["top_n"] = min(section["top_n"], section["k_test"])
    return make(TASKS, "task", section, **extra)


def stage(config: ConfigDict, name: str, tok: Tokenizer, workdir: Path) -> Stage:
    """Build one stage; raises on anything that does not fit, before any work."""
    section = config.stages[name]
    for kind, path in section.weights.items():
        weights_file(f"config.stages.{name}.weights.{kind}", path)
    train = examples(config, name, "train", tok)
    val: Examples | Subset | None = examples(config, name, "val", tok)
    if val is not None and section.eval.examples is not None:
        val = Subset(val, range(min(section.eval.examples, len(val))))
    if train is None:
        raise ConfigError(f"config.stages.{name}.train is None: a stage needs training data")
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
    answers = answer_list(config, name, train)
    steps = section.steps or math.ceil(section.epochs * updates)
    built = Stage(
        name=name,
        config=section,
        task=task(config, name, tok, answers, updates),
        train=train,
        val=val,
        evals=evaluators(config, name, train, answers, workdir),
        answers=answers,
        steps=steps,
        steps_per_epoch=updates,
    )
    jax.eval_shape(built.task.init, jax.random.key(0), first_batch(built))  # what only the model can refuse
    return built


def evaluators(
    config: ConfigDict, name: str, train: Examples, answers: list[str] | None, workdir: Path
) -> dict[str, Any]:
    """The stage's evaluators; those of answers get the candidates, the training answers and a results file.

    Diagnostics of the hypergraph are left out where the model has none.
    """
    out = {}
    section = config.stages[name]
    graph = {**config.model, **section.model}.get("hypergraph")
    for key, kwargs in section.evals.items():
        if kwargs["name"] == "hypergraph" and not (graph is not None and graph.layers):
            continue
        extra: dict[str, Any] = {}
        if kwargs["name"] == "vqa":
            extra = dict(answers=answers, results=workdir / name / "vqa_results.json")
        if kwargs["name"] == "majority":
            extra = dict(train=train)
        out[key] = make(EVALS, "evaluator", kwargs, **extra)
    return out


def schedule(stage: Stage) -> Any:
    """Learning rate of update `n`; schedules count optimiser updates."""
    section = plain(stage.config.optim.schedule)
    return optim.make_schedule(steps=stage.steps, steps_per_epoch=stage.steps_per_epoch, **section)


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


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
