"""Files of a store: written whole or not at all, one writer at a time, and checked when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.atomic import write_file

VERSION = 1
MANIFEST, INDEX = "manifest.json", "index.npz"


class StoreError(ValueError):
    """A store that cannot be used as it is; the message names the folder and the way out."""


def write_manifest(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the manifest, which makes shards and keys count."""
    text = json.dumps({"version": VERSION, **record}, indent=1) + "\n"
    write_file(folder / MANIFEST, lambda path: path.write_bytes(text.encode()))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises:
      FileNotFoundError: there is none.
      StoreError: not a manifest, or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no store ({MANIFEST} is not there); build one first")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: not the manifest of a store ({error}); build the store again") from error
    if version != VERSION:
        raise StoreError(f"{path}: version {version!r}, this jaxvl reads {VERSION}: build the store again")
    return record


class Shards:
    """The records written so far: files that are mapped on first use, or arrays in memory.

    Attributes:
      table: a row for each shard, as in the manifest.
    """

    def __init__(self, folder: Path | None, table: list[dict[str, Any]]) -> None:
        self.folder, self.table = folder, table
        self._data: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> np.ndarray:
        """The bytes of a shard; StoreError if its file is gone or of another size."""
        if number not in self._data:
            self._data[number] = self._map(self.table[number])
        return self._data[number]

    def add(self, data: bytes, *, records: int, dtype: str) -> None:
        """Write a shard."""
        name = f"shard-{len(self.table):05d}.bin"
        if self.folder is not None:
            write_file(self.folder / name, lambda path: path.write_bytes(data))
        else:
            self._data[len(self.table)] = np.frombuffer(data, np.uint8)
        digest = hashlib.sha256(data).hexdigest()
        self.table.append(dict(file=name, records=records, bytes=len(data), dtype=dtype, sha256=digest))

    def problems(self) -> list[str]:
        """A line for each shard whose file is not what was written."""
        lines = []
        for number, shard in enumerate(self.table):
            try:
                data = self[number]
            except StoreError as error:
                lines.append(str(error))
                continue
            if hashlib.sha256(data.data).hexdigest() != shard["sha256"]:
                lines.append(f"{shard['file']}: the checksum is not the one in {MANIFEST}")
        return lines

    def _map(self, shard: Mapping[str, Any]) -> np.ndarray:
        assert self.folder is not None
        path, size = self.folder / shard["file"], shard["bytes"]
        found = path.stat().st_size if path.exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes, not {size}"
            raise StoreError(f"{path} {state}: restore it, or delete the store and build it again")
        return np.memmap(path, np.uint8, "r")
