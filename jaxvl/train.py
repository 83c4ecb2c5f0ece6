"""The only gradient loop of the project: a pure `train_step`, and `Trainer` with `fit` and `predict`.

A run is a function of (config, data, seed). The step never waits for the host: metrics are read two steps
late, and so are the signals (stop, save) on which all processes agree because they travel in the batch.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct

from jaxvl.checkpoint import Checkpoints
from jaxvl.data.loader import Loader, evaluation_batches
from jaxvl.log import Log, Progress
from jaxvl.sharding import Partition
from jaxvl.types import Array, Batch, Key, Metrics, PyTree, Rows, Source, Task

LAG = 2  # steps in flight before the host reads the metrics of the oldest
STOP, SAVE = 0, 1  # columns of batch["signals"]


class Preempted(Exception):
    """SIGTERM arrived; a checkpoint of `step` is on disk."""

    exit_code = 42

    def __init__(self, step: int):
        super().__init__(f"stopped by SIGTERM after a checkpoint at step {step}; the same command resumes")
        self.step = step


class NonFiniteError(FloatingPointError):
    """A loss term or the gradient is NaN or infinite."""


class TrainState(struct.PyTreeNode):
    """Everything that training changes. `frozen` (a teacher) is sharded and passed in, never saved."""

    step: Array
    params: PyTree
    opt_state: PyTree
    extra: PyTree
    frozen: PyTree = None


def train_step(
    state: TrainState,
    batch: Batch,
    key: Key,
    *,
    task: Task,
    tx: optax.GradientTransformation,
    accumulate: int,
) -> tuple[TrainState, Metrics, Array]:
    """One optimiser update; pure.

    Args:
      state: before the update.
      batch: global batch `[B, ...]`, with `signals [B,2] i32` from the hosts.
      key: the run's key; the step's randomness is `fold_in(key, step)`.
      task: gives the loss; `prepare` and `finish` are called once per update.
      tx: optimiser.
      accumulate: number of micro-batches; must divide `B`.

    Returns:
      (new state, metrics as (sum, weight), signals `[2]` = maximum over hosts).
    """
    batch = dict(batch)
    signals = batch.pop("signals").max(0)
    rng = jax.random.fold_in(key, state.step)
    extra = task.prepare(state.params, state.extra)
    seen = extra if state.frozen is None else {**extra, "frozen": state.frozen}

    def micro(rows: Batch, rng: Key) -> tuple[PyTree, PyTree, Metrics]:
        grad_fn = jax.value_and_grad(task.loss, has_aux=True)
        (_, (aux, metrics)), grads = grad_fn(state.params, seen, rows, rng)
        return grads, aux, metrics

    if accumulate == 1:
        grads, aux, metrics = micro(batch, rng)
    else:
        grads, aux, metrics = accumulated(micro, batch, rng, accumulate)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    metrics = {**metrics, "grad_norm": (optax.global_norm(grads), jnp.ones(()))}
    new = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        extra=task.finish(extra, aux),
    )
    return new, metrics, signals


def accumulated(
    micro: Callable[[Batch, Key], tuple[PyTree, PyTree, Metrics]], batch: Batch, rng: Key, n: int
) -> tuple[PyTree, PyTree, Metrics]:
    """Mean gradients, row-ordered aux and summed metrics of `n` micro-batches.

    Micro-batch `k` takes rows `k::n`, so that a batch sharded in contiguous blocks stays evenly sharded.
    """

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 1, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    rows = jax.tree.map(split, dict(batch))
    first = jax.tree.map(lambda x: x[0], rows)
    grads_like, _, metrics_like = jax.eval_shape(micro, first, rng)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads_like, metrics_like))

    def body(carry: PyTree, item: PyTree) -> tuple[PyTree, PyTree]:
        k, part = item
        grads, aux, metrics = micro(part, jax.random.fold_in(rng, k))
        return jax.tree.map(jnp.add, carry, (grads, metrics)), aux

    (grads, metrics), aux = jax.lax.scan(body, zeros, (jnp.arange(n), rows))
    return jax.tree.map(lambda g: g / n, grads), jax.tree.map(join, aux), metrics


@dataclasses.dataclass
class Evaluation:
    """What to score while training: `run(state)` every `every` steps; once `stop()` is true, training ends there."""

    run: Callable[[TrainState], Mapping[str, float]]
    every: int
    stop: Callable[[], bool] = lambda: False


class Births(NamedTuple):
    """The jitted programs that make a state for batches of one signature, and the shardings of what they make."""

    params: Callable[[Key, Batch], PyTree]
    extra: Callable[[PyTree, Key], PyTree]
    optimizer: Callable[[PyTree], PyTree]
    sharding: PyTree


class Trainer:
    """Holds the jitted programs of one task on one mesh; compiled once, however often they are called.

    Attributes:
      traces: how often each program was traced; tests assert 1.
    """

    def __init__(
        self,
        task: Task,
        tx: optax.GradientTransformation | None = None,
        *,
        partition: Partition,
        seed: int = 0,
        accumulate: int = 1,
        eval_batch_size: int = 64,
    ):
        self.task, self.tx, self.partition = task, tx or optax.identity(), partition
        self.key = jax.random.key(seed)
        self.accumulate = accumulate
        shards = partition.batch_shards
        self.eval_batch_size = -(-eval_batch_size // shards) * shards
        self.traces: collections.Counter[str] = collections.Counter()
        self._predictors: dict[Any, Callable[..., Any]] = {}
        self._births: dict[Any, Births] = {}
        self._step: Callable[..., Any] | None = None
        self.abstract: TrainState | None = None

    # ---- state ------------------------------------------------------------------------------------------

    def init(
        self,
        example: Mapping[str, np.ndarray],
        *,
        load: Callable[[PyTree], PyTree] | None = None,
        frozen: Callable[[PyTree], PyTree] | None = None,
    ) -> TrainState:
        """A state born sharded.

        Args:
          example: one batch of numpy rows, for shapes only.
          load: maps fresh params (host arrays, nested dict) to the params to start from.
          frozen: maps the abstract tree of `task.init_frozen`, unboxed, to the arrays that the loss reads as
            `extra["frozen"]` (a teacher); they are sharded like parameters and never saved.

        Returns:
          The state at step 0; `self.abstract` then describes it for restoring.
        """
        batch = {k: jnp.zeros(np.shape(v), np.asarray(v).dtype) for k, v in example.items()}
        keys = jax.random.split(jax.random.fold_in(self.key, 2**31 - 1), 2)
        with self.partition.context():
            make = self._birth(batch)
            params = make.params(keys[0], batch)
            if load is not None:
                params = jax.device_put(load(self.partition.fetch(params)), make.sharding)
            taught: PyTree = None
            if frozen is not None:
                task: Any = self.task  # one with a teacher
                teacher = jax.eval_shape(task.init_frozen, keys[0], batch)
                shardings = self.partition.state(teacher)
                taught = jax.device_put(frozen(jax.eval_shape(nn.unbox, teacher)), shardings)
            state = TrainState(
                step=jax.device_put(jnp.zeros((), jnp.int32), self.partition.replicated()),
                params=params,
                opt_state=make.optimizer(params),
                extra=make.extra(params, keys[1]),
                frozen=taught,
            )
        self.abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state.replace(frozen=None)
        )
        return state

    def reseed(self, seed: int) -> None:
        """From now on, randomness is that of a trainer made with `seed`; what is compiled stays."""
        self.key = jax.random.key(seed)

    def _birth(self, batch: Batch) -> Births:
        """The programs behind `init`, kept for the next state of the same shapes."""
        signature = tuple(sorted((k, v.shape, str(v.dtype)) for k, v in batch.items()))
        if signature not in self._births:
            boxed = jax.eval_shape(self.task.init, jax.random.key(0), batch)
            extra = jax.eval_shape(self.task.start, boxed, jax.random.key(0))
            shard = self.partition.state

            def params(key: Key, batch: Batch) -> PyTree:
                self.traces["init"] += 1
                return nn.unbox(self.task.init(key, batch))

            self._births[signature] = Births(
                jax.jit(params, out_shardings=shard(boxed)),
                jax.jit(lambda p, k: nn.unbox(self.task.start(p, k)), out_shardings=shard(extra)),
                jax.jit(self.tx.init, out_shardings=shard(jax.eval_shape(self.tx.init, boxed))),
                shard(boxed),
            )
        return self._births[signature]

    def place(self, params: PyTree) -> PyTree:
        """Host arrays of all layers, one by one, as parameters for `predict` (replicated on every device)."""
        return jax.device_put(params, self.partition.replicated())

    # ---- programs ---------------------------------------------------------------------------------------

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics, Array]:
        """The jitted `train_step`; donates `state`."""
        if self._step is None:
            shardings = jax.tree.map(lambda x: x.sharding, state)
            rep = self.partition.replicated()

            def counted(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, Metrics, Array]:
                self.traces["step"] += 1
                return train_step(state, batch, key, task=self.task, tx=self.tx, accumulate=self.accumulate)

            self._step = jax.jit(
                counted,
                in_shardings=(shardings, self.partition.batch(), rep),
                out_shardings=(shardings, rep, rep),
                donate_argnums=0,
            )
        with self.partition.context():
            return self._step(state, batch, self.key)

    def predictor(self, name: str, params: PyTree, batch: Batch) -> Callable[..., Any]:
        """The jitted predictor for batches with these keys, shapes and types."""
        signature = (name, *sorted((k, v.shape, str(v.dtype)) for k, v in batch.items()))
        if signature not in self._predictors:
            fn = self.task.predictors[name]
            rep = self.partition.replicated()

            def counted(params: PyTree, batch: Batch, key: Key) -> Any:
                self.traces[name] += 1
                return fn(params, batch, key)

            shardings = jax.tree.map(lambda x: x.sharding, params)
            self._predictors[signature] = jax.jit(
                counted, in_shardings=(shardings, self.partition.batch(), rep), out_shardings=rep
            )
        return self._predictors[signature]

    # ---- loops ------------------------------------------------------------------------------------------

    def predict(self, params: PyTree, name: str, source: Source) -> Rows:
        """Row `i` of the answer is predictor `name` on `source[i]`; one compilation for any source size.

        Raises:
          KeyError: the task has no such predictor; lists those it has.
        """
        if name not in self.task.predictors:
            raise KeyError(
                f"{type(self.task).__name__} has no predictor {name!r}; it has {sorted(self.task.predictors)}"
            )
        if not len(source):
            raise ValueError(f"predict({name!r}): the source is empty")
        rows: list[Any] = []
        flying: collections.deque[tuple[Any, np.ndarray]] = collections.deque()

        def land() -> None:
            out, mask = flying.popleft()
            rows.append(jax.tree.map(lambda x: x[mask], self.partition.fetch(out)))

        batches = evaluation_batches(source, self.eval_batch_size)
        for i, host in enumerate(batches):
            mask = np.asarray(host["mask"])
            lo, hi = self.partition.rows(self.eval_batch_size)
            batch = self.partition.place_batch({k: v[lo:hi] for k, v in host.items()})
            with self.partition.context():
                fn = self.predictor(name, params, batch)
                flying.append((fn(params, batch, jax.random.fold_in(self.key, i)), mask))
            if len(flying) > LAG:
                land()
        while flying:
            land()
        return jax.tree.map(lambda *xs: np.concatenate(xs), *rows)

    def fit(
        self,
        state: TrainState,
        loader: Loader,
        *,
        steps: int,
        log: Log,
        progress: Progress,
        checkpoints: Checkpoints,
        meta: Mapping[str, Any],
        log_every: int = 20,
        save_every_steps: int | None = None,
        save_every_seconds: float | None = 300.0,
        evaluation: Evaluation | None = None,
        scalars: Callable[[int], Mapping[str, float]] = lambda step: {},
        sigterm: Sigterm | None = None,
    ) -> TrainState:
        """Train from `state.step` to `steps`; ends with a checkpoint.

        Args:
          state: fresh or restored.
          loader: gives the batches from any step on.
          steps: optimiser updates in all.
          log: takes scalars every `log_every` steps.
          progress: the live display.
          checkpoints: where to save; at `save_every_steps`, every `save_every_seconds`, on SIGTERM, at the end.
          meta: JSON that goes into each checkpoint, beside the step and the metrics of a log line under way.
          log_every: steps between log lines; their metrics are averages over these steps.
          save_every_steps: None = not by count.
          save_every_seconds: None = not by time.
          evaluation: scores to log while training, and when to end early.
          scalars: more values to log at a step, e.g. its learning rate.
          sigterm: the caller's event, which may be set already; None = listen while fitting.

        Raises:
          Preempted: after SIGTERM and a checkpoint.
          NonFiniteError: a loss is NaN or infinite; the state is not saved.
        """
        first = int(state.step)
        meter = Meter(log, progress, log_every, steps, first, loader.batch_size, scalars)
        if first in checkpoints.steps():
            meter.resume(checkpoints.meta(first).get("window", {}))
        clock, done = time.monotonic(), first

        def save(step: int, wait: bool = False, **more: Any) -> None:
            meter.drain(0)
            record = {**meta, **more, "step": step, "window": meter.window()}
            checkpoints.save(step, state.replace(frozen=None), record, wait=wait)

        with contextlib.nullcontext(sigterm) if sigterm is not None else Sigterm() as stop:
            batches = timed(loader.batches(first, steps))
            for done, (waited, host) in enumerate(batches, start=first + 1):
                due = save_every_seconds is not None and time.monotonic() - clock > save_every_seconds
                signals = np.broadcast_to(np.array([stop.is_set(), due], np.int32), (len(host["id"]), 2))
                batch = self.partition.place_batch({**host, "signals": signals})
                state, metrics, agreed = self.step(state, batch)
                meter.push(done, host["id"], metrics, agreed, waited)
                meter.drain(LAG)
                if meter.stop or (stop.is_set() and jax.process_count() == 1):  # nobody to agree with
                    save(done, wait=True)
                    raise Preempted(done)
                scores: dict[str, float] = {}
                if evaluation and done % evaluation.every == 0 and done < steps:
                    meter.drain(0)
                    scores = dict(evaluation.run(state))
                    log.write_scalars(done, scores)
                    if evaluation.stop():
                        break
                counted = bool(save_every_steps) and done % (save_every_steps or 1) == 0 and done < steps
                if meter.save or counted or checkpoints.best_name in scores:
                    save(done, metrics=scores)
                    clock = time.monotonic()
                    meter.save = False  # the wishes of the steps in flight are met as well
            if done > first or checkpoints.latest() != done:
                save(done, wait=True)
            if meter.stop:  # agreed on in the last steps
                raise Preempted(done)
        return state


class Meter:
    """Reads metrics late, checks them, averages them over `every` steps, and times the loop."""

    def __init__(
        self,
        log: Log,
        progress: Progress,
        every: int,
        steps: int,
        first: int,
        batch_size: int,
        scalars: Callable[[int], Mapping[str, float]],
    ):
        self.log, self.progress, self.every, self.steps = log, progress, every, steps
        self.batch_size, self.more = batch_size, scalars
        self.flying: collections.deque[tuple[int, np.ndarray, Metrics, Array, float]] = collections.deque()
        self.totals: dict[str, np.ndarray] = {}
        self.stop = self.save = False
        self.mark, self.marked, self.waited = time.monotonic(), first, 0.0

    def push(self, step: int, ids: np.ndarray, metrics: Metrics, agreed: Array, waited: float) -> None:
        self.flying.append((step, ids, metrics, agreed, waited))

    def window(self) -> dict[str, list[float]]:
        """`{name: [sum, weight]}` of the steps since the last log line: what a checkpoint between two lines keeps."""
        return {name: total.tolist() for name, total in self.totals.items()}

    def resume(self, window: Mapping[str, Sequence[float]]) -> None:
        """Go on with the log line that was under way at the checkpoint."""
        self.totals = {name: np.array(total, np.float64) for name, total in window.items()}

    def drain(self, keep: int) -> None:
        """Read all but the newest `keep` steps; sets `stop` and `save` if all processes agreed on it in one of them."""
        while len(self.flying) > keep:
            step, ids, metrics, agreed, waited = self.flying.popleft()
            values, flags = jax.device_get((metrics, agreed))
            check_finite(step, values, ids)
            for name, (total, weight) in values.items():
                self.totals[name] = self.totals.get(name, np.zeros(2)) + np.array([total, weight], np.float64)
            self.waited += waited
            self.stop, self.save = self.stop or bool(flags[STOP]), self.save or bool(flags[SAVE])
            if step % self.every == 0 or step == self.steps:
                self.emit(step)

    def emit(self, step: int) -> None:
        now = time.monotonic()
        elapsed, count = max(now - self.mark, 1e-9), step - self.marked
        scalars = {k: float(t / w) for k, (t, w) in self.totals.items() if w} | dict(self.more(step))
        timing = {
            "examples_per_s": count * self.batch_size / elapsed,
            "data_wait_share": self.waited / elapsed,
        }
        self.log.write_scalars(step, {**scalars, **timing})
        self.progress.update(step, {**scalars, **timing})
        self.totals, self.mark, self.marked, self.waited = {}, now, step, 0.0


def check_finite(step: int, metrics: Mapping[str, Any], ids: np.ndarray) -> None:
    """Raise `NonFiniteError` naming the step, the terms and the examples if any metric is not finite."""
    bad = [k for k, (total, _) in metrics.items() if not np.isfinite(total)]
    if bad:
        shown = ", ".join(map(str, ids[:32])) + (" ..." if len(ids) > 32 else "")
        raise NonFiniteError(
            f"step {step}: {', '.join(sorted(bad))} not finite; example ids of the batch: {shown}. "
            "The last checkpoint is from before this step. Lower the learning rate or inspect these examples."
        )


def timed(batches: Iterator[Any]) -> Iterator[tuple[float, Any]]:
    """Each batch with the seconds that the loop waited for it."""
    start = time.monotonic()
    for item in batches:
        yield time.monotonic() - start, item
        start = time.monotonic()


class Sigterm(threading.Event):
    """An event that SIGTERM sets, while inside the context (main thread only)."""

    def __enter__(self) -> Sigterm:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGTERM, lambda *_: self.set())
        return self

    def __exit__(self, *exc: object) -> None:
        if self._main:
            signal.signal(signal.SIGTERM, self._before)


def bind(trainer: Trainer, params: PyTree) -> Callable[[str, Source], Rows]:
    """`predict(name, source)` with these parameters: what evaluators and strategies receive."""
    return functools.partial(trainer.predict, params)
