"""The learning rate of MCAN as a function of the size of the data set (`MILVLG/openvqa`: `utils/optim.py`).

An active learner trains the same model on sets of growing size. Here the size may be traced, so one program serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

WARM = 4  # the rate rises in so many steps, one for each pass over the data


def mcan_rate(
    step: Any,
    size: Any,
    *,
    base: float = 1e-4,
    batch: int = 64,
    decay: float = 0.2,
    decay_epochs: Sequence[int] = (10, 12),
) -> Array:
    """Rate of one update: a quarter of the base rate more for each `size / batch` updates, then whole, then falling.

    Update `s`, counted from 1, has `k/4` of the base rate while `s <= int(k size / batch)`, `k` = 1, 2, 3. An epoch has
    `floor(size / batch)` updates (the last, short batch is dropped), so the rises drift behind the epochs, as they do
    in the original.

    Args:
      step: i32, any shape: updates done before this one, `s - 1`.
      size: i32, examples of the data set; may be traced. At most 2^31 / 3.
      base: the full rate.
      batch: examples of an update.
      decay: what the rate is multiplied with at the start of each of `decay_epochs`.
      decay_epochs: counted from 0.

    Returns:
      f32, of the shape of `step`.
    """
    step, size = jnp.asarray(step, jnp.int32), jnp.asarray(size, jnp.int32)
    warm = sum((step + 1 > k * size // batch).astype(jnp.int32) for k in range(1, WARM))
    epoch = step // jnp.maximum(size // batch, 1)
    decays = sum((epoch >= e).astype(jnp.int32) for e in decay_epochs)
    # Products in float64 first: the rates are the original's to the last bit of float32.
    rates = base * decay ** np.arange(len(decay_epochs) + 1)[:, None] * np.arange(1, WARM + 1) / WARM
    return jnp.asarray(rates, jnp.float32)[decays, warm]
