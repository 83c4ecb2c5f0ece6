"""EfficientNet without squeeze-and-excitation (Tan and Le, 2019; the "Lite" variants for phones), for inference.

A frozen extractor of image features: the statistics of batch normalisation are parameters that are loaded with the
weights, and nothing is random. Activations are ReLU6; padding is TensorFlow's "SAME" (odd pixels go to the right and
below), which decides where features of strided layers sit.

Shape legend: `B` batch, `I` pixels a side of the image, `M` cells a side of a map, `C` channels, `F` feature width, `A`
classes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.layers import WHOLE, Dense, Dtype, batch_major

BN_EPS = 1e-3


class Stage(NamedTuple):
    """Blocks of one width.

    Attributes:
      repeats: number of blocks.
      kernel: side of the depthwise filter.
      stride: of the first block; the others keep the size.
      expand: hidden channels of a block over its input channels; 1 = no expansion layer.
      width: output channels.
    """

    repeats: int
    kernel: int
    stride: int
    expand: int
    width: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class FixedNorm(nn.Module):
    """Batch normalisation with loaded statistics: `(x - mean) / sqrt(var + eps) * scale + bias`, in float32."""

    eps: float = BN_EPS
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[...,C] -> [...,C]`."""
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
        mean = self.param("mean", nn.initializers.zeros_init(), shape, jnp.float32)
        var = self.param("var", nn.initializers.ones_init(), shape, jnp.float32)
        gain = scale * jax.lax.rsqrt(var + self.eps)
        return (x.astype(jnp.float32) * gain + (bias - mean * gain)).astype(self.dtype)


class Conv(nn.Module):
    """Convolution without bias, "SAME" padding: `[B,M,M,C] -> [B,ceil(M/stride),ceil(M/stride),features]`."""

    features: int
    kernel: int
    stride: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), strides, "SAME", dimension_numbers=layout
        )


class Depthwise(nn.Module):
    """A filter for each channel, "SAME" padding; owns `kernel [k,k,1,C]`: `[B,M,M,C] -> [B,M',M',C]`.

    A sum over shifted maps, which XLA fuses: on CPU 3 to 23 times as fast as its grouped convolution.
    """

    kernel: int
    stride: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, step = self.kernel, self.stride
        shape = (size, size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32).astype(self.dtype)
        rows, cols = (_same(length, size, step) for length in x.shape[1:3])
        x = jnp.pad(x.astype(self.dtype), ((0, 0), rows.pad, cols.pad, (0, 0)))
        taps = (
            x[:, i : i + rows.span : step, j : j + cols.span : step] * kernel[i, j, 0]
            for i in range(size)
            for j in range(size)
        )
        return sum(taps, start=jnp.zeros((), self.dtype))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; the input is added where shapes allow it.

    Owns `expand`, `expand_norm` (unless `expand` is 1), `depthwise`, `depthwise_norm`, `project`, `project_norm`.
    """

    kernel: int
    stride: int
    expand: int
    width: int
    eps: float = BN_EPS
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B,M,M,C] -> [B,M',M',width]`."""
        y, channels = x, x.shape[-1]
        if self.expand != 1:
            y = pointwise(channels * self.expand, dtype=self.dtype, name="expand")(y)
            y = nn.relu6(self._norm("expand_norm")(y))
        y = Depthwise(self.kernel, self.stride, dtype=self.dtype, name="depthwise")(y)
        y = nn.relu6(self._norm("depthwise_norm")(y))
        y = self._norm("project_norm")(pointwise(self.width, dtype=self.dtype, name="project")(y))
        return y + x if self.stride == 1 and channels == self.width else y

    def _norm(self, name: str) -> FixedNorm:
        return FixedNorm(self.eps, dtype=self.dtype, name=name)


class EfficientNet(nn.Module):
    """Stem, blocks, head; owns `stem`, `stem_norm`, `blocks_i`, `head`, `head_norm` and, with `classes`, `class_head`.

    Attributes:
      stages: of the blocks; the default is EfficientNet-Lite0 (3.4 M parameters without the class head).
      stem: channels of the first convolution, which halves the image.
      head: F.
      classes: A of `classify`; None = no class head.
      eps: of the normalisation.
      dtype: type of the computation; parameters and norms are float32.
    """

    stages: tuple[Stage, ...] = LITE0
    stem: int = 32
    head: int = 1280
    classes: int | None = None
    eps: float = BN_EPS
    dtype: Dtype = jnp.float32

    @property
    def stride(self) -> int:
        """Pixels of the image to a cell of the last map: 32 for Lite0."""
        total = 2
        for stage in self.stages:
            total *= stage.stride
        return total

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Pixels `image [B,I,I,3]` in [-1, 1] -> the last map `[B,M,M,F]` in [0, 6], `M = I / stride`.

        Raises:
          ValueError: `I` is no multiple of `stride`, where padding would shift the map.
        """
        if any(side % self.stride for side in image.shape[1:3]):
            raise ValueError(
                f"image is {image.shape[1]}x{image.shape[2]}: sides must be multiples of {self.stride}"
            )
        norm = dict(eps=self.eps, dtype=self.dtype)
        x = Conv(self.stem, 3, 2, dtype=self.dtype, name="stem")(image)
        x = nn.relu6(FixedNorm(name="stem_norm", **norm)(x))
        for i, (stage, stride) in enumerate(_blocks(self.stages)):
            x = InvertedResidual(stage.kernel, stride, stage.expand, stage.width, name=f"blocks_{i}", **norm)(
                x
            )
        x = pointwise(self.head, dtype=self.dtype, name="head")(x)
        return batch_major(nn.relu6(FixedNorm(name="head_norm", **norm)(x)))

    @nn.compact
    def classify(self, image: Array) -> Array:
        """Pixels `image [B,I,I,3]` in [-1, 1] -> logits `[B,A]` f32 of the mean over the map."""
        if self.classes is None:
            raise ValueError("this model was built without a class head: give classes=1000 for ImageNet's")
        return Dense(self.classes, WHOLE, name="class_head")(self(image).mean((1, 2), dtype=jnp.float32))


def pointwise(features: int, *, dtype: Dtype, name: str) -> Dense:
    """A 1x1 convolution without bias, as a matrix product."""
    init = nn.initializers.lecun_normal()
    return Dense(features, (None, None), use_bias=False, kernel_init=init, dtype=dtype, name=name)


class _Same(NamedTuple):
    """Padding (before, after) of one axis, and the pixels from the first to the last place of a filter's corner."""

    pad: tuple[int, int]
    span: int


def _same(length: int, kernel: int, stride: int) -> _Same:
    out = -(-length // stride)
    pad = max((out - 1) * stride + kernel - length, 0)
    return _Same((pad // 2, pad - pad // 2), (out - 1) * stride + 1)


def _blocks(stages: tuple[Stage, ...]) -> list[tuple[Stage, int]]:
    """Each block with its stride."""
    return [(s, s.stride if first == 0 else 1) for s in stages for first in range(s.repeats)]
