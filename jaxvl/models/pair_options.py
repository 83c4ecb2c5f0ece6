"""Options of the dual encoder with a bridge: what its `text`, `vision` and `cross` mappings may hold.

None means: as the model's (`width`, `heads`, `mlp`), or that of the architecture (`eps`, `max_positions`).
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXT: Mapping[str, Any] = {
    "arch": "bert",
    "depth": 12,
    "width": None,
    "heads": None,
    "mlp": None,
    "max_positions": None,
    "eps": None,
    "dropout": 0.1,
    "attn_dropout": 0.1,
}
VISION: Mapping[str, Any] = {
    "arch": "vit",
    "depth": 12,
    "patch": 32,
    "width": None,
    "heads": None,
    "mlp": None,
    "eps": None,
}
CROSS: Mapping[str, Any] = {
    "depth": 3,
    "order": "pre",
    "bridge": "add",
    "mapping": "top",
    "cumulative_scope": "block",
    "share_projection": True,
    "heads": None,
    "mlp": None,
    "eps": 1e-12,
    "dropout": 0.1,
    "attn_dropout": 0.1,
}

# Of text architectures: rows of the position table, epsilon of the layer norms.
TEXT_ARCHES: Mapping[str, tuple[int, float]] = {
    "bert": (512, 1e-12),
    "roberta": (514, 1e-5),
    "vilt": (40, 1e-12),
}


@dataclass(frozen=True)
class VisionArch:
    """What sets an image encoder apart: epsilon, activation, CLIP's embeddings, ViLT's row, mean and std of pixels."""

    eps: float
    act: str = "gelu"
    clip: bool = False
    modality: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


VISION_ARCHES: Mapping[str, VisionArch] = {
    "vit": VisionArch(1e-12),
    "vilt": VisionArch(1e-12, modality=True),
    "clip": VisionArch(
        1e-5,
        act="quick_gelu",
        clip=True,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
}

CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "text": {"arch": tuple(TEXT_ARCHES)},
    "vision": {"arch": tuple(VISION_ARCHES)},
    "cross": {
        "order": ("pre", "post"),
        "bridge": ("add", "none", "scaled_add", "interpolate"),
        "mapping": ("top", "cross", "cumulative"),
        "cumulative_scope": ("block", "prefix"),
    },
}


def merged(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options `given` under `model.{where}` ("text", "vision", "cross"), completed with the defaults.

    Raises:
      ValueError: an unknown key, or a value that is none of those to choose from.
    """
    defaults = {"text": TEXT, "vision": VISION, "cross": CROSS}[where]
    for key in given:
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults)
            hint = f"did you mean {near[0]!r}?" if near else f"expected some of {sorted(defaults)}"
            raise ValueError(f"model.{where}: unknown key {key!r}; {hint}")
    out = {**defaults, **given}
    for key, choices in CHOICES[where].items():
        choose(f"model.{where}.{key}", out[key], choices)
    return out


def choose(where: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{where}={value!r}: expected one of {', '.join(map(repr, choices))}")


def tapped_layers(
    depth: int, count: int, *, mapping: str, scope: str = "block"
) -> tuple[tuple[int, ...], ...]:
    """Which layers of a tower of `depth` the `count` layers after it read; each reads the mean of its group.

    Layers are counted from 1. Of 12 for 3: "top" takes 10, 11, 12; "cross" 4, 8, 12 (halves are rounded up);
    "cumulative" 1-4, 5-8, 9-12 with scope "block", and 1-10, 1-11, 1-12 with scope "prefix".

    Raises:
      ValueError: the tower has fewer than `count` layers.
    """
    if not 1 <= count <= depth:
        raise ValueError(
            f"{count} cross-modal layers cannot read from {depth} layers: give the tower more of them"
        )
    ends = [(2 * i * depth + count) // (2 * count) for i in range(count + 1)]  # round(i depth / count)
    top = range(depth - count + 1, depth + 1)
    if mapping == "top":
        return tuple((last,) for last in top)
    if mapping == "cross":
        return tuple((last,) for last in ends[1:])
    if scope == "prefix":
        return tuple(tuple(range(1, last + 1)) for last in top)
    return tuple(tuple(range(first + 1, last + 1)) for first, last in itertools.pairwise(ends))
