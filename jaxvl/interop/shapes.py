"""Shapes of an imported tree: tensors that share an axis must agree about its size.

Rules name axes by letters, `("encoder/.*/kernel", "D F")`. What most tensors say about a letter is taken for its size;
a tensor that says otherwise is refused by its foreign name, before a model is built around it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxvl.interop.files import WeightsError

Rules = Sequence[
    tuple[str, str]
]  # pattern of a path, its axes; a number is a size, "2D|4D" a choice, "" a scalar


def encoder_rules(prefix: str, width: str, mlp: str) -> Rules:
    """Rules of attention, feed-forward and norms below `prefix` for the names of axes `width` and `mlp`."""
    below = rf"{prefix}(.*/)?"
    return (
        (below + r"(query|key|value|out)/kernel", f"{width} {width}"),
        (below + r"(up|fc1)/kernel", f"{width} {mlp}"),
        (below + r"(up|fc1)/bias", mlp),
        (below + r"(down|fc2)/kernel", f"{mlp} {width}"),
        (below + r"((query|key|value|out|down|fc2)/bias|norm\w*/(scale|bias))", width),
    )


def text_rules(prefix: str, width: str = "D") -> Rules:
    """Rules of word, position and type tables."""
    return (
        (prefix + r"embeddings/word/embedding", f"vocabulary {width}"),
        (prefix + r"embeddings/position/embedding", f"positions {width}"),
        (prefix + r"embeddings/token_type/embedding", f"types {width}"),
        (prefix + r"embeddings/modality/embedding", f"1 {width}"),
    )


def vision_rules(prefix: str, width: str = "D") -> Rules:
    """Rules of class token, positions and patches."""
    return (
        (prefix + r"cls_token", f"1 1 {width}"),
        (prefix + r"pos_embed", f"1 tokens {width}"),
        (prefix + r"patch_embed/kernel", f"patch patch 3 {width}"),
        (prefix + r"patch_embed/bias", width),
        (prefix + r"modality/embedding", f"1 {width}"),
    )


def mlm_rules(width: str = "D") -> Rules:
    """Rules of the language-model head on states of `width`."""
    return (
        (r"mlm_head/dense/kernel", f"{width} {width}"),
        (r"mlm_head/(dense/bias|norm/(scale|bias))", width),
        (r"mlm_head/bias", "vocabulary"),
        (r"mlm_head/decoder/kernel", f"{width} vocabulary"),
    )


CLASS_RULES: Rules = (
    (r"class_head/(fc1/bias|norm/(scale|bias))", "hidden"),
    (r"class_head/fc2/kernel", "hidden classes"),
    (r"class_head/fc2/bias", "classes"),
)


def check(arrays: Mapping[str, np.ndarray], mapped: Iterable[tuple[str, str]], rules: Rules) -> None:
    """Compare the shapes of `arrays`, by canonical path, with `rules`; the first rule that matches counts.

    Args:
      arrays: canonical path -> array.
      mapped: (foreign name, canonical path), for the message.
      rules: see the module.

    Raises:
      WeightsError: a tensor has another number of axes, or another size than its fellows; it names the tensor.
    """
    foreign = {path: name for name, path in mapped}
    axes = {path: _axes(path, rules) for path in arrays}
    votes: dict[str, Counter[int]] = {}
    for path, names in axes.items():
        if len(names) == arrays[path].ndim:
            for name, size in zip(names, arrays[path].shape, strict=True):
                votes.setdefault(name, Counter())[size] += 1
    sizes = {name: counter.most_common(1)[0][0] for name, counter in votes.items()}
    for path, names in axes.items():
        shape, allowed = arrays[path].shape, [_sizes(name, sizes) for name in names]
        if len(shape) != len(names) or not all(n in some for n, some in zip(shape, allowed, strict=True)):
            listed = ", ".join(
                name if name.isdigit() else f"{name}={'|'.join(map(str, some))}"
                for name, some in zip(names, allowed, strict=True)
            )
            raise WeightsError(
                f"{foreign.get(path, path)!r}: {path} would have shape {list(shape)}, but by the other tensors it is "
                f"[{listed}]"
            )


def _sizes(name: str, sizes: Mapping[str, int]) -> list[int]:
    """Sizes that an axis may have: those of `"D|2D"` are `D` and twice that."""
    found = []
    for choice in name.split("|"):
        factor, letters = re.fullmatch(r"(\d*)(\D*)", choice).groups()  # type: ignore[union-attr]
        found.append(int(factor or 1) * (sizes.get(letters, 0) if letters else 1))
    return found


def _axes(path: str, rules: Rules) -> list[str]:
    for pattern, names in rules:
        if re.fullmatch(pattern, path):
            return names.split()
    raise AssertionError(
        f"no rule for the shape of {path}"
    )  # a table without its rule: a bug, not a bad file
