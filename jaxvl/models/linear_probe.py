"""A linear map of fixed features to answers: how much of an answer can be read off features as they are.

Shape legend: `B` rows, `F` features, `C` classes.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.layers import Dtype
from jaxvl.models.mcan_layers import linear


class LinearProbe(nn.Module):
    """`[B,F] -> [B,C]` f32 logits.

    Attributes:
      classes: C.
    """

    classes: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features_bf: Array) -> Array:
        logits = linear(features_bf.shape[-1], self.classes, dtype=self.dtype, name="out")(features_bf)
        return logits.astype(jnp.float32)
