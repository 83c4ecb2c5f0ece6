"""Conversion between a stack of scanned layers and the same layers one by one, on any pytree.

A stack `{name}_{a}_{b}` holds the layers `a..b-1` along the leading axis of its arrays; unrolled, layer `i` is
`{name}_{i}`. The unrolled form is canonical: checkpoints and foreign weights have it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STACK = re.compile(r"(.+)_(\d+)_(\d+)")


def unstack_layers(tree: Any) -> Any:
    """Canonical form of `tree`: each stack `{name}_{a}_{b}` becomes the layers `{name}_{a}` .. `{name}_{b-1}`.

    Works on any pytree that holds nested dicts of unboxed arrays (parameters, optimiser states, train
    states): numpy or JAX arrays, tracers, or `jax.ShapeDtypeStruct`, whose sharding is kept. A canonical tree
    is returned unchanged.
    """
    if not isinstance(tree, Mapping):
        children, treedef = _children(tree)
        return tree if children is None else treedef.unflatten([unstack_layers(c) for c in children])
    out: dict[str, Any] = {}
    for key, value in tree.items():
        stack = _stack_range(key)
        if stack is None:
            out[key] = unstack_layers(value)
            continue
        name, start, stop = stack
        for i in range(stop - start):
            out[f"{name}_{start + i}"] = jax.tree.map(lambda x, i=i: _row(x, i), value)
    return out


def stack_layers(tree: Any, like: Any) -> Any:
    """Inverse of `unstack_layers`: the canonical `tree` with layers stacked where `like` has stacks.

    `like` may be abstract. Entries of a dict that `like` lacks stay as they are: callers report them.

    Raises:
      KeyError: a layer that `like` stacks is missing in `tree`.
      ValueError: the two trees differ in something other than dicts.
    """
    if not isinstance(tree, Mapping):
        children, treedef = _children(tree)
        if children is None:
            return tree
        others, _ = _children(like)
        if others is None or len(others) != len(children):
            raise ValueError(
                f"cannot stack layers: {type(tree).__name__} does not match {type(like).__name__}"
            )
        return treedef.unflatten([stack_layers(c, o) for c, o in zip(children, others, strict=True)])
    if not isinstance(like, Mapping):
        raise ValueError(f"cannot stack layers: a dict does not match {type(like).__name__}")
    out = dict(tree)
    for key, other in like.items():
        stack = _stack_range(key)
        if stack is None:
            if key in tree:
                out[key] = stack_layers(tree[key], other)
            continue
        name, start, stop = stack
        layers = [f"{name}_{i}" for i in range(start, stop)]
        missing = [layer for layer in layers if layer not in tree]
        if missing:
            raise KeyError(f"cannot build the stack {key!r}: no {', '.join(missing)} among {sorted(tree)}")
        out[key] = jax.tree.map(_stack, *[out.pop(layer) for layer in layers])
    return out


def _stack_range(key: Any) -> tuple[str, int, int] | None:
    match = STACK.fullmatch(key) if isinstance(key, str) else None
    return None if match is None else (match[1], int(match[2]), int(match[3]))


def _children(tree: Any) -> tuple[list[Any] | None, Any]:
    """One level of a pytree node and how to rebuild it; (None, _) for a leaf."""
    children, treedef = jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)
    return (None, treedef) if jax.tree_util.treedef_is_leaf(treedef) else (children, treedef)


def _row(x: Any, i: int) -> Any:
    if not isinstance(x, jax.ShapeDtypeStruct):
        return x[i]
    sharding = x.sharding
    if sharding is not None:
        sharding = sharding.update(spec=type(sharding.spec)(*sharding.spec[1:]))
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sharding)


def _stack(*rows: Any) -> Any:
    return np.stack(rows) if all(isinstance(row, np.ndarray) for row in rows) else jnp.stack(rows)
