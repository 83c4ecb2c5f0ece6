"""Geometry and colour operations on images: `[H, W, 3]` uint8 RGB in and out, driven by a numpy Generator.

`rand_augment` follows `salesforce/ALBEF`, `rand_augment_30` the recipe of ViLT and BridgeTower; resampling is Pillow's.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

FILL = (128, 128, 128)
BLACK = (0, 0, 0)
Colour = tuple[int, int, int]
Operation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def resize(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Bicubic resize of `[H, W, 3]` uint8 to a `size` square, or `(height, width)`: Pillow's filter, antialiased."""
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The central `size` square of `[H, W, 3]` uint8 whose shorter side was resized to `size` (bicubic)."""
    height, width = image.shape[:2]
    short = min(height, width)
    image = resize(image, (size * height // short, size * width // short))
    top, left = round((image.shape[0] - size) / 2), round((image.shape[1] - size) / 2)
    return np.ascontiguousarray(image[top : top + size, left : left + size])


def random_resized_crop(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A crop of random area (share `scale`) and aspect (log-uniform in `ratio`), resized to a `size` square."""
    top, left, height, width = crop_box(image.shape[0], image.shape[1], rng, scale=scale, ratio=ratio)
    return resize(image[top : top + height, left : left + width], size)


def crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """`(top, left, height, width)` of a random crop; after ten misses the largest central one within `ratio`."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return (height - h) // 2, (width - w) // 2, h, w


def rand_augment(image: np.ndarray, rng: np.random.Generator, *, n: int = 2, level: int = 7) -> np.ndarray:
    """RandAugment as ALBEF configures it: `n` operations with replacement, each applied with probability 1/2.

    Args:
      level: strength out of 10. At 7: brightness and sharpness 1.36, shear 0.21, shift 7 pixels, rotation 21 degrees.
    """
    strength = level / 10
    for which in rng.integers(len(OPERATIONS), size=n):
        if rng.random() < 0.5:
            image = OPERATIONS[which](image, strength, rng)
    return image


def rand_augment_30(image: np.ndarray, rng: np.random.Generator, *, n: int = 2, level: int = 9) -> np.ndarray:
    """RandAugment as ViLT and BridgeTower configure it: `n` operations with replacement, each always applied.

    Nothing inverts colours, cuts out or mirrors: sentences name colours, small things and sides. Geometry takes
    the nearest pixel; what it uncovers is black.

    Args:
      level: strength out of 30. At 9: rotation 9 degrees, shear 0.09, shift 30 pixels, one bit left of each value,
        colour, contrast, brightness and sharpness 0.64.
    """
    for which in rng.integers(len(OPERATIONS_30), size=n):
        image = OPERATIONS_30[which](image, level / 30, rng)
    return image


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretch each channel to the full range [0, 255]; a channel of one value stays."""
    tables = np.empty((256, 1, 3), np.uint8)
    grey = np.arange(256)
    low, high = (cv2.reduce(image, 0, op)[0] for op in (cv2.REDUCE_MIN, cv2.REDUCE_MAX))
    low, high = low.min(axis=0), high.max(axis=0)
    for c in range(3):
        if low[c] == high[c]:
            tables[:, 0, c] = grey
            continue
        gain = 255 / (int(high[c]) - int(low[c]))
        tables[:, 0, c] = (grey * gain - int(low[c]) * gain).clip(0, 255).astype(np.uint8)
    return cv2.LUT(image, tables.reshape(1, 256, 3))


def equalize(image: np.ndarray) -> np.ndarray:
    """Flatten the histogram of each channel, as Pillow's `ImageOps.equalize`."""
    tables = np.empty((256, 1, 3), np.uint8)
    for c in range(3):
        histogram = np.bincount(image[..., c].ravel(), minlength=256)
        used = histogram[histogram > 0]
        step = int(used[:-1].sum()) // 255
        if step == 0:
            tables[:, 0, c] = np.arange(256)
            continue
        below = np.concatenate([[step // 2], histogram[:-1]])
        tables[:, 0, c] = (below.cumsum() // step).clip(0, 255)
    return cv2.LUT(image, tables.reshape(1, 256, 3))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiply by `factor`, clip to [0, 255]; 1 changes nothing."""
    return cv2.LUT(image, (np.arange(256) * factor).clip(0, 255).astype(np.uint8))


def colour(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the grey picture: 0 = grey, 1 = unchanged, above more vivid."""
    grey = cv2.merge([_grey(image)] * 3)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the mean grey of the picture: 0 = flat, 1 = unchanged."""
    mean = int(_grey(image).mean() + 0.5)
    return cv2.LUT(image, (mean + factor * (np.arange(256) - mean)).clip(0, 255).astype(np.uint8))


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keep the upper `bits` (1 to 8) of each value."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Invert the values at `threshold` and above."""
    grey = np.arange(256)
    return cv2.LUT(image, np.where(grey < threshold, grey, 255 - grey).astype(np.uint8))


def solarize_add(image: np.ndarray, amount: int) -> np.ndarray:
    """Brighten by `amount`, clipped, then solarise at 128."""
    brighter = (np.arange(256) + amount).clip(0, 255)
    return cv2.LUT(image, np.where(brighter < 128, brighter, 255 - brighter).astype(np.uint8))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with a smoothed copy: 0 = smoothed, 1 = unchanged, above sharpens; the 1-pixel border stays."""
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = cv2.filter2D(image, -1, kernel / kernel.sum())[1:-1, 1:-1].astype(np.float32)
    out = image.copy()
    inner = image[1:-1, 1:-1].astype(np.float32)
    out[1:-1, 1:-1] = (smooth + factor * (inner - smooth)).clip(0, 255).astype(np.uint8)
    return out


def shear_x(image: np.ndarray, amount: float, fill: Colour = FILL, nearest: bool = False) -> np.ndarray:
    """Shift row `y` right by `amount * y` pixels."""
    return _warp(image, np.array([[1, amount, 0], [0, 1, 0]], np.float64), fill, nearest)


def shear_y(image: np.ndarray, amount: float, fill: Colour = FILL, nearest: bool = False) -> np.ndarray:
    """Shift column `x` down by `amount * x` pixels."""
    return _warp(image, np.array([[1, 0, 0], [amount, 1, 0]], np.float64), fill, nearest)


def translate_x(image: np.ndarray, pixels: float, fill: Colour = FILL, nearest: bool = False) -> np.ndarray:
    """Shift left by `pixels`."""
    return _warp(image, np.array([[1, 0, -pixels], [0, 1, 0]], np.float64), fill, nearest)


def translate_y(image: np.ndarray, pixels: float, fill: Colour = FILL, nearest: bool = False) -> np.ndarray:
    """Shift up by `pixels`."""
    return _warp(image, np.array([[1, 0, 0], [0, 1, -pixels]], np.float64), fill, nearest)


def rotate(image: np.ndarray, degrees: float, fill: Colour = FILL, nearest: bool = False) -> np.ndarray:
    """Rotate anticlockwise around the centre."""
    height, width = image.shape[:2]
    return _warp(image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0), fill, nearest)


def _warp(image: np.ndarray, matrix: np.ndarray, fill: Colour, nearest: bool) -> np.ndarray:
    """Bilinear, or the `nearest` pixel: Pillow's default, which the public RandAugment uses."""
    size, flags = (image.shape[1], image.shape[0]), cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.warpAffine(image, matrix, size, flags=flags, borderValue=fill)


def _grey(image: np.ndarray) -> np.ndarray:
    """Luminance `[H, W]` uint8, with Pillow's weights."""
    return cv2.transform(image, np.array([[19595, 38470, 7471]]) / 65536)


def _signed(rng: np.random.Generator, amount: float) -> float:
    return amount if rng.random() < 0.5 else -amount


# One entry per operation of ALBEF's list: (image, strength in [0, 1], rng) -> image.
OPERATIONS: tuple[Operation, ...] = (
    lambda image, s, rng: image,
    lambda image, s, rng: auto_contrast(image),
    lambda image, s, rng: equalize(image),
    lambda image, s, rng: brightness(image, 1.8 * s + 0.1),
    lambda image, s, rng: sharpness(image, 1.8 * s + 0.1),
    lambda image, s, rng: shear_x(image, _signed(rng, 0.3 * s)),
    lambda image, s, rng: shear_y(image, _signed(rng, 0.3 * s)),
    lambda image, s, rng: translate_x(image, _signed(rng, 10 * s)),
    lambda image, s, rng: translate_y(image, _signed(rng, 10 * s)),
    lambda image, s, rng: rotate(image, _signed(rng, 30 * s)),
)

# One entry per operation of the public RandAugment without Invert and Cutout, as above.
OPERATIONS_30: tuple[Operation, ...] = (
    lambda image, s, rng: auto_contrast(image),
    lambda image, s, rng: equalize(image),
    lambda image, s, rng: rotate(image, _signed(rng, 30 * s), BLACK, True),
    lambda image, s, rng: posterize(image, max(1, int(4 * s))),
    lambda image, s, rng: solarize(image, 256 * s),
    lambda image, s, rng: solarize_add(image, int(110 * s)),
    lambda image, s, rng: colour(image, 1.8 * s + 0.1),
    lambda image, s, rng: contrast(image, 1.8 * s + 0.1),
    lambda image, s, rng: brightness(image, 1.8 * s + 0.1),
    lambda image, s, rng: sharpness(image, 1.8 * s + 0.1),
    lambda image, s, rng: shear_x(image, _signed(rng, 0.3 * s), BLACK, True),
    lambda image, s, rng: shear_y(image, _signed(rng, 0.3 * s), BLACK, True),
    lambda image, s, rng: translate_x(image, _signed(rng, 100 * s), BLACK, True),
    lambda image, s, rng: translate_y(image, _signed(rng, 100 * s), BLACK, True),
)
