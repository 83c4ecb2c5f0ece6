"""Name tables of ViLT (Hugging Face's classes, and the release of `dandelin/ViLT`), its import and its export."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxvl.interop import shapes
from jaxvl.interop.bert import EMBEDDINGS
from jaxvl.interop.files import Tensors, WeightsError, flatten, unflatten
from jaxvl.interop.names import (
    TRANSPOSE,
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
from jaxvl.interop.positions import resize_bilinear
from jaxvl.interop.report import Imported, require
from jaxvl.interop.text import KERNEL, PAIR_HEAD, add_tied_decoder, leave_out, take_mlm_head
from jaxvl.interop.vit import HF_FILE, TIMM

ITM = Row("itm_score.fc", "itm_head", "dense")
TASKS = ("vqa", "nlvr2", "snli", "gqa")
UNUSED = r"rank_output\..*|mpp_score\..*|(vilt\.)?(embeddings\.)?text_embeddings\.position_ids"
OPTIONAL = r"(itm_head|mlm_head|class_head)/"
RULES: shapes.Rules = (
    *shapes.mlm_rules(),
    (r"class_head/fc1/kernel", "D|2D hidden"),
    *shapes.CLASS_RULES,
    (r"itm_head/kernel", "D 2"),
    (r"itm_head/bias", "2"),
    (r"pool/kernel", "D D"),
    (r"pool/bias", "D"),
    (r"modality/embedding", "modalities D"),
    *shapes.text_rules(""),
    *shapes.vision_rules(""),
    *shapes.encoder_rules("", "D", "F"),
)


@dataclass(frozen=True)
class Dialect:
    """Names of one release.

    Attributes:
      rows: of the body; those of the blocks are numbered.
      words: foreign name of the word table.
      numbered: pattern that numbers blocks.
      class_heads: modules that may be the class head.
    """

    rows: tuple[Row, ...]
    words: str
    numbered: str
    class_heads: tuple[str, ...]


def words_rows(foreign: str) -> tuple[Row, ...]:
    """BERT's embeddings below `foreign` instead of `embeddings.`."""
    return tuple(replace(row, foreign=row.foreign.replace("embeddings.", foreign, 1)) for row in EMBEDDINGS)


def class_head(foreign: str) -> tuple[Row, ...]:
    """Rows of PyTorch's sequence of dense, norm, GELU and dense."""
    parts = (("0", "fc1", "dense"), ("1", "norm", "norm"), ("3", "fc2", "dense"))
    return tuple(Row(f"{foreign}.{n}", f"class_head/{part}", kind) for n, part, kind in parts)


HF = Dialect(
    rows=(
        *words_rows("embeddings.text_embeddings."),
        Row("embeddings.token_type_embeddings", "modality", "table"),
        *HF_FILE,
        Row("pooler.dense", "pool", "dense"),
    ),
    words="embeddings.text_embeddings.word_embeddings.weight",
    numbered=r"encoder\.layer\.(\d+)\.",
    class_heads=("classifier",),
)
ORIGINAL = Dialect(
    rows=(
        *words_rows("text_embeddings."),
        Row("token_type_embeddings", "modality", "table"),
        *(replace(row, foreign="transformer." + row.foreign) for row in TIMM),
        Row("pooler.dense", "pool", "dense"),
    ),
    words="text_embeddings.word_embeddings.weight",
    numbered=r"transformer\.blocks\.(\d+)\.",
    class_heads=tuple(f"{task}_classifier" for task in TASKS),
)
PREFIXES = {"hf": ("", "vilt."), "original": ("",)}
DIALECTS = {"hf": HF, "original": ORIGINAL}


def import_vilt(
    state: Mapping[str, Any],
    *,
    grid: int | None = 7,
    images: int | None = None,
    tied: bool | None = None,
    strict: bool = True,
) -> Imported:
    """ViLT's parameters in jaxvl's names: what `models.vilt.ViLT` holds.

    Args:
      state: names and arrays of a Hugging Face class, with or without `vilt.`, or of the original release.
      grid: patches per side of the model (image size / patch); the file's position grid, 12 in the releases, is
        resized to it as ViLT itself does for every image. None keeps the file's.
      images: 2 gives a modality row to a second image, a copy of the first's if the file has none; 1 leaves such a
        row out; None keeps what the file has.
      tied: the model's `mlm_tied`. None: tied if the file's decoder is its word table, or is not there.
      strict: fail on unknown names, and unless all that is missing is whole heads.

    Raises:
      WeightsError: not ViLT, a misshaped tensor, several class heads, an untied decoder with `tied`, or (strict)
        missing or unknown names.
    """
    arrays = named_arrays(state)
    name, prefix = dialect(arrays)
    speech = DIALECTS[name]
    decoder = Decoder({key.removeprefix(prefix): array for key, array in arrays.items()})
    rows = (*speech.rows, ITM, *_class_rows(decoder.state, speech.class_heads))
    table = links(rows, count=layer_count(decoder.state, speech.numbered))
    decoder.take(table)
    table += take_mlm_head(decoder, PAIR_HEAD, words=speech.words, tied=tied)
    leave_out(decoder, UNUSED, "no counterpart in jaxvl")
    shapes.check(decoder.arrays, decoder.mapped, RULES)
    report_names = dict((path, foreign) for foreign, path in decoder.mapped)
    if grid is not None and "pos_embed" in decoder.arrays:
        _fit_grid(decoder, grid, report_names["pos_embed"])
    if images is not None and "modality/embedding" in decoder.arrays:
        fit_types(decoder, "modality/embedding", images, report_names["modality/embedding"])
    report = decoder.report()
    if strict:
        require(report, optional=OPTIONAL, expected=[link.foreign for link in table])
    return Imported(unflatten(decoder.arrays), None, None, report)


def export_vilt(params: Mapping[str, Any], *, names: str = "hf") -> Tensors:
    """The tensors of a Hugging Face ViLT (`names="hf"`) or of the original release ("original"), bit for bit.

    The position grid stays the model's: build the Hugging Face class with `image_size = grid * patch_size`. With a
    head the body's names start with `vilt.`; a tied decoder is written twice, as files do. Hugging Face has no class
    with a matching head: it keeps the original's name, `itm_score.fc`.

    Args:
      params: canonical parameters with unrolled blocks; heads may be absent.
      names: "hf" or "original".

    Raises:
      WeightsError: a parameter that has no name in this format.
    """
    if names not in DIALECTS:
        raise WeightsError(f"names={names!r}: expected one of {', '.join(map(repr, DIALECTS))}")
    speech, arrays = DIALECTS[names], flatten(params)
    head = "classifier" if names == "hf" else f"{task_of(arrays, width=_width(arrays))}_classifier"
    heads = links((ITM, *class_head(head), *PAIR_HEAD)) + (
        Link("mlm_score.decoder.weight", (KERNEL,), TRANSPOSE),
    )
    prefix = "vilt." if names == "hf" and any(link.ours[0] in arrays for link in heads) else ""
    table = links(speech.rows, foreign=prefix, count=layer_count(arrays, r"blocks_(\d+)/"))
    tensors = encode_all(arrays, table + heads, "params", kind="ViLT")
    add_tied_decoder(tensors, head="mlm_score.", words=prefix + speech.words)
    if names == "hf" and "mlm_score.bias" in tensors:
        tensors["mlm_score.decoder.bias"] = tensors.pop("mlm_score.bias")
    return tensors


def dialect(names: Collection[str]) -> tuple[str, str]:
    """Which of `DIALECTS` a ViLT file speaks, and the prefix of its body.

    Raises:
      WeightsError: neither.
    """
    for name, speech in DIALECTS.items():
        prefix = find_prefix(names, speech.words, PREFIXES[name])
        if prefix is not None:
            return name, prefix
    raise foreign_error(names, "a ViLT of Hugging Face or of the original release")


def fit_types(decoder: Decoder, path: str, images: int, foreign: str) -> None:
    """Give the table at `path` the rows of text and `images` images; a second image starts as the first."""
    rows = decoder.arrays[path]
    if len(rows) == 1 + images:
        return
    decoder.arrays[path] = rows[np.minimum(np.arange(1 + images), len(rows) - 1)]
    decoder.adapted[foreign] = f"{len(rows)} rows to {1 + images}"


def task_of(arrays: Mapping[str, np.ndarray], *, width: int) -> str:
    """Whose class head it is, told from its shapes: two images are NLVR2's, three classes SNLI-VE's, others VQA's.

    Args:
      arrays: canonical path -> array.
      width: of what the head reads of one image.
    """
    kernel = arrays.get("class_head/fc1/kernel")
    if kernel is not None and kernel.shape[0] == 2 * width:
        return "nlvr2"
    return "snli" if arrays.get("class_head/fc2/bias", np.zeros(0)).shape == (3,) else "vqa"


def _class_rows(names: Collection[str], heads: tuple[str, ...]) -> tuple[Row, ...]:
    return class_head(one_head(names, heads) or heads[0])


def one_head(names: Collection[str], heads: tuple[str, ...]) -> str | None:
    """Which of the class `heads` the file has, or None. Raises WeightsError if it has several: jaxvl's has one."""
    found = [head for head in heads if any(name.startswith(head + ".") for name in names)]
    if len(found) > 1:
        raise WeightsError(
            f"the file has the class heads {', '.join(found)}: pass the tensors of one of them"
        )
    return found[0] if found else None


def _fit_grid(decoder: Decoder, grid: int, foreign: str) -> None:
    table = decoder.arrays["pos_embed"]
    decoder.arrays["pos_embed"] = resize_bilinear(table, grid)
    if decoder.arrays["pos_embed"] is not table:
        side = round((table.shape[1] - 1) ** 0.5)
        decoder.adapted[foreign] = f"grid {side}x{side} to {grid}x{grid}, bilinear"


def _width(arrays: Mapping[str, np.ndarray]) -> int:
    return len(arrays.get("norm/scale", ()))
