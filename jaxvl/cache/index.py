"""Keys of a store and where their records are: arrays on disk, a dict for what was put since.

`index.npz` holds, in the order in which records were put, `key_blob` (UTF-8) with `key_end`, `shard`, `place` (row of
an image, byte offset of a text) and `length` (tokens of a text), and in the order of the 64-bit hashes `hash` and
`record` (the position in the other arrays). Keys of equal hash are told apart by their strings.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ARRAYS = {
    "hash": np.uint64, "record": np.int64, "key_blob": np.uint8, "key_end": np.int64, "shard": np.int32,
    "place": np.int64, "length": np.int32,
}  # fmt: skip


class Entry(NamedTuple):
    """Where a record is: shard, row or byte offset in it, and its tokens (0 where all have the same number)."""

    shard: int
    place: int
    length: int


def hash64(key: str) -> int:
    """The 64-bit hash of a key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


class Index:
    """Look-up of keys; `add` is for new ones, `merge` moves them into the arrays that `save` writes."""

    def __init__(self, arrays: dict[str, np.ndarray] | None = None) -> None:
        self._arrays = arrays or {name: np.zeros(0, kind) for name, kind in ARRAYS.items()}
        self._fresh: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._arrays["record"]) + len(self._fresh)

    def __iter__(self) -> Iterator[str]:
        """Keys in the order in which they were put."""
        for i in range(len(self._arrays["record"])):
            yield self._key(i)
        yield from self._fresh

    def find(self, key: str) -> Entry | None:
        """Where the record of `key` is, or None."""
        if key in self._fresh:
            return self._fresh[key]
        hashes, wanted = self._arrays["hash"], np.uint64(hash64(key))
        at = int(np.searchsorted(hashes, wanted))
        while at < len(hashes) and hashes[at] == wanted:
            record = int(self._arrays["record"][at])
            if self._key(record) == key:
                return self._entry(record)
            at += 1
        return None

    def add(self, key: str, entry: Entry) -> None:
        """Enter a key that is not there yet."""
        self._fresh[key] = entry

    def merge(self) -> None:
        """Sort the keys added since into the arrays."""
        if not self._fresh:
            return
        old, keys = self._arrays, [key.encode() for key in self._fresh]
        shard, place, length = zip(*self._fresh.values(), strict=True)
        ends = len(old["key_blob"]) + np.cumsum([len(key) for key in keys], dtype=np.int64)
        fresh = np.array([hash64(key) for key in self._fresh], np.uint64)
        first = len(old["record"])
        hashes = np.concatenate([old["hash"], fresh])
        records = np.concatenate([old["record"], np.arange(first, first + len(keys), dtype=np.int64)])
        order = np.argsort(hashes, kind="stable")
        blob = np.concatenate([old["key_blob"], np.frombuffer(b"".join(keys), np.uint8)])
        self._arrays = dict(
            hash=hashes[order],
            record=records[order],
            key_blob=blob,
            key_end=np.concatenate([old["key_end"], ends]),
            shard=np.concatenate([old["shard"], np.array(shard, np.int32)]),
            place=np.concatenate([old["place"], np.array(place, np.int64)]),
            length=np.concatenate([old["length"], np.array(length, np.int32)]),
        )
        self._fresh = {}

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """All `(key, entry)` in the order in which they were put."""
        for i in range(len(self._arrays["record"])):
            yield self._key(i), self._entry(i)
        yield from self._fresh.items()

    def save(self, path: Path) -> None:
        """Write the merged arrays; the same records give the same bytes."""
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **self._arrays)

    @classmethod
    def load(cls, path: Path, *, shards: int) -> Index:
        """Read an index; entries of shards from number `shards` on belong to an unfinished write and are left out.

        Raises:
          ValueError: not a complete index file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name].astype(kind, copy=False) for name, kind in ARRAYS.items()}
        except (OSError, KeyError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: not a readable index ({error})") from error
        # Shards are numbered in the order in which they were put, so the kept records are the first ones.
        count = int(np.searchsorted(arrays["shard"], shards))
        if count < len(arrays["record"]):
            keep = arrays["record"] < count
            arrays["hash"], arrays["record"] = arrays["hash"][keep], arrays["record"][keep]
            arrays |= {name: arrays[name][:count] for name in ("key_end", "shard", "place", "length")}
            arrays["key_blob"] = arrays["key_blob"][: arrays["key_end"][-1] if count else 0]
        return cls(arrays)

    def _key(self, record: int) -> str:
        ends = self._arrays["key_end"]
        start = ends[record - 1] if record else 0
        return self._arrays["key_blob"][start : ends[record]].tobytes().decode()

    def _entry(self, record: int) -> Entry:
        return Entry(*(int(self._arrays[name][record]) for name in ("shard", "place", "length")))
