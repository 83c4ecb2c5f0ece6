"""Name table of EfficientNet in `lukemelas/EfficientNet-PyTorch` and its Lite offshoots, in npz or PyTorch files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.interop.files import PathLike, Tensors, WeightsError, existing, unflatten
from jaxvl.interop.names import (
    Codec,
    Decoder,
    Link,
    Row,
    foreign_error,
    layer_count,
    links,
    named_arrays,
)
from jaxvl.interop.report import Imported, require
from jaxvl.interop.torch_weights import read

POINT = Codec("1x1 OIHW to IO", lambda x: (_point(x).T,), lambda x: x.T[:, :, None, None])
STATISTICS = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
BLOCK = "_blocks.{n}."
EXCITED = r"_blocks\.\d+\._se_(reduce|expand)\..*"
COUNTERS = r".*\.num_batches_tracked"
NUMBERED = r"_blocks\.(\d+)\."


def _norm(foreign: str, ours: str) -> tuple[Row, ...]:
    return tuple(Row(f"{foreign}.{a}", f"{ours}/{b}", "array") for a, b in STATISTICS.items())


ONCE = (
    Row("_conv_stem", "stem", "unbiased conv"),
    *_norm("_bn0", "stem_norm"),
    *_norm("_bn1", "head_norm"),
)
CLASSES = (Row("_fc", "class_head", "dense"),)
EVERY_BLOCK = (
    Row(BLOCK + "_depthwise_conv", "blocks_{i}/depthwise", "unbiased conv"),
    *_norm(BLOCK + "_bn1", "blocks_{i}/depthwise_norm"),
    *_norm(BLOCK + "_bn2", "blocks_{i}/project_norm"),
)
EXPANSION = _norm(BLOCK + "_bn0", "blocks_{i}/expand_norm")


def read_weights(path: PathLike) -> Tensors:
    """The tensors of a weights file: `.npz` of plain arrays, or what `torch_weights.read` takes.

    Raises:
      FileNotFoundError: no such file.
      WeightsError: damaged, or an npz with objects in it.
    """
    path = existing(path)
    if path.suffix != ".npz":
        return read(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise WeightsError(
            f"{path}: not an npz of plain arrays, or damaged ({error}); fetch it again"
        ) from error


def import_efficientnet(state: Mapping[str, Any], *, classes: str = "keep", strict: bool = True) -> Imported:
    """Parameters of `models.efficientnet.EfficientNet` in float32.

    Args:
      state: names and arrays as EfficientNet-PyTorch has them.
      classes: "keep" the class head, or "drop" it.
      strict: fail on any missing or unknown name.

    Raises:
      WeightsError: another model, one with squeeze-and-excitation, or (strict) missing or unknown names.
    """
    if classes not in ("keep", "drop"):
        raise WeightsError(f"classes={classes!r}: expected 'keep' or 'drop'")
    arrays = named_arrays(state)
    if "_conv_stem.weight" not in arrays:
        raise foreign_error(arrays, "an EfficientNet of EfficientNet-PyTorch")
    excited = [name for name in arrays if re.fullmatch(EXCITED, name)]
    if excited:
        raise WeightsError(
            f"{excited[0]!r}: an EfficientNet with squeeze-and-excitation, which jaxvl's lacks; use a Lite variant"
        )
    decoder = Decoder(arrays)
    table = _table(arrays, classes)
    decoder.take(table)
    decoder.ignore([name for name in arrays if re.fullmatch(COUNTERS, name)], "counter of training steps")
    if classes == "drop":
        decoder.ignore(["_fc.weight", "_fc.bias"], "class head")
    report = decoder.report()
    if strict:
        require(report, optional="", expected=[link.foreign for link in table])
    return Imported(unflatten(decoder.arrays), None, None, report)


def load_efficientnet(path: PathLike, *, classes: str = "drop") -> Imported:
    """`import_efficientnet` of a file; errors name it."""
    try:
        return import_efficientnet(read_weights(path), classes=classes)
    except WeightsError as error:
        where = "" if str(Path(path)) in str(error) else f"{path}: "
        raise WeightsError(f"{where}{error}") from error


def _table(names: Collection[str], classes: str) -> tuple[Link, ...]:
    count = layer_count(names, NUMBERED)
    found = links((*ONCE, *EVERY_BLOCK, *(CLASSES if classes == "keep" else ())), count=count)
    points = [("_conv_head", "head")]
    points += [(f"_blocks.{i}._project_conv", f"blocks_{i}/project") for i in range(count)]
    for i in (i for i in range(count) if any(n.startswith(_expansion(i)) for n in names)):
        points.append((f"_blocks.{i}._expand_conv", f"blocks_{i}/expand"))
        rows = [Row(r.foreign.format(n=i), str(r.ours).format(i=i), r.kind) for r in EXPANSION]
        found += links(rows)
    return found + tuple(Link(f"{a}.weight", (f"{b}/kernel",), POINT) for a, b in points)


def _expansion(i: int) -> tuple[str, str]:
    """How names of block `i` start that only a block with an expansion layer has."""
    return f"_blocks.{i}._expand_conv.", f"_blocks.{i}._bn0."


def _point(x: np.ndarray) -> np.ndarray:
    if x.ndim != 4 or x.shape[2:] != (1, 1):
        raise ValueError("expected [O,I,1,1]")
    return x[:, :, 0, 0]
