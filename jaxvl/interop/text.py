"""Name tables of RoBERTa's and of ViLT's language-model head, and what all such heads have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from jaxvl.interop.files import Tensors, WeightsError
from jaxvl.interop.names import TRANSPOSE, Decoder, Link, Row, links
from jaxvl.interop.report import UNKNOWN

ROBERTA_HEAD = (
    Row("lm_head.dense", "mlm_head/dense", "dense"),
    Row("lm_head.layer_norm", "mlm_head/norm", "norm"),
    Row("lm_head.bias", "mlm_head/bias", "array"),
)
PAIR_HEAD = (  # ViLT and BridgeTower
    Row("mlm_score.transform.dense", "mlm_head/dense", "dense"),
    Row("mlm_score.transform.LayerNorm", "mlm_head/norm", "norm"),
    Row("mlm_score.bias", "mlm_head/bias", "array"),
)
KERNEL = "mlm_head/decoder/kernel"


def take_mlm_head(
    decoder: Decoder, rows: Iterable[Row], *, words: str, tied: bool | None
) -> tuple[Link, ...]:
    """Move a language-model head; returns its links.

    Args:
      decoder: of the import.
      rows: of the head's dense, norm and bias; the decoder's name is the bias's with `decoder.weight`.
      words: foreign name of the word table.
      tied: whether the model reads its decoder from the word table. None: if the file's decoder equals it, or lacks.

    Raises:
      WeightsError: `tied`, and the file's decoder is not the word table.
    """
    table = links(rows)
    head = table[-1].foreign.removesuffix("bias")
    state = decoder.state
    weight, bias = head + "decoder.weight", head + "decoder.bias"
    if bias in state and head + "bias" not in state:  # Hugging Face's ViLT
        state[head + "bias"] = state.pop(bias)
    decoder.take(table)
    decoder.tied(bias, head + "bias")
    link = Link(weight, (KERNEL,), TRANSPOSE)
    if "mlm_head/dense/kernel" not in decoder.arrays or words not in state:
        return table
    equal = weight not in state or np.array_equal(state[weight], state[words])
    if tied and not equal:
        raise WeightsError(
            f"{weight!r} differs from {words!r}, with which the model shares it: build it with mlm_tied=False"
        )
    if equal and tied is not False:
        decoder.tied(weight, words)
    elif weight in state:
        decoder.take([link])
    else:
        decoder.take([Link(words, (KERNEL,), TRANSPOSE)])
    return (*table, link)


def add_tied_decoder(tensors: Tensors, *, head: str, words: str) -> None:
    """Write the word table as the decoder below `head` too, as files do, where a head lacks one of its own."""
    if head + "bias" in tensors and words in tensors:
        tensors.setdefault(head + "decoder.weight", tensors[words])


def leave_out(decoder: Decoder, pattern: str, why: str) -> None:
    """Leave out every tensor that no table used and whose whole name matches `pattern`."""
    unknown = [name for name, reason in decoder.report().unused if reason == UNKNOWN]
    decoder.ignore([name for name in unknown if re.fullmatch(pattern, name)], why)
