"""Name tables of Vision Transformers: DeiT and timm, Hugging Face on disk, and Hugging Face in memory."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from jaxvl.interop.files import WeightsError, unflatten
from jaxvl.interop.names import (
    Decoder,
    Row,
    find_prefix,
    foreign_error,
    layer_count,
    links,
    named_arrays,
)
from jaxvl.interop.report import Imported, require

TIMM = (
    Row("cls_token", "cls_token", "array"),
    Row("pos_embed", "pos_embed", "array"),
    Row("patch_embed.proj", "patch_embed", "conv"),
    Row("blocks.{n}.norm1", "blocks_{i}/norm1", "norm"),
    Row("blocks.{n}.attn.qkv", tuple(f"blocks_{{i}}/attn/{p}" for p in ("query", "key", "value")), "qkv"),
    Row("blocks.{n}.attn.proj", "blocks_{i}/attn/out", "dense"),
    Row("blocks.{n}.norm2", "blocks_{i}/norm2", "norm"),
    Row("blocks.{n}.mlp.fc1", "blocks_{i}/mlp/fc1", "dense"),
    Row("blocks.{n}.mlp.fc2", "blocks_{i}/mlp/fc2", "dense"),
    Row("norm", "norm", "norm"),
)
_HF = (
    Row("embeddings.cls_token", "cls_token", "array"),
    Row("embeddings.position_embeddings", "pos_embed", "array"),
    Row("embeddings.patch_embeddings.projection", "patch_embed", "conv"),
    Row("layernorm", "norm", "norm"),
)
HF_FILE = (
    *_HF,
    Row("encoder.layer.{n}.layernorm_before", "blocks_{i}/norm1", "norm"),
    Row("encoder.layer.{n}.attention.attention.query", "blocks_{i}/attn/query", "dense"),
    Row("encoder.layer.{n}.attention.attention.key", "blocks_{i}/attn/key", "dense"),
    Row("encoder.layer.{n}.attention.attention.value", "blocks_{i}/attn/value", "dense"),
    Row("encoder.layer.{n}.attention.output.dense", "blocks_{i}/attn/out", "dense"),
    Row("encoder.layer.{n}.layernorm_after", "blocks_{i}/norm2", "norm"),
    Row("encoder.layer.{n}.intermediate.dense", "blocks_{i}/mlp/fc1", "dense"),
    Row("encoder.layer.{n}.output.dense", "blocks_{i}/mlp/fc2", "dense"),
)
HF_MEMORY = (
    *_HF,
    Row("layers.{n}.layernorm_before", "blocks_{i}/norm1", "norm"),
    Row("layers.{n}.attention.q_proj", "blocks_{i}/attn/query", "dense"),
    Row("layers.{n}.attention.k_proj", "blocks_{i}/attn/key", "dense"),
    Row("layers.{n}.attention.v_proj", "blocks_{i}/attn/value", "dense"),
    Row("layers.{n}.attention.o_proj", "blocks_{i}/attn/out", "dense"),
    Row("layers.{n}.layernorm_after", "blocks_{i}/norm2", "norm"),
    Row("layers.{n}.mlp.fc1", "blocks_{i}/mlp/fc1", "dense"),
    Row("layers.{n}.mlp.fc2", "blocks_{i}/mlp/fc2", "dense"),
)
DIALECTS: tuple[
    tuple[str, tuple[Row, ...], str], ...
] = (  # a tensor that only this dialect has, its table, where layers are numbered
    ("blocks.0.attn.qkv.weight", TIMM, r"blocks\.(\d+)\."),
    ("encoder.layer.0.layernorm_before.weight", HF_FILE, r"encoder\.layer\.(\d+)\."),
    ("layers.0.attention.q_proj.weight", HF_MEMORY, r"layers\.(\d+)\."),
)
PREFIXES = ("", "vit.")
UNUSED = r"(head|classifier|cls_classifier|pooler|pre_logits)\..*|embeddings\.mask_token"
DISTILLED = r"(.*\.)?(dist_token|distillation_token)|(head_dist|distillation_classifier)\..*"


def import_vit(state: Mapping[str, Any], *, strict: bool = True) -> Imported:
    """A Vision Transformer as `visual_encoder`; classification heads are left out.

    Args:
      state: names and arrays of DeiT, timm or Hugging Face (names on disk or in memory).
      strict: fail on any missing or unknown name.

    Raises:
      WeightsError: not a ViT of these kinds, a distilled one, or (strict) missing or unknown names.
    """
    arrays = named_arrays(state)
    refuse_distilled(arrays)
    prefix, rows, numbered = _dialect(arrays)
    decoder = Decoder({name.removeprefix(prefix): array for name, array in arrays.items()})
    table = links(rows, ours="visual_encoder/", count=layer_count(decoder.state, numbered))
    decoder.take(table)
    decoder.ignore([name for name in decoder.state if re.fullmatch(UNUSED, name)], "classification head")
    report = decoder.report()
    if strict:
        require(report, optional="", expected=[link.foreign for link in table])
    return Imported(unflatten(decoder.arrays), None, None, report)


def _dialect(names: Collection[str]) -> tuple[str, tuple[Row, ...], str]:
    """Prefix of all names, table, and the pattern that numbers layers."""
    for marker, rows, numbered in DIALECTS:
        prefix = find_prefix(names, marker, PREFIXES)
        if prefix is not None:
            return prefix, rows, numbered
    raise foreign_error(names, "a ViT of DeiT, timm or Hugging Face")


def refuse_distilled(names: Collection[str]) -> None:
    """Raise WeightsError for a distilled DeiT, whose second special token shifts every position."""
    found = [name for name in names if re.fullmatch(DISTILLED, name)]
    if found:
        raise WeightsError(
            f"{found[0]!r}: a distilled DeiT, which has a second special token that jaxvl's encoder lacks; "
            "use the file without 'distilled' in its name (deit_base_patch16_224)"
        )
