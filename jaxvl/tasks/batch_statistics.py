"""Batch norm in tasks: statistics of the batch in training, and running averages that stay with the parameters.

Predictors see parameters only. So the averages are a part of them, `params["statistics"]`, which no gradient reaches:
NaN until `kept` puts in what `extra` has collected. Who trains such a task calls its `export` at the end of the fit;
predictions of a model that nobody exported are NaN, never quietly wrong.

Shape legend: `B` rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvl.tasks.stateless import Stateless
from jaxvl.types import Array, Key, PyTree

STATISTICS = "statistics"  # as the models call the collection
DECAY = 0.9  # of the running averages, PyTorch's momentum 0.1


def fresh(model: Any, rng: Key, *args: Any) -> PyTree:
    """Boxed parameters of a Linen model that has the collection; its call gets `args` and `train=True`."""
    variables = model.init(rng, *args, train=True)
    return {**variables["params"], STATISTICS: variables[STATISTICS]}


class Run(NamedTuple):
    """`out` of a method in training, and the `moments` of the batch in all its layers."""

    out: Any
    moments: PyTree


def train(model: Any, params: PyTree, method: str, *args: Any) -> Run:
    """`model.method(*args, train=True)`."""
    out, changed = model.apply(_variables(params), *args, method=method, train=True, mutable=[STATISTICS])
    return Run(out, jax.lax.stop_gradient(changed[STATISTICS]))


def evaluate(model: Any, params: PyTree, method: str, *args: Any) -> Any:
    """`model.method(*args)` with the running averages."""
    return model.apply(_variables(params), *args, method=method)


def started(params: PyTree) -> dict[str, PyTree]:
    """`extra` before training: `updates` i32 and `moving`, zeros like the statistics."""
    return {"updates": jnp.zeros((), jnp.int32), "moving": jax.tree.map(jnp.zeros_like, params[STATISTICS])}


def as_rows(moments: PyTree, rows: int) -> PyTree:
    """Moments as `aux` of a loss: the same for each of the batch's `B` rows."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, *x.shape)), moments)


def moved(extra: PyTree, aux: PyTree) -> PyTree:
    """`extra` after an update whose loss gave the moments `aux`; micro-batches count alike."""
    moving = jax.tree.map(lambda old, new: DECAY * old + (1 - DECAY) * new.mean(0), extra["moving"], aux)
    return {**extra, "updates": extra["updates"] + 1, "moving": moving}


def kept(params: PyTree, extra: PyTree) -> PyTree:
    """`params` with the running averages of the updates so far; NaN if there were none.

    They are weighted means over the updates, without a share of the initial zeros (as Adam's moments).
    """
    whole = 1 - DECAY ** extra["updates"].astype(jnp.float32)
    return {**params, STATISTICS: jax.tree.map(lambda x: x / whole, extra["moving"])}


def _variables(params: PyTree) -> dict[str, PyTree]:
    own = {name: part for name, part in params.items() if name != STATISTICS}
    return {"params": own, STATISTICS: params[STATISTICS]}


class BatchNormTask(Stateless):
    """What tasks with such a model share; they add `init`, `loss` and predictors."""

    model: Any

    def start(self, params: PyTree, rng: Key) -> PyTree:
        """`updates` and the running averages."""
        return started(params)

    def finish(self, extra: PyTree, aux: PyTree) -> PyTree:
        """`extra` with the update counted and the averages moved."""
        return moved(extra, aux)

    def export(self, params: PyTree, extra: PyTree) -> PyTree:
        """The parameters to keep after training: with the running averages that predictors read."""
        return kept(params, extra)

    def _count(self, batch: Any, name: str) -> Array:
        return (
            batch["mask"].astype(jnp.float32) if "mask" in batch else jnp.ones(len(batch[name]), jnp.float32)
        )
