"""Initial values. Below BERT's 768 inputs they grow, as small models train for too few steps to outgrow BERT's.

Each is a function `(key, shape, dtype) -> array`; `shape` is `[inputs..., features]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

Init = Callable[..., Array]

WIDE = 768  # inputs from which on BERT's values hold
STD = 0.02  # BERT's

table = nn.initializers.normal(STD)
zeros = nn.initializers.zeros_init()
ones = nn.initializers.ones_init()


def normal(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """BERT's N(0, 0.02) for kernels of 768 inputs and more; narrower ones keep its gain, 0.02 sqrt(768).

    With 0.02 at 100 inputs, sums come out a third as large, and small models sit still for their first epochs.
    """
    return scaled(math.prod(shape[:-1]))(key, shape, dtype)


def scaled(inputs: int) -> Init:
    """N(0, 0.02 sqrt(768 / inputs)), at least 0.02."""
    return nn.initializers.normal(STD * max(1.0, WIDE / inputs) ** 0.5)


def selective(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """Kernels `[inputs, features]` of queries and keys: BERT's from 768 inputs on, N(0, 2 / inputs) below.

    Small models train for too few steps to find out, from nearly uniform attention, which word looks where.
    """
    std = STD if shape[0] >= WIDE else (2 / shape[0]) ** 0.5
    return nn.initializers.normal(std)(key, shape, dtype)


def torch_uniform(fan_in: int) -> Init:
    """PyTorch's default for Linear, kernel and bias alike: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
