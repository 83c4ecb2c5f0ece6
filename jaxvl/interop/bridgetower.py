"""Name tables of BridgeTower (Hugging Face's classes, and the release of `microsoft/BridgeTower`), import and export.

Cross-modal layer `n` reads projection `n` and norm `n`: norm 0 is `cross_modal_text_layernorm`, norm `n` that of
`cross_modal_text_link_tower.{n-1}`, beside which the bridge's scalar stands, if it has one. The release may have a ViT
of timm for CLIP and a BERT for RoBERTa, whose names are alike.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxvl.interop import clip, shapes
from jaxvl.interop.bert import CROSS, EMBEDDINGS, LAYER
from jaxvl.interop.files import Tensors, WeightsError, flatten, unflatten
from jaxvl.interop.names import (
    TRANSPOSE,
    Codec,
    Decoder,
    Link,
    Row,
    encode_all,
    find_prefix,
    foreign_error,
    layer_count,
    links,
    named_arrays,
)
from jaxvl.interop.report import Imported, require
from jaxvl.interop.text import KERNEL, PAIR_HEAD, add_tied_decoder, leave_out, take_mlm_head
from jaxvl.interop.vilt import ITM, class_head, fit_types, one_head, task_of
from jaxvl.interop.vit import TIMM

MODALITIES = ("text", "image")
MARKER = "cross_modal_text_layers.0.attention.self.query.weight"
TEXTS = ("text_model.", "text_transformer.")  # Hugging Face, release
VISIONS: tuple[tuple[str, tuple[Row, ...], str], ...] = (  # prefix, table, where blocks are numbered
    ("vision_model.visual.", clip.BRIDGETOWER, clip.RESBLOCK),
    ("vit_model.visual.", clip.OPENAI, clip.RESBLOCK),
    ("vit_model.", TIMM, r"blocks\.(\d+)\."),
)
CLASS_HEADS = ("vqa_classifier", "nlvr2_classifier", "snli_classifier")
SCALARS = {"scaled_factor": "scale", "beta": "beta"}
LOGIT_SCALE = Link("logit_scale", ("temp",), Codec("exp(-x)", lambda x: (np.exp(-x),), lambda x: -np.log(x)))
HEADS = (
    ITM,
    Row("itc_text_head.fc", "text_proj", "dense"),
    Row("itc_image_head.fc", "vision_proj", "dense"),
    Row("temperature", "temp", "array"),
)
UNUSED = (
    r"(text_model|text_transformer)\.(pooler\..*|embeddings\.(position_ids|token_type_ids))"
    r"|vision_model\.visual\.embeddings\.position_ids|vit_model\.(visual\.proj|ln_final\..*|positional_embedding)"
    r"|vit_model\.(head|pre_logits)\..*|itc_cross_modal_head\..*|rank_output\..*"
)
OPTIONAL = r"(itm_head|mlm_head|class_head|text_proj|vision_proj)/|temp"
RULES: shapes.Rules = (
    *shapes.mlm_rules(),
    (r"class_head/fc1/kernel", "2D|4D hidden"),
    *shapes.CLASS_RULES,
    (r"itm_head/kernel", "2D 2"),
    (r"itm_head/bias", "2"),
    (r"text_proj/kernel", "T embedding"),
    (r"vision_proj/kernel", "V embedding"),
    (r"(text|vision)_proj/bias", "embedding"),
    (r"temp|bridge/\w+_(scale|beta)_\d+", ""),
    (r"(text|image)_pool/kernel", "D D"),
    (r"(text|image)_pool/bias", "D"),
    (r"bridge/text_proj(_\d+)?/kernel", "T D"),
    (r"bridge/image_proj(_\d+)?/kernel", "V D"),
    (r"bridge/(text|image)_proj(_\d+)?/bias", "D"),
    (r"bridge/token_type/embedding", "modalities D"),
    (r"bridge/(text|image)_norm_\d+/(scale|bias)", "D"),
    *shapes.encoder_rules("cross/", "D", "C"),
    *shapes.text_rules("text_encoder/", "T"),
    *shapes.encoder_rules("text_encoder/", "T", "TF"),
    *shapes.vision_rules("visual_encoder/", "V"),
    *shapes.encoder_rules("visual_encoder/", "V", "VF"),
)


@dataclass(frozen=True)
class Anatomy:
    """What of a model a file or tree holds.

    Attributes:
      prefix: of all names but those of heads.
      text: prefix of the text tower's names, below `prefix`.
      text_layers: of the text tower.
      vision: entry of `VISIONS`.
      blocks: of the vision tower.
      cross: foreign numbers of the cross-modal layers, in our order.
      shared: whether one projection serves all taps.
      scalar: key of `SCALARS`, or None.
      bridged: whether layers after the first read the towers.
      head: name of the class head.
    """

    prefix: str
    text: str
    text_layers: int
    vision: tuple[str, tuple[Row, ...], str]
    blocks: int
    cross: tuple[int, ...]
    shared: bool
    scalar: str | None
    bridged: bool
    head: str


def import_bridgetower(
    state: Mapping[str, Any],
    *,
    depth: int | None = 3,
    take: Sequence[int] | None = None,
    images: int | None = None,
    tied: bool | None = False,
    strict: bool = True,
) -> Imported:
    """BridgeTower's parameters in jaxvl's names: what `models.bridge_tower.BridgeTower` holds.

    Its layers attend to themselves first: `cross.order="post"`. Contrastive heads of Hugging Face's class read the
    projected image state; that projection is folded into `vision_proj`, which reads the tower's.

    Args:
      state: names and arrays of a Hugging Face class, with or without `bridgetower.`, or of the release.
      depth: cross-modal layers of the model; None is as many as there are.
      take: which of the file's cross-modal layers to take, from 0, if it has more than `depth`. Their bridges and
        projections come along.
      images: 2 gives a type row to a second image, a copy of the first's if the file has none; 1 leaves such a row
        out; None keeps what the file has.
      tied: the model's `mlm_tied`. None: tied if the file's decoder is its word table, or is not there.
      strict: fail on unknown names, and unless all that is missing is whole heads.

    Raises:
      WeightsError: not BridgeTower, another number of cross-modal layers than `depth`, a misshaped tensor, an untied
        decoder with `tied`, or (strict) missing or unknown names.
    """
    arrays = named_arrays(state)
    prefix = find_prefix(arrays, MARKER, ("", "bridgetower."))
    if prefix is None:
        raise foreign_error(arrays, "a BridgeTower of Hugging Face or of the release")
    decoder = Decoder({name.removeprefix(prefix): array for name, array in arrays.items()})
    anatomy = _anatomy_of_names(decoder.state, depth, take)
    table = _table(anatomy) + links(class_head(anatomy.head))
    contrastive = "logit_scale" in decoder.state
    table += links(HEADS[:-1] if contrastive else HEADS) + ((LOGIT_SCALE,) if contrastive else ())
    decoder.take(table)
    words = anatomy.text + "embeddings.word_embeddings.weight"
    table += take_mlm_head(decoder, PAIR_HEAD, words=words, tied=tied)
    leave_out(decoder, UNUSED, "no counterpart in jaxvl")
    if take is not None:
        leave_out(
            decoder, r"cross_modal_(text|image)_(layers|link_tower|transform|layernorm)\..*", "not taken"
        )
    shapes.check(decoder.arrays, decoder.mapped, RULES)
    if contrastive:
        _fold_projection(decoder)
    if images is not None and "bridge/token_type/embedding" in decoder.arrays:
        fit_types(decoder, "bridge/token_type/embedding", images, "token_type_embeddings.weight")
    report = decoder.report()
    if strict:
        require(report, optional=OPTIONAL, expected=[link.foreign for link in table])
    return Imported(unflatten(decoder.arrays), None, None, report)


def export_bridgetower(params: Mapping[str, Any]) -> Tensors:
    """The tensors of Hugging Face's BridgeTower for these parameters, bit for bit.

    With a head the names start with `bridgetower.`. A ViT as vision tower, which Hugging Face's lacks, gives the names
    of the release, and so do class heads (told by their shapes) and the temperature. Order and mapping of the layers
    are not in the file: Hugging Face computes `order="post"`, `mapping="top"`.

    Args:
      params: canonical parameters with unrolled layers; heads may be absent.

    Raises:
      WeightsError: a parameter that has no name in this format: towers of ViLT, other interactions than the bridge.
    """
    arrays = flatten(params)
    anatomy = _anatomy_of_paths(arrays)
    heads = links((*HEADS, *PAIR_HEAD, *class_head(anatomy.head))) + (
        Link("mlm_score.decoder.weight", (KERNEL,), TRANSPOSE),
    )
    table = _table(anatomy) + heads
    tensors = encode_all(arrays, table, "params", kind="BridgeTower")
    add_tied_decoder(
        tensors, head="mlm_score.", words=f"{anatomy.prefix}{anatomy.text}embeddings.word_embeddings.weight"
    )
    return tensors


def _table(anatomy: Anatomy) -> tuple[Link, ...]:
    prefix, (vision, rows, _) = anatomy.prefix, anatomy.vision
    text: dict[str, Any] = {"foreign": prefix + anatomy.text, "ours": "text_encoder/"}
    table = links(EMBEDDINGS, **text) + links(LAYER, **text, count=anatomy.text_layers)
    table += links(rows, foreign=prefix + vision, ours="visual_encoder/", count=anatomy.blocks)
    found = [Row("token_type_embeddings", "bridge/token_type", "table")]
    for modality in MODALITIES:
        name = f"cross_modal_{modality}"
        found.append(Row(f"{name}_pooler.dense", f"{modality}_pool", "dense"))
        if anatomy.shared:
            found.append(Row(f"{name}_transform", f"bridge/{modality}_proj", "dense"))
        for ours, theirs in enumerate(anatomy.cross):
            found += _layer_rows(anatomy, modality, ours, theirs)
    return table + links(found, foreign=prefix)


def _layer_rows(anatomy: Anatomy, modality: str, ours: int, theirs: int) -> list[Row]:
    """Rows of one modality of our cross-modal layer `ours`, the file's `theirs`, and of its bridge."""
    name, bridge = f"cross_modal_{modality}", f"bridge/{modality}"
    rows = [
        replace(
            row,
            foreign=row.foreign.format(n=theirs).replace("encoder.layer", f"{name}_layers"),
            ours=str(row.ours).format(i=ours).replace(f"layers_{ours}/", f"cross/layers_{ours}/{modality}/"),
        )
        for row in LAYER + CROSS
    ]
    link = f"{name}_link_tower.{theirs - 1}"
    if ours == 0 or anatomy.bridged:
        norm = f"{name}_layernorm" if theirs == 0 else f"{link}.LayerNorm"
        rows.append(Row(norm, f"{bridge}_norm_{ours}", "norm"))
    if not anatomy.shared and (ours == 0 or anatomy.bridged):
        rows.append(Row(f"{name}_transform.{theirs}", f"{bridge}_proj_{ours}", "dense"))
    if ours > 0 and anatomy.scalar is not None:
        rows.append(Row(f"{link}.{anatomy.scalar}", f"{bridge}_{SCALARS[anatomy.scalar]}_{ours}", "array"))
    return rows


def _anatomy_of_names(names: Collection[str], depth: int | None, take: Sequence[int] | None) -> Anatomy:
    """Of a file whose prefix is taken off."""
    text = next((t for t in TEXTS if t + "embeddings.word_embeddings.weight" in names), TEXTS[0])
    vision = next((v for v in VISIONS if layer_count(names, re.escape(v[0]) + v[2])), VISIONS[0])
    layers = layer_count(names, r"cross_modal_text_layers\.(\d+)\.")
    scalars = (s for s in SCALARS if f"cross_modal_text_link_tower.0.{s}" in names)
    return Anatomy(
        prefix="",
        text=text,
        text_layers=layer_count(names, re.escape(text) + r"encoder\.layer\.(\d+)\."),
        vision=vision,
        blocks=layer_count(names, re.escape(vision[0]) + vision[2]),
        cross=_chosen(layers, depth, take),
        shared="cross_modal_text_transform.0.weight" not in names,
        scalar=next(scalars, None),
        bridged=any(name.startswith("cross_modal_text_link_tower.") for name in names),
        head=one_head(names, CLASS_HEADS) or CLASS_HEADS[0],
    )


def _chosen(layers: int, depth: int | None, take: Sequence[int] | None) -> tuple[int, ...]:
    """Foreign numbers of the layers that are taken."""
    if take is None:
        if depth is None or layers == depth:
            return tuple(range(layers))
        last = ", ".join(str(n) for n in range(layers - depth, layers))
        choose = f"pass take=({last}) for its last {depth}, or " if depth < layers else ""
        raise WeightsError(
            f"the file has {layers} cross-modal layers, the model {depth}: {choose}build the model with "
            f"cross.depth={layers} (depth={layers})"
        )
    chosen = tuple(take)
    if len(set(chosen)) < len(chosen) or not chosen or not all(0 <= n < layers for n in chosen):
        raise WeightsError(f"take={chosen}: expected different numbers of the file's layers, 0..{layers - 1}")
    if depth is not None and len(chosen) != depth:
        raise WeightsError(f"take={chosen} are {len(chosen)} cross-modal layers, the model has {depth}")
    return chosen


def _anatomy_of_paths(arrays: Tensors) -> Anatomy:
    """Of a tree; the class head's name is told by its shapes."""
    heads = ("itm_head/", "mlm_head/", "class_head/", "text_proj/", "vision_proj/", "temp")
    hugging_face = "visual_encoder/norm_pre/scale" in arrays
    scalars = (s for s, ours in SCALARS.items() if f"bridge/text_{ours}_1" in arrays)
    width = len(arrays.get("text_pool/bias", ()))
    return Anatomy(
        prefix="bridgetower." if hugging_face and any(path.startswith(heads) for path in arrays) else "",
        text=TEXTS[0] if hugging_face else TEXTS[1],
        text_layers=layer_count(arrays, r"text_encoder/layers_(\d+)/"),
        vision=VISIONS[0] if hugging_face else VISIONS[2],
        blocks=layer_count(arrays, r"visual_encoder/blocks_(\d+)/"),
        cross=tuple(range(layer_count(arrays, r"cross/layers_(\d+)/"))),
        shared="bridge/text_proj_0/kernel" not in arrays,
        scalar=next(scalars, None),
        bridged="bridge/text_norm_1/scale" in arrays,
        head=f"{task_of(arrays, width=2 * width)}_classifier",
    )


def _fold_projection(decoder: Decoder) -> None:
    """Make `vision_proj` read the tower's state: Hugging Face's head reads `W v + b + type row of an image`."""
    names = ("vision_proj/kernel", "vision_proj/bias", "bridge/image_proj/kernel", "bridge/image_proj/bias")
    arrays = decoder.arrays
    if not all(name in arrays for name in (*names, "bridge/token_type/embedding")):
        return
    head, bias, kernel, shift = (arrays[name].astype(np.float64) for name in names)
    shift = shift + arrays["bridge/token_type/embedding"][1]
    arrays["vision_proj/kernel"] = (kernel @ head).astype(np.float32)
    arrays["vision_proj/bias"] = (shift @ head + bias).astype(np.float32)
    for name in ("itc_image_head.fc.weight", "itc_image_head.fc.bias"):
        decoder.adapted[name] = "with cross_modal_image_transform in it"
