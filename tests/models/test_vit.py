"""The vision transformer equals Hugging Face's, its position embeddings resize as PyTorch does, and its sizes at full
scale are those of ViT-B/16."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import draw, fill_dense, fill_norm, record_main, recorded, seeded

from jaxvl.models.layers import stack_layers, unstack_layers
from jaxvl.models.vit import VisionTransformer, bicubic_matrix, resize_bicubic, resize_positions

VIT = VisionTransformer(image_size=12, patch=4, depth=2, width=16, heads=2, mlp=32)
IMAGE = draw(2, 12, 12, 3)
RESIZES = {"14x14": (16, 16), "16x16": (24, 24), "5x5": (13, 3), "6x6": (4, 6)}


def maps(name: str) -> np.ndarray:
    side = int(name.split("x")[0])
    return draw(2, side, side, seed=side)


def torch_vit() -> np.ndarray:
    import torch
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=12,
        patch_size=4,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    fill_vit(model, seeded(VIT, IMAGE))
    with torch.no_grad():
        return model(torch.tensor(IMAGE).permute(0, 3, 1, 2)).last_hidden_state.numpy()


def fill_vit(model, p: dict) -> None:
    import torch

    model.embeddings.cls_token.data = torch.tensor(p["cls_token"])
    model.embeddings.position_embeddings.data = torch.tensor(p["pos_embed"])
    projection = model.embeddings.patch_embeddings.projection
    projection.weight.data = torch.tensor(p["patch_embed"]["kernel"].transpose(3, 2, 0, 1).copy())
    projection.bias.data = torch.tensor(p["patch_embed"]["bias"])
    fill_norm(model.layernorm, p["norm"])
    for i, layer in enumerate(model.layers):
        block = p[f"blocks_{i}"]
        fill_norm(layer.layernorm_before, block["norm1"])
        fill_norm(layer.layernorm_after, block["norm2"])
        for ours, theirs in zip(("query", "key", "value", "out"), "qkvo", strict=True):
            fill_dense(getattr(layer.attention, f"{theirs}_proj"), block["attn"][ours])
        fill_dense(layer.mlp.fc1, block["mlp"]["fc1"])
        fill_dense(layer.mlp.fc2, block["mlp"]["fc2"])


def torch_resize(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import torch

    interpolate = torch.nn.functional.interpolate
    return interpolate(torch.tensor(x)[None], size=size, mode="bicubic", align_corners=False)[0].numpy()


def record() -> dict[str, np.ndarray]:
    return {"vit": torch_vit()} | {name: torch_resize(maps(name), size) for name, size in RESIZES.items()}


def run(module, params) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return jax.jit(module.apply)({"params": params}, IMAGE)


def count(module: nn.Module, *args) -> int:
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), *args)))


def test_equals_recorded_hugging_face():
    want = recorded("vit")["vit"]
    np.testing.assert_allclose(run(VIT, seeded(VIT, IMAGE)), want, atol=2e-5, rtol=0)


@pytest.mark.torch
def test_equals_live_hugging_face():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    np.testing.assert_allclose(run(VIT, seeded(VIT, IMAGE)), torch_vit(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", RESIZES)
def test_bicubic_equals_recorded_pytorch_and_not_jax(name):
    height, width = RESIZES[name]
    got = resize_bicubic(maps(name), height=height, width=width)
    np.testing.assert_allclose(got, recorded("vit")[name], atol=1e-5, rtol=0)
    jax_version = jax.image.resize(maps(name), got.shape, "bicubic", antialias=False)
    assert np.abs(got - jax_version).max() > 0.1


@pytest.mark.torch
@pytest.mark.parametrize(
    ("source", "size"), [(14, (16, 16)), (14, (24, 24)), (16, (24, 24)), (24, (480, 640))]
)
def test_bicubic_equals_live_pytorch(source, size):
    pytest.importorskip("torch")
    x = draw(3, source, source)
    got = resize_bicubic(x, height=size[0], width=size[1])
    # PyTorch rounds the coordinates to float32, which shows at 640 pixels; ours are exact.
    np.testing.assert_allclose(got, torch_resize(x, size), atol=2e-5, rtol=0)


def test_bicubic_weights_sum_to_one_and_same_size_is_the_identity():
    np.testing.assert_allclose(bicubic_matrix(24, 7).sum(1), np.ones(24), atol=1e-6)
    np.testing.assert_array_equal(bicubic_matrix(9, 9), np.eye(9))
    assert bicubic_matrix(3, 1).tolist() == [[1.0], [1.0], [1.0]]


def test_resize_positions_keeps_the_class_token_and_the_order_of_patches():
    positions = draw(1, 1 + 9, 4)
    got = resize_positions(positions, grid=5)
    np.testing.assert_array_equal(got[:, 0], positions[:, 0])
    want = resize_bicubic(positions[0, 1:].reshape(3, 3, 4).transpose(2, 0, 1), height=5, width=5)
    np.testing.assert_allclose(got[0, 1:].reshape(5, 5, 4).transpose(2, 0, 1), want, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(1, 8, 4\) are not 1 \+ a square grid"):
        resize_positions(draw(1, 8, 4), grid=5)


@pytest.mark.parametrize(("size", "parameters"), [(224, 85_798_656), (256, 85_844_736), (384, 86_090_496)])
def test_parameters_of_vit_b_16(size, parameters):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    assert count(VisionTransformer(image_size=size), image) == parameters


def test_scan_and_remat_keep_outputs_and_gradients():
    params = seeded(VIT, IMAGE)

    def value_and_grad(module, p):
        return jax.value_and_grad(lambda p: jnp.square(jnp.sin(run(module, p))).sum())(p)

    want = value_and_grad(VIT, params)
    module = VIT.clone(scan=True, remat="names")
    got, grads = value_and_grad(module, stack_layers(params, seeded(module, IMAGE)))
    np.testing.assert_allclose(got, want[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), unstack_layers(grads), want[1])


def test_another_width_gets_an_adapter():
    module = VIT.clone(out_width=24)
    shapes = seeded(module, IMAGE)
    assert shapes["adapter"]["kernel"].shape == (16, 24)
    assert run(module, shapes).shape == (2, 10, 24)
    assert "adapter" not in seeded(VIT.clone(out_width=16), IMAGE)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="image is 8x12 but the model was built with image_size=12"):
        VIT.init(jax.random.key(0), IMAGE[:, :8])
    with pytest.raises(ValueError, match="image_size=12 is not a multiple of patch=5"):
        VIT.clone(patch=5).init(jax.random.key(0), IMAGE)


if __name__ == "__main__":
    record_main("vit", record)
