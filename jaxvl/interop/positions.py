"""Position embeddings of a patch grid at another resolution, as ViLT does it."""

from __future__ import annotations

import numpy as np

from jaxvl.interop.files import WeightsError


def grid_side(table: np.ndarray) -> int:
    """`G` of a table `[1,1+G*G,D]`: a class token, then a square grid row by row.

    Raises:
      WeightsError: the table is not of that shape.
    """
    count = table.shape[1] - 1 if table.ndim == 3 and table.shape[0] == 1 else 0
    side = round(max(count, 0) ** 0.5)
    if side < 1 or side * side != count:
        raise WeightsError(
            f"position embeddings of shape {table.shape} are not [1, 1 + a square grid, width]"
        )
    return side


def resize_bilinear(table: np.ndarray, grid: int) -> np.ndarray:
    """`[1,1+G*G,D]` -> `[1,1+grid*grid,D]` f32, as PyTorch's bilinear interpolation with `align_corners=True`.

    Corners stay corners: row `i` of the new grid lies at `i * (G-1) / (grid-1)` of the old one. Row 0 of the table,
    the class token's, is kept, and so is the whole table if `grid` is its own.

    Raises:
      WeightsError: the table is not that of a class token and a square grid.
    """
    side = grid_side(table)
    if side == grid:
        return table
    matrix = _weights(grid, side)
    maps = table[0, 1:].reshape(side, side, -1).astype(np.float64)
    resized = np.einsum("yh,hwd,xw->yxd", matrix, maps, matrix).reshape(1, grid * grid, -1)
    return np.concatenate([table[:, :1], resized.astype(np.float32)], axis=1)


def _weights(size: int, source: int) -> np.ndarray:
    """`[size,source]`: what every new point takes of every old one, along one axis."""
    at = np.arange(size) * ((source - 1) / (size - 1) if size > 1 else 0.0)
    low = np.minimum(np.floor(at).astype(int), source - 1)
    matrix = np.zeros((size, source))
    np.add.at(matrix, (np.arange(size), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(size), np.minimum(low + 1, source - 1)), at - low)
    return matrix
