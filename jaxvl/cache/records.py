"""What a record is in bytes: states of one image or one text, in one of four types.

Shape legend: `B` records, `Z` layers, `S` tokens, `D` width. A record is the states `[Z,S,D]` in C order; "int8" is
followed by one float16 scale per layer and token. bfloat16 is kept as uint16. Little-endian on every machine.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
FLOAT16_LIMIT = 6e4  # beyond it a store falls back to bfloat16; float16 itself ends at 65504


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shape of all records of a store.

    Attributes:
      modality: "image" or "text".
      layers: states of a record, `Z`.
      tokens: `S` of every record; None = ragged: each record has as many tokens as its text.
      dim: width, `D`.
    """

    modality: str
    layers: int
    tokens: int | None
    dim: int

    def __post_init__(self) -> None:
        if self.modality not in ("image", "text"):
            raise ValueError(f"modality={self.modality!r} is neither 'image' nor 'text'")
        if min(self.layers, self.dim, 1 if self.tokens is None else self.tokens) < 1:
            raise ValueError(f"sizes of records must be positive, not {self}")

    def bytes(self, dtype: str, tokens: int | None = None) -> int:
        """Size of a record; `tokens` where they are ragged."""
        rows = self.layers * (self.tokens if self.tokens is not None else tokens or 0)
        return rows * self.dim * ITEM_BYTES[dtype] + (2 * rows if dtype == "int8" else 0)


def check_dtype(dtype: str) -> str:
    """`dtype`, or a ValueError that lists the types."""
    if dtype not in ITEM_BYTES:
        raise ValueError(f"dtype={dtype!r} is none of {', '.join(ITEM_BYTES)}")
    return dtype


def encode(states_zsd: np.ndarray, dtype: str) -> bytes:
    """A record of float32 states; the caller has checked that they are finite and fit `dtype`."""
    if dtype == "float32":
        return states_zsd.astype("<f4").tobytes()
    if dtype == "float16":
        return states_zsd.astype("<f2").tobytes()
    if dtype == "bfloat16":
        return to_bfloat16(states_zsd).astype("<u2").tobytes()
    scale_zs = (np.abs(states_zsd).max(-1) / 127).astype("<f2")
    divisor = np.where(scale_zs > 0, scale_zs, 1).astype(np.float32)[..., None]  # zeros stay zeros
    # The scale is rounded to float16 first, so a value may come out just above 127.
    steps = np.clip(np.rint(states_zsd / divisor), -127, 127).astype(np.int8)
    return steps.tobytes() + scale_zs.tobytes()


def decode(raw: np.ndarray, layout: Layout, dtype: str) -> np.ndarray:
    """States `[B,Z,S,D]` of records of equal size.

    Args:
      raw: `[B, bytes]` uint8, contiguous.
      layout: of the store.
      dtype: of the records.

    Returns:
      float16 of float16 records, else float32.
    """
    count, size = raw.shape
    rows = size // (layout.dim * ITEM_BYTES[dtype] + (2 if dtype == "int8" else 0))
    shape = (count, layout.layers, rows // layout.layers, layout.dim)
    if dtype == "float32":
        return raw.view("<f4").reshape(shape)
    if dtype == "float16":
        return raw.view("<f2").reshape(shape)
    if dtype == "bfloat16":
        return from_bfloat16(raw.view("<u2")).reshape(shape)
    steps = raw[:, : rows * layout.dim].view(np.int8).astype(np.float32).reshape(shape)
    scales = np.ascontiguousarray(raw[:, rows * layout.dim :]).view("<f2").astype(np.float32)
    return steps * scales.reshape(*shape[:3], 1)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper half of float32 as uint16, rounded to nearest, ties to even; finite values only."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def fits(states: np.ndarray, dtype: str) -> bool:
    """Whether finite float32 states can be kept in `dtype` without becoming infinite."""
    limit = {"float16": FLOAT16_LIMIT, "int8": 127 * FLOAT16_LIMIT, "bfloat16": 3.38e38}.get(dtype)
    return limit is None or not states.size or float(np.abs(states).max()) < limit


def as_float32(states: Any) -> np.ndarray:
    """A contiguous float32 array of states of any floating type."""
    return np.ascontiguousarray(np.asarray(states), dtype=np.float32)
