"""What made the states of a store, so that one made otherwise is refused with the reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Named parts, each plain JSON: "weights", "mapping", and "preprocessing" (images) or "tokenizer" (texts)."""

    parts: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of all parts."""
        return hashlib.sha256(json.dumps(plain(self.parts), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Fingerprint) -> list[str]:
        """One line for each part in which `other` differs, with the values where they can be read."""
        mine, theirs = plain(self.parts), plain(other.parts)
        return [
            line
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
            for line in _differences(name, mine.get(name), theirs.get(name))
        ]


def plain(value: Any) -> Any:
    """`value` as it comes back from JSON: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))


def hash_arrays(arrays: Mapping[str, Any]) -> str:
    """sha256 over names, shapes, types and bytes, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(np.asarray(arrays[name]))
        total.update(f"{name} {array.shape} {array.dtype}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def hash_bytes(parts: Iterable[bytes]) -> str:
    """sha256 of the parts one after the other, with their lengths."""
    total = hashlib.sha256()
    for part in parts:
        total.update(f"{len(part)}\n".encode() + part)
    return total.hexdigest()


def _differences(name: str, mine: Any, theirs: Any) -> list[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = [k for k in sorted(mine.keys() | theirs.keys()) if mine.get(k) != theirs.get(k)]
        return [line for k in keys for line in _differences(f"{name}.{k}", mine.get(k), theirs.get(k))]
    if _is_hash(mine) and _is_hash(theirs):
        return [f"{name} (sha256 {mine[:8]}... in the store, {theirs[:8]}... here)"]
    return [f"{name} ({mine!r} in the store, {theirs!r} here)"]


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64
