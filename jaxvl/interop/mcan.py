"""Name tables of MCAN (`MILVLG/openvqa`, and the older `MILVLG/mcan-vqa`), its import and its export.

Both releases hold the same tensors; the older one calls the projection of the regions `img_feat_linear`. It trained
with a sigmoid inside the network and the cross entropy of probabilities, which is the same function as ours of logits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from jaxvl.interop import shapes
from jaxvl.interop.files import Tensors, WeightsError, flatten, unflatten
from jaxvl.interop.names import (
    TRANSPOSE,
    Decoder,
    Link,
    Row,
    encode_all,
    foreign_error,
    layer_count,
    links,
    named_arrays,
)
from jaxvl.interop.report import Imported, require

ADAPTERS = {"openvqa": "adapter.frcn_linear", "mcan-vqa": "img_feat_linear"}
PROJECTION = "image_proj"
WORDS = "embedding.weight"
NUMBERED = r"backbone\.(?:enc|dec)_list\.(\d+)\."


def _norm(foreign: str, ours: str) -> tuple[Row, ...]:
    return Row(f"{foreign}.a_2", f"{ours}/scale", "array"), Row(f"{foreign}.b_2", f"{ours}/bias", "array")


def _attention(foreign: str, ours: str) -> tuple[Row, ...]:
    parts = {"v": "value", "k": "key", "q": "query", "merge": "out"}
    return tuple(Row(f"{foreign}.linear_{a}", f"{ours}/{b}", "dense") for a, b in parts.items())


def _ffn(foreign: str, ours: str) -> tuple[Row, ...]:
    return (
        Row(f"{foreign}.fc.linear", f"{ours}/fc1", "dense"),
        Row(f"{foreign}.linear", f"{ours}/fc2", "dense"),
    )


def _flat(foreign: str, ours: str) -> tuple[Row, ...]:
    return *_ffn(f"{foreign}.mlp", f"{ours}/mlp"), Row(f"{foreign}.linear_merge", f"{ours}/out", "dense")


ENC, DEC = "backbone.enc_list.{n}.", "backbone.dec_list.{n}."
ROWS = (
    Row("embedding", "word_embedding", "table"),
    *_attention(ENC + "mhatt", "encoder_{i}/attn"),
    *_ffn(ENC + "ffn.mlp", "encoder_{i}/ffn"),
    *(row for k in (1, 2) for row in _norm(f"{ENC}norm{k}", f"encoder_{{i}}/norm{k}")),
    *_attention(DEC + "mhatt1", "decoder_{i}/self_attn"),
    *_attention(DEC + "mhatt2", "decoder_{i}/guided_attn"),
    *_ffn(DEC + "ffn.mlp", "decoder_{i}/ffn"),
    *(row for k in (1, 2, 3) for row in _norm(f"{DEC}norm{k}", f"decoder_{{i}}/norm{k}")),
    *_flat("attflat_img", "flat_image"),
    *_flat("attflat_lang", "flat_text"),
    *_norm("proj_norm", "norm"),
    Row("proj", "class_head", "dense"),
)
LSTM = tuple(
    link
    for side in ("ih", "hh")
    for link in (
        Link(f"lstm.weight_{side}_l0", (f"lstm/{side}/kernel",), TRANSPOSE),
        Link(f"lstm.bias_{side}_l0", (f"lstm/{side}/bias",)),
    )
)
RULES: shapes.Rules = (
    (r"word_embedding/embedding", "vocabulary E"),
    (r"lstm/ih/kernel", "E 4D"),
    (r"lstm/hh/kernel", "D 4D"),
    (r"lstm/.*/bias", "4D"),
    (r"image_proj/kernel", "features D"),
    (r"image_proj/bias", "D"),
    *shapes.encoder_rules(r"(encoder|decoder)_\d+/", "D", "F"),
    (r"flat_\w+/mlp/fc1/kernel", "D hidden"),
    (r"flat_\w+/mlp/fc1/bias", "hidden"),
    (r"flat_\w+/mlp/fc2/kernel", "hidden 1"),
    (r"flat_\w+/mlp/fc2/bias", "1"),
    (r"flat_\w+/out/kernel", "D flat"),
    (r"(flat_\w+/out|norm)/(bias|scale)", "flat"),
    (r"class_head/kernel", "flat classes"),
    (r"class_head/bias", "classes"),
)


def import_mcan(state: Mapping[str, Any], *, strict: bool = True) -> Imported:
    """MCAN's parameters in jaxvl's names: what `models.mcan.MCAN` holds.

    Sizes are the file's: build the model with its vocabulary, answers and feature width. The number of heads is in no
    tensor: 8 in the releases.

    Args:
      state: names and arrays of either release.
      strict: fail on unknown and on missing names.

    Raises:
      WeightsError: not MCAN, a misshaped tensor, or (strict) missing or unknown names.
    """
    arrays = named_arrays(state)
    decoder = Decoder(arrays)
    table = _table(release(arrays), layer_count(arrays, NUMBERED))
    decoder.take(table)
    shapes.check(decoder.arrays, decoder.mapped, RULES)
    report = decoder.report()
    if strict:
        require(report, optional="", expected=[link.foreign for link in table])
    return Imported(unflatten(decoder.arrays), None, None, report)


def export_mcan(params: Mapping[str, Any], *, names: str = "openvqa") -> Tensors:
    """The tensors of MCAN in openvqa or, with `names="mcan-vqa"`, in its older release, bit for bit.

    Raises:
      WeightsError: a parameter that has no name in this format (a loss network, for example), or an unknown `names`.
    """
    if names not in ADAPTERS:
        raise WeightsError(f"names={names!r}: expected one of {', '.join(map(repr, ADAPTERS))}")
    arrays = flatten(params)
    table = _table(names, layer_count(arrays, r"(?:en|de)coder_(\d+)/"))
    return encode_all(arrays, table, "params", kind="MCAN")


def release(names: Collection[str]) -> str:
    """Key of `ADAPTERS` of the release that a file is of.

    Raises:
      WeightsError: neither.
    """
    found = [name for name, adapter in ADAPTERS.items() if f"{adapter}.weight" in names]
    if WORDS not in names or len(found) != 1 or not layer_count(names, NUMBERED):
        raise foreign_error(names, "an MCAN of openvqa or mcan-vqa, with features of regions")
    return found[0]


def _table(names: str, count: int) -> tuple[Link, ...]:
    return links((*ROWS, Row(ADAPTERS[names], PROJECTION, "dense")), count=count) + LSTM
