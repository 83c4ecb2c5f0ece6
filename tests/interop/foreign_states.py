"""Tiny random state dicts in the names of other libraries, written out from their published layouts."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

State = dict[str, np.ndarray]
D, MLP, VOCAB, POSITIONS, PATCH = 4, 6, 11, 7, 2


def dense(rng: np.random.Generator, name: str, out: int, into: int) -> State:
    return {f"{name}.weight": normal(rng, out, into), f"{name}.bias": normal(rng, out)}


def norm(rng: np.random.Generator, name: str) -> State:
    return {f"{name}.weight": normal(rng, D), f"{name}.bias": normal(rng, D)}


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.asarray(rng.normal(size=shape), np.float32)


def vit(rng: np.random.Generator, prefix: str = "", *, blocks: int = 2) -> State:
    """DeiT / timm / ALBEF names."""
    state = {
        prefix + "cls_token": normal(rng, 1, 1, D),
        prefix + "pos_embed": normal(rng, 1, 5, D),
        prefix + "patch_embed.proj.weight": normal(rng, D, 3, PATCH, PATCH),
        prefix + "patch_embed.proj.bias": normal(rng, D),
    }
    for i in range(blocks):
        block = f"{prefix}blocks.{i}."
        state |= norm(rng, block + "norm1") | norm(rng, block + "norm2")
        state |= dense(rng, block + "attn.qkv", 3 * D, D) | dense(rng, block + "attn.proj", D, D)
        state |= dense(rng, block + "mlp.fc1", MLP, D) | dense(rng, block + "mlp.fc2", D, MLP)
    return state | norm(rng, prefix + "norm")


def hf_vit(rng: np.random.Generator, prefix: str = "", *, memory: bool = False) -> State:
    """Hugging Face ViT of 2 layers, in the names of its files or in those that transformers 5 uses in memory."""
    layer, parts = ("layers.{i}.", "qkvo") if memory else ("encoder.layer.{i}.", ("query", "key", "value"))
    names = (
        [f"attention.{p}_proj" for p in parts] + ["mlp.fc1", "mlp.fc2"]
        if memory
        else [f"attention.attention.{p}" for p in parts]
        + ["attention.output.dense", "intermediate.dense", "output.dense"]
    )
    state = {
        prefix + "embeddings.cls_token": normal(rng, 1, 1, D),
        prefix + "embeddings.position_embeddings": normal(rng, 1, 5, D),
        prefix + "embeddings.patch_embeddings.projection.weight": normal(rng, D, 3, PATCH, PATCH),
        prefix + "embeddings.patch_embeddings.projection.bias": normal(rng, D),
    }
    for i in range(2):
        here = prefix + layer.format(i=i)
        for name, (out, into) in zip(names, [(D, D)] * 4 + [(MLP, D), (D, MLP)], strict=True):
            state |= dense(rng, here + name, out, into)
        state |= norm(rng, here + "layernorm_before") | norm(rng, here + "layernorm_after")
    return state | norm(rng, prefix + "layernorm")


def bert(rng: np.random.Generator, prefix: str = "", *, layers: int = 4, cross: int | None = None) -> State:
    """BERT's body; layers from `cross` on have cross attention."""
    state = {
        prefix + "embeddings.word_embeddings.weight": normal(rng, VOCAB, D),
        prefix + "embeddings.position_embeddings.weight": normal(rng, POSITIONS, D),
        prefix + "embeddings.token_type_embeddings.weight": normal(rng, 2, D),
        prefix + "embeddings.position_ids": np.arange(POSITIONS)[None],
    }
    state |= norm(rng, prefix + "embeddings.LayerNorm")
    for n in range(layers):
        layer = f"{prefix}encoder.layer.{n}."
        for attention in ["attention"] + ["crossattention"] * (cross is not None and n >= cross):
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                state |= dense(rng, f"{layer}{attention}.{part}", D, D)
            state |= norm(rng, f"{layer}{attention}.output.LayerNorm")
        state |= dense(rng, layer + "intermediate.dense", MLP, D) | dense(rng, layer + "output.dense", D, MLP)
        state |= norm(rng, layer + "output.LayerNorm")
    return state


def mlm_head(rng: np.random.Generator, word: np.ndarray, prefix: str = "") -> State:
    """BERT's language-model head with the tied decoder that files repeat."""
    bias = normal(rng, VOCAB)
    head = prefix + "cls.predictions."
    state = {head + "bias": bias, head + "decoder.weight": word, head + "decoder.bias": bias}
    return state | dense(rng, head + "transform.dense", D, D) | norm(rng, head + "transform.LayerNorm")


def albef_towers(rng: np.random.Generator, copy: str = "", *, infix: str = "bert.") -> State:
    """Vision and text encoder with 2 + 2 layers, and the language-model head if there is an infix."""
    text = f"text_encoder{copy}."
    state = vit(rng, f"visual_encoder{copy}.") | bert(rng, text + infix, cross=2)
    if infix:
        word = state[text + infix + "embeddings.word_embeddings.weight"]
        state |= mlm_head(rng, word, text)
    return state


def albef_pretrained(rng: np.random.Generator) -> State:
    """Pre-training file with momentum copy and queue."""
    state = albef_towers(rng) | albef_towers(rng, "_m")
    for name in ("vision_proj", "text_proj", "vision_proj_m", "text_proj_m"):
        state |= dense(rng, name, 3, D)
    state |= dense(rng, "itm_head", 2, D) | {"temp": normal(rng)}
    return state | {
        "image_queue": normal(rng, 3, 8),
        "text_queue": normal(rng, 3, 8),
        "queue_ptr": np.array([4]),
    }


def albef_retrieval(rng: np.random.Generator) -> State:
    """Retrieval or grounding file: no infix, no language-model head, image ids in the queue."""
    state = {k: v for k, v in albef_pretrained(rng).items() if not k.startswith("text_encoder")}
    for copy in ("", "_m"):
        state |= bert(rng, f"text_encoder{copy}.", cross=2)
    return state | {"idx_queue": np.arange(8)[None] - 100}


def albef_vqa(rng: np.random.Generator) -> State:
    """VQA file: an answer decoder of 3 layers."""
    state: State = {}
    for copy in ("", "_m"):
        state |= albef_towers(rng, copy, infix="")
        body = bert(rng, f"text_decoder{copy}.bert.", layers=3, cross=0)
        word = body[f"text_decoder{copy}.bert.embeddings.word_embeddings.weight"]
        state |= body | mlm_head(rng, word, f"text_decoder{copy}.")
    return state


def assert_same(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> None:
    """Equal names, types, shapes and bits."""
    assert sorted(left) == sorted(right)
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        assert array.shape == right[name].shape, name
        assert array.tobytes() == right[name].tobytes(), name


def pickled_tensor(
    key: str, kind: str, size: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
):
    """Opcodes with which torch describes one tensor; `size` is that of its storage."""
    storage = b"(Vstorage\nctorch\n%s\nV%s\nVcpu\nI%d\ntQ" % (kind.encode(), key.encode(), size)
    numbers = b"I%d\n" % offset + b"".join(
        b"(" + b"".join(b"I%d\n" % n for n in t) + b"t" for t in (shape, strides)
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"I00\n" + hooks + b"tR"


def pickled_dict(entries: Mapping[str, bytes]) -> bytes:
    """Opcodes of a dictionary whose values are opcodes."""
    return b"}" + b"".join(b"V%s\n%ss" % (name.encode(), value) for name, value in entries.items())


def write_zip(
    path: Path, program: bytes, storages: Mapping[str, bytes], *, byteorder: str = "little", packed=False
):
    """A file as torch >= 1.6 writes it: `program` are the opcodes of its description."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path
