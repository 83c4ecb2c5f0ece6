"""Sampler tasks trained for a few updates by the real Trainer, without files."""

from __future__ import annotations

import jax
import numpy as np
import optax

from jaxvl.sharding import Partition
from jaxvl.train import Trainer


def trainer(task, *, devices: int = 1, rate: float = 3e-3, seed: int = 0) -> Trainer:
    """One that runs on so many CPU devices."""
    partition = Partition.create(mesh=dict(data=devices, model=1), rules="dp")
    return Trainer(task, optax.adam(rate), partition=partition, seed=seed, eval_batch_size=16)


def stack(rows) -> dict[str, np.ndarray]:
    """A batch of these rows."""
    batch = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
    return {**batch, "id": np.arange(len(rows), dtype=np.int32), "mask": np.ones(len(rows), bool)}


def fitted(made: Trainer, source, *, steps: int, batch: int = 32, seed: int = 0):
    """The state after `steps` updates on random rows of a source."""
    rng = np.random.default_rng(seed)
    state = made.init(stack([source[0]] * batch))
    for _ in range(steps):
        rows = [source.augmented(int(i), rng) for i in rng.integers(len(source), size=batch)]
        host = {**stack(rows), "signals": np.zeros((batch, 2), np.int32)}
        state, _, _ = made.step(state, made.partition.place_batch(host))
    return state


def exported(made: Trainer, state):
    """Parameters as predictors need them."""
    return jax.jit(made.task.export)(state.params, state.extra)


def numbers(metrics) -> dict[str, float]:
    """Metrics as means."""
    return {name: float(total / weight) for name, (total, weight) in metrics.items()}
