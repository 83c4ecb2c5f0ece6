"""Keyed random draws: the same key gives the same draws in every process and version of Python and NumPy.

Only `random.Random.random` is used: it is the one method whose sequence Python promises to keep.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Draws that depend on `key` alone (any mixture of strings and integers)."""

    __slots__ = ("random",)

    def __init__(self, *key: str | int) -> None:
        digest = blake2b(repr(key).encode(), digest_size=8).digest()
        self.random = random.Random(int.from_bytes(digest, "little")).random

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def uniform(self, low: float, high: float) -> float:
        """A real number in [low, high)."""
        return low + (high - low) * self.random()

    def below(self, n: int) -> int:
        """An integer in 0..n-1."""
        return int(self.random() * n)

    def pick(self, items: Sequence[T]) -> T:
        """One of `items`, all equally likely."""
        return items[int(self.random() * len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One of `items`, in proportion to `weights`."""
        left = self.random() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            left -= weight
            if left < 0:
                return item
        return items[-1]

    def shuffled(self, items: Iterable[T]) -> list[T]:
        """`items` in a random order."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = int(self.random() * (i + 1))
            out[i], out[j] = out[j], out[i]
        return out

    def sample(self, items: Iterable[T], n: int) -> list[T]:
        """`n` different ones of `items` (all of them if there are fewer), in a random order."""
        return self.shuffled(items)[:n]
