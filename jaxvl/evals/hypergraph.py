"""Is the hypergraph branch alive? Means of the diagnostics that its layers leave."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxvl.data.source import Captions, Pairs
from jaxvl.types import Predict


class HypergraphEval:
    """Means over true pairs of the predictor "hypergraph".

    Args:
      examples: how many captions are looked at, the first ones.

    Returns (when called):
      "layers_<i>/<quantity>", see `jaxvl.models.hypergraph.statistics`; "update_ratio" below 1e-3 late in training is
      a dead branch, "visual_mass" is the share of fusion attention that falls on the image.
    """

    def __init__(self, *, examples: int = 64):
        if examples < 1:
            raise ValueError(f"examples={examples}: expected at least 1")
        self.examples = examples

    def __call__(self, predict: Predict, source: Any) -> dict[str, float]:
        """Average the diagnostics of a caption source."""
        captions = Captions(source)
        rows = np.arange(min(self.examples, len(captions)))
        found = predict("hypergraph", Pairs(source, np.asarray(captions.image_row)[rows], rows))
        assert isinstance(found, dict)
        return {name: float(np.mean(values)) for name, values in found.items()}
