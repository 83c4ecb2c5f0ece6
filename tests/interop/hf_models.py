"""Tiny models of transformers with every parameter moved, and jaxvl's models of the same sizes.

Functions that make or run a model of transformers need PyTorch; the rest does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvl.models.bridge_tower import BridgeTower
from jaxvl.models.vilt import ViLT

WIDTH, LAYERS, CROSS, VOCAB = 128, 5, 3, 99
TEXT = dict(
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    intermediate_size=192,
    vocab_size=VOCAB,
    max_position_embeddings=50,
)
VISION = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, patch_size=32, image_size=96)
BRIDGE_TOWER = BridgeTower(
    vocab_size=VOCAB,
    width=WIDTH,
    heads=4,
    mlp=192,
    image_size=96,
    text=dict(arch="roberta", depth=LAYERS, max_positions=50),
    vision=dict(arch="clip", depth=LAYERS, heads=2, mlp=4 * WIDTH),
    cross=dict(depth=CROSS, order="post", eps=1e-5),
    embed_dim=7,
)
VILT_SIZES = dict(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, vocab_size=VOCAB
)
VILT = ViLT(vocab_size=VOCAB, width=32, depth=3, heads=4, mlp=48)

RNG = np.random.default_rng(0)
IDS = RNG.integers(3, VOCAB, (3, 7))
MASK = np.arange(7) < np.array([7, 4, 2])[:, None]
IDS[~MASK] = 1  # RoBERTa's padding
IMAGE = RNG.standard_normal((3, 96, 96, 3), np.float32)
LARGE = RNG.standard_normal((2, 3, 224, 224, 3), np.float32)  # two images per text, for ViLT


def perturbed(make: Any, config: Any) -> Any:
    """A model of transformers in which no scale is 1 and no bias 0.

    It computes in float64: in float32 its patch convolution alone is off by up to 7e-6 (ours by 2e-6).
    """
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = make(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.double()


def state_of(model: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def hf_bridgetower(name: str = "BridgeTowerModel", **kwargs: Any) -> Any:
    """A class of transformers in the sizes of `BRIDGE_TOWER`."""
    import transformers

    config = transformers.BridgeTowerConfig(
        hidden_size=WIDTH,
        num_attention_heads=4,
        num_hidden_layers=CROSS,
        text_config=TEXT,
        vision_config=VISION,
        **kwargs,
    )
    config.contrastive_hidden_size, config.logit_scale_init_value = 7, 2.6592
    return perturbed(getattr(transformers, name), config)


def hf_vilt(name: str = "ViltModel", *, image_size: int = 384, **kwargs: Any) -> Any:
    """A class of transformers in the sizes of `VILT`, with the positions of `image_size` pixels."""
    import transformers

    config = transformers.ViltConfig(
        image_size=image_size, patch_size=32, attn_implementation="eager", **VILT_SIZES, **kwargs
    )
    return perturbed(getattr(transformers, name), config)


def cross_first(self, x, other, attention_mask=None, encoder_attention_mask=None, **_):
    """BridgeTowerBertCrossLayer.forward with cross-attention before self-attention: the order "pre"."""
    kwargs = dict(encoder_hidden_states=other, encoder_attention_mask=encoder_attention_mask)
    x = self.crossattention(x, attention_mask=attention_mask, **kwargs)[0]
    x, weights = self.attention(x, attention_mask=attention_mask)[:2]
    return self.feed_forward_chunk(x), weights, weights


def run_hf(model: Any, image: np.ndarray = IMAGE, **kwargs: Any) -> Any:
    """Outputs for `IDS` and `image [...,H,W,3]`."""
    import torch

    pixels = torch.tensor(np.moveaxis(image, -1, -3).copy()).to(model.dtype)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(IDS),
            attention_mask=torch.tensor(MASK).long(),
            pixel_values=pixels,
            **kwargs,
        )


def drawn(model: Any, image: np.ndarray) -> dict[str, Any]:
    """Parameters from numpy, equal on every machine, about as large as trained ones."""
    init = lambda: model.init(jax.random.key(0), image, IDS, MASK)  # noqa: E731
    rng, out = np.random.default_rng(0), {}
    for path, leaf in sorted(flatten_dict(nn.unbox(jax.eval_shape(init))["params"]).items()):
        x = 0.06 * rng.standard_normal(leaf.shape, np.float32)
        out[path] = 1 + x if path[-1] == "scale" else x
    return unflatten_dict(out)


def run(model: Any, params: Mapping[str, Any], method: Any, *args: Any, **kwargs: Any) -> Any:
    """`method(model, *args)` with `params`, as exactly as the machine can."""
    with jax.default_matmul_precision("highest"):
        apply = partial(model.apply, method=partial(method, **kwargs))
        return jax.jit(apply)({"params": params}, *args)


def fuse(model: Any, image: Any, text: Any, mask: Any, **kwargs: Any) -> Any:
    """`Fused` of a text and an image."""
    return model.fuse(model.encode_text(text, mask), mask, model.encode_image(image), **kwargs)


def close(got: Any, want: Any, tolerance: float) -> None:
    """Largest difference at most `tolerance`, pads included."""
    if hasattr(want, "detach"):
        want = want.detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
