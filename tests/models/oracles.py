"""Shared by the model tests: seeded parameters, small Hugging Face models that hold them, recorded outputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

DATA = Path(__file__).resolve().parents[1] / "data"
SIZES = dict(vocab_size=23, width=16, heads=2, mlp=32, max_positions=12)


def seeded(module: nn.Module, *args: Any, **kwargs: Any) -> dict:
    """Parameters of `module` drawn from numpy, biases and norms too, so that they are equal on every machine."""
    shapes = nn.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs)))["params"]
    rng, out = np.random.default_rng(0), {}
    for path, leaf in sorted(flatten_dict(shapes).items()):
        x = rng.standard_normal(leaf.shape, np.float32)
        out[path] = 1 + 0.2 * x if path[-1] == "scale" else 0.2 * x
    return unflatten_dict(out)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def draw_ids(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, SIZES["vocab_size"], shape, np.int32)


def lengths_mask(length: int, *lengths: int) -> np.ndarray:
    return np.arange(length) < np.array(lengths)[:, None]


def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def record_main(name: str, record: Callable[[], dict[str, np.ndarray]]) -> None:
    """`python test_x.py --record` rewrites tests/data/<name>.npz from PyTorch."""
    if sys.argv[1:] != ["--record"]:
        raise SystemExit(f"usage: {sys.argv[0]} --record")
    DATA.mkdir(exist_ok=True)
    np.savez_compressed(DATA / f"{name}.npz", **record())


def fill_dense(module: Any, p: dict) -> None:
    import torch

    module.weight.data = torch.tensor(np.asarray(p["kernel"]).T.copy())
    module.bias.data = torch.tensor(np.asarray(p["bias"]))


def fill_norm(module: Any, p: dict) -> None:
    import torch

    module.weight.data = torch.tensor(np.asarray(p["scale"]))
    module.bias.data = torch.tensor(np.asarray(p["bias"]))


def fill_table(module: Any, p: dict) -> None:
    import torch

    module.weight.data = torch.tensor(np.asarray(p["embedding"]))


def fill_attention(module: Any, p: dict) -> None:
    """`module` is a BertAttention."""
    for name in ("query", "key", "value"):
        fill_dense(getattr(module.self, name), p[name])
    fill_dense(module.output.dense, p["out"])
    fill_norm(module.output.LayerNorm, p["norm"])


def fill_bert(bert: Any, embeddings: dict | None, layers: dict) -> None:
    """Copy embeddings (None = an embedding that passes `inputs_embeds` on) and `layers_i` into a BertModel."""
    if embeddings is not None:
        fill_table(bert.embeddings.word_embeddings, embeddings["word"])
        fill_table(bert.embeddings.position_embeddings, embeddings["position"])
        fill_table(bert.embeddings.token_type_embeddings, embeddings["token_type"])
        fill_norm(bert.embeddings.LayerNorm, embeddings["norm"])
    for i, layer in enumerate(bert.encoder.layer):
        p = layers[f"layers_{i}"]
        fill_attention(layer.attention, p["attention"])
        if "cross_attention" in p:
            fill_attention(layer.crossattention, p["cross_attention"])
        fill_dense(layer.intermediate.dense, p["ffn"]["up"])
        fill_dense(layer.output.dense, p["ffn"]["down"])
        fill_norm(layer.output.LayerNorm, p["ffn"]["norm"])


def bert_config(depth: int, *, cross: bool = False) -> Any:
    """The Hugging Face config of `SIZES`, with eager attention and `depth` layers."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=SIZES["vocab_size"],
        hidden_size=SIZES["width"],
        num_hidden_layers=depth,
        num_attention_heads=SIZES["heads"],
        intermediate_size=SIZES["mlp"],
        max_position_embeddings=SIZES["max_positions"],
        is_decoder=cross,
        add_cross_attention=cross,
        attn_implementation="eager",
    )
