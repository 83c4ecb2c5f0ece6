"""Files of region features in every layout, of the same made-up images."""

from __future__ import annotations

import base64
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WIDTH, SIZE = 8, (640, 480)  # of features; of images in pixels


class Image(NamedTuple):
    """Made-up regions: features `[n,8]`, boxes `[n,4]` in units of the sides, conf `[n]`."""

    image_id: int
    features: np.ndarray
    boxes: np.ndarray
    conf: np.ndarray

    @property
    def pixels(self) -> np.ndarray:
        return (self.boxes * np.array([*SIZE, *SIZE])).astype(np.float32)


def made_up(image_id: int, n: int = 5) -> Image:
    """Regions that float16 holds exactly, in no order of confidence."""
    rng = np.random.default_rng(image_id)
    features = rng.integers(1, 64, (n, WIDTH)).astype(np.float32) / 8
    low, side = rng.integers(0, 32, (n, 2)) / 64, rng.integers(1, 32, (n, 2)) / 64
    return Image(
        image_id,
        features,
        np.concatenate([low, low + side], 1).astype(np.float32),
        rng.permuted(np.arange(1, n + 1)) / 64,
    )


def b64(array: np.ndarray, dtype: str = "<f4") -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype)).decode()


def butd_row(image: Image) -> list[str]:
    return [
        str(image.image_id),
        *map(str, SIZE),
        str(len(image.boxes)),
        b64(image.pixels),
        b64(image.features),
    ]


def objects_of(image: Image) -> np.ndarray:
    """`[n]` classes of the regions, of seven."""
    return (np.arange(len(image.boxes)) * 3 + image.image_id) % 7


def lxmert_row(image: Image, split: str = "train2014") -> list[str]:
    n = len(image.boxes)
    none = [b64(np.zeros(n), "<i8"), b64(np.zeros(n))]
    name = f"COCO_{split}_{image.image_id:012d}"
    confidence = [b64(objects_of(image), "<i8"), b64(image.conf), *none]
    return [name, str(SIZE[1]), str(SIZE[0]), *confidence, str(n), b64(image.pixels), b64(image.features)]


def tsv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    path.write_text("".join("\t".join(row) + "\r\n" for row in rows), encoding="ascii")
    return path


def npz(folder: Path, image: Image, *, transposed: bool = True, info: Any = None, **other: Any) -> Path:
    folder.mkdir(exist_ok=True)
    x = image.features.T if transposed else image.features
    arrays = dict(x=x, bbox=image.pixels, num_bbox=len(image.boxes), image_w=SIZE[0], image_h=SIZE[1]) | other
    path = folder / f"COCO_train2014_{image.image_id:012d}.jpg.npz"
    np.savez_compressed(path, **arrays, **({} if info is None else {"info": info}))
    return path


def hdf5(path: Path, images: Sequence[Image], *, adaptive: bool = False, index: str = "json") -> Path:
    import h5py

    sides = [np.concatenate([i.boxes, i.boxes[:, 2:] - i.boxes[:, :2]], 1) for i in images]
    join = np.concatenate if adaptive else np.stack
    with h5py.File(path, "w") as file:
        file["image_features"] = join([i.features for i in images])
        file["image_bb"] = join([i.pixels for i in images])
        file["spatial_features"] = join(sides)
        if adaptive:
            ends = np.cumsum([len(i.boxes) for i in images])
            file["pos_boxes"] = np.stack([np.concatenate([[0], ends[:-1]]), ends], 1).astype(np.int32)
    table = {i.image_id: place for place, i in enumerate(images)}
    near = path.with_name(f"{path.stem}_imgid2idx.{index}")
    near.write_bytes(json.dumps(table).encode() if index == "json" else pickle.dumps(table, protocol=2))
    return path


def lmdb(
    path: Path, images: Sequence[Image], *, conf: bool = True, values: dict[bytes, bytes] | None = None
) -> Path:
    import lmdb as library

    entries: dict[bytes, bytes] = {}
    for image in images:
        row = dict(
            image_id=str(image.image_id),
            image_w=str(SIZE[0]),
            image_h=str(SIZE[1]),
            num_boxes=len(image.boxes),
        )
        row |= dict(boxes=b64(image.pixels).encode(), features=b64(image.features).encode())
        row |= dict(objects_conf=b64(image.conf).encode()) if conf else {}
        entries[str(image.image_id).encode()] = pickle.dumps(row)
    entries |= values or {}
    with library.open(str(path), map_size=2**24) as env, env.begin(write=True) as txn:
        txn.put(b"keys", pickle.dumps(list(entries)))
        for key, value in entries.items():
            txn.put(key, value)
    return path
