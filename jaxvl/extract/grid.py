"""Regions of a regular grid over the last map of EfficientNet-Lite0, where features of detected objects are absent.

The map of a 224-pixel image has 7x7 cells. Region `(i, j)` of a grid is the mean of the map over the region's box;
cells that the box cuts count by the share that lies inside, so that any grid up to the map's own fits.

Shape legend: `B` images, `R` regions, `G` regions a side (`R = G G`), `M` cells a side of the map, `F` feature width,
`I` pixels a side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax import Array

from jaxvl.atomic import sha256
from jaxvl.data.images import HALF, ImageTransform
from jaxvl.extract.base import Arrays, Extracted
from jaxvl.interop.efficientnet import load_efficientnet
from jaxvl.interop.files import PathLike, Tree, WeightsError, existing
from jaxvl.models.efficientnet import EfficientNet

NORMS = ("none", "l2")
TINY = 1e-12  # length below which a region of zeros stays one


class EfficientNetGrid:
    """Grid regions of EfficientNet-Lite0; an `Extractor`.

    Images are squashed to a square, so that boxes in units of the sides fit the original whatever its aspect.

    Args:
      weights: file of EfficientNet-Lite0, see `interop.efficientnet`.
      grid: G; 6 gives the 36 regions that models of detected objects are used to.
      size: I, a multiple of 32. The network was trained at 224; larger images have more cells.
      norm: "none", or "l2" for regions of length 1.
      model: another EfficientNet than Lite0.

    Raises:
      FileNotFoundError, WeightsError: no weights, or not those of the model; names the file.
      ValueError: an option out of range; names it.
    """

    def __init__(
        self,
        weights: PathLike,
        *,
        grid: int = 6,
        size: int = 224,
        norm: str = "none",
        model: EfficientNet | None = None,
    ) -> None:
        self.model = EfficientNet() if model is None else model
        if size < 1 or size % self.model.stride:
            raise ValueError(f"size={size}: give a multiple of {self.model.stride} pixels")
        if not 1 <= grid <= size // self.model.stride:
            side = size // self.model.stride
            raise ValueError(
                f"grid={grid}: the map of {size} pixels has {side}x{side} cells; give 1 to {side}"
            )
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r}: expected one of {', '.join(NORMS)}")
        self.grid, self.size, self.norm = grid, size, norm
        self.weights = existing(weights)
        self.params = _checked(load_efficientnet(weights).params, self.model, weights)
        self._transform = ImageTransform(size, augment=None, mean=HALF, std=HALF)
        self._run = jax.jit(self._regions)

    @property
    def regions(self) -> int:
        """R."""
        return self.grid**2

    @property
    def width(self) -> int:
        """F."""
        return self.model.head

    @cached_property
    def made_by(self) -> Mapping[str, Any]:
        """Kind, options, hash of the weights."""
        options = dict(grid=self.grid, size=self.size, norm=self.norm)
        return dict(kind="efficientnet_grid", weights_sha256=sha256(self.weights), **options)

    def prepare(self, image: np.ndarray) -> Arrays:
        """`[H,W,3]` uint8 RGB -> `image [I,I,3]` f32 in [-1, 1]."""
        return {"image": self._transform(image)}

    def __call__(self, batch: Arrays) -> Extracted:
        """`image [B,I,I,3]` -> regions, row by row from the upper left; `conf` is NaN."""
        features = np.asarray(self._run(self.params, batch["image"]))
        many = features.shape[:2]
        boxes = np.broadcast_to(grid_boxes(self.grid), (*many, 4))
        conf = np.full(many, np.nan, np.float32)
        return Extracted(features, boxes, conf, np.full(many[0], many[1], np.int32))

    def _regions(self, params: Tree, image: Array) -> Array:
        maps = self.model.apply({"params": params}, image)
        assert isinstance(maps, Array)
        x_brf = pool_grid(maps, grid=self.grid)
        if self.norm == "none":
            return x_brf
        return x_brf / jnp.maximum(jnp.linalg.norm(x_brf, axis=-1, keepdims=True), TINY)


def pool_grid(maps: Array, *, grid: int) -> Array:
    """Maps `[B,M,M,F]` -> means over a `grid` of equal boxes `[B,grid*grid,F]` f32, row by row."""
    rows, cols = grid_matrix(grid, maps.shape[1]), grid_matrix(grid, maps.shape[2])
    maps = maps.astype(jnp.float32)
    pooled = jnp.einsum("iy,byxf,jx->bijf", rows, maps, cols, precision=jax.lax.Precision.HIGHEST)
    return pooled.reshape(maps.shape[0], grid * grid, maps.shape[-1])


def grid_matrix(grid: int, cells: int) -> np.ndarray:
    """Weights `[grid, cells]` f32 of the mean over each of `grid` equal parts of a line of `cells`; rows sum to 1."""
    part, cell = np.arange(grid)[:, None], np.arange(cells)[None]
    inside = np.minimum((part + 1) * cells, (cell + 1) * grid) - np.maximum(part * cells, cell * grid)
    return (np.maximum(inside, 0) / cells).astype(np.float32)


def grid_boxes(grid: int) -> np.ndarray:
    """Boxes `[grid*grid,4]` f32 of the regions, x1, y1, x2, y2 in units of the image's sides, row by row."""
    y, x = (axis.reshape(-1) for axis in np.mgrid[:grid, :grid])
    return (np.stack([x, y, x + 1, y + 1], axis=-1) / grid).astype(np.float32)


def _checked(params: Tree, model: EfficientNet, weights: PathLike) -> Tree:
    """`params` if they are those of the model; WeightsError names file and tensor."""
    image = jax.ShapeDtypeStruct((1, model.stride, model.stride, 3), jnp.float32)
    like = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), image))["params"]
    want = {"/".join(path): leaf.shape for path, leaf in flatten_dict(like).items()}
    have = {"/".join(path): leaf.shape for path, leaf in flatten_dict(params).items()}
    for path in sorted(want.keys() | have.keys()):
        if want.get(path) != have.get(path):
            raise WeightsError(
                f"{weights}: {path} is {_shape(have, path)} in the file, {_shape(want, path)} in the model: "
                "these are weights of another EfficientNet; give those of Lite0"
            )
    return params


def _shape(shapes: Mapping[str, tuple[int, ...]], path: str) -> str:
    return str(list(shapes[path])) if path in shapes else "absent"
