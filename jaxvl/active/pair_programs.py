"""The jitted pieces of the pool scorer: what depends on one side, the critic of all pairs, and what is asked of few.

Shape legend: `B` images of a block, `Q` patterns, `P` pairs of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvl.objectives.uncertainty import indicator
from jaxvl.sharding import Partition
from jaxvl.tasks.momentum import call
from jaxvl.types import Array, PyTree


class Programs(NamedTuple):
    """The jitted pieces; compiled once for a block, a chunk and a padded bank."""

    image: Callable[..., Any]
    bank: Callable[..., Any]
    matches: Callable[..., Any]
    again: Callable[..., Any]
    pairs: Callable[..., Any]


def programs(
    matcher: Any, answers: Any, rough: Any, *, partition: Partition, counted: Callable[[str], None]
) -> Programs:
    """The programs of these models; each of them may be None.

    Args:
      matcher: VQME; answers: VAUE; rough: VQME with a separable critic, see `Request.prefilter`.
      partition: images of a block are split over its `data` axis, what comes out of pairs is everywhere.
      counted: told the name of a program whenever it is traced.
    """
    rep, split = partition.replicated(), partition.batch()

    def side(models: PyTree, kind: str, x: Array, mask: Array) -> dict[str, Any]:
        """What an "image" or a "text" is computed to once, whatever pairs it is in."""
        out: dict[str, Any] = {"mask": mask}
        if models["match"] is not None:
            state = call(matcher, models["match"], f"encode_{kind}", x, mask)
            out["critic"] = call(matcher, models["match"], f"critic_{kind}", state)
            out["contrast"] = call(matcher, models["match"], f"project_{kind}", state)
        if models["filter"] is not None:
            state = call(rough, models["filter"], f"encode_{kind}", x, mask)
            out["filter"] = call(rough, models["filter"], f"critic_{kind}", state)
        if models["answer"] is not None:
            out["answer"] = call(answers, models["answer"], f"{kind}_ready", x, mask)
        return out

    def image(models: PyTree, regions: Array, mask: Array) -> dict[str, Any]:
        """A block of images: features `[B,R,F]`."""
        counted("image")
        return side(models, "image", regions, mask)

    def bank(models: PyTree, text: Array) -> dict[str, Any]:
        """The patterns `[Q,L]`."""
        counted("bank")
        return side(models, "text", text, text != 0)

    def matches(models: PyTree, encoded: PyTree, bank: PyTree, *, how: str) -> Array:
        """`[B,Q]`: how well each pattern matches each image."""
        counted("matches")
        if how == "contrast":
            return encoded["contrast"] @ bank["contrast"].T
        if how == "filter":
            one, two = encoded["filter"], bank["filter"]
            return call(rough, models["filter"], "critic_all", one, two).astype(jnp.float32)
        a, b = encoded["critic"], bank["critic"]
        return call(matcher, models["match"], "critic_all", a, b).astype(jnp.float32)

    def again(models: PyTree, encoded: PyTree, bank: PyTree, i: Array, q: Array) -> dict[str, Array]:
        """The critic of the pairs of images `i [P]` and patterns `q [P]` alone."""
        counted("again")
        a, b = encoded["critic"][i], bank["critic"][q]
        return {"match": call(matcher, models["match"], "critic_pairs", a, b).astype(jnp.float32)}

    def pairs(
        models: PyTree,
        encoded: PyTree,
        bank: PyTree,
        i: Array,
        q: Array,
        *,
        var_ddof: int,
        at_uniform: str,
    ) -> dict[str, Array]:
        """The answers to the pairs of images `i [P]` and patterns `q [P]`, and how sure they are."""
        counted("pairs")
        one = jax.tree.map(lambda x: x[i], (encoded["answer"], encoded["mask"]))
        other = jax.tree.map(lambda x: x[q], (bank["answer"], bank["mask"]))
        out = call(answers, models["answer"], "pair_ready", *one, *other)
        found = indicator(out.logits, var_ddof=var_ddof, at_uniform=at_uniform)
        cosine = (unit(out.v) * unit(out.s)).sum(-1)
        return {"f": found.f, "p_max": found.p_max, "answer": found.index, "cosine": cosine}

    return Programs(
        jax.jit(image, out_shardings=split), jax.jit(bank, out_shardings=rep),
        jax.jit(matches, static_argnames="how", out_shardings=rep), jax.jit(again, out_shardings=rep),
        jax.jit(pairs, static_argnames=("var_ddof", "at_uniform"), out_shardings=rep),
    )  # fmt: skip


def unit(x: Array) -> Array:
    """Rows of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
