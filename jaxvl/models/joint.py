"""VQME and VAUE on the same encoders: the other reading of the paper's algorithm 1 (decision register, A12).

No third network: both models are as they are, and the task finds their encoders in the same place of one tree of
parameters (`jaxvl.tasks.match_and_answer`).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxvl.models.layers import Dtype
from jaxvl.models.vaue import VAUE
from jaxvl.models.vqme import VQME


class SharedEncoders:
    """The two models, `match` and `answer`, made from one set of sizes.

    Args:
      words, classes, feat_dim, word_dim, dtype: of the data.
      options: fields of `VQME` and `VAUE`; what both have is equal, what is not given has their defaults.

    Raises:
      TypeError: an option that neither has.
    """

    def __init__(
        self,
        *,
        words: int,
        classes: int,
        feat_dim: int = 2048,
        word_dim: int = 300,
        dtype: Dtype = jnp.float32,
        **options: Any,
    ):
        given = dict(options, words=words, classes=classes, feat_dim=feat_dim, word_dim=word_dim, dtype=dtype)
        unknown = [k for k in given if not any(k in m.__dataclass_fields__ for m in (VQME, VAUE))]
        if unknown:
            raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
        self.words = words
        self.match, self.answer = (
            model(**{k: v for k, v in given.items() if k in model.__dataclass_fields__})
            for model in (VQME, VAUE)
        )
