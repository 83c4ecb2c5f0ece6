"""A folder of encoded images or texts: append-only, memory-mapped, safe against being killed.

    store/manifest.json    what the records are, what made them, and the table of shards
    store/index.npz        keys (see jaxvl.cache.index)
    store/shard-00000.bin  records one after the other (see jaxvl.cache.records)

A shard is written under a temporary name and renamed, then the index, then the manifest: what the manifest does not
list does not exist. So a killed writer loses at most the shard under way, and writing the same records again gives the
same bytes. Only numpy is needed here.

Shape legend: `B` records, `Z` layers, `S` tokens, `D` width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl.atomic import TEMPORARY, Lock, write_file
from jaxvl.cache.files import (
    INDEX,
    MANIFEST,
    Shards,
    StoreError,
    read_manifest,
    write_manifest,
)
from jaxvl.cache.fingerprint import Fingerprint, plain
from jaxvl.cache.index import Entry, Index
from jaxvl.cache.records import Layout, as_float32, check_dtype, decode, encode, fits

SHARD_BYTES = 2**28
RAGGED = "ragged"


class FingerprintError(StoreError):
    """A store that other weights, pixels or tokens made."""


class States(NamedTuple):
    """Encoded images or texts, before the type row of the bridge.

    Attributes:
      x: `[B,Z,S,D]`.
      mask: `[B,S]` bool, True = token; None of images.
    """

    x: Any
    mask: Any = None


class Checked(NamedTuple):
    """What `Store.verify` has read."""

    records: int
    shards: int
    bytes: int


class Store:
    """Encoded images or texts by key; made by `Store.create` or `Store.open`.

    Attributes:
      layout: shape of the records.
      dtype: as asked for; after values that it cannot hold, records are "bfloat16" (see `notes`).
      fingerprint: what made the states.
      duplicates: records that were put under a key that was there: the first one is kept.
      notes: what a user should know, in words.
    """

    def __init__(self, path: Path | None, layout: Layout, dtype: str, fingerprint: Fingerprint) -> None:
        self.path, self.layout, self.dtype, self.fingerprint = path, layout, check_dtype(dtype), fingerprint
        self.shard_bytes, self.duplicates, self.sealed = SHARD_BYTES, 0, False
        self.notes: list[str] = []
        self._shards, self._index = Shards(path, []), Index()
        self._pending, self._pending_records = bytearray(), 0
        self._next_dtype = dtype
        self._lock: Lock | None = None
        self._writable, self._changed = True, False

    # ---- open -------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        layout: Layout,
        *,
        fingerprint: Fingerprint,
        dtype: str = "float16",
        shard_bytes: int = SHARD_BYTES,
    ) -> Store:
        """A new store, open for writing.

        Args:
          path: its folder, which must not hold a store; None keeps the records in memory.
          layout: shape of the records.
          fingerprint: what makes the states.
          dtype: "float32", "float16", "bfloat16" or "int8" (with a float16 scale per layer and token).
          shard_bytes: a shard is written once it has so many bytes; a killed writer loses less than that.

        Raises:
          StoreError: the folder holds a store, or another process writes to it.
          ValueError: unknown dtype.
        """
        store = cls(None if path is None else Path(path).expanduser(), layout, dtype, fingerprint)
        store.shard_bytes = shard_bytes
        if store.path is not None:
            if (store.path / MANIFEST).exists():
                raise StoreError(f"{store.path} holds a store already: open it, or give another folder")
            store.path.mkdir(parents=True, exist_ok=True)
            store._lock = Lock(store.path, error=StoreError)
            store._write_tables()
        return store

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, fingerprint: Fingerprint | None = None, write: bool = False
    ) -> Store:
        """An existing store.

        Args:
          path: its folder.
          fingerprint: what makes the states here; None takes the store's own on trust.
          write: whether records will be put.

        Raises:
          FileNotFoundError: no store there.
          FingerprintError: other weights, preprocessing, tokenizer or mapping made it; says which.
          StoreError: damaged, of another version, or another process writes to it.
        """
        folder = Path(path).expanduser()
        record = read_manifest(folder)
        made_by = Fingerprint(record["fingerprint"]["parts"])
        if fingerprint is not None:
            check_fingerprint(folder, made_by, fingerprint)
        lock = None
        if write:
            lock = Lock(folder, error=StoreError)
            record = read_manifest(
                folder
            )  # again: another writer may have added to it before the lock was ours
            for leftover in folder.glob(f"*{TEMPORARY}"):
                leftover.unlink()
        tokens = None if record["tokens"] == RAGGED else record["tokens"]
        layout = Layout(record["modality"], record["n_layers"], tokens, record["dim"])
        store = cls(folder, layout, record["dtype"], made_by)
        store.shard_bytes, store.sealed = record["shard_bytes"], record["sealed"]
        store.duplicates, store.notes = record["duplicates"], record["notes"]
        store._shards, store._lock, store._writable = Shards(folder, record["shards"]), lock, write
        store._next_dtype = record["shards"][-1]["dtype"] if record["shards"] else store.dtype
        try:
            store._index = Index.load(folder / INDEX, shards=len(record["shards"]))
            if len(store) != record["count"]:
                raise ValueError(f"{folder / INDEX} has {len(store)} of {record['count']} keys")
        except ValueError as error:
            store._release()
            raise StoreError(f"{error}. Delete {folder} and build the store again.") from error
        return store

    def close(self) -> None:
        """Write what is pending and let others write; one on disk is read-only from now on."""
        try:
            if self._writable and not self.sealed:
                self.flush()
        finally:
            self._writable = self.path is None
            self._release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- what is there ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: str) -> bool:
        return self.contains(key)

    def contains(self, key: str) -> bool:
        """Whether there is a record of `key`."""
        return self._index.find(key) is not None

    def keys(self) -> Iterator[str]:
        """All keys, in the order in which they were put."""
        return iter(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of all records."""
        return sum(shard["bytes"] for shard in self._shards.table) + len(self._pending)

    def length(self, key: str) -> int:
        """Tokens of the record of `key`; KeyError if it is not there."""
        return self.layout.tokens or self._entry(key).length

    def get(self, keys: Sequence[str], pad_to: int | None = None, *, dtype: Any = np.float32) -> States:
        """Host arrays of the records of `keys`, in that order; keys may repeat.

        Args:
          keys: present ones.
          pad_to: length of the result, of texts only; None = that of the longest. Padding is zeros, mask False.
          dtype: of the result, float32 or float16; float16 copies a "float16" store as it is.

        Raises:
          KeyError: a key that is not there.
          ValueError: no keys, `pad_to` for images, or a text longer than `pad_to`.
        """
        entries = [self._entry(key) for key in keys]
        if not entries:
            raise ValueError("get: no keys are given")
        ragged = self.layout.tokens is None
        if not ragged and pad_to is not None:
            raise ValueError(
                f"get: records of {self.layout.tokens} tokens each are not padded; leave pad_to out"
            )
        lengths = np.array([entry.length for entry in entries])
        size = self.layout.tokens or pad_to or int(lengths.max())
        if ragged and lengths.max() > size:
            worst = keys[int(np.argmax(lengths))]
            raise ValueError(f"get: the text {worst!r} has {lengths.max()} tokens, more than pad_to={pad_to}")
        x = np.zeros((len(entries), self.layout.layers, size, self.layout.dim), dtype)
        for row, entry in zip(x, entries, strict=True):
            states = self._states(entry)
            row[:, : states.shape[1]] = states
        return States(x, np.arange(size) < lengths[:, None] if ragged else None)

    def verify(self) -> Checked:
        """Read everything: checksums and sizes of shards, counts, places of records, finite values.

        Raises:
          StoreError: all that is wrong, a line each.
        """
        problems = self._shards.problems() or self._record_problems()
        if problems:
            lines = "".join(f"\n- {line}" for line in problems)
            raise StoreError(
                f"{self.path}: {len(problems)} problems; delete the store and build it again:{lines}"
            )
        return Checked(len(self), len(self._shards), self.nbytes)

    # ---- write ------------------------------------------------------------------------------------------

    def put(self, keys: Sequence[str], states: States) -> int:
        """Append records; nothing of a batch is kept if one of its states is refused.

        Args:
          keys: one for each state. Of a key that is there, or repeated, the first record is kept and the others
            are counted in `duplicates`.
          states: `x [B,Z,S,D]`, for texts with `mask [B,S]`, whose tokens come first: only they are kept.

        Returns:
          How many records are new.

        Raises:
          StoreError: sealed, or opened for reading.
          ValueError: shapes that do not fit the layout, an empty key, or values that are not finite (names the key).
        """
        self._require_writable()
        x = as_float32(states.x)
        lengths = check_batch(self.layout, keys, x, states.mask)
        written = 0
        for key, row, length in zip(keys, x, lengths, strict=True):
            if self.contains(key):
                self.duplicates, self._changed = self.duplicates + 1, True
                continue
            self._append(key, row[:, :length])
            written += 1
        return written

    def flush(self) -> None:
        """Write the records put so far as a shard, however small; nothing happens if there are none."""
        if self._pending_records:
            self._shards.add(bytes(self._pending), records=self._pending_records, dtype=self._next_dtype)
            self._pending, self._pending_records = bytearray(), 0
            self._index.merge()
            self._changed = True
        if self._changed:
            self._write_tables()

    def seal(self) -> None:
        """Write what is pending; from now on the store is read-only."""
        self._require_writable()
        self.sealed = self._changed = True
        self.flush()

    def _append(self, key: str, states_zsd: np.ndarray) -> None:
        if not fits(states_zsd, self._next_dtype):
            # The record that does not fit begins a new shard, so that the bytes do not depend on the batches.
            self.flush()
            most = float(np.abs(states_zsd).max())
            self.notes.append(
                f"bfloat16 from record {len(self)} on ({key!r}): |x| = {most:.3g} overflows {self.dtype}"
            )
            self._next_dtype = "bfloat16"
        record = encode(states_zsd, self._next_dtype)
        ragged = self.layout.tokens is None
        place = len(self._pending) if ragged else self._pending_records
        length = states_zsd.shape[1] if ragged else 0
        self._index.add(key, Entry(len(self._shards), place, length))
        self._pending += record
        self._pending_records += 1
        if len(self._pending) >= self.shard_bytes:
            self.flush()

    # ---- inside -----------------------------------------------------------------------------------------

    def _entry(self, key: str) -> Entry:
        found = self._index.find(key)
        if found is None:
            raise KeyError(f"{self.path or 'the store'} has no record of {key!r} (it has {len(self)})")
        return found

    def _states(self, entry: Entry) -> np.ndarray:
        """`[Z,S,D]` of one record."""
        done = entry.shard < len(self._shards)
        dtype = self._shards.table[entry.shard]["dtype"] if done else self._next_dtype
        size = self.layout.bytes(dtype, entry.length)
        start = entry.place if self.layout.tokens is None else entry.place * size
        if done:
            raw = np.array(self._shards[entry.shard][start : start + size])
        else:
            raw = np.frombuffer(bytes(self._pending[start : start + size]), np.uint8)
        if len(raw) != size:
            raise ValueError(f"a record of {size} bytes at {start} ends outside its shard")
        return decode(raw[None], self.layout, dtype)[0]

    def _record_problems(self) -> list[str]:
        problems, counts = [], [0] * len(self._shards)
        for key, entry in self._index.entries():
            if entry.shard < len(self._shards):  # else not written yet
                counts[entry.shard] += 1
            try:
                finite = np.isfinite(self._states(entry)).all()
            except ValueError as error:
                problems.append(f"{key!r}: {error}")
                continue
            if not finite:
                problems.append(f"{key!r}: its states are not finite")
            if self._index.find(key) != entry:
                problems.append(f"{key!r}: {INDEX} does not find it")
        for shard, count in zip(self._shards.table, counts, strict=True):
            if shard["records"] != count:
                problems.append(f"{shard['file']}: {count} keys for {shard['records']} records")
        return problems

    def _write_tables(self) -> None:
        self._changed = False
        if self.path is None:
            return
        write_file(self.path / INDEX, self._index.save)
        parts = plain(self.fingerprint.parts)
        record = dict(
            modality=self.layout.modality,
            n_layers=self.layout.layers,
            tokens=RAGGED if self.layout.tokens is None else self.layout.tokens,
            dim=self.layout.dim,
            dtype=self.dtype,
            mapping=parts.get("mapping"),
            count=len(self),
            duplicates=self.duplicates,
            sealed=self.sealed,
            shard_bytes=self.shard_bytes,
            notes=self.notes,
            fingerprint=dict(sha256=self.fingerprint.digest, parts=parts),
            shards=self._shards.table,
        )
        write_manifest(self.path, record)

    def _require_writable(self) -> None:
        if self.sealed:
            raise StoreError(f"{self.path or 'the store'} is sealed: build another store for more records")
        if not self._writable:
            raise StoreError(f"{self.path} is open for reading: open it with write=True")

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def check_batch(layout: Layout, keys: Sequence[str], x: np.ndarray, mask: Any) -> np.ndarray:
    """`[B]`: tokens of each state; raises ValueError on what `Store.put` refuses."""
    if len(keys) != len(x) or x.ndim != 4 or (x.shape[1], x.shape[3]) != (layout.layers, layout.dim):
        wanted = f"[{len(keys)},{layout.layers},{layout.tokens or 'tokens'},{layout.dim}]"
        raise ValueError(f"put: {len(keys)} keys with states {list(x.shape)}; this store takes {wanted}")
    if "" in keys:
        raise ValueError("put: a key is empty")
    if layout.tokens is not None:
        if x.shape[2] != layout.tokens:
            raise ValueError(
                f"put: states of {x.shape[2]} tokens; this store has {layout.tokens} of each image"
            )
        lengths = np.full(len(x), layout.tokens)
    else:
        if mask is None or np.shape(mask) != (len(x), x.shape[2]):
            raise ValueError(f"put: texts {list(x.shape)} need a mask [{len(x)},{x.shape[2]}]")
        lengths = np.asarray(mask).sum(-1)
        if not lengths.all() or (np.asarray(mask) != (np.arange(x.shape[2]) < lengths[:, None])).any():
            raise ValueError("put: the tokens of a text must come first, and be at least one")
    for key, row, length in zip(keys, x, lengths, strict=True):
        if not np.isfinite(row[:, :length]).all():
            raise ValueError(f"put: the states of {key!r} are not finite: look for NaN in the weights")
    return lengths


def check_fingerprint(path: Path | None, made_by: Fingerprint, wanted: Fingerprint) -> None:
    """Raise FingerprintError, which says what differs, unless `wanted` made the store at `path`."""
    lines = made_by.differences(wanted)
    if lines:
        raise FingerprintError(
            f"{path or 'the store'} was made with other {'; '.join(lines)}. Use the run that made it, "
            "or build a store of this one in another folder."
        )
