"""Start a model from the weights of another: the same network at another resolution, or with more parts.

Trees are nested dicts of arrays; paths are written with slashes. Scanned stacks are compared layer by layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from jaxvl.models.layers import stack_layers, unstack_layers
from jaxvl.models.vit import resize_positions

HEADS = ("vision_proj", "text_proj", "itm_head", "mlm_head", "temp", "text_decoder", "class_head")
OWN = ("hypergraph", "hg_fusion", "hg_ffn", "visual_update", "adapter")  # parts that ALBEF lacks
TYPES = ("bridge/token_type/embedding", "modality/embedding")  # rows: text, image, second image
# Towers that start from a model of both modalities take one of its rows.
TYPE_OF_TOWER = {"text_encoder/embeddings/modality/embedding": 0, "visual_encoder/modality/embedding": 1}
PAIR_HEADS = ("itm_head", "class_head")  # their width is that of what another model pools
TOWERS = {"vision": ("visual_encoder",), "text": ("text_encoder", "fusion_encoder")}


@dataclass(frozen=True)
class Report:
    """What `adapt` did with each tensor, by path.

    Attributes:
      taken: loaded as it was (under its own or a renamed path).
      resized: position embeddings loaded and fitted to another grid or length.
      fresh: not among the loaded tensors; keeps its initial value.
      unused: loaded but without a place in the model.
    """

    taken: tuple[str, ...]
    resized: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.taken)} tensors taken"]
        for name in ("resized", "fresh", "unused"):
            paths = getattr(self, name)
            if paths:
                parts = Counter("/".join(path.split("/")[:2]) for path in paths)
                lines.append(
                    f"{len(paths)} {name}: {', '.join(f'{part} ({n})' for part, n in parts.items())}"
                )
        return "\n".join(lines)


def adapt(
    loaded: Mapping[str, Any], fresh: Mapping[str, Any], *, renames: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, Any], Report]:
    """Parameters in the structure of `fresh`, with the values of `loaded` wherever there are any.

    A tensor that is not loaded under its own path is looked up through `renames`. Patch position embeddings
    (`pos_embed`) of another grid are resized bicubically; of text positions (`position/embedding`) the common
    rows are taken; the row of a second image (`TYPES`) is that of the first. Dtypes are those of `fresh`. Where
    `renames` are needed, the source is another kind of model: its matching and class heads, if of another shape, are
    not taken.

    Args:
      loaded: parameters to start from, unboxed.
      fresh: initialised parameters of the model, unboxed.
      renames: `(source, target)` path prefixes: a tensor `target` or `target/x` that is missing is taken from
        `source` or `source/x`.

    Returns:
      The parameters, and a `Report` of what came from where.

    Raises:
      ValueError: a loaded tensor has another shape than the model's, and it is no position embedding.
    """
    source = flatten_dict(unstack_layers(loaded), sep="/")
    target = flatten_dict(unstack_layers(fresh), sep="/")
    taken: list[str] = []
    resized: list[str] = []
    kept: list[str] = []
    used: set[str] = set()
    out: dict[str, Array] = {}
    other = _other_heads(source, target, renames)
    for path, value in target.items():
        origin = None if path.split("/")[0] in other else _origin(path, source, renames)
        if origin is None:
            out[path] = value
            kept.append(path)
            continue
        used.add(origin)
        out[path] = _fit(path, source[origin], value).astype(value.dtype)
        (taken if source[origin].shape == value.shape else resized).append(path)
    unused = [path for path in source if path not in used]
    report = Report(*(tuple(sorted(paths)) for paths in (taken, resized, kept, unused)))
    return stack_layers(unflatten_dict(out, sep="/"), fresh), report


def lacking(report: Report, weights: Collection[str] = ()) -> tuple[str, ...]:
    """The fresh paths of `report` that a source of weights must not lack (specification, section 9).

    Heads, the decoder, and the parts that ALBEF does not have may be missing. A file for one tower may lack all but
    that tower, and a BERT cross attention.

    Args:
      report: of `adapt`.
      weights: "vision" and/or "text" if the source is such files; empty = it must hold the whole model.
    """
    optional = {*HEADS, *OWN} | ({"cross_attention"} if "text" in weights else set())
    towers = {name for kind in weights for name in TOWERS[kind]}
    return tuple(
        path
        for path in report.fresh
        if optional.isdisjoint(path.split("/")) and (not towers or path.split("/")[0] in towers)
    )


def _origin(path: str, source: Mapping[str, Array], renames: Sequence[tuple[str, str]]) -> str | None:
    fits = [(old, new) for old, new in renames if path == new or path.startswith(new + "/")]
    candidates = [path] + [old + path[len(new) :] for old, new in fits]
    return next((c for c in candidates if c in source), None)


def _other_heads(
    source: Mapping[str, Array], target: Mapping[str, Array], renames: Sequence[tuple[str, str]]
) -> set[str]:
    """The `PAIR_HEADS` of which a tensor has another shape, if the source is another kind of model."""
    if all(_origin(path, source, renames) in (path, None) for path in target):
        return set()
    shared = (path for path in target if path in source and path.split("/")[0] in PAIR_HEADS)
    return {path.split("/")[0] for path in shared if source[path].shape != target[path].shape}


def _fit(path: str, loaded: Array, fresh: Array) -> Array:
    """`loaded` in the shape of `fresh`; both have the same width if they are position embeddings."""
    if loaded.shape == fresh.shape:
        return loaded
    parts = path.split("/")
    same_width = loaded.ndim == fresh.ndim and loaded.shape[-1] == fresh.shape[-1]
    if same_width and parts[-1] == "pos_embed":
        return resize_positions(loaded, grid=round((fresh.shape[1] - 1) ** 0.5))
    if same_width and parts[-2:] == ["position", "embedding"]:
        return jnp.concatenate([loaded[: fresh.shape[0]], fresh[loaded.shape[0] :]])
    if same_width and path in TYPES:
        return loaded[jnp.minimum(jnp.arange(fresh.shape[0]), loaded.shape[0] - 1)]
    if same_width and path in TYPE_OF_TOWER and loaded.shape[0] > 1:
        row = TYPE_OF_TOWER[path]
        return loaded[row : row + 1]
    raise ValueError(
        f"{path}: loaded shape {tuple(loaded.shape)}, but the model has {tuple(fresh.shape)}; "
        "build the model with the sizes of the loaded one, or drop the tensor before loading"
    )


def check_trained(where: str, fresh: Sequence[str], *, steps: int) -> None:
    """Raise ValueError where a stage without updates would leave some of its parameters as they were drawn."""
    if steps == 0 and fresh:
        shown = ", ".join(fresh[:4]) + (", ..." if len(fresh) > 4 else "")
        raise ValueError(
            f"{where}: nothing is trained, and {len(fresh)} tensors are in none of the files ({shown}). Give "
            "parameters that hold them, or updates to train them."
        )


def check_whole(note: Report, source: str, lost: Sequence[str]) -> None:
    """Raise ValueError, which names the `source`, if it gave no tensor at all or `lost` are missing from it."""
    nothing = not (note.taken or note.resized)
    if not lost and not nothing:
        return
    paths = lost or note.fresh
    shown = ", ".join(paths[:4]) + (", ..." if len(paths) > 4 else "")
    raise ValueError(
        f"{source}: {'none' if nothing else 'only part'} of the model is in there, {len(paths)} tensors are missing "
        f"({shown}). Only heads, decoder and hypergraph may be. Set config.model to the depths of that model, give "
        "a complete one, or None to train from scratch; a single tower's foreign file goes to "
        "weights.vision or weights.text."
    )
