"""Name tables of BERT (`transformers`, old TensorFlow-born files, sentence-transformers) and their import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxvl.interop.files import Tensors, WeightsError, unflatten
from jaxvl.interop.names import (
    Decoder,
    Link,
    Row,
    find_prefix,
    foreign_error,
    layer_count,
    links,
    named_arrays,
)
from jaxvl.interop.report import Imported, require

EMBEDDINGS = (
    Row("embeddings.word_embeddings", "embeddings/word", "table"),
    Row("embeddings.position_embeddings", "embeddings/position", "table"),
    Row("embeddings.token_type_embeddings", "embeddings/token_type", "table"),
    Row("embeddings.LayerNorm", "embeddings/norm", "norm"),
)
LAYER = (
    Row("encoder.layer.{n}.attention.self.query", "layers_{i}/attention/query", "dense"),
    Row("encoder.layer.{n}.attention.self.key", "layers_{i}/attention/key", "dense"),
    Row("encoder.layer.{n}.attention.self.value", "layers_{i}/attention/value", "dense"),
    Row("encoder.layer.{n}.attention.output.dense", "layers_{i}/attention/out", "dense"),
    Row("encoder.layer.{n}.attention.output.LayerNorm", "layers_{i}/attention/norm", "norm"),
    Row("encoder.layer.{n}.intermediate.dense", "layers_{i}/ffn/up", "dense"),
    Row("encoder.layer.{n}.output.dense", "layers_{i}/ffn/down", "dense"),
    Row("encoder.layer.{n}.output.LayerNorm", "layers_{i}/ffn/norm", "norm"),
)
CROSS = (
    Row("encoder.layer.{n}.crossattention.self.query", "layers_{i}/cross_attention/query", "dense"),
    Row("encoder.layer.{n}.crossattention.self.key", "layers_{i}/cross_attention/key", "dense"),
    Row("encoder.layer.{n}.crossattention.self.value", "layers_{i}/cross_attention/value", "dense"),
    Row("encoder.layer.{n}.crossattention.output.dense", "layers_{i}/cross_attention/out", "dense"),
    Row("encoder.layer.{n}.crossattention.output.LayerNorm", "layers_{i}/cross_attention/norm", "norm"),
)
MLM_HEAD = (
    Row("cls.predictions.transform.dense", "mlm_head/dense", "dense"),
    Row("cls.predictions.transform.LayerNorm", "mlm_head/norm", "norm"),
    Row("cls.predictions.bias", "mlm_head/bias", "array"),
)
WORD = "embeddings.word_embeddings.weight"
POSITION_IDS = "embeddings.position_ids"
DECODER = "cls.predictions.decoder.weight"
DECODER_BIAS = "cls.predictions.decoder.bias"

PREFIXES = ("bert.", "", "0.auto_model.")
UNUSED = r"pooler\..*|cls\.seq_relationship\..*|classifier\..*|qa_outputs\..*"
OPTIONAL = r"mlm_head/|fusion_encoder/layers_\d+/cross_attention/"


def import_bert(
    state: Mapping[str, Any], *, text_layers: int = 6, fusion_layers: int = 6, strict: bool = True
) -> Imported:
    """BERT's first layers as `text_encoder`, the next as `fusion_encoder`, its language-model head as `mlm_head`.

    Cross attention is not in BERT and is left out of the parameters. Layers beyond both counts are not used.

    Args:
      state: names and arrays, with or without `bert.`, norms called gamma/beta or weight/bias.
      text_layers: number of layers without images.
      fusion_layers: number of layers that follow them.
      strict: fail unless all that is missing is the language-model head and cross attention.

    Raises:
      WeightsError: not BERT, too few layers, an untied decoder, or (strict) missing or unknown names.
    """
    arrays, renamed = modern_names(named_arrays(state))
    prefix = find_prefix(arrays, WORD, PREFIXES)
    if prefix is None:
        raise foreign_error(arrays, "BERT")
    original = {name.removeprefix(prefix): name for name in arrays}
    decoder = Decoder({short: arrays[name] for short, name in original.items()})
    layers = layer_count(decoder.state, r"encoder\.layer\.(\d+)\.")
    if layers < text_layers + fusion_layers:
        raise WeightsError(
            f"the file has {layers} layers, fewer than text_layers={text_layers} + fusion_layers={fusion_layers}; "
            f"choose two numbers that add up to {layers} at most"
        )
    table = _table(text_layers, fusion_layers)
    decoder.take(table)
    decoder.adapted |= {name: _with(decoder.adapted.get(name), "gamma/beta") for name in renamed}
    drop_copies(decoder, embeddings="", head="")
    decoder.ignore([name for name in decoder.state if re.fullmatch(UNUSED, name)], "no counterpart in jaxvl")
    beyond = [n for n in decoder.state if int(_layer(n) or 0) >= text_layers + fusion_layers]
    decoder.ignore(beyond, "layer beyond text_layers + fusion_layers")
    report = decoder.report()
    if strict:
        require(report, optional=OPTIONAL, expected=[link.foreign for link in table])
    return Imported(unflatten(decoder.arrays), None, None, report)


def drop_copies(decoder: Decoder, *, embeddings: str, head: str) -> None:
    """Leave out what BERT files hold twice or compute: the tied decoder below `head`, and position numbers."""
    decoder.tied(head + DECODER, embeddings + WORD)
    decoder.tied(head + DECODER_BIAS, head + "cls.predictions.bias")
    decoder.ignore([embeddings + POSITION_IDS], "constant")


def _table(text_layers: int, fusion_layers: int) -> tuple[Link, ...]:
    fusion = links(LAYER + CROSS, ours="fusion_encoder/", count=fusion_layers, offset=text_layers)
    text = links(EMBEDDINGS, ours="text_encoder/") + links(LAYER, ours="text_encoder/", count=text_layers)
    return text + fusion + links(MLM_HEAD)


def modern_names(arrays: Tensors) -> tuple[Tensors, list[str]]:
    """Norms of files born in TensorFlow under today's names, and which those are."""
    new = {name: re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name) for name in arrays}
    new = {name: re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", n) for name, n in new.items()}
    return {new[name]: array for name, array in arrays.items()}, [n for name, n in new.items() if n != name]


def _layer(name: str) -> str | None:
    match = re.match(r"encoder\.layer\.(\d+)\.", name)
    return match[1] if match else None


def _with(note: str | None, more: str) -> str:
    return f"{note}, {more}" if note else more
