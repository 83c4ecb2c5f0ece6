"""Drawing scenes, and the boxes of their things. Anti-aliased, any image size, no state but small constants."""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

from .dice import Dice
from .world import Backdrop, Box, Scene, Thing

RGB = {
    "red": (215, 25, 35),
    "green": (30, 150, 50),
    "blue": (35, 75, 225),
    "yellow": (255, 225, 30),
    "orange": (255, 130, 0),
    "purple": (145, 40, 185),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
MIN_IMAGE_SIZE = 32
_SUBPIXEL = 4  # fractional bits of polygon coordinates
_JITTER = 10  # how far a channel of a thing may be from its colour
_GRADIENTS = np.array([[[0, a], [1 - a, 1]] for a in (0.5, 0, 1, 0.25)], np.float32)
_SCREEN_TONES = ((112, 104, 98), (146, 138, 130))


def check_image_size(image_size: int) -> None:
    """Raise ValueError where things would be too small to be seen."""
    if image_size < MIN_IMAGE_SIZE:
        raise ValueError(f"image_size must be at least {MIN_IMAGE_SIZE} pixels, got {image_size}")


def render(scene: Scene, *, image_size: int = 64) -> np.ndarray:
    """Picture of a scene, uint8 RGB [image_size, image_size, 3].

    Raises:
      ValueError: if image_size is below 32.
    """
    check_image_size(image_size)
    image = _backdrop(scene.backdrop, image_size)
    dice = Dice("paint", scene.backdrop.variant, scene.number)
    for thing in scene.things:
        _draw(image, thing, dice)
    if scene.screen is not None:
        _draw_screen(image, scene.screen, image_size)
    return image


def outline(thing: Thing, *, image_size: int = 1) -> np.ndarray:
    """Corners of a thing, float64 [N, 2] (x, y) in pixels; by default in units of the image side."""
    # As complex numbers, x + iy, to turn, stretch and shift is one product and one sum.
    turn = complex(math.cos(thing.angle), math.sin(thing.angle)) * (thing.radius * image_size)
    corners = _complex_polygon(thing.shape) * turn + complex(thing.x, thing.y) * image_size
    return corners.view(np.float64).reshape(-1, 2)


def box(thing: Thing, *, image_size: int = 64) -> Box:
    """Tight box (x1, y1, x2, y2) of a thing with its rim, in pixels, within 0..image_size."""
    corners = outline(thing, image_size=image_size)
    rim = image_size / 64
    low, high = (corners.min(axis=0) - rim).clip(0), (corners.max(axis=0) + rim).clip(None, image_size)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


@functools.cache
def _complex_polygon(shape: str) -> np.ndarray:
    return _unit_polygon(shape) @ np.array([1, 1j])


def _unit_polygon(shape: str) -> np.ndarray:
    """Corners [N, 2] within the unit disc; y downwards."""
    if shape == "circle":
        return _ring(32, 0.92)
    if shape == "square":
        return _ring(4, 1.1, turn=math.pi / 4)
    if shape == "triangle":
        return _ring(3, 1.12, turn=-math.pi / 2) + (0, 0.2)
    if shape == "star":
        points = _ring(10, 1.1, turn=-math.pi / 2)
        points[1::2] *= 0.42
        return points + (0, 0.05)
    if shape == "heart":
        t = np.linspace(0, 2 * math.pi, 32, endpoint=False)
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return np.stack([x, y - 2.5], axis=1) / 16.0
    if shape == "cross":
        a, b = 0.3, 1.0
        quarter = np.array([(a, -b), (a, -a), (b, -a)])
        turns = [np.array([[0, 1], [-1, 0]])] * 3
        quarters = [quarter]
        for turn in turns:
            quarters.append(quarters[-1] @ turn)
        return np.concatenate(quarters)
    raise ValueError(f"unknown shape {shape!r}")


def _ring(n: int, radius: float, *, turn: float = 0.0) -> np.ndarray:
    t = turn + np.arange(n) * (2 * math.pi / n)
    return radius * np.stack([np.cos(t), np.sin(t)], axis=1)


def _draw(image: np.ndarray, thing: Thing, dice: Dice) -> None:
    size = len(image)
    fixed = np.rint((outline(thing, image_size=size) - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
    rgb = [min(max(c + dice.uniform(-_JITTER, _JITTER), 0), 255) for c in RGB[thing.colour]]
    cv2.fillPoly(image, [fixed], rgb, cv2.LINE_AA, _SUBPIXEL)
    if thing.texture != "plain":
        _draw_texture(image, thing, fixed, _contrast(rgb))
    cv2.polylines(image, [fixed], True, _edge(rgb), max(1, round(size / 64)), cv2.LINE_AA, _SUBPIXEL)


def _draw_texture(image: np.ndarray, thing: Thing, fixed: np.ndarray, rgb: list[float]) -> None:
    size = len(image)
    low, high = (fixed.min(axis=0) >> _SUBPIXEL).tolist(), (fixed.max(axis=0) >> _SUBPIXEL).tolist()
    x1, y1, x2, y2 = max(low[0], 0), max(low[1], 0), min(high[0] + 2, size), min(high[1] + 2, size)
    # Only the neighbourhood of the thing is touched: drawing costs little more on a large picture.
    mask = np.zeros((y2 - y1, x2 - x1), np.uint8)
    cv2.fillPoly(mask, [fixed - (x1 << _SUBPIXEL, y1 << _SUBPIXEL)], 255, cv2.LINE_AA, _SUBPIXEL)
    x, y = x1 - round(thing.x * size) + size // 2, y1 - round(thing.y * size) + size // 2
    ink = _ink(thing.texture, thing.size, size)[y : y + y2 - y1, x : x + x2 - x1]
    patch = image[y1:y2, x1:x2]
    patch[:] = patch + (np.array(rgb, np.float32) - patch) * (mask * ink)[..., None]


@functools.lru_cache(maxsize=16)
def _ink(texture: str, thing_size: str, image_size: int) -> np.ndarray:
    """How much of the second tone each pixel takes, over 255; the middle of the array is the centre of a thing."""
    wave = 2 * math.pi / (image_size / 64 * (5.0 if thing_size == "small" else 6.4))
    x = (np.arange(image_size) - image_size // 2 + 0.5) * wave
    y = x[:, None]
    if texture == "striped":
        ink = 0.5 + 1.2 * np.cos(x * 0.6 + y * 0.8)
    else:
        ink = 1.6 * (np.cos(x) + np.cos(y)) - 0.9
    return (ink.clip(0, 1) / 255).astype(np.float32)


def _contrast(rgb: list[float]) -> list[float]:
    """Second tone of a texture: a darker shade of light colours, a lighter tint of dark ones."""
    if min(rgb) > 200:
        return [c * 0.6 for c in rgb]  # white stays the lighter of the white and the black pattern
    if max(rgb) < 60:
        return [c + 110 for c in rgb]
    light = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2] > 100
    return [c * 0.45 if light else c * 0.4 + 150 for c in rgb]


def _edge(rgb: list[float]) -> tuple[float, float, float]:
    """A darker rim, lighter for black: things of one colour stay apart where they overlap."""
    if max(rgb) < 60:
        return 95, 95, 95
    return rgb[0] * 0.5, rgb[1] * 0.5, rgb[2] * 0.5


def _backdrop(backdrop: Backdrop, size: int) -> np.ndarray:
    tone, tone2 = np.array(backdrop.tone, np.float32), np.array(backdrop.tone2, np.float32)
    if backdrop.kind in ("flat", "grain"):
        image = np.empty((size, size, 3), np.uint8)
        image[:] = tone.astype(np.uint8)
        return cv2.add(image, _grain(size)) if backdrop.kind == "grain" else image
    if backdrop.kind == "gradient":
        mix = _GRADIENTS[backdrop.variant % 4]
    else:
        dice = Dice("clouds", backdrop.variant)
        mix = np.array([dice.random() for _ in range(16)], np.float32).reshape(4, 4)
    small = (tone + (tone2 - tone) * mix[..., None]).astype(np.uint8)
    return cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)


@functools.lru_cache(maxsize=4)
def _grain(size: int) -> np.ndarray:
    # RandomState's stream is frozen by NumPy, unlike that of Generator.
    return np.random.RandomState(0).randint(0, 26, (size, size, 1)).repeat(3, axis=2).astype(np.uint8)


def _draw_screen(image: np.ndarray, screen: Box, image_size: int) -> None:
    x1, y1, x2, y2 = (round(v * image_size) for v in screen)
    slat = max(2, image_size // 16)
    rows = (np.arange(y2 - y1) // slat) % 2
    image[y1:y2, x1:x2] = np.array(_SCREEN_TONES, np.uint8)[rows][:, None]
    cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), (60, 54, 50), 1)
