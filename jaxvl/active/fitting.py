"""Training the models of a round, each once: models that depend on the same things are one folder, for all methods.

models/task-3f2a9c.../   metrics.jsonl, curves, shapes.json (of batches), params.safetensors,
                         result.json (written last: the model counts)
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvl.active.plateau import Plateau, Watch, forget, load_tree, save_tree
from jaxvl.atomic import read_json, sha256, write_json
from jaxvl.checkpoint import Checkpoints
from jaxvl.data.loader import Loader
from jaxvl.log import Log, Progress
from jaxvl.optim import make_schedule, set_rates
from jaxvl.train import Evaluation, Sigterm, Trainer, TrainState
from jaxvl.types import Predict, PyTree, Source

PARAMS, RESULT, SHAPES, CHECKPOINTS = "params.safetensors", "result.json", "shapes.json", "checkpoints"
LEAST = 4  # rows of the smallest batch
EachEpoch = Callable[[Path, int, Predict], Mapping[str, float]]
SCHEMA = 1  # of what a model is a function of; another number trains anew


@dataclass
class Stage:
    """A model that rounds train: how, and with which programs.

    Attributes:
      trainer: lives as long as the process, so that nothing is compiled twice.
      section: the config that the model depends on; part of its key.
      schedule: keyword arguments of `optim.make_schedule` but for the counts.
      epochs: passes over the source; more, if these are fewer updates than `min_steps`.
      vectors: `[V,E]` rows to start the word embeddings from, if any.
    """

    name: str
    trainer: Trainer
    section: Mapping[str, Any]
    schedule: Mapping[str, Any]
    batch_size: int
    epochs: float
    min_steps: int = 0
    most_steps: int = 1 << 20
    plateau: Plateau | None = None
    vectors: np.ndarray | None = None
    loader: Mapping[str, Any] = field(default_factory=dict)

    def batch(self, source: Source) -> int:
        """Rows of a batch: fixed, so that one program serves all rounds; a power of two where there are not so many."""
        if len(source) < LEAST:
            raise ValueError(
                f"stage {self.name!r}: {len(source)} examples are too few to train on; start with more labelled images "
                "(config.active.init)"
            )
        return self.batch_size if len(source) >= self.batch_size else 2 ** int(math.log2(len(source)))

    def steps(self, source: Source) -> int:
        """Optimiser updates for this source: whole epochs, at least `min_steps` updates."""
        each = len(source) // self.batch(source)
        steps = math.ceil(self.epochs * each)
        if steps < self.min_steps:
            steps = math.ceil(self.min_steps / each) * each
        return min(steps, self.most_steps)

    def exported(self, state: TrainState) -> PyTree:
        """The parameters to keep: those of the state, with what a task collects beside them (running averages)."""
        if not hasattr(self.trainer.task, "export"):
            return state.params
        with self.trainer.partition.context():
            return self._export(state.params, state.extra)

    @functools.cached_property
    def _export(self) -> Callable[[PyTree, PyTree], PyTree]:
        """The task's `export`, compiled once; a trainer's parameters are always sharded alike."""
        task: Any = self.trainer.task
        assert self.trainer.abstract is not None
        return jax.jit(
            task.export, out_shardings=jax.tree.map(lambda x: x.sharding, self.trainer.abstract.params)
        )


class Fitted(NamedTuple):
    """A trained model: `params` on the devices, its `key`, whether it was there already, and what its fit took."""

    params: PyTree
    key: str
    hit: bool
    result: Mapping[str, Any]


class Fitter:
    """Trains stages, and keeps what it trained under `folder`."""

    def __init__(self, folder: Path, stages: Mapping[str, Stage], *, sigterm: Sigterm | None = None):
        self.folder, self.stages, self.sigterm = folder, dict(stages), sigterm

    def fit(
        self,
        name: str,
        source: Source,
        *,
        seed: int,
        data: Any,
        title: str = "",
        start: str | None = None,
        each_epoch: EachEpoch | None = None,
    ) -> Fitted:
        """Train a stage on a source, or load what it was trained to before.

        Args:
          name: of the stage.
          source: training rows.
          seed: of initial values, order and dropout.
          data: JSON that says what the source depends on: labelled ids, files, models. With the stage's section and
            the seed it is the key under which the model is kept.
          title: for the display.
          start: key of a model of this stage whose parameters are the initial ones; `data` must name it.
          each_epoch: is given the model's folder, the number of an epoch that has ended, from 1, and `predict` of the
            present parameters; what it returns is logged, but for the last. It is called again for epochs that are
            repeated after a kill, and not at all if the model is there already.
        """
        stage = self.stages[name]
        key = self.key(name, seed=seed, data=data)
        folder = self.folder / f"{name}-{key}"
        with exclusive(folder):
            if not (folder / SHAPES).exists():
                write_json(folder / SHAPES, shapes_of(source, stage.batch(source)))
            if (folder / RESULT).exists():
                cleared(folder)
                return Fitted(self._load(stage, folder), key, True, read_json(folder / RESULT))
            stage.trainer.reseed(seed)
            started = time.monotonic()
            params, more = self._train(
                stage, source, folder, seed, title or name, start=start, each_epoch=each_epoch
            )
            save_tree(folder / PARAMS, stage.trainer.partition.fetch(params))
            result = {**more, "seconds": round(time.monotonic() - started, 3), "examples": len(source)}
            result["sha256"] = sha256(folder / PARAMS)
            write_json(folder / RESULT, result)
            cleared(folder)
        return Fitted(params, key, False, result)

    def key(self, name: str, *, seed: int, data: Any) -> str:
        """What a model is a function of, as 16 hex digits."""
        text = json.dumps([SCHEMA, name, self.stages[name].section, seed, data], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def load(self, name: str, key: str) -> PyTree:
        """The parameters of a model that was trained before.

        Raises:
          FileNotFoundError: it is gone.
        """
        return self._load(self.stages[name], _whole(self.folder / f"{name}-{key}"))

    def _load(self, stage: Stage, folder: Path) -> PyTree:
        tree = load_tree(folder / PARAMS)
        return stage.trainer.init(zeros(read_json(folder / SHAPES)), load=lambda fresh: tree).params

    def _train(
        self,
        stage: Stage,
        source: Source,
        folder: Path,
        seed: int,
        title: str,
        *,
        start: str | None,
        each_epoch: EachEpoch | None,
    ) -> tuple[PyTree, dict[str, Any]]:
        trainer, plateau = stage.trainer, stage.plateau
        held: Source | None = None
        if plateau is not None:
            source, held = split_by_image(source, share=plateau.share, rng=np.random.default_rng(seed))
        steps, each = stage.steps(source), len(source) // stage.batch(source)
        rates = make_schedule(
            steps=steps,
            steps_per_epoch=each,
            examples=len(source),
            batch_size=stage.batch(source),
            **stage.schedule,
        )
        checkpoints = Checkpoints(folder / CHECKPOINTS, keep=1)
        step = checkpoints.latest()
        watch: Watch | Epochs | None = None
        if plateau is not None and held is not None:
            if each_epoch is not None:
                raise ValueError(f"stage {stage.name!r} ends at a plateau: its epochs cannot be recorded")
            watch = Watch(stage, plateau, held, each, seed, folder=folder, saved=checkpoints.latest)
            step = watch.restored(step)
            if step is None:  # one that cannot be gone on from would outlive those that can
                shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        elif each_epoch is not None:
            watch = Epochs(stage.trainer, each, folder, each_epoch)
        first = None if start is None else load_tree(_whole(self.folder / f"{stage.name}-{start}") / PARAMS)
        state = self._begin(stage, source, rates, steps, first)
        if step is not None:
            state = checkpoints.restore(step, trainer.abstract)
        log = Log(folder, append_from_step=step)
        if isinstance(watch, Watch) and step is not None and watch.lacks(step, steps):
            log.write_scalars(step, watch.run(state))  # stopped between the update and the score
        try:
            with Progress(title, total=steps, start=int(state.step), file=_shown()) as progress:
                state = state if watch is not None and watch.stop() else trainer.fit(
                    state,
                    Loader(source, batch_size=stage.batch(source), seed=seed, **stage.loader),
                    steps=steps, log=log, progress=progress, checkpoints=checkpoints, meta={"stage": stage.name},
                    evaluation=None if watch is None else Evaluation(watch.run, every=watch.every, stop=watch.stop),
                    scalars=lambda n: {"learning_rate": float(rates(n - 1))}, sigterm=self.sigterm,
                )  # fmt: skip
            best = None if watch is None else watch.finish(state, steps)
        finally:
            checkpoints.close()
            log.close()
        more: dict[str, Any] = {"steps": int(state.step)}
        loss = [row["loss"] for row in log.rows if "loss" in row]
        if loss:
            more |= {"first_loss": loss[0], "last_loss": loss[-1]}
        if best is not None:
            return best.params, {**more, "held_out": best.scores}
        return stage.exported(state), more

    def _begin(
        self, stage: Stage, source: Source, rates: Any, steps: int, first: PyTree | None
    ) -> TrainState:
        vectors, load = stage.vectors, None
        if first is not None:
            load = lambda fresh: first  # noqa: E731
        elif vectors is not None:
            load = lambda fresh: with_vectors(fresh, vectors)  # noqa: E731
        state = stage.trainer.init(zeros(shapes_of(source, stage.batch(source))), load=load)
        extra = state.extra
        if isinstance(extra, dict) and "steps" in extra:  # a task that changes after a share of its updates
            extra = {**extra, "steps": jax.device_put(jnp.int32(steps), extra["steps"].sharding)}
        return state.replace(opt_state=set_rates(state.opt_state, rates, steps=steps), extra=extra)


class Epochs:
    """Has every epoch of a fit recorded."""

    def __init__(self, trainer: Trainer, every: int, folder: Path, each_epoch: EachEpoch):
        self.trainer, self.every, self.folder, self.each_epoch = trainer, every, folder, each_epoch

    def run(self, state: TrainState) -> Mapping[str, float]:
        """Record the epoch that has ended; what is logged of it."""
        number = int(state.step) // self.every
        return self.each_epoch(self.folder, number, functools.partial(self.trainer.predict, state.params))

    def stop(self) -> bool:
        """Never."""
        return False

    def finish(self, state: TrainState, steps: int) -> None:
        """Record the last epoch."""
        self.run(state)


def cleared(folder: Path) -> None:
    """Leave of a model that is trained what it is read by: checkpoints are several times its size."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    forget(folder)


def _whole(folder: Path) -> Path:
    """The folder of a model that was trained before; FileNotFoundError if something of it is gone."""
    for file in (RESULT, SHAPES):
        if not (folder / file).exists():
            raise FileNotFoundError(
                f"{folder / file}: of the model of a finished phase, this is gone; restore it or roll back"
            )
    return folder


def with_vectors(fresh: PyTree, vectors: np.ndarray) -> PyTree:
    """`fresh` parameters whose word embeddings are `vectors` [V,E]: tables of that shape named `word_embedding`."""
    flat, done = flatten_dict(fresh), False
    for path, value in flat.items():
        if "word_embedding" in path and value.shape == vectors.shape:
            flat[path], done = np.asarray(vectors, np.float32), True
    if not done:
        raise ValueError(
            f"no table of word embeddings of shape {vectors.shape} in the model (config.words.dim?)"
        )
    return unflatten_dict(flat)


def split_by_image(source: Any, *, share: float, rng: np.random.Generator) -> tuple[Any, Any]:
    """Rows of a question source for training and, a `share` of the images but at least two, held out."""
    ids = source.image_ids
    unique = rng.permutation(np.unique(ids))
    held = np.isin(ids, unique[: max(2, round(share * len(unique)))])  # two: their questions change places
    if held.all():
        raise ValueError("two images cannot be held out of so few: label more images (config.active.init)")
    return source.subset(np.flatnonzero(~held)), source.subset(np.flatnonzero(held))


def shapes_of(source: Source, rows: int) -> dict[str, Any]:
    """JSON of the shapes and types of batches of `rows` rows of a source: `{name: [shape, type]}`."""
    row = source.shapes() if hasattr(source, "shapes") else source[0]
    batch = {k: [[rows, *np.shape(v)], str(np.asarray(v).dtype)] for k, v in row.items()}
    return {**batch, "id": [[rows], "int32"], "mask": [[rows], "bool"]}


def zeros(shapes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A batch of zeros of these shapes; its rows count."""
    batch = {name: np.zeros(shape, kind) for name, (shape, kind) in shapes.items()}
    return {**batch, "mask": np.ones_like(batch["mask"])}


def _shown() -> IO[str]:
    """Where a fit shows its progress: on a terminal; in a log file the rounds say what was done."""
    return sys.stderr if sys.stderr.isatty() else io.StringIO()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Wait until no other process writes to the folder of this model."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
