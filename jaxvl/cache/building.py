"""Fill a store: encode what is not in it yet, batch by batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from jaxvl.cache.store import States, Store

AHEAD = 2  # batches that are read while one is encoded


class Built(NamedTuple):
    """What `build_store` did.

    Attributes:
      written: new records.
      present: keys that had one.
      failed: key -> why it could not be read; these have none.
    """

    written: int
    present: int
    failed: dict[str, str]


def build_store(
    store: Store,
    keys: Sequence[str],
    load: Callable[[str], Mapping[str, np.ndarray]],
    encode: Callable[[Mapping[str, np.ndarray]], States],
    *,
    batch_size: int = 64,
    workers: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
    failures: tuple[type[Exception], ...] = (),
) -> Built:
    """Encode and put the keys that are not in the store; stopped at any point, the same call goes on.

    Args:
      store: open for writing.
      keys: in the order of the records; repeated ones count once.
      load: arrays of one key; called in threads.
      encode: stacked arrays of up to `batch_size` keys to states.
      batch_size: rows of a call of `encode`.
      workers: threads that call `load`.
      progress: called with the keys done and all of them, after every batch.
      failures: errors of `load` that leave a key out; others end the build.
    """
    keys = list(dict.fromkeys(keys))
    first = next((i for i, key in enumerate(keys) if key not in store), len(keys))
    missing = [key for key in keys[first:] if key not in store]
    done = present = len(keys) - len(missing)
    failed: dict[str, str] = {}
    written = 0

    def loaded(key: str) -> tuple[str, Mapping[str, np.ndarray] | None]:
        try:
            return key, load(key)
        except failures as error:
            failed[key] = str(error)
            return key, None

    with ThreadPoolExecutor(workers, thread_name_prefix="cache") as pool:
        # Every key has the row that it has in an uninterrupted build: the last bits of a state may depend on it.
        lead = first % batch_size
        for rows in _ahead(pool, loaded, missing, batch_size, lead):
            good = {lead + i: (key, row) for i, (key, row) in enumerate(rows) if row is not None}
            if good:
                x, mask = encode(_stacked({i: row for i, (_, row) in good.items()}, lead + len(rows)))
                places = list(good)
                names = [key for key, _ in good.values()]
                written += store.put(names, States(x[places], None if mask is None else mask[places]))
            lead = 0
            done += len(rows)
            progress(done, len(keys))
    store.flush()
    return Built(written, present, failed)


def _ahead(
    pool: ThreadPoolExecutor,
    load: Callable[[str], tuple[str, Mapping[str, np.ndarray] | None]],
    keys: Sequence[str],
    batch_size: int,
    lead: int,
) -> Iterator[list[tuple[str, Mapping[str, np.ndarray] | None]]]:
    """Batches in order, the first one shorter by `lead`, each read while earlier ones are used."""
    edges = [0, *range(batch_size - lead, len(keys), batch_size), len(keys)]
    chunks = (keys[a:b] for a, b in itertools.pairwise(edges) if b > a)
    flying = [[pool.submit(load, key) for key in chunk] for chunk in itertools.islice(chunks, AHEAD)]
    while flying:
        rows = [future.result() for future in flying.pop(0)]
        following = next(chunks, None)
        if following is not None:
            flying.append([pool.submit(load, key) for key in following])
        yield rows


def _stacked(rows: Mapping[int, Mapping[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """`count` rows with the given ones at their places, the others zero."""
    out = {}
    for name, like in next(iter(rows.values())).items():
        out[name] = np.zeros((count, *np.shape(like)), np.asarray(like).dtype)
        for i, row in rows.items():
            out[name][i] = row[name]
    return out
