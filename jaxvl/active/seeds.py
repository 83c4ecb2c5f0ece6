"""Seeds: every consumer of randomness has its own, a function of the run's seed and of what it is for."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np


def seed_of(master: int, *purpose: Any) -> int:
    """A seed in [0, 2**31) for this purpose, e.g. `seed_of(seed, repeat, method, round, "select")`.

    The method is left out where methods must be comparable on common random numbers: the initial pool, the task model.
    """
    text = json.dumps([int(master), *purpose], default=str)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def generator(master: int, *purpose: Any) -> np.random.Generator:
    """A generator with that seed."""
    return np.random.default_rng(seed_of(master, *purpose))
