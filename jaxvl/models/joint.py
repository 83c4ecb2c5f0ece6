"""VQME and VAUE on the same encoders: the other reading of the paper's algorithm 1 (decision register, A12).

No third network: both models are as they are, and the task finds their encoders in the same place of one tree of
parameters (`jaxvl.tasks.match_and_answer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp

from jaxvl.models.layers import Dtype
from jaxvl.models.vaue import VAUE
from jaxvl.models.vqme import VQME


@dataclass(frozen=True)
class SharedEncoders:
    """The two models, made from one set of sizes; fields are those of `VQME` and `VAUE`."""

    words: int
    classes: int
    feat_dim: int = 2048
    width: int = 512
    heads: int = 8
    layers: int = 1
    block: str = "residual"
    pool: str = "attflat"
    critic: str = "concat1"
    critic_width: int = 512
    project: int = 128
    tau: float = 0.1
    learn_tau: tuple[float, float] | None = None
    qga: str = "image"
    dropout: float = 0.1
    word_dim: int = 300
    dtype: Dtype = jnp.float32

    @cached_property
    def match(self) -> VQME:
        """The matcher."""
        own = ("critic", "critic_width", "project", "tau", "learn_tau")
        return VQME(**self._common, **{name: getattr(self, name) for name in own})

    @cached_property
    def answer(self) -> VAUE:
        """The answer model."""
        return VAUE(**self._common, classes=self.classes, qga=self.qga)

    @property
    def _common(self) -> dict[str, Any]:
        names = (
            "words",
            "feat_dim",
            "width",
            "heads",
            "layers",
            "block",
            "pool",
            "dropout",
            "word_dim",
            "dtype",
        )
        return {name: getattr(self, name) for name in names}
