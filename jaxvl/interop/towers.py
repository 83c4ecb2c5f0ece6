"""Import of one tower of a dual encoder: text from BERT, RoBERTa or ViLT, vision from ViT, CLIP or ViLT."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from jaxvl.interop import clip, shapes, vilt
from jaxvl.interop.bert import EMBEDDINGS, LAYER, MLM_HEAD, POSITION_IDS, WORD, modern_names
from jaxvl.interop.bert import UNUSED as BERT_UNUSED
from jaxvl.interop.files import WeightsError, flatten, unflatten
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
from jaxvl.interop.report import Imported, Report, require
from jaxvl.interop.text import ROBERTA_HEAD, leave_out, take_mlm_head
from jaxvl.interop.vit import import_vit

TEXT_PREFIXES = ("bert.", "roberta.", "", "0.auto_model.")
TEXT_UNUSED = rf"{BERT_UNUSED}|{re.escape(POSITION_IDS)}|embeddings\.token_type_ids"
TEXT_RULES: shapes.Rules = (
    *shapes.mlm_rules(),
    *shapes.text_rules("text_encoder/"),
    *shapes.encoder_rules("text_encoder/", "D", "F"),
)
VISION_RULES: shapes.Rules = (
    *shapes.vision_rules("visual_encoder/"),
    *shapes.encoder_rules("visual_encoder/", "D", "F"),
)
CLIPS: tuple[
    tuple[str, str, tuple[Row, ...], str, str], ...
] = (  # a tensor below the prefix that only this one has, prefix, table, where layers are numbered, what is left out
    ("conv1.weight", "visual.", clip.OPENAI, clip.RESBLOCK, clip.OPENAI_UNUSED),
    ("pre_layrnorm.weight", "vision_model.", clip.HF_CLIP, clip.HF_LAYER, clip.HF_UNUSED),
    ("pre_layrnorm.weight", "", clip.HF_CLIP, clip.HF_LAYER, clip.HF_UNUSED),
)


def import_text_tower(
    state: Mapping[str, Any], *, layers: int | None = None, tied: bool | None = False, strict: bool = True
) -> Imported:
    """A BERT, RoBERTa or ViLT as `text_encoder`, with the language-model head, if there is one, as `mlm_head`.

    Args:
      state: names and arrays of Hugging Face (BERT's norms called gamma/beta or weight/bias), or of a ViLT.
      layers: how many of the file's layers to take, the first ones; None takes all.
      tied: the model's `mlm_tied`: an untied decoder starts as the word table where the file has none of its own.
      strict: fail on unknown names, and unless all that is missing is the language-model head.

    Raises:
      WeightsError: not such a file, too few layers, a misshaped tensor, or (strict) missing or unknown names.
    """
    arrays = named_arrays(state)
    if _is_vilt(arrays):
        return _part_of_vilt(
            vilt.import_vilt(arrays, grid=None, tied=tied, strict=strict), _text_path, layers
        )
    arrays, renamed = modern_names(arrays)
    prefix = find_prefix(arrays, WORD, TEXT_PREFIXES)
    if prefix is None:
        raise foreign_error(arrays, "a BERT, RoBERTa or ViLT")
    decoder = Decoder({name.removeprefix(prefix): array for name, array in arrays.items()})
    found = layer_count(decoder.state, r"encoder\.layer\.(\d+)\.")
    count = _enough(found, layers)
    table = links(EMBEDDINGS, ours="text_encoder/") + links(LAYER, ours="text_encoder/", count=count)
    decoder.take(table)
    roberta = any(name.startswith("lm_head.") for name in decoder.state)
    table += take_mlm_head(decoder, ROBERTA_HEAD if roberta else MLM_HEAD, words=WORD, tied=tied)
    decoder.adapted |= dict.fromkeys(renamed, "gamma/beta")
    leave_out(decoder, TEXT_UNUSED, "no counterpart in jaxvl")
    beyond = [f"encoder.layer.{n}." for n in range(count, found)]
    decoder.ignore([n for n in decoder.state if n.startswith(tuple(beyond))], "layer beyond the tower's")
    return _finished(decoder, table, TEXT_RULES, optional="mlm_head/", strict=strict)


def import_vision_tower(
    state: Mapping[str, Any], *, grid: int | None = None, strict: bool = True
) -> Imported:
    """A ViT, CLIP or ViLT as `visual_encoder`; CLIP's text side and classification heads are left out.

    Args:
      state: names and arrays of `import_vit`, of CLIP (Hugging Face's or OpenAI's), or of a ViLT.
      grid: patches per side that a ViLT's positions are resized to, as ViLT does. Those of other files are left to
        `models.transfer.adapt`, which resizes bicubically.
      strict: fail on any missing or unknown name.

    Raises:
      WeightsError: not such a file, a misshaped tensor, or (strict) missing or unknown names.
    """
    arrays = named_arrays(state)
    if _is_vilt(arrays):
        return _part_of_vilt(vilt.import_vilt(arrays, grid=grid, strict=strict), _vision_path, None)
    for marker, prefix, rows, numbered, unused in CLIPS:
        if prefix + marker in arrays:
            decoder = Decoder(arrays)
            count = layer_count(arrays, re.escape(prefix) + numbered)
            table = links(rows, foreign=prefix, ours="visual_encoder/", count=count)
            decoder.take(table)
            leave_out(decoder, unused, "no part of the vision tower")
            return _finished(decoder, table, VISION_RULES, optional="", strict=strict)
    imported = import_vit(arrays, strict=strict)
    shapes.check(flatten(imported.params), imported.report.mapped, VISION_RULES)
    return imported


def _finished(
    decoder: Decoder, table: tuple[Link, ...], rules: shapes.Rules, *, optional: str, strict: bool
) -> Imported:
    shapes.check(decoder.arrays, decoder.mapped, rules)
    report = decoder.report()
    if strict:
        require(report, optional=optional, expected=[link.foreign for link in table])
    return Imported(unflatten(decoder.arrays), None, None, report)


def _enough(found: int, layers: int | None) -> int:
    if layers is not None and found < layers:
        raise WeightsError(
            f"the file has {found} layers, the text tower {layers}: build it with depth={found}"
        )
    return found if layers is None else layers


def _is_vilt(names: Collection[str]) -> bool:
    return any(
        find_prefix(names, speech.words, vilt.PREFIXES[name]) is not None
        for name, speech in vilt.DIALECTS.items()
    )


def _part_of_vilt(imported: Imported, path_of: Any, layers: int | None) -> Imported:
    """The tensors of a ViLT whose `path_of` is not None, there; the others are reported as left out."""
    arrays = flatten(imported.params)
    if layers is not None:
        _enough(layer_count(arrays, r"blocks_(\d+)/"), layers)
    paths = {path: path_of(path, layers) for path in arrays}
    tree = {new: _rows(path, arrays[path], new) for path, new in paths.items() if new is not None}
    report = imported.report
    mapped = tuple((name, new) for name, path in report.mapped if (new := paths[path]) is not None)
    other = {name for name, path in report.mapped if paths[path] is None}
    unused = tuple((name, "no part of this tower") for name in dict(report.mapped) if name in other)
    kept = tuple((name, note) for name, note in report.adapted if name in dict(mapped))
    return Imported(unflatten(tree), None, None, Report(mapped, report.unused + unused, (), kept))


def _text_path(path: str, layers: int | None) -> str | None:
    match = re.match(r"blocks_(\d+)/", path)
    if match and layers is not None and int(match[1]) >= layers:
        return None
    if match or path.startswith(("embeddings/", "norm/")):
        return "text_encoder/" + path
    if path == "modality/embedding":
        return "text_encoder/embeddings/modality/embedding"
    return path if path.startswith("mlm_head/") else None


def _vision_path(path: str, layers: int | None) -> str | None:
    del layers
    return "visual_encoder/" + path if re.match(r"blocks_|norm/|cls_|pos_|patch_|modality/", path) else None


def _rows(path: str, array: Any, new: str) -> Any:
    """Of the modality table text has row 0, images row 1."""
    if path != "modality/embedding":
        return array
    return array[:1] if new.startswith("text_encoder/") else array[1:2]
