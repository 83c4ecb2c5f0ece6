"""Proves the augmentation operations against Pillow and OpenCV, and that randomness comes from the generator only."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from data_fakes import picture
from PIL import Image, ImageEnhance, ImageOps

from jaxvl.data import augment
from jaxvl.data.images import ImageTransform, normalise, resize

RGB = picture(3, 64, 64)
NARROW = (RGB // 3 + 40).astype(np.uint8)  # uses part of the range, so that contrast operations act
NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
FLAT = np.full((16, 16, 3), 77, np.uint8)


def largest_difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.dtype == b.dtype == np.uint8 and a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("image", [RGB, NARROW, NOISE, FLAT], ids=["full", "narrow", "noise", "flat"])
@pytest.mark.parametrize(
    ("ours", "pillow", "rounding"),
    [
        (augment.auto_contrast, ImageOps.autocontrast, 0),
        (augment.equalize, ImageOps.equalize, 0),
        (lambda x: augment.brightness(x, 1.36), lambda x: ImageEnhance.Brightness(x).enhance(1.36), 1),
        (lambda x: augment.sharpness(x, 1.36), lambda x: ImageEnhance.Sharpness(x).enhance(1.36), 1),
    ],
    ids=["auto_contrast", "equalize", "brightness", "sharpness"],
)
def test_colour_operations_equal_pillow(ours, pillow, rounding, image):
    assert largest_difference(ours(image), np.asarray(pillow(Image.fromarray(image)))) <= rounding


def test_the_operations_act_at_all():
    for ours in (augment.auto_contrast, augment.equalize, lambda x: augment.brightness(x, 1.36)):
        assert largest_difference(ours(NARROW), NARROW) > 10


def test_sharpness_leaves_the_border():
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    out = augment.sharpness(noise, 1.36)
    assert largest_difference(out, noise) > 5
    out[1:-1, 1:-1] = noise[1:-1, 1:-1]
    assert np.array_equal(out, noise)


@pytest.mark.parametrize(
    ("ours", "matrix"),
    [
        (lambda x: augment.shear_x(x, 0.21), [[1, 0.21, 0], [0, 1, 0]]),
        (lambda x: augment.shear_y(x, -0.21), [[1, 0, 0], [-0.21, 1, 0]]),
        (lambda x: augment.translate_x(x, 7), [[1, 0, -7], [0, 1, 0]]),
        (lambda x: augment.translate_y(x, -7), [[1, 0, 0], [0, 1, 7]]),
        (lambda x: augment.rotate(x, 21), cv2.getRotationMatrix2D((32, 32), 21, 1)),
    ],
    ids=["shear_x", "shear_y", "translate_x", "translate_y", "rotate"],
)
def test_geometry_equals_pillows_bilinear_transform(ours, matrix):
    inverse = cv2.invertAffineTransform(np.array(matrix, np.float64))
    # OpenCV maps pixel indices, Pillow pixel centres half a pixel further.
    inverse[:, 2] += inverse[:, :2] @ [-0.5, -0.5] + [0.5, 0.5]
    reference = Image.fromarray(RGB).transform(
        (64, 64),
        Image.Transform.AFFINE,
        inverse.ravel().tolist(),
        Image.Resampling.BILINEAR,
        fillcolor=(128,) * 3,
    )
    difference = np.abs(ours(RGB).astype(int) - np.asarray(reference).astype(int)).max(-1)
    inside = cv2.warpAffine(np.ones((64, 64), np.uint8), np.array(matrix, np.float64), (64, 64)).astype(bool)
    inside = cv2.erode(inside.astype(np.uint8), np.ones((5, 5))).astype(
        bool
    )  # edges blend with the fill differently
    assert inside.mean() > 0.3 and difference[inside].max() <= 2  # Pillow truncates, OpenCV rounds


def test_a_translation_moves_pixels_exactly_and_fills_with_grey():
    out = augment.translate_x(RGB, 7)
    assert np.array_equal(out[:, :-7], RGB[:, 7:]) and (out[:, -7:] == 128).all()
    assert np.array_equal(augment.translate_y(RGB, -7)[7:], RGB[:-7])


def test_level_seven_is_albefs(monkeypatch):
    seen = {}
    for name in ("brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"):
        monkeypatch.setattr(
            augment, name, lambda x, amount, name=name: seen.setdefault(name, set()).add(amount) or x
        )
    rng = np.random.default_rng(0)
    for _ in range(300):
        assert augment.rand_augment(RGB, rng).shape == RGB.shape
    rounded = {name: sorted(round(a, 6) for a in amounts) for name, amounts in seen.items()}
    both = lambda a: [-a, a]  # noqa: E731
    assert rounded == {
        "brightness": [1.36], "sharpness": [1.36], "shear_x": both(0.21), "shear_y": both(0.21),
        "translate_x": both(7.0), "translate_y": both(7.0), "rotate": both(21.0),
    }  # fmt: skip


def test_rand_augment_applies_two_operations_half_of_the_time_each(monkeypatch):
    calls = []
    monkeypatch.setattr(
        augment, "OPERATIONS", tuple(lambda x, s, rng, k=k: calls.append(k) or x for k in range(10))
    )
    rng = np.random.default_rng(0)
    for _ in range(4000):
        augment.rand_augment(RGB, rng)
    counts = np.bincount(calls, minlength=10)
    assert abs(len(calls) - 4000) < 200 and counts.min() > 330 and counts.max() < 470


def test_crops_have_the_area_and_aspect_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array(
        [augment.crop_box(300, 400, rng, scale=(0.2, 1.0), ratio=(3 / 4, 4 / 3)) for _ in range(2000)]
    )
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 300).all() and (left + w <= 400).all()
    area, aspect = h * w / 120000, w / h
    assert 0.195 < area.min() < 0.25 and area.max() > 0.9
    assert 0.74 < aspect.min() < 0.78 and 1.3 < aspect.max() < 1.35
    assert top.max() > 100 and left.max() > 150


def test_a_crop_that_never_fits_is_the_largest_central_one():
    box = augment.crop_box(10, 1000, np.random.default_rng(0), scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
    assert box == (0, (1000 - 13) // 2, 10, 13)


def test_the_crop_resizes_what_it_cut_out():
    rng = np.random.default_rng(5)
    box = augment.crop_box(64, 64, np.random.default_rng(5), scale=(0.3, 0.5), ratio=(3 / 4, 4 / 3))
    top, left, h, w = box
    out = augment.random_resized_crop(RGB, rng, size=24, scale=(0.3, 0.5))
    assert np.array_equal(out, resize(np.ascontiguousarray(RGB[top : top + h, left : left + w]), 24))


def test_training_depends_on_the_generator_alone():
    transform = ImageTransform(32)
    first, again, other = (transform.training(RGB, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.shape == (32, 32, 3) and first.dtype == np.float32


def test_flip_is_half_of_the_time_and_can_be_guarded():
    plain, mirrored = normalise(resize(RGB, 32)), normalise(resize(RGB, 32)[:, ::-1])
    transform = ImageTransform(32, augment="flip", flip_guard=("left", "right"))
    flips = [
        np.array_equal(transform.training(RGB, np.random.default_rng(s), text="a dog"), mirrored)
        for s in range(200)
    ]
    assert 70 < sum(flips) < 130
    for s in range(20):
        guarded = transform.training(RGB, np.random.default_rng(s), text="the dog on the Left")
        assert np.array_equal(guarded, plain)


def test_the_guard_does_not_shift_later_random_numbers():
    for seed in range(10):
        free = ImageTransform(32, scale=None).training(RGB, np.random.default_rng(seed), text="left")
        held = ImageTransform(32, scale=None, flip_guard=("left",))
        a, b = np.random.default_rng(seed), np.random.default_rng(seed)
        held.training(RGB, a, text="left")
        held.training(RGB, b, text="dog")
        assert a.random() == b.random() and free.shape == (32, 32, 3)


def test_without_augmentation_training_is_evaluation():
    transform = ImageTransform(32, augment=None)
    assert np.array_equal(transform.training(RGB, np.random.default_rng(0)), transform(RGB))
