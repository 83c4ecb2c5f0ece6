"""Batches of a source: order, augmentation and sharing among processes as pure functions of a few integers.

Shape legend: `B` global batch, `b = B / processes` rows of one process.

Which example stands where is a function of (seed, epoch, index); how it is augmented of (seed, epoch, id). Neither
depends on threads, workers, processes or the step the iteration starts at, so one integer (the step) resumes a run.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxvl.data.images import ImageError
from jaxvl.types import Source

ATTEMPTS = 10  # examples tried in a row before a slot of the batch is given up
LIMIT = 0.01  # share of unreadable examples above which a run fails
SETTLED = 10_000  # examples after which the share counts as measured; the whole source if it is smaller
REPLACED = "_replaced"  # batch entry [b]: id of the unreadable example that this one stands for, or -1
_ORDER, _AUGMENT, _REPLACE = 0, 1, 2  # streams of random numbers


class Loader:
    """Endless shuffled batches of a source, startable at any step.

    An epoch is a permutation of the source cut into `steps_per_epoch` global batches; the rest is dropped. Rows of
    a global batch are split contiguously over the processes.

    An example whose image cannot be read is replaced by another one, chosen by (seed, epoch, id); `replaced` counts
    these. Above 1 % of the examples drawn the run fails and names the files.

    Args:
      source: random access to examples; must be picklable if `workers > 0`.
      batch_size: global batch `B`, a multiple of the number of processes.
      seed: of the order and of all augmentation.
      augment: True takes `source.augmented`, False the evaluation transform.
      processes: `(index, count)` of this process.
      workers: 0 = threads of this process; else that many worker processes. The batches are the same.
      threads: per process or worker; None = one per CPU without workers, one each with workers.
      buffer: batches prepared ahead, per worker.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        augment: bool = True,
        processes: tuple[int, int] = (0, 1),
        workers: int = 0,
        threads: int | None = None,
        buffer: int = 2,
    ) -> None:
        index, count = processes
        if not 0 <= index < count:
            raise ValueError(f"processes=(index, count) is {processes}: index must lie in [0, count)")
        if batch_size < 1 or batch_size % count:
            raise ValueError(f"batch_size={batch_size} must be a positive multiple of the {count} processes")
        if batch_size > len(source):
            raise ValueError(
                f"batch_size={batch_size} exceeds the {len(source)} examples of the source: lower it or give more data"
            )
        self.source, self.batch_size, self.seed = source, batch_size, seed
        self.workers, self.threads, self.buffer = workers, threads, buffer
        self.steps_per_epoch = len(source) // batch_size
        self.unreadable: Counter[int] = Counter()
        self.drawn = 0
        self._local = batch_size // count
        self._slots = _Slots(source, batch_size, seed, augment, offset=index * self._local, rows=self._local)

    @property
    def replaced(self) -> int:
        """Unreadable examples met so far in the batches handed out; `unreadable` has them by id."""
        return self.unreadable.total()

    def batches(self, start_step: int = 0, stop_step: int | None = None) -> Batches:
        """Batches of steps `start_step` to `stop_step` (exclusive; None = endless), started in constant time.

        Each is a dict of arrays `[b, ...]` with `id` (position in the source) and `mask` (all True). Close the
        iterator, or use it as a context manager, to free its threads or workers early.
        """
        if start_step < 0 or (stop_step is not None and stop_step < start_step):
            raise ValueError(f"steps {start_step} to {stop_step} are not a range")
        stop = sys.maxsize // self._local if stop_step is None else stop_step
        slots = grain.MapDataset.source(self._slots)[start_step * self._local : stop * self._local]
        rows = _run(slots, self._local, workers=self.workers, threads=self.threads, buffer=self.buffer)
        return Batches(rows, self._account)

    def _account(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        failed = batch.pop(REPLACED)
        self.drawn += len(failed)
        self.unreadable.update(int(i) for i in failed if i >= 0)
        allowed = LIMIT * max(self.drawn, min(len(self.source), SETTLED))
        if self.replaced > allowed:
            raise ImageError(
                f"{self.replaced} of {self.drawn} examples could not be read, more than {LIMIT:.0%}: "
                f"{_names(self.source, self.unreadable)}.{_advice(self.source)}"
            )
        return batch


class Batches(Iterator[dict[str, np.ndarray]]):
    """Iterator over batches that owns threads or worker processes until it is exhausted or closed."""

    def __init__(self, rows: Any, finish: Any) -> None:
        self._rows, self._finish, self._open = rows, finish, True

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._open:
            raise StopIteration
        try:
            return self._finish(_owned(next(self._rows)))
        except BaseException:  # also StopIteration: nothing follows either
            self.close()
            raise

    def close(self) -> None:
        """Stop the threads or workers behind this iterator; repeated calls do nothing."""
        if self._open:
            self._open = False
            self._rows.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self.close()


def evaluation_batches(
    source: Source, batch_size: int, *, workers: int = 0, threads: int | None = None, buffer: int = 2
) -> Batches:
    """The source in order under the evaluation transform, in batches of exactly `batch_size` rows.

    The last batch repeats the last example with `mask` False. Nothing is replaced: an unreadable image raises
    `ImageError`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be positive")
    rows = grain.MapDataset.source(_Ordered(source, batch_size))
    return Batches(
        _run(rows, batch_size, workers=workers, threads=threads, buffer=buffer), lambda batch: batch
    )


class _Slots:
    """Local row `k` of all steps, as a random-access sequence: step `k // rows`, row `offset + k % rows`."""

    def __init__(
        self, source: Source, batch_size: int, seed: int, augment: bool, *, offset: int, rows: int
    ) -> None:
        self.source, self.batch_size, self.seed, self.augment = source, batch_size, seed, augment
        self.offset, self.rows = offset, rows
        self._steps = len(source) // batch_size
        self._orders: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_orders")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _orders={}, _lock=threading.Lock())

    def __len__(self) -> int:
        return sys.maxsize // self.rows * self.rows

    def __getitem__(self, k: int) -> Mapping[str, np.ndarray]:
        step, row = divmod(int(k), self.rows)
        epoch, step = divmod(step, self._steps)
        example = int(self._order(epoch)[step * self.batch_size + self.offset + row])
        return self._load(epoch, example)

    def _load(self, epoch: int, example: int) -> Mapping[str, np.ndarray]:
        i, error = example, None
        for attempt in range(ATTEMPTS):
            try:
                arrays = self._arrays(epoch, i)
                failed = -1 if attempt == 0 else example
                return {**arrays, "id": np.int32(i), "mask": np.True_, REPLACED: np.int32(failed)}  # type: ignore[dict-item]
            except ImageError as unreadable:
                error = error or unreadable
                i = int(_generator(self.seed, epoch, _REPLACE, example, attempt).integers(len(self.source)))
        raise ImageError(
            f"example {example} and {ATTEMPTS - 1} others drawn in its place could not be read. First: {error}."
            f"{_advice(self.source)}"
        )

    def _arrays(self, epoch: int, i: int) -> Mapping[str, np.ndarray]:
        if not self.augment:
            return self.source[i]
        return self.source.augmented(i, _generator(self.seed, epoch, _AUGMENT, i))

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:
            if epoch not in self._orders:
                # Threads near the end of an epoch already prepare the next one: keep two.
                self._orders = {e: order for e, order in self._orders.items() if abs(e - epoch) == 1}
                order = _generator(self.seed, epoch, _ORDER).permutation(len(self.source))
                self._orders[epoch] = order.astype(np.int32)
            return self._orders[epoch]


class _Ordered:
    """The source in order, padded to whole batches with copies of its last row."""

    def __init__(self, source: Source, batch_size: int) -> None:
        self.source = source
        self._length = -(-len(source) // batch_size) * batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, k: int) -> Mapping[str, np.ndarray]:
        i = min(int(k), len(self.source) - 1)
        return {**self.source[i], "id": np.int32(i), "mask": np.bool_(k < len(self.source))}  # type: ignore[dict-item]


def _run(rows: Any, batch: int, *, workers: int, threads: int | None, buffer: int) -> Any:
    # Batching before the split over threads or workers keeps the order for any number of them.
    if threads is None:
        threads = 1 if workers else min(os.cpu_count() or 1, 16)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(buffer, threads))
    batches = rows.batch(batch, drop_remainder=True, batch_fn=_stack).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS(["jaxvl"])  # grain hands parsed absl flags to its workers
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=buffer))
    return iter(batches)


def _stack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    out = {}
    for name in rows[0]:
        arrays = [np.asarray(row[name]) for row in rows]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise ValueError(f"{name!r} has unequal shapes within a batch: {sorted(shapes)}")
        out[name] = np.stack(arrays)
    return out


def _owned(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    # Workers hand over views of shared memory, a scarce resource that must not live as long as a batch may.
    return {name: array if type(array) is np.ndarray else np.array(array) for name, array in batch.items()}


def _generator(seed: int, epoch: int, *key: int) -> np.random.Generator:
    return np.random.default_rng((seed, epoch, *key))


def _names(source: Source, failed: Mapping[int, int], shown: int = 10) -> str:
    names = list(dict.fromkeys(str(source.annotation(i).get("image", f"example {i}")) for i in failed))
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _advice(source: Source) -> str:
    command = getattr(source, "check_command", "")
    return f" Check the files with: {command}" if command else ""
