"""Diagnostics are averaged over the first captions, each with its own image."""

from __future__ import annotations

import numpy as np
import pytest
from caption_world import IDS, source

from jaxvl.evals import EVALS


def diagnostics(name, pairs):
    """The image's place in the source, where the caption is one of its own."""
    assert name == "hypergraph"
    rows = [pairs[i] for i in range(len(pairs))]
    places = np.array([IDS.index(int(row["image_id"])) for row in rows])
    words = np.array([row["text"][1] - 5 for row in rows])
    return {"layers_1/place": places.astype(float), "layers_1/own": (words // 2 == places).astype(float)}


@pytest.mark.parametrize(("examples", "place"), [(64, 1.0), (2, 0.0), (3, 1 / 3)])
def test_means_over_the_first_true_pairs(examples, place):
    found = EVALS["hypergraph"](examples=examples)(diagnostics, source())
    assert found == {"layers_1/place": pytest.approx(place), "layers_1/own": 1.0}


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="examples=0"):
        EVALS["hypergraph"](examples=0)
