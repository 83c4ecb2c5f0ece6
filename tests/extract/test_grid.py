"""Grid regions: exact means over their boxes, boxes that tile the image, regions that follow the pixels in them."""

from __future__ import annotations

import numpy as np
import pytest
from efficientnet_states import SMALL, small_state

from jaxvl.extract.grid import EfficientNetGrid, grid_boxes, grid_matrix, pool_grid
from jaxvl.interop import WeightsError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.npz"
    np.savez(path, **small_state())
    return path


@pytest.mark.parametrize("grid", [1, 2, 4, 6, 7])
def test_pooling_is_the_mean_over_the_box(grid):
    maps = RNG.standard_normal((2, 7, 7, 3), np.float32)
    fine = maps.repeat(grid, 1).repeat(grid, 2)  # 7 pixels a region: the boxes no longer cut cells
    want = fine.reshape(2, grid, 7, grid, 7, 3).mean((2, 4)).reshape(2, grid * grid, 3)
    np.testing.assert_allclose(pool_grid(maps, grid=grid), want, atol=1e-5)


def test_weights_of_a_grid():
    np.testing.assert_array_equal(grid_matrix(7, 7), np.eye(7))
    np.testing.assert_allclose(grid_matrix(2, 3), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], atol=1e-7)
    for grid in range(1, 8):
        np.testing.assert_allclose(grid_matrix(grid, 7).sum(1), 1, atol=1e-6)


def test_boxes_tile_the_image_row_by_row():
    boxes = grid_boxes(4)
    assert boxes.shape == (16, 4) and boxes.dtype == np.float32
    np.testing.assert_allclose(
        boxes[[0, 1, 4]], [[0, 0, 0.25, 0.25], [0.25, 0, 0.5, 0.25], [0, 0.25, 0.25, 0.5]]
    )
    np.testing.assert_allclose(
        ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum(), 1, atol=1e-6
    )


def test_a_region_follows_the_pixels_in_its_box(weights):
    extractor = EfficientNetGrid(weights, grid=4, size=128, model=SMALL.clone(classes=None))
    assert (extractor.regions, extractor.width) == (16, 8)
    pictures = np.stack([RNG.integers(0, 256, (128, 128, 3), np.uint8)] * 3)
    pictures[1, :16, -16:] = 0  # upper right: region 3
    pictures[2, -16:, :16] = 0  # lower left: region 12
    found = extractor({"image": np.stack([extractor.prepare(p)["image"] for p in pictures])})
    change = np.abs(found.features[1:] - found.features[0]).max(-1)
    assert change.argmax(1).tolist() == [3, 12] and change.max(1).min() > 0.01
    assert change[0, 12] == change[1, 3] == 0  # beyond what a cell sees
    assert np.isnan(found.conf).all() and found.conf.shape == (3, 16) and found.counts.tolist() == [16] * 3
    np.testing.assert_array_equal(found.boxes[2], grid_boxes(4))


def test_pixels_are_scaled_to_minus_one_to_one_and_squashed(weights):
    extractor = EfficientNetGrid(weights, grid=1, size=16, model=SMALL.clone(classes=None))
    picture = np.zeros((20, 40, 3), np.uint8)
    picture[:, 20:] = 255
    image = extractor.prepare(picture)["image"]
    assert image.shape == (16, 16, 3) and (image[:, :6] == -1).all() and (image[:, 10:] == 1).all()


def test_norms(weights):
    options = dict(grid=2, size=32, model=SMALL.clone(classes=None))
    plain, unit = (EfficientNetGrid(weights, norm=norm, **options) for norm in ("none", "l2"))
    image = {"image": np.tanh(RNG.standard_normal((3, 32, 32, 3), np.float32))}
    x, u = plain(image).features, unit(image).features
    np.testing.assert_allclose(np.linalg.norm(u, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(u * np.linalg.norm(x, axis=-1, keepdims=True), x, atol=1e-4)
    assert plain.made_by != unit.made_by and len(plain.made_by["weights_sha256"]) == 64


def test_what_cannot_be_is_refused_before_work_starts(weights):
    small = SMALL.clone(classes=None)
    for options, message in {
        ("grid", 5): "grid=5: the map of 32 pixels has 4x4 cells; give 1 to 4",
        ("size", 44): "size=44: give a multiple of 8",
        ("norm", "L2"): "norm='L2': expected one of none, l2",
    }.items():
        with pytest.raises(ValueError, match=message):
            EfficientNetGrid(weights, model=small, **{"grid": 2, "size": 32, options[0]: options[1]})
    with pytest.raises(WeightsError, match=r"small\.npz: .*these are weights of another EfficientNet"):
        EfficientNetGrid(weights)
    with pytest.raises(FileNotFoundError):
        EfficientNetGrid(weights.with_name("absent.npz"))
