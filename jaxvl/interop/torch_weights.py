"""Weights files of PyTorch and Hugging Face by name of tensor, read without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxvl.interop.files import PathLike, Tensors, WeightsError, existing, load_safetensors
from jaxvl.interop.torch_zip import StoredTensor, read_zip

LEVELS = ("model", "state_dict", "model_state_dict")  # where training scripts keep the weights
FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def read(path: PathLike, *, level: str | None = None) -> Tensors:
    """The tensors of a weights file by their names in the file.

    Args:
      path: `.pth`, `.pt`, `.bin` of torch >= 1.6, `.safetensors`, a Hugging Face `*.index.json`, or a folder
        with one of the usual Hugging Face names in it.
      level: dictionary inside the file that holds the weights, `"a.b"` for nested ones, `""` for the top.
        None finds it: the only one with tensors, else the one called "model" or "state_dict".

    Returns:
      `{name: array}`; arrays of a zip archive are read-only views of the file: copy them before it changes.

    Raises:
      FileNotFoundError: no such file, or a shard of the index is missing.
      UnsafeWeightsError: the file would run code or build objects.
      WeightsError: damaged, truncated, written before torch 1.6, or `level` is ambiguous or absent.
    """
    path = existing(path)
    if path.is_dir():
        path = _file_of(path)
    if path.name.endswith(".index.json"):
        levels: dict[str, Any] = {"": _read_shards(path)}
    elif path.suffix == ".safetensors":
        levels = {"": load_safetensors(path)}
    else:
        levels = _levels(read_zip(path))
    chosen = _find_level(levels, path) if level is None else level
    if chosen not in levels:
        raise WeightsError(f"{path}: no tensors at level {level!r}; levels with tensors: {_listed(levels)}")
    return {k: t.array() if isinstance(t, StoredTensor) else t for k, t in levels[chosen].items()}


def _find_level(levels: Mapping[str, Mapping[str, Any]], path: Path) -> str:
    if not levels:
        raise WeightsError(f"{path}: holds no named tensors; is it a state dict written with torch.save?")
    if len(levels) == 1:
        return next(iter(levels))
    known = [level for level in LEVELS if level in levels]
    if len(known) == 1 and "" not in levels:
        return known[0]
    raise WeightsError(f"{path}: holds weights at several levels, pass level=...: {_listed(levels)}")


def _listed(levels: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{name!r} ({len(tensors)} tensors)" for name, tensors in levels.items()) or "none"


def _file_of(folder: Path) -> Path:
    for name in FILES:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"{folder}: has none of {', '.join(FILES)}; pass the weights file itself")


def _read_shards(index: Path) -> Tensors:
    try:
        shards: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(shards.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index}: not a Hugging Face index: needs a 'weight_map' of name -> file"
        ) from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise WeightsError(f"{index}: shard {outside[0]!r} is not a plain file name beside the index")
    absent = [name for name in names if not (index.parent / name).exists()]
    if absent:
        raise FileNotFoundError(
            f"{index}: shards {', '.join(absent)} are not in {index.parent}; download them too"
        )
    loaded = {name: read(index.parent / name) for name in names}
    lost = [tensor for tensor, file in shards.items() if tensor not in loaded[file]]
    if lost:
        raise WeightsError(f"{index}: {shards[lost[0]]} does not hold {lost[0]!r}, which the index promises")
    return {tensor: loaded[file][tensor] for tensor, file in shards.items()}


def _levels(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, dict[str, StoredTensor]]:
    found: dict[str, dict[str, StoredTensor]] = {}
    tensors = {k: v for k, v in tree.items() if isinstance(k, str) and isinstance(v, StoredTensor)}
    if tensors:
        found[prefix] = tensors
    for key, value in tree.items():
        # optimizer state is keyed by integers and so never taken for weights
        if isinstance(key, str) and isinstance(value, dict) and value:
            found |= _levels(value, f"{prefix}.{key}" if prefix else key)
    return found
