"""Learning which of two rows has the larger loss, beside a task's own loss.

Sources: Yoo and Kweon, "Learning Loss for Active Learning", CVPR 2019; Kim et al., "Task-Aware Variational Adversarial
Active Learning", CVPR 2021.

Shape legend: `B` rows, compared as `B/2` pairs: row `i` with row `B-1-i`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.tasks.options import one_of, within
from jaxvl.types import Array, Metrics, PyTree

KINDS = ("margin", "bce")
NEVER = 2**30  # updates in all, until somebody says how many there are


@dataclasses.dataclass(frozen=True)
class LossLearning:
    """Options of the loss network.

    Attributes:
      kind: "margin" = hinge on the difference (Learning Loss); "bce" = cross entropy of its sigmoid (TA-VAAL).
      margin: of the hinge.
      weight: of its loss beside the task's.
      cut: share of training after which its gradient no longer reaches the model.
    """

    kind: str = "margin"
    margin: float = 1.0
    weight: float = 1.0
    cut: float = 0.6

    def __post_init__(self) -> None:
        one_of("loss_net.kind", self.kind, KINDS)
        within("loss_net.cut", self.cut, 0.0, 1.0)
        for name in ("margin", "weight"):
            if getattr(self, name) <= 0:
                raise ValueError(f"loss_net.{name}={getattr(self, name)}: expected a positive number")


def started() -> dict[str, Array]:
    """`extra` before training: `updates` done and `steps` in all, i32; whoever knows the latter replaces it."""
    return {"updates": jnp.zeros((), jnp.int32), "steps": jnp.asarray(NEVER, jnp.int32)}


def gated(tree: PyTree, extra: PyTree, *, cut: float) -> PyTree:
    """`tree` as it is; its gradient passes for the first `cut` of the updates only."""
    open_ = (extra["updates"] < cut * extra["steps"]).astype(jnp.float32)

    def gate(x: Array) -> Array:
        fixed = jax.lax.stop_gradient(x)
        return fixed + open_ * (x - fixed)

    return jax.tree.map(gate, tree)


class Ranked(NamedTuple):
    """The mean over pairs, to be minimised; metrics "ranking", the same, and "ranked", pairs in the right order."""

    loss: Array
    metrics: Metrics


def rank(predicted: Array, *, truth: Array, rows: Array, option: Any) -> Ranked:
    """How well predicted losses order the rows.

    Args:
      predicted: `[B]`.
      truth: `[B]`, true losses; no gradient flows to them. Where the first of a pair is not larger, the second counts
        as larger, as in the public code.
      rows: `[B]` f32, 0 for padding: its pairs do not count.
      option: a `LossLearning`.

    Raises:
      ValueError: an odd number of rows.
    """
    half = len(rows) // 2
    if 2 * half != len(rows):
        raise ValueError(f"loss_net compares pairs of rows: batch_size={len(rows)} must be even")
    gap, true_gap = (x[:half] - x[half:][::-1] for x in (predicted, jax.lax.stop_gradient(truth)))
    ahead = jnp.where(true_gap > 0, 1.0, -1.0) * gap
    each = jnp.maximum(option.margin - ahead, 0.0) if option.kind == "margin" else jax.nn.softplus(-ahead)
    pairs = rows[:half] * rows[half:][::-1]
    right = ((ahead > 0) * pairs).sum()
    metrics = {"ranking": ((each * pairs).sum(), pairs.sum()), "ranked": (right, pairs.sum())}
    return Ranked(losses.mean(each, weights=pairs), metrics)
