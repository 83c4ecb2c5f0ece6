"""Name table of ALBEF (repository `salesforce/ALBEF`), its import and its export.

Covered files: pre-training (`text_encoder.bert.*` with a language-model head), retrieval and grounding
(`text_encoder.*`), and VQA (the same with `text_decoder.bert.*`). ALBEF keeps text and fusion layers in one stack;
the fusion layers are those with cross attention. Hypergraph tensors, which ALBEF lacks, follow its naming:
`text_encoder.bert.encoder.layer.6.hypergraph.theta.weight` is `fusion_encoder/layers_0/hypergraph/theta/kernel`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvl.interop.bert import (
    CROSS,
    DECODER,
    DECODER_BIAS,
    EMBEDDINGS,
    LAYER,
    MLM_HEAD,
    POSITION_IDS,
    WORD,
    drop_copies,
)
from jaxvl.interop.files import Tensors, Tree, WeightsError, flatten, unflatten
from jaxvl.interop.names import (
    SAME,
    TRANSPOSE,
    Codec,
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
from jaxvl.interop.vit import TIMM, refuse_distilled

PROJECTIONS = ("vision_proj", "text_proj")
PRETRAINING = ("mlm_head", *PROJECTIONS, "itm_head", "temp")  # all that ALBEF's VQA model lacks
HEADS = (Row("itm_head", "itm_head", "dense"), Row("temp", "temp", "array"))
QUEUE = (
    Link("image_queue", ("image",)),
    Link("text_queue", ("text",)),
    Link("queue_ptr", ("ptr",), Codec("", lambda x: (x.reshape(()),), lambda x: _int64(x, (1,)), np.int32)),
)
QUEUE_IDS = Link("idx_queue", ("ids",), Codec("", lambda x: (x[0],), lambda x: _int64(x, (1, -1)), np.int32))

OWN = r"hypergraph|hg_\w+|visual_update"  # modules of a fusion layer that ALBEF lacks
OTHER_HEADS = r"(cls_head|ta_head)(_m)?\..*"
OPTIONAL = (
    r"(momentum/)?(mlm_head|vision_proj|text_proj|itm_head)/|temp"
    rf"|(momentum/)?fusion_encoder/layers_\d+/({OWN})/"
)
NO_CROSS = r"|(momentum/)?fusion_encoder/layers_\d+/cross_attention/"


@dataclass(frozen=True)
class Anatomy:
    """What of a model a file or tree holds.

    Attributes:
      blocks: layers of the vision encoder.
      text: layers of the text encoder.
      fusion: layers of the fusion encoder.
      decoder: layers of the answer decoder; 0 = none.
      infix: `bert.` where the text encoder is inside a language model, else empty.
      own: paths of jaxvl's own tensors below a fusion layer.
      adapter: whether the vision encoder ends in a projection to another width.
    """

    blocks: int
    text: int
    fusion: int
    decoder: int
    infix: str
    own: tuple[str, ...]
    adapter: bool


def import_albef(
    state: Mapping[str, Any], *, text_layers: int | None = None, strict: bool = True
) -> Imported:
    """ALBEF's parameters, momentum copy and queue in jaxvl's names.

    `queue` holds `image`, `text` `[C,Q]` f32 and `ptr` i32, and `ids [Q]` i32 if the file has them (retrieval,
    grounding); a file of pre-training has none. Heads of NLVR2 and SNLI-VE are left out.

    Args:
      state: names and arrays of one level of the file.
      text_layers: number of text layers; None takes the layers before the first with cross attention.
      strict: fail on unknown names, and unless all that is missing is hypergraph modules or task heads.

    Raises:
      WeightsError: not ALBEF, the wrong level, an untied decoder, or (strict) missing or unknown names.
    """
    arrays = named_arrays(state)
    if "text_encoder." + WORD not in arrays and "text_encoder.bert." + WORD not in arrays:
        raise foreign_error(arrays, "ALBEF")
    refuse_distilled([name for name in arrays if name.startswith("visual_encoder")])
    decoder = Decoder(arrays)
    anatomy = _anatomy_of_names(arrays, text_layers)
    table = _table(anatomy)
    decoder.take(table)
    params = decoder.arrays
    momentum = _take_apart(
        decoder, _table(anatomy, copy="_m"), present="visual_encoder_m.cls_token", under="momentum/"
    )
    queue = _take_apart(decoder, _queue_table(arrays), present="image_queue", under="queue/")
    for copy in ("", "_m"):
        drop_copies(decoder, embeddings=f"text_encoder{copy}.{anatomy.infix}", head=f"text_encoder{copy}.")
        drop_copies(decoder, embeddings=f"text_decoder{copy}.bert.", head=f"text_decoder{copy}.")
    decoder.ignore([name for name in arrays if re.fullmatch(OTHER_HEADS, name)], "head of another task")
    report = decoder.report()
    if strict:
        crossless = not any(".crossattention." in name for name in arrays)
        known = table + _table(anatomy, copy="_m") + QUEUE
        require(
            report,
            optional=OPTIONAL + (NO_CROSS if crossless else ""),
            expected=[link.foreign for link in known],
        )
    return Imported(unflatten(params), momentum, queue, report)


def export_albef(
    params: Mapping[str, Any],
    momentum: Mapping[str, Any] | None = None,
    queue: Mapping[str, Any] | None = None,
) -> Tensors:
    """The tensors of ALBEF's file for these parameters, bit for bit those it was imported from.

    The text encoder gets the infix `bert.` if there is a language-model head, as in ALBEF. With an answer decoder it
    does not, and `left_out` is dropped: ALBEF's VQA model has none of it. The tied decoder and the position numbers
    that ALBEF's files repeat are added.

    Args:
      params: canonical parameters with unrolled layers; parts may be absent.
      momentum: the momentum copy, as in `Imported.momentum`.
      queue: as in `Imported.queue`.

    Raises:
      WeightsError: a parameter that has no name in this format, or part of a fused tensor is missing.
    """
    dropped = left_out(params)
    arrays = flatten(_without(params, dropped))
    anatomy = _anatomy_of_paths(arrays)
    tensors = _exported(arrays, anatomy, copy="")
    if momentum is not None:
        tensors |= _exported(flatten(_without(momentum, dropped)), anatomy, copy="_m")
    if queue is not None:
        tensors |= _encode_all(flatten(queue), (*QUEUE, QUEUE_IDS), "queue")
    return tensors


def left_out(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Modules of `params` that `export_albef` drops: heads of pre-training beside an answer decoder."""
    if "text_decoder" not in params:
        return ()
    return tuple(name for name in PRETRAINING if name in params)


def _without(tree: Mapping[str, Any], names: Collection[str]) -> Tree:
    return {name: branch for name, branch in tree.items() if name not in names}


def _table(anatomy: Anatomy, *, copy: str = "") -> tuple[Link, ...]:
    """Links of one tower set; `copy` is "_m" for the momentum copy."""
    text, decoder = f"text_encoder{copy}.{anatomy.infix}", f"text_decoder{copy}."
    vision = TIMM + ((Row("adapter", "adapter", "dense"),) if anatomy.adapter else ())
    table = links(vision, foreign=f"visual_encoder{copy}.", ours="visual_encoder/", count=anatomy.blocks)
    table += links(EMBEDDINGS, foreign=text, ours="text_encoder/")
    table += links(LAYER, foreign=text, ours="text_encoder/", count=anatomy.text)
    fusion = {"foreign": text, "ours": "fusion_encoder/"}
    table += links(LAYER + CROSS, **fusion, count=anatomy.fusion, offset=anatomy.text)
    table += _own_links(anatomy, text)
    table += links(MLM_HEAD, foreign=f"text_encoder{copy}.")
    table += links([Row(name + copy, name, "dense") for name in PROJECTIONS])
    if not copy:
        table += links(HEADS)
    if anatomy.decoder:
        table += links(EMBEDDINGS, foreign=decoder + "bert.", ours="text_decoder/")
        table += links(LAYER + CROSS, foreign=decoder + "bert.", ours="text_decoder/", count=anatomy.decoder)
        table += links(MLM_HEAD, foreign=decoder, ours="text_decoder/")
    return table


def _own_links(anatomy: Anatomy, text: str) -> tuple[Link, ...]:
    found = []
    for i in range(anatomy.fusion):
        for path in anatomy.own:
            *modules, leaf = path.split("/")
            name = ".".join([*modules, {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)])
            foreign = f"{text}encoder.layer.{anatomy.text + i}.{name}"
            codec = TRANSPOSE if leaf == "kernel" else SAME
            found.append(Link(foreign, (f"fusion_encoder/layers_{i}/{path}",), codec))
    return tuple(found)


def _anatomy_of_names(arrays: Tensors, text_layers: int | None) -> Anatomy:
    infix = "bert." if "text_encoder.bert." + WORD in arrays else ""
    layer = rf"text_encoder\.{re.escape(infix)}encoder\.layer\.(\d+)\."
    crossed = [int(m[1]) for name in arrays if (m := re.match(layer + r"crossattention\.", name))]
    if text_layers is None and not crossed:
        raise WeightsError(
            "no layer has cross attention, so where fusion starts is unknown: pass text_layers=..."
        )
    if text_layers is not None and crossed and min(crossed) != text_layers:
        raise WeightsError(f"text_layers={text_layers}, but cross attention starts at layer {min(crossed)}")
    total = layer_count(arrays, layer)
    text = min(crossed) if text_layers is None else text_layers
    own = {
        _own_path(match[2], array.ndim): None
        for name, array in arrays.items()
        if (match := re.match(rf"{layer}((?:{OWN})\..+)", name))
    }
    return Anatomy(
        blocks=layer_count(arrays, r"visual_encoder\.blocks\.(\d+)\."),
        text=text,
        fusion=max(total - text, 0),
        decoder=layer_count(arrays, r"text_decoder\.bert\.encoder\.layer\.(\d+)\."),
        infix=infix,
        own=tuple(own),
        adapter="visual_encoder.adapter.weight" in arrays,
    )


def _own_path(name: str, ndim: int) -> str:
    """`"hypergraph.theta.weight"` of 2 axes -> `"hypergraph/theta/kernel"`; of 1 axis, a norm's `scale`."""
    *modules, leaf = name.split(".")
    if leaf == "weight":
        leaf = "kernel" if ndim == 2 else "scale"
    return "/".join([*modules, leaf])


def _anatomy_of_paths(paths: Collection[str]) -> Anatomy:
    decoder = layer_count(paths, r"text_decoder/layers_(\d+)/")
    own = [m[1] for path in paths if (m := re.fullmatch(rf"fusion_encoder/layers_\d+/((?:{OWN})/.+)", path))]
    return Anatomy(
        blocks=layer_count(paths, r"visual_encoder/blocks_(\d+)/"),
        text=layer_count(paths, r"text_encoder/layers_(\d+)/"),
        fusion=layer_count(paths, r"fusion_encoder/layers_(\d+)/"),
        decoder=decoder,
        infix="bert." if not decoder and any(path.startswith("mlm_head/") for path in paths) else "",
        own=tuple(dict.fromkeys(own)),
        adapter="visual_encoder/adapter/kernel" in paths,
    )


def _queue_table(names: Collection[str]) -> tuple[Link, ...]:
    return (*QUEUE, QUEUE_IDS) if QUEUE_IDS.foreign in names else QUEUE


def _take_apart(decoder: Decoder, table: tuple[Link, ...], *, present: str, under: str) -> Tree | None:
    """A tree of its own from `table`, reported below `under`; None if the file lacks the tensor `present`."""
    if present not in decoder.state:
        return None
    params, decoder.arrays = decoder.arrays, {}
    decoder.take(table, under=under)
    apart = {path.removeprefix(under): array for path, array in decoder.arrays.items()}
    decoder.arrays = params
    return unflatten(apart)


def _exported(arrays: Tensors, anatomy: Anatomy, *, copy: str) -> Tensors:
    tensors = _encode_all(arrays, _table(anatomy, copy=copy), "momentum" if copy else "params")
    towers = ((f"text_encoder{copy}.", anatomy.infix), (f"text_decoder{copy}.", "bert."))
    for head, infix in towers:
        positions = head + infix + "embeddings.position_embeddings.weight"
        if positions in tensors:
            ids = np.arange(len(tensors[positions]), dtype=np.int64)[None]
            tensors[head + infix + POSITION_IDS] = ids
        if head + "cls.predictions.bias" in tensors and head + infix + WORD in tensors:
            tensors[head + DECODER] = tensors[head + infix + WORD]
            tensors[head + DECODER_BIAS] = tensors[head + "cls.predictions.bias"]
    return tensors


def _encode_all(arrays: Tensors, table: tuple[Link, ...], what: str) -> Tensors:
    return encode_all(arrays, table, what, kind="ALBEF")


def _int64(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x.astype(np.int64).reshape(shape)
