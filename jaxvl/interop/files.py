"""Safetensors files and trees of parameters: written atomically, read back bit for bit.

A canonical file holds one tensor per leaf, named by its `/`-joined path
(`text_encoder/layers_0/attention/query/kernel`). Arrays of any library that converts to numpy are accepted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors then returns)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

Tensors = dict[str, np.ndarray]
Tree = dict[str, Any]
PathLike = str | os.PathLike[str]


class WeightsError(ValueError):
    """A weights file that cannot be used as it is; the message names the file or tensor and the fix."""


def load_safetensors(path: PathLike) -> Tensors:
    """Every tensor of a `.safetensors` file, by name.

    Raises:
      FileNotFoundError: no such file.
      WeightsError: the file is truncated, damaged or not in this format.
    """
    path = existing(path)
    try:
        return load_file(path)
    except (SafetensorError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path}: not a safetensors file, or damaged ({error}); download it again"
        ) from error


def safetensors_metadata(path: PathLike) -> dict[str, str]:
    """The strings that `save_safetensors` stored beside the tensors; empty if none."""
    path = existing(path)
    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise WeightsError(
            f"{path}: not a safetensors file, or damaged ({error}); download it again"
        ) from error


def save_safetensors(
    path: PathLike, tensors: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` so that `path` is either the old file or the complete new one, never a part of it.

    Raises:
      WeightsError: nothing to write, or a tensor whose type the format lacks.
    """
    path = Path(path)
    if not tensors:
        raise WeightsError(f"{path}: there is no tensor to write")
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    odd = [f"{name} ({a.dtype})" for name, a in arrays.items() if a.dtype.kind not in "fiubV"]
    if odd:
        raise WeightsError(f"{path}: only real numbers and booleans can be written, not {', '.join(odd[:5])}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(arrays, temporary, dict(metadata or {}))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_params(
    path: PathLike, params: Mapping[str, Any], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a nested dict of arrays as one canonical `.safetensors` file, atomically."""
    save_safetensors(path, flatten(params), metadata=metadata)


def load_params(path: PathLike) -> Tree:
    """The nested dict that `save_params` wrote.

    Raises:
      FileNotFoundError: no such file.
      WeightsError: the file is damaged, or holds foreign names.
    """
    tensors = load_safetensors(path)
    foreign = [name for name in tensors if "." in name]
    if foreign:
        raise WeightsError(
            f"{path}: {foreign[0]!r} is not a jaxvl path; convert the file first: "
            "python -m jaxvl.interop convert IN OUT --from albef|bert|vit --to jaxvl"
        )
    return unflatten(tensors)


def flatten(tree: Mapping[str, Any]) -> Tensors:
    """Nested dict -> `{"a/b/c": array}`. Raises WeightsError for an empty branch or a name with `/`."""
    return {path: np.asarray(leaf) for path, leaf in _leaves(tree, "")}


def unflatten(tensors: Mapping[str, Any]) -> Tree:
    """`{"a/b/c": array}` -> nested dict. Raises WeightsError if one name is both a leaf and a branch."""
    tree: Tree = {}
    for path, leaf in tensors.items():
        *branches, name = path.split("/")
        node: Any = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or name in node:
            raise WeightsError(f"{path!r} and another name are a tensor and a branch of the same tree")
        node[name] = leaf
    return tree


def existing(path: PathLike) -> Path:
    """`path` if it is there. Raises FileNotFoundError naming it."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    return path


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    if not tree:
        raise WeightsError(f"{prefix or 'params'!r} is an empty dict, which a file cannot hold: remove it")
    for name, value in tree.items():
        if "/" in name:
            raise WeightsError(f"{prefix + name!r}: names of a tree may not contain '/'")
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value
