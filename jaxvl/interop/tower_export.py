"""Export of one tower of a dual encoder, whatever joins the two: text as BERT or RoBERTa, vision as ViT or CLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jaxvl.interop import clip, vit
from jaxvl.interop.bert import EMBEDDINGS, LAYER, MLM_HEAD, WORD
from jaxvl.interop.files import Tensors, WeightsError, flatten
from jaxvl.interop.names import TRANSPOSE, Link, Row, encode_all, layer_count, links
from jaxvl.interop.text import KERNEL, ROBERTA_HEAD, add_tied_decoder

TEXT, VISION = "text_encoder/", "visual_encoder/"
# kind of tower, names -> table, prefix of its names
VISION_TABLES: Mapping[tuple[str, str], tuple[tuple[Row, ...], str]] = {
    ("vit", "hf"): (vit.HF_FILE, "vit."),
    ("vit", "original"): (vit.TIMM, ""),
    ("clip", "hf"): (clip.HF_CLIP, "vision_model."),
    ("clip", "original"): (clip.OPENAI, "visual."),
}


def export_text_tower(params: Mapping[str, Any], *, head: bool = False) -> Tensors:
    """The text tower under Hugging Face's names, bit for bit; a tower with one token type is a RoBERTa, else a BERT.

    All else in `params` stays behind: bridge, vision tower, heads.

    Args:
      params: canonical parameters with unrolled layers, of any interaction.
      head: write `mlm_head` too. It has learnt to read the states of the cross-modal encoder, not the tower's: the file
        is for a round trip or as a start.

    Raises:
      WeightsError: a tower of ViLT, none at all, one that lacks a tensor or has one without a name in this format.
    """
    arrays = _below(params, TEXT, whole="export_vilt")
    kind_rows = arrays.get(TEXT + "embeddings/token_type/embedding")
    roberta = kind_rows is not None and len(kind_rows) == 1
    kind, prefix = ("RoBERTa", "roberta.") if roberta else ("BERT", "bert.")
    count = layer_count(arrays, TEXT + r"layers_(\d+)/")
    table = links((*EMBEDDINGS, *LAYER), foreign=prefix, ours=TEXT, count=count)
    if not head:
        return _complete(arrays, table, kind)
    rows = ROBERTA_HEAD if roberta else MLM_HEAD
    arrays |= {path: array for path, array in flatten(params).items() if path.startswith("mlm_head/")}
    name = rows[-1].foreign.removesuffix("bias")
    decoder = (Link(name + "decoder.weight", (KERNEL,), TRANSPOSE),) if KERNEL in arrays else ()
    tensors = _complete(arrays, table + links(rows) + decoder, kind)
    add_tied_decoder(tensors, head=name, words=prefix + WORD)
    return tensors


def export_vision_tower(params: Mapping[str, Any], *, names: str = "hf") -> Tensors:
    """The vision tower, bit for bit; one with a norm before its blocks is a CLIP, else a ViT.

    The position grid stays the model's: read the file into a class of that image size. All else in `params` stays
    behind.

    Args:
      params: canonical parameters with unrolled blocks, of any interaction.
      names: "hf", or "original": timm's of a ViT, OpenAI's of a CLIP.

    Raises:
      WeightsError: a tower of ViLT, none at all, one that lacks a tensor or has one without a name in this format.
    """
    arrays = _below(params, VISION, whole="export_vilt")
    kind = "clip" if VISION + "norm_pre/scale" in arrays else "vit"
    if (kind, names) not in VISION_TABLES:
        raise WeightsError(f"names={names!r}: expected 'hf' or 'original'")
    rows, prefix = VISION_TABLES[kind, names]
    count = layer_count(arrays, VISION + r"blocks_(\d+)/")
    return _complete(arrays, links(rows, foreign=prefix, ours=VISION, count=count), kind)


def _below(params: Mapping[str, Any], prefix: str, *, whole: str) -> Tensors:
    """The tensors of the tower at `prefix`."""
    arrays = {path: array for path, array in flatten(params).items() if path.startswith(prefix)}
    if not arrays:
        raise WeightsError(f"params have no {prefix.rstrip('/')} (they have {', '.join(sorted(params))})")
    ours = [path for path in arrays if re.match(rf"{prefix}((embeddings/)?modality/|blocks_\d+/)", path)]
    if any("modality/" in path for path in ours) or (prefix == TEXT and ours):
        raise WeightsError(f"{ours[0]!r}: a tower of ViLT is no model of its own elsewhere; see {whole}")
    return arrays


def _complete(arrays: Tensors, table: tuple[Link, ...], kind: str) -> Tensors:
    """`encode_all`, where every link must be filled."""
    tensors = encode_all(arrays, table, "params", kind=kind)
    lost = [link.ours[0] for link in table if link.foreign not in tensors]
    if lost:
        raise WeightsError(f"params lack {lost[0]!r}, which a {kind} has; {len(lost)} such tensors")
    return tensors
