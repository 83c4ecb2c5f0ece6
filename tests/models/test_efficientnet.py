"""EfficientNet equals PyTorch's operators on its weights, pads as TensorFlow, and has Lite0's sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from efficientnet_states import SMALL, STAGES, record_main, recorded, small_state, torch_efficientnet
from oracles import draw

from jaxvl.interop.efficientnet import import_efficientnet
from jaxvl.models.efficientnet import Depthwise, EfficientNet

IMAGE = np.tanh(
    draw(2, 40, 40, 3)
)  # 40 -> 20 -> 20 -> 10 -> 5: strided layers of both kernels, and an odd map


def ours() -> dict[str, np.ndarray]:
    params = import_efficientnet(small_state()).params
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda p, x: (SMALL.apply(p, x), SMALL.apply(p, x, method=SMALL.classify)))
        found = run({"params": params}, IMAGE)
    return dict(zip(("map", "logits"), found, strict=True))


def test_equals_recorded_pytorch():
    want, got = recorded("efficientnet"), ours()
    assert got["map"].shape == (2, 5, 5, 8) and got["logits"].shape == (2, 5)
    assert np.mean((want["map"] > 0) & (want["map"] < 6)) > 0.1  # not all of it is cut off by ReLU6
    for name in ("map", "logits"):
        np.testing.assert_allclose(got[name], want[name], atol=2e-4, rtol=1e-4)


@pytest.mark.torch
def test_the_record_is_what_pytorch_computes():
    pytest.importorskip("torch")
    for name, array in torch_efficientnet(small_state(), IMAGE, STAGES).items():
        np.testing.assert_allclose(recorded("efficientnet")[name], array, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (7, 5, 1), (1, 3, 1)]
)
def test_depthwise_equals_a_grouped_convolution(size, kernel, stride):
    x, k = draw(2, size, size, 4), draw(kernel, kernel, 1, 4, seed=1)
    got = Depthwise(kernel, stride).apply({"params": {"kernel": k}}, x)
    layout = ("NHWC", "HWIO", "NHWC")
    want = jax.lax.conv_general_dilated(
        x, k, (stride, stride), "SAME", dimension_numbers=layout, feature_group_count=4
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_sizes_of_lite0():
    model = EfficientNet(classes=1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(
        lambda key, x: model.init(key, x, method=model.classify), jax.random.key(0), image
    )
    leaves = jax.tree.leaves(params)
    assert sum(x.size for x in leaves) == 4_694_024 and model.stride == 32  # 4.65 M and 42,016 statistics
    assert all(x.dtype == jnp.float32 for x in leaves)
    assert jax.eval_shape(model.apply, params, image).shape == (1, 7, 7, 1280)


def test_sizes_that_would_shift_the_map_and_absent_heads_are_refused():
    with pytest.raises(ValueError, match="image is 44x40: sides must be multiples of 8"):
        SMALL.init(jax.random.key(0), draw(1, 44, 40, 3))
    with pytest.raises(ValueError, match="without a class head"):
        SMALL.clone(classes=None).init(jax.random.key(0), IMAGE, method="classify")


if __name__ == "__main__":
    record_main("efficientnet", lambda: torch_efficientnet(small_state(), IMAGE, STAGES))
