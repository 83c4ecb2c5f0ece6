"""Images from folders and zip files to uint8 RGB, and from uint8 RGB to what a model sees.

Shape legend: `H`, `W` pixels. An image is `[H, W, 3]` uint8 RGB up to `normalise`, `[size, size, 3]` float32 after it.
"""

from __future__ import annotations

import difflib
import io
import itertools
import os
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from jaxvl.data.augment import centre_crop, rand_augment, rand_augment_30, random_resized_crop, resize

# CLIP's statistics: ALBEF normalises with them although its vision transformer comes from DeiT.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)  # mean and standard deviation of ViT, ViLT and most other encoders
AUGMENTS = ("albef", "flip", "randaug")
CROPS = ("squash", "centre", "random_resized")
SHOWN = 5  # candidates named where a key fits several images


class ImageError(ValueError):
    """An image that is missing or cannot be decoded; the message names the file."""


class AmbiguousImageError(ImageError):
    """A key that fits several images equally well; the message names them."""


def decode(data: bytes, *, name: str = "image") -> np.ndarray:
    """`[H, W, 3]` uint8 RGB of an encoded image (JPEG, PNG, WebP, ...).

    Grey, palette, alpha, CMYK and 16-bit images become 8-bit RGB as Pillow converts them (alpha is dropped).
    An orientation tag is not applied, as in the pipelines that the papers used.

    Raises:
      ImageError: empty, truncated or not an image; `name` is in the message.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "JPEG" and image.mode in ("RGB", "L") and _has_end_marker(data):
                pixels = _decode_jpeg(data)
                if pixels is not None:
                    return pixels
            return _pillow_to_rgb(image)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(f"{name}: cannot decode the image ({error or type(error).__name__})") from error


def to_rgb(image: Any) -> np.ndarray:
    """`[H, W, 3]` uint8 RGB of a path, encoded bytes, a Pillow image, or an array.

    Arrays may be `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]`: uint8, or floats in [0, 1].
    """
    if isinstance(image, (str, Path)):
        return decode(_read_file(Path(image)), name=str(image))
    if isinstance(image, (bytes, bytearray, memoryview)):
        return decode(bytes(image))
    if isinstance(image, Image.Image):
        return _pillow_to_rgb(image)
    return _array_to_rgb(np.asarray(image))


def normalise(
    image: np.ndarray, *, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> np.ndarray:
    """`(image / 255 - mean) / std` of `[H, W, 3]` uint8, as float32."""
    grey = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    table = (grey - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return cv2.LUT(np.ascontiguousarray(image), np.ascontiguousarray(table[None]))


@dataclass(frozen=True)
class ImageTransform:
    """uint8 RGB to the normalised float32 `[size, size, 3]` that a model sees.

    Args:
      size: side in pixels.
      augment: training transform: "albef" = random resized crop, flip, RandAugment; "flip" = crop and flip;
        "randaug" = RandAugment of the whole image (ViLT, BridgeTower), then the crop, no flip; None = the crop.
      crop: how an image becomes a square. "squash" = bicubic resize, the whole picture; "centre" = the shorter side
        resized to `size`, then the middle (ViLT, BridgeTower); "random_resized" = a random crop in training, "centre"
        in evaluation. "albef" always crops at random in training.
      scale: share of the area that a random crop keeps; None = none is drawn (grounding keeps whole images).
      mean, std: per channel, of RGB in [0, 1]; `HALF` for ViT and ViLT.
      flip_guard: words of a text ("left", "right") for which its image is never flipped; None flips regardless,
        as ALBEF does.
      randaug: operations and strength out of 30 of "randaug".
    """

    size: int
    augment: str | None = "albef"
    scale: tuple[float, float] | None = (0.2, 1.0)
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    flip_guard: tuple[str, ...] | None = None
    crop: str = "squash"
    randaug: tuple[int, int] = (2, 9)

    def __post_init__(self) -> None:
        if self.augment is not None:
            _known("augment", self.augment, AUGMENTS, also=", None")
        _known("crop", self.crop, CROPS)
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale={self.scale} must be (low, high) with 0 < low <= high <= 1")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The evaluation transform: `[H, W, 3]` uint8 to `[size, size, 3]` float32, without randomness."""
        return self._normalise(self._square(image))

    def training(self, image: np.ndarray, rng: np.random.Generator, *, text: str = "") -> np.ndarray:
        """`[H, W, 3]` uint8 to `[size, size, 3]` float32; `text` is only read by the flip guard."""
        if self.augment == "randaug":
            image = rand_augment_30(image, rng, n=self.randaug[0], level=self.randaug[1])
        if self.scale is not None and (self.augment == "albef" or self.crop == "random_resized"):
            image = random_resized_crop(image, rng, size=self.size, scale=self.scale)
        else:
            image = self._square(image)
        if self.augment in (None, "randaug"):
            return self._normalise(image)
        # Drawn in any case: the guard must not shift the random numbers of what follows.
        if rng.random() < 0.5 and not self._guarded(text):
            image = np.ascontiguousarray(image[:, ::-1])
        if self.augment == "albef":
            image = rand_augment(image, rng)
        return self._normalise(image)

    def _square(self, image: np.ndarray) -> np.ndarray:
        return resize(image, self.size) if self.crop == "squash" else centre_crop(image, self.size)

    def _guarded(self, text: str) -> bool:
        return self.flip_guard is not None and not set(self.flip_guard).isdisjoint(text.lower().split())

    def _normalise(self, image: np.ndarray) -> np.ndarray:
        return normalise(image, mean=self.mean, std=self.std)


def _known(name: str, value: str, known: Sequence[str], also: str = "") -> None:
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name}={value!r} is none of {', '.join(known)}{also}{hint}")


class ImageStore:
    """Images by key from one or more folders or zip files.

    A key is first taken as a path below a root; the first root that has it wins. Only if none has, paths are
    compared from their ends, by whole parts, and the one that shares most parts with the key is taken (the name of
    the root counts as a part):

    - `dogs/1.jpg` finds `images/dogs/1.jpg` in a zip of a folder, and `1.jpg` is found anywhere in a zip. Folders
      are not searched: that would list every file.
    - `coco/images/val2014/1.jpg` finds `val2014/1.jpg`, or a bare `1.jpg` directly below a root.

    A path whose folders contradict those of the key (`cats/1.jpg` for `dogs/1.jpg`) is never taken. Without roots,
    keys are paths. A zip is opened on first use in each process, so a store can be pickled to loader processes.
    """

    def __init__(self, roots: str | Path | Sequence[str | Path] | None) -> None:
        if roots is None:
            self.roots: list[Path] = []
            self._places: list[_Folder | _Zip] = [_Folder(None)]
            return
        self.roots = [Path(r).expanduser() for r in ([roots] if isinstance(roots, (str, Path)) else roots)]
        self._places = [_Folder(root) if _is_folder(root) else _Zip(root) for root in self.roots]

    def exists(self, key: str) -> bool:
        """True if the key names a file; does not open it. `AmbiguousImageError` if it fits several."""
        return self._find(key) is not None

    def read(self, key: str) -> bytes:
        """The encoded bytes of image `key`.

        Raises:
          ImageError: there is none (names the key, the roots, and files of that name in other folders), or it
            cannot be read.
          AmbiguousImageError: the key fits several images equally well.
        """
        found = self._find(key)
        if found is not None:
            place, path = found
            return place.read(path, key=key)
        where = ", ".join(str(root) for root in self.roots) or "the file system"
        alike = [
            f"{place.path} has {place.namesakes(key)[0]}" for place in self._places if place.namesakes(key)
        ]
        hint = f" ({alike[0]}, but in another folder: correct the key or the roots)" if alike else ""
        raise ImageError(f"{key}: no such image in {where}{hint}")

    def image(self, key: str) -> np.ndarray:
        """Image `key` as `[H, W, 3]` uint8 RGB."""
        return decode(self.read(key), name=key)

    def _find(self, key: str) -> tuple[_Folder | _Zip, str] | None:
        for place in self._places:
            if place.has(key):
                return place, key
        found = [(_shared(place.parts(path), _parts(key)), place, path)
                 for place in self._places for path in place.near(key)]  # fmt: skip
        most = max((shared for shared, _, _ in found), default=0)
        best = [(place, path) for shared, place, path in found if shared == most]
        if len(best) > 1:
            names: dict[str, list[str]] = {}
            for place, path in best:
                names.setdefault(str(place.path), []).append(path)
            holds = ", ".join(f"{root} holds {' and '.join(paths[:SHOWN])}" for root, paths in names.items())
            raise AmbiguousImageError(f"{key}: {holds}: use the full path")
        return best[0] if best else None


class _Folder:
    def __init__(self, path: Path | None) -> None:
        self.path = path

    def has(self, path: str) -> bool:
        return self._path(path).is_file()

    def read(self, path: str, *, key: str) -> bytes:
        return _read_file(self._path(path))

    def near(self, key: str) -> list[str]:
        """The longest end of the key that is a file below this folder."""
        if self.path is None:
            return []
        parts = _parts(key)
        # A path from the root of the file system may lie below this folder as a whole.
        ends = ["/".join(parts[i:]) for i in range(0 if key.startswith("/") else 1, len(parts))]
        return next(([end] for end in ends if self.has(end)), [])

    def namesakes(self, key: str) -> list[str]:
        return []

    def parts(self, path: str) -> list[str]:
        return _parts(str(self._path(path)))

    def _path(self, path: str) -> Path:
        return Path(path) if self.path is None else self.path / path


class _Zip:
    """A zip archive opened once per process; reads are serialised, decoding is not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._pid = -1

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]

    def has(self, path: str) -> bool:
        self._open()
        return path in self._by_path

    def read(self, path: str, *, key: str) -> bytes:
        self._open()
        try:
            with self._lock:
                return self._zip.read(self._by_path[path])
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error) as error:
            raise ImageError(f"{key}: cannot be read from {self.path} ({error})") from error

    def near(self, key: str) -> list[str]:
        """Members that are an end of the key, or that the key is an end of, by whole parts."""
        wanted = _parts(key)
        members = [(path, _parts(path)) for path in self.namesakes(key)]
        return [path for path, parts in members if _shared(parts, wanted) == min(len(parts), len(wanted))]

    def namesakes(self, key: str) -> list[str]:
        """Members with the file name of the key, in whatever folder."""
        self._open()
        return self._by_name.get(key.rsplit("/", 1)[-1], [])

    def parts(self, path: str) -> list[str]:
        return [*_parts(str(self.path.with_suffix(""))), *_parts(path)]

    def _open(self) -> None:
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid == os.getpid():
                return
            try:
                self._zip = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile as error:
                raise ImageError(f"{self.path}: not a readable zip file ({error}); fetch it again") from error
            self._by_path = {m.filename: m for m in self._zip.infolist() if not m.is_dir()}
            self._by_name: dict[str, list[str]] = {}
            for path in self._by_path:
                self._by_name.setdefault(path.rsplit("/", 1)[-1], []).append(path)
            self._pid = os.getpid()  # last: other threads pass the first test only when all is in place


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths share, counted from their ends."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_folder(root: Path) -> bool:
    if root.is_dir():
        return True
    if not root.is_file():
        raise FileNotFoundError(f"{root}: no such image folder or zip file")
    if not zipfile.is_zipfile(root):
        raise ValueError(f"{root}: neither a folder nor a zip file")
    return False


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from error


def _has_end_marker(data: bytes) -> bool:
    # libjpeg fills the rest of a truncated file with grey and only warns; such files go to Pillow, which refuses.
    return data.rfind(b"\xff\xd9", max(0, len(data) - 4096)) >= 0


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _pillow_to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255
        return _array_to_rgb((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _array_to_rgb(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or array.size == 0:
        raise ImageError(f"an image array is [H,W], [H,W,1], [H,W,3] or [H,W,4], not {list(array.shape)}")
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ImageError("a floating-point image must lie in [0, 1]; give uint8 for [0, 255]")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"an image array is uint8 or floating point, not {array.dtype}")
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else np.ascontiguousarray(array[..., :3])
