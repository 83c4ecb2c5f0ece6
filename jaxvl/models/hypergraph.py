"""Hypergraph convolution (equations 7 and 8 of Hyper-ALBEF; HGNN, Feng et al., AAAI 2019): pure functions.

`A = D_v^a H W D_e^-1 H^T D_v^a` is never formed. It is kept as two factors `[N,E]` that hold all the scaling, so
`A X Theta` is two thin products around a projection of the `E` rows of hyperedges. How `H` is made is the
business of `hypergraph_build`; everything here takes any incidence.

    options = HyperedgeOptions(grid=4)
    graph = build(visual_nodes(v_bpd, options=options), text_bld, mask_bl, options=options)
    y_bnd = convolve(x_bnd, factors(graph.h_bne), theta)

Shape legend: `B` batch, `N` nodes, `E` hyperedges, `D` width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax, nn

from jaxvl.models.hypergraph_build import (
    Hypergraph,
    VisualNodes,
    build,
    centred,
    exact,
    features,
    visual_nodes,
)
from jaxvl.models.hypergraph_options import HyperedgeOptions, HypergraphOptions, check_choice

__all__ = [
    "NORMS",
    "Degrees",
    "Factors",
    "HyperedgeOptions",
    "Hypergraph",
    "HypergraphOptions",
    "VisualNodes",
    "build",
    "centred",
    "content_weights",
    "convolve",
    "degrees",
    "factors",
    "features",
    "statistics",
    "visual_nodes",
]

Power = Callable[[Array], Array]
NORMS: Mapping[str, tuple[Power, Power]] = {  # power of the node degree on the input and on the output side
    "hgnn": (lax.rsqrt, lax.rsqrt),  # symmetric, spectrum in [0,1]
    "paper": (jnp.sqrt, jnp.sqrt),  # the exponent as printed in equation 7; hubs dominate
    "hgnn_plus": (jnp.ones_like, jnp.reciprocal),  # rows sum to 1
}


class Degrees(NamedTuple):
    """`node_bn` sums the weights of a node's hyperedges; `edge_be` counts members, without weights."""

    node_bn: Array
    edge_be: Array


class Factors(NamedTuple):
    """Normalised adjacency `A = spread @ gather^T`, both float32 `[B,N,E]`."""

    gather_bne: Array
    spread_bne: Array


def degrees(h_bne: Array, weights_be: Array | None = None) -> Degrees:
    """Degrees of nodes and hyperedges; `weights_be` None = all 1."""
    weighted = h_bne if weights_be is None else h_bne * weights_be[:, None, :]
    return Degrees(weighted.sum(-1), h_bne.sum(1))


def where_positive(power: Power, x: Array) -> Array:
    """`power(x)`, and 0 with gradient 0 where `x` is 0."""
    positive = x > 0
    return jnp.where(positive, power(jnp.where(positive, x, 1.0)), 0.0)


def factors(h_bne: Array, *, weights_be: Array | None = None, norm: str = "hgnn") -> Factors:
    """The two factors of the normalised adjacency.

    Args:
      h_bne: incidence, >= 0, float32; rows of padded nodes and columns of empty hyperedges are 0.
      weights_be: weights of hyperedges, > 0; None = 1.
      norm: a key of `NORMS`.

    Raises:
      ValueError: unknown `norm`.
    """
    check_choice("norm", norm, NORMS)
    inner, outer = NORMS[norm]
    node_bn, edge_be = degrees(h_bne, weights_be)
    scale_be = where_positive(jnp.reciprocal, edge_be)
    if weights_be is not None:
        scale_be = scale_be * weights_be
    gather = h_bne * where_positive(inner, node_bn)[..., None] * scale_be[:, None, :]
    return Factors(gather, h_bne * where_positive(outer, node_bn)[..., None])


def convolve(
    x_bnd: Array, scaled: Factors, theta: Array | None = None, *, bias: Array | None = None, first: int = 0
) -> Array:
    """`A (x Theta + bias)`, evaluated hyperedges first.

    Args:
      x_bnd: node states; padded rows must be finite.
      scaled: from `factors`.
      theta: kernel `[D,D']`; None = identity.
      bias: `[D']`; None = 0.
      first: only the nodes `first..N-1` are returned.

    Returns:
      `[B,N-first,D']` in the type of `x_bnd`.
    """
    dtype = x_bnd.dtype
    y_bed = jnp.einsum("bne,bnd->bed", scaled.gather_bne.astype(dtype), x_bnd)
    if theta is not None:
        y_bed = y_bed @ theta.astype(dtype)
    if bias is not None:
        y_bed = y_bed + (scaled.gather_bne.sum(1)[..., None] * bias).astype(dtype)
    return jnp.einsum("bne,bed->bnd", scaled.spread_bne[:, first:].astype(dtype), y_bed)


def content_weights(graph: Hypergraph, direction: Array) -> Array:
    """Weights `2 sigmoid(direction . mean feature of the members)` in (0,2), `[B,E]`; 1 where `direction [D]` is 0."""
    score_bn = exact("bnd,d->bn", graph.phi_bnd, direction)
    total_be = exact("bne,bn->be", graph.h_bne, score_bn)
    mean_be = total_be * where_positive(jnp.reciprocal, graph.h_bne.sum(1))
    return 2.0 * nn.sigmoid(mean_be)


def statistics(graph: Hypergraph, *, visuals: int, weights_be: Array | None = None) -> dict[str, Array]:
    """What to watch in a batch of hypergraphs; every value is `[B]`, float32.

    `node_degree_*` over valid nodes and `edge_degree_*` over hyperedges that have members; `bimodal` the share of
    those with nodes on both sides of index `visuals` before neighbours were added; `assignment_entropy` in nats,
    of the sizes of hyperedges before neighbours were added (log E = balanced).
    """
    degree = degrees(graph.h_bne, weights_be)
    assigned = graph.assigned_bne
    both = assigned[:, :visuals].any(1) & assigned[:, visuals:].any(1)
    used = degree.edge_be > 0
    share = assigned.sum(1) / jnp.maximum(assigned.sum((1, 2)), 1)[:, None]
    entropy = -(share * jnp.log(jnp.where(share > 0, share, 1.0))).sum(-1)
    bimodal = both.sum(-1) / jnp.maximum(used.sum(-1), 1)
    return (
        _summary("node_degree", degree.node_bn, graph.mask_bn)
        | _summary("edge_degree", degree.edge_be, degree.edge_be > 0)
        | {"bimodal": bimodal, "assignment_entropy": entropy}
    )


def _summary(name: str, x: Array, valid: Array) -> dict[str, Array]:
    mean = jnp.where(valid, x, 0).sum(-1) / jnp.maximum(valid.sum(-1), 1)
    low, high = jnp.where(valid, x, jnp.inf).min(-1), jnp.where(valid, x, -jnp.inf).max(-1)
    return {f"{name}_mean": mean, f"{name}_min": low, f"{name}_max": high}
