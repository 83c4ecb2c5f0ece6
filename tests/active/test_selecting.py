"""What images stand for: nearest selected ones in blocks, whatever the block, and never those of the reserve."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.active.selecting import selection_rows, standing


class Pool:
    ids = np.arange(50) + 100


@pytest.mark.parametrize("block", [7, 50])
def test_each_unselected_image_counts_for_its_nearest_selected_one(block):
    vectors = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    rows = np.array([3, 17, 40])
    found = standing(lambda name, pool: vectors, "v", Pool(), rows, block=block)
    distance = np.linalg.norm(vectors[:, None] - vectors[rows], axis=-1)
    nearest = np.delete(distance.argmin(1), rows)
    assert found.tolist() == np.bincount(nearest, minlength=3).tolist() and found.sum() == 47


def test_vectors_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="v is not finite for 50 of 50 images, e.g. image 100"):
        standing(lambda name, pool: np.full((50, 2), np.nan), "v", Pool(), np.array([0]))


def test_images_of_the_reserve_stand_for_none():
    scores = {"ids": Pool.ids, "rows": np.array([5, 6]), "score": np.zeros(0), "stands_for": np.array([48])}
    first, second = selection_rows(scores, 1, None, [])
    assert first["stands_for"] == 48 and second["reserve"] and "stands_for" not in second
