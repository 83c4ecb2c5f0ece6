"""A policy that looks at a sequence of images both ways and says how much it wants to take each.

Shape legend: `S` sequences, `T` images of a sequence, `F` feature width.
"""

from __future__ import annotations

from flax import linen as nn
from jax import Array


class SelectionPolicy(nn.Module):
    """LSTMs in both directions and a linear layer: `[S,T,F] -> [S,T]` logits; beyond `lengths [S]` is padding."""

    width: int = 256

    @nn.compact
    def __call__(self, x_stf: Array, lengths_s: Array) -> Array:
        both = nn.Bidirectional(
            nn.RNN(nn.OptimizedLSTMCell(self.width)), nn.RNN(nn.OptimizedLSTMCell(self.width))
        )
        return nn.Dense(1)(both(x_stf, seq_lengths=lengths_s))[..., 0]
