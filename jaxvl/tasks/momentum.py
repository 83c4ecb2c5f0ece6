"""The momentum copy that tasks distil from and draw contrastive keys from (ALBEF, MoCo).

It lives in `extra["momentum"]` as the sub-trees of the parameters that its forward passes read.
`extra["updates"]` counts finished optimiser updates and drives the ramp of the distillation weight.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.tasks.options import Distill, Momentum
from jaxvl.types import Array, Batch, Key, PyTree


def copy(params: PyTree, *, without: Collection[str]) -> PyTree:
    """A copy of the top-level sub-trees of `params`, except those named in `without`."""
    return jax.tree.map(jnp.copy, {k: v for k, v in params.items() if k not in without})


def update(params: PyTree, extra: PyTree, *, momentum: Momentum | None) -> PyTree:
    """`extra` with the momentum copy moved towards `params`; once per optimiser update, before its gradients."""
    if momentum is None:
        return extra
    current = {k: params[k] for k in extra["momentum"]}
    return {**extra, "momentum": losses.ema(extra["momentum"], current=current, decay=momentum.decay)}


def teacher(params: PyTree, extra: PyTree) -> PyTree:
    """Complete parameters for the momentum copy's forward passes, through which no gradient flows.

    What the copy leaves out is the student's: a model may insist on it, though these passes do not read it.
    """
    return jax.lax.stop_gradient({**params, **extra["momentum"]})


def alpha(extra: PyTree, *, distill: Distill | None) -> Array:
    """Present weight of the soft targets: `alpha * min(1, updates / warmup_updates)`; 0 without distillation."""
    if distill is None:
        return jnp.zeros((), jnp.float32)
    ramp = (
        jnp.minimum(extra["updates"] / max(distill.warmup_updates, 1), 1.0) if distill.warmup_updates else 1.0
    )
    return jnp.asarray(distill.alpha * ramp, jnp.float32)


def train_flag(momentum: Momentum | None) -> bool:
    """Whether dropout acts in the momentum copy's forward passes."""
    return momentum is not None and momentum.dropout == "on"


def call(model: Any, params: PyTree, method: str, *args: Any, rng: Key | None = None, **kwargs: Any) -> Any:
    """`model.method(*args, **kwargs)` with these parameters; `rng` feeds dropout."""
    rngs = None if rng is None else {"dropout": rng}
    return model.apply({"params": params}, *args, method=method, rngs=rngs, **kwargs)


def row_weights(batch: Batch) -> Array:
    """`[B]` f32: 1 for examples, 0 for padding."""
    if "mask" in batch:
        return batch["mask"].astype(jnp.float32)
    return jnp.ones(len(batch["text"]), jnp.float32)
