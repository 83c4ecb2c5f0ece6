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


@pytest.mark.parametrize(
    "which", [2, 10, 11, 12, 13], ids=["rotate", "shear_x", "shear_y", "translate_x", "translate_y"]
)
def test_geometry_of_vilts_operations_mixes_no_pixels(which):
    known = {tuple(pixel) for pixel in NOISE.reshape(-1, 3).tolist()} | {(0, 0, 0)}
    out = augment.OPERATIONS_30[which](NOISE, 0.9, np.random.default_rng(0))
    assert {tuple(pixel) for pixel in out.reshape(-1, 3).tolist()} <= known and (out != NOISE).any()


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


STRENGTH_30 = {
    "rotate": [-9.0, 9.0], "posterize": [1], "solarize": [76.8], "solarize_add": [33], "colour": [0.64],
    "contrast": [0.64], "brightness": [0.64], "sharpness": [0.64], "shear_x": [-0.09, 0.09],
    "shear_y": [-0.09, 0.09], "translate_x": [-30.0, 30.0], "translate_y": [-30.0, 30.0],
}  # fmt: skip


def test_level_nine_of_thirty_is_vilts_and_always_applied(monkeypatch):
    seen, count = {}, []
    for name in (*STRENGTH_30, "auto_contrast", "equalize"):
        record = lambda x, *a, name=name: (count.append(name), seen.setdefault(name, set()).update(a[:1]))  # noqa: E731
        monkeypatch.setattr(augment, name, lambda x, *a, record=record: record(x, *a) and x)
    rng = np.random.default_rng(0)
    for _ in range(700):
        augment.rand_augment_30(RGB, rng)
    assert len(count) == 1400 and len(set(count)) == 14 and min(map(count.count, set(count))) > 60
    found = {name: sorted(round(a, 6) for a in amounts) for name, amounts in seen.items() if amounts}
    assert found == STRENGTH_30


@pytest.mark.parametrize("image", [RGB, NARROW, NOISE, FLAT], ids=["full", "narrow", "noise", "flat"])
@pytest.mark.parametrize(
    ("ours", "pillow", "rounding"),
    [
        (lambda x: augment.colour(x, 0.64), lambda x: ImageEnhance.Color(x).enhance(0.64), 1),
        (lambda x: augment.contrast(x, 0.64), lambda x: ImageEnhance.Contrast(x).enhance(0.64), 1),
        (lambda x: augment.contrast(x, 1.9), lambda x: ImageEnhance.Contrast(x).enhance(1.9), 1),
        (lambda x: augment.posterize(x, 1), lambda x: ImageOps.posterize(x, 1), 0),
        (lambda x: augment.posterize(x, 4), lambda x: ImageOps.posterize(x, 4), 0),
        (lambda x: augment.solarize(x, 76.8), lambda x: ImageOps.solarize(x, 76.8), 0),
        (
            lambda x: augment.solarize_add(x, 33),
            lambda x: ImageOps.solarize(x.point(lambda v: min(255, v + 33)), 128),
            0,
        ),
    ],
    ids=["colour", "contrast", "more contrast", "one bit", "four bits", "solarize", "solarize_add"],
)
def test_operations_of_vilt_equal_pillow(ours, pillow, rounding, image):
    reference = np.asarray(pillow(Image.fromarray(image)))
    assert largest_difference(ours(image), reference) <= rounding
    assert image is FLAT or largest_difference(ours(image), image) > 5


def test_posterisation_leaves_one_bit_however_weak():
    operation = augment.OPERATIONS_30[3]
    for level in (0, 1, 9):
        assert np.unique(operation(NOISE, level / 30, np.random.default_rng(0))).tolist() == [0, 128]
    assert len(np.unique(operation(NOISE, 1.0, np.random.default_rng(0)))) == 16


def test_vilts_recipe_augments_the_whole_image_and_never_mirrors(monkeypatch):
    shapes = []
    monkeypatch.setattr(augment, "OPERATIONS_30", (lambda x, s, rng: shapes.append(x.shape) or x,))
    image = picture(3, 60, 90)
    transform = ImageTransform(32, augment="randaug", crop="centre", randaug=(3, 9))
    for seed in range(20):
        assert np.array_equal(transform.training(image, np.random.default_rng(seed)), transform(image))
    assert shapes == [(60, 90, 3)] * 60


def test_a_random_crop_follows_and_evaluation_takes_the_centre():
    transform = ImageTransform(32, augment=None, crop="random_resized", scale=(0.3, 0.5))
    image = picture(3, 60, 90)
    assert np.array_equal(transform(image), ImageTransform(32, crop="centre")(image))
    crop = augment.random_resized_crop(image, np.random.default_rng(4), size=32, scale=(0.3, 0.5))
    assert np.array_equal(transform.training(image, np.random.default_rng(4)), normalise(crop))
