"""EfficientNets in the names of EfficientNet-PyTorch, drawn from numpy, and what PyTorch computes with them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxvl.models.efficientnet import EfficientNet, Stage

STAGES = (Stage(1, 3, 1, 1, 4), Stage(2, 5, 2, 3, 6), Stage(1, 3, 2, 2, 6))
SMALL = EfficientNet(stages=STAGES, stem=4, head=8, classes=5)
State = dict[str, np.ndarray]
DATA = Path(__file__).resolve().parent / "data"


def recorded(name: str) -> State:
    """What PyTorch computed."""
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def record_main(name: str, record: Callable[[], State]) -> None:
    """`PYTHONPATH=tests python test_x.py --record` rewrites tests/data/<name>.npz with PyTorch."""
    if sys.argv[1:] != ["--record"]:
        raise SystemExit(f"usage: {sys.argv[0]} --record")
    np.savez_compressed(DATA / f"{name}.npz", **record())


def small_state(seed: int = 0) -> State:
    """Weights of `SMALL`, statistics too."""
    rng = np.random.default_rng(seed)
    state = conv(rng, "_conv_stem", 4, 3, 3) | norm(rng, "_bn0", 4)
    channels, i = 4, 0
    for stage in STAGES:
        for _ in range(stage.repeats):
            state |= block(rng, f"_blocks.{i}.", channels, stage)
            channels, i = stage.width, i + 1
    state |= conv(rng, "_conv_head", 8, channels, 1) | norm(rng, "_bn1", 8)
    return state | {"_fc.weight": _draw(rng, 5, 8), "_fc.bias": _draw(rng, 5)}


def block(rng: np.random.Generator, name: str, channels: int, stage: Stage) -> State:
    hidden, state = channels * stage.expand, {}
    if stage.expand != 1:
        state = conv(rng, name + "_expand_conv", hidden, channels, 1) | norm(rng, name + "_bn0", hidden)
    state |= conv(rng, name + "_depthwise_conv", hidden, 1, stage.kernel) | norm(rng, name + "_bn1", hidden)
    return (
        state
        | conv(rng, name + "_project_conv", stage.width, hidden, 1)
        | norm(rng, name + "_bn2", stage.width)
    )


def conv(rng: np.random.Generator, name: str, out: int, inputs: int, side: int) -> State:
    return {f"{name}.weight": _draw(rng, out, inputs, side, side)}


def norm(rng: np.random.Generator, name: str, width: int) -> State:
    parts = {part: 1 + 0.3 * _draw(rng, width) for part in ("weight", "bias", "running_mean")}
    parts["running_var"] = rng.uniform(0.5, 2, width).astype(np.float32)
    return {f"{name}.{part}": array for part, array in parts.items()}


def _draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def torch_efficientnet(state: Mapping[str, np.ndarray], image: np.ndarray, stages: Sequence[Stage]) -> State:
    """`map` and `logits` that PyTorch's operators give, in the order that the names say; TensorFlow's padding."""
    import torch
    from torch.nn import functional as F

    weights = {name: torch.tensor(np.asarray(array, np.float32)) for name, array in state.items()}

    def same(x, name, stride=1):
        weight = weights[name + ".weight"]
        pads = [
            max((-(-n // stride) - 1) * stride + weight.shape[-1] - n, 0) for n in (x.shape[3], x.shape[2])
        ]
        x = F.pad(x, [side for pad in pads for side in (pad // 2, pad - pad // 2)])
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    def bn(x, name):
        mean, var = weights[name + ".running_mean"], weights[name + ".running_var"]
        return F.batch_norm(x, mean, var, weights[name + ".weight"], weights[name + ".bias"], eps=1e-3)

    with torch.no_grad():
        x = F.relu6(bn(same(torch.tensor(image).permute(0, 3, 1, 2), "_conv_stem", 2), "_bn0"))
        strides = [s.stride if first == 0 else 1 for s in stages for first in range(s.repeats)]
        for i, stride in enumerate(strides):
            y, name = x, f"_blocks.{i}."
            if name + "_expand_conv.weight" in weights:
                y = F.relu6(bn(same(y, name + "_expand_conv"), name + "_bn0"))
            y = F.relu6(bn(same(y, name + "_depthwise_conv", stride), name + "_bn1"))
            y = bn(same(y, name + "_project_conv"), name + "_bn2")
            x = x + y if x.shape == y.shape else y
        x = F.relu6(bn(same(x, "_conv_head"), "_bn1"))
        logits = F.linear(x.mean((2, 3)), weights["_fc.weight"], weights["_fc.bias"])
    return {"map": x.permute(0, 2, 3, 1).numpy(), "logits": logits.numpy()}
