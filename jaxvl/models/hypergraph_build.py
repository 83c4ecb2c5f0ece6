"""Hyperedges over image patches and words, by clustering and nearest neighbours: pure functions of arrays.

The nodes of an example are its visual states ([CLS], then the patches row by row) followed by its text states.
The paper (Li D., Wu A., Han Y., Journal of Software, article 7321) says that "the incidence matrix comes from
clustering and KNN" and no more; neighbourhoods follow HGNN (Feng et al., AAAI 2019) and DHGNN (Jiang et al.,
IJCAI 2019). There is no randomness, no scatter and no control flow that depends on data. All of it is float32
at the highest matrix precision, so that reduced precision cannot flip an assignment.

Shape legend: `B` batch, `P` visual nodes, `L` text nodes, `N = P + L` nodes, `E` hyperedges, `R` clusters of a
node, `K` neighbours, `D` width.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from jaxvl.models.hypergraph_options import HyperedgeOptions

exact = partial(jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


class Hypergraph(NamedTuple):
    """Incidence of a batch of hypergraphs, and what it was made from.

    Attributes:
      h_bne: incidence, float32, 0 on padded nodes.
      assigned_bne: bool, membership before neighbours were added.
      phi_bnd: clustering features, float32, unit rows or 0.
      mask_bn: bool, True = node, False = padding.
    """

    h_bne: Array
    assigned_bne: Array
    phi_bnd: Array
    mask_bn: Array


class VisualNodes(NamedTuple):
    """What hyperedges need of an image: computed once per image however many texts are joined with it.

    `phi_bpd` features; `seed_bed` first centres (all of "grid", the first of "farthest"). With `scope="visual"`
    instead the final `centre_bed`, the similarity `score_bpe` to it and, where it does not depend on the text,
    the membership `near_bpe` by nearest neighbours. None = not needed, or depends on the text.
    """

    phi_bpd: Array
    seed_bed: Array | None = None
    centre_bed: Array | None = None
    score_bpe: Array | None = None
    near_bpe: Array | None = None


def unit(x: Array) -> Array:
    """`x [..., D]` divided by `max(norm, 1e-6)`; its gradient is finite at 0."""
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def centred(x_bnd: Array, mask_bn: Array) -> Array:
    """`x_bnd` minus its mean over valid nodes, float32; 0 on padded nodes whatever they hold, NaN included."""
    valid = mask_bn[..., None]
    x_bnd = jnp.where(valid, x_bnd.astype(jnp.float32), 0.0)
    mean = x_bnd.sum(1, keepdims=True) / jnp.maximum(valid.sum(1, keepdims=True), 1)
    return jnp.where(valid, x_bnd - mean, 0.0)


def features(x_bnd: Array, mask_bn: Array) -> Array:
    """Clustering features of one modality: centred, then of unit length.

    Image and text states live in different regions of the space: clustering them raw gives clusters of a
    single modality, hence the mean is that of the modality.
    """
    return unit(centred(x_bnd, mask_bn))


def similarity(phi_bnd: Array, centre_bed: Array) -> Array:
    """Inner products `[B,N,E]`."""
    return exact("bnd,bed->bne", phi_bnd, centre_bed)


def kth_largest(x: Array, count: int | Array, *, axis: int) -> Array:
    """The `count`-th largest of `x` (float32, no NaN) along `axis`, which is kept with size 1.

    A search over the 32 bits of the answer, each of which costs one comparison and one sum. `lax.top_k` is run by
    the partitioner on the gathered batch of all devices, and a sort is an order of magnitude slower on CPU.
    """
    sign = jnp.uint32(1 << 31)
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)  # -0 becomes 0: they are a tie
    key = jnp.where(bits >= sign, ~bits, bits | sign)  # unsigned integers in the order of the floats

    def step(i: Array, found: Array) -> Array:
        trial = found | (sign >> i.astype(jnp.uint32))
        return jnp.where((key >= trial).sum(axis, keepdims=True) >= count, trial, found)

    found = lax.fori_loop(0, 32, step, jnp.zeros_like(lax.slice_in_dim(key, 0, 1, axis=axis)))
    return lax.bitcast_convert_type(jnp.where(found >= sign, found ^ sign, ~found), jnp.float32)


def top(score: Array, count: int | Array, *, axis: int) -> Array:
    """bool, True at the `count` largest of `score` along `axis`; the lowest index wins a tie.

    `count` is at most the size of the axis, and broadcasts against `score` reduced over it.
    """
    limit = kth_largest(score, count, axis=axis)
    above, tie = score > limit, score == limit
    room = count - above.sum(axis, keepdims=True)
    return above | (tie & (jnp.cumsum(tie, axis) <= room))


def best(score_bne: Array, count: int) -> Array:
    """bool `[B,N,E]`: the `count` best hyperedges of each node; the lowest index wins a tie."""
    if count == 1:
        return jnp.argmax(score_bne, -1)[..., None] == jnp.arange(score_bne.shape[-1])
    return top(score_bne, count, axis=-1)


def nearest(score_bne: Array, *quotas: tuple[Array, int]) -> Array:
    """bool `[B,N,E]`: of each hyperedge the `count` best nodes of every quota `(mask_bn, count)`, or all of them."""
    masks = jnp.stack([mask for mask, _ in quotas], 1)[..., None]
    counts = jnp.array([min(count, score_bne.shape[1]) for _, count in quotas])[:, None, None]
    chosen = top(jnp.where(masks, score_bne[:, None], -jnp.inf), counts, axis=2)
    return (chosen & masks).any(1)


def grid_centres(phi_bpd: Array, grid: int) -> Array:
    """Features of the patches in rows and columns `floor((i + 1/2) side / grid)`: `[B, grid**2, D]`.

    Raises ValueError when the visual nodes are not [CLS] and a square of at least `grid x grid` patches.
    """
    nodes = phi_bpd.shape[1]
    side = math.isqrt(max(nodes - 1, 0))
    if side * side + 1 != nodes or side < grid:
        raise ValueError(
            f"hypergraph.init='grid' with grid={grid} needs 1 + side**2 visual nodes with side >= grid, got "
            f"{nodes}: use a smaller grid or init='farthest'"
        )
    ticks = [(2 * i + 1) * side // (2 * grid) for i in range(grid)]
    return phi_bpd[:, jnp.array([1 + row * side + column for row in ticks for column in ticks])]


def longest(x_bpd: Array) -> Array:
    """Unit vector `[B,1,D]` along the longest row of `x_bpd`."""
    index = jnp.argmax(jnp.square(x_bpd).sum(-1), -1)
    return unit(jnp.take_along_axis(x_bpd, index[:, None, None], axis=1))


def farthest_centres(phi_bnd: Array, mask_bn: Array, first_bed: Array, count: int) -> Array:
    """`count` features `[B,E,D]`: `first_bed [B,1,D]`, then each time the valid node least similar to those chosen."""

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        reach_bn, centre_bd = carry
        reach_bn = jnp.maximum(reach_bn, exact("bnd,bd->bn", phi_bnd, centre_bd))
        pick = jnp.argmin(jnp.where(mask_bn, reach_bn, jnp.inf), -1)
        chosen = jnp.take_along_axis(phi_bnd, pick[:, None, None], axis=1)[:, 0]
        return (reach_bn, chosen), centre_bd

    start = (jnp.full(mask_bn.shape, -jnp.inf), first_bed[:, 0])
    return lax.scan(step, start, None, length=count)[1].swapaxes(0, 1)


def lloyd(phi_bnd: Array, mask_bn: Array, centre_bed: Array, iters: int) -> Array:
    """Spherical k-means: `iters` times assign every valid node and move each centre to the direction of its sum.

    A cluster without members keeps its centre.
    """
    for _ in range(iters):
        a_bne = best(similarity(phi_bnd, centre_bed), 1) & mask_bn[..., None]
        total_bed = exact("bne,bnd->bed", a_bne.astype(jnp.float32), phi_bnd)
        centre_bed = jnp.where(a_bne.any(1)[..., None], unit(total_bed), centre_bed)
    return centre_bed


def clustered(phi_bnd: Array, mask_bn: Array, seed_bed: Array, options: HyperedgeOptions) -> Array:
    """Final centres `[B,E,D]` from the seeds of `VisualNodes`; constant for differentiation."""
    phi_bnd, seed_bed = lax.stop_gradient((phi_bnd, seed_bed))
    if options.init == "farthest":
        seed_bed = farthest_centres(phi_bnd, mask_bn, seed_bed, options.clusters)
    return lloyd(phi_bnd, mask_bn, seed_bed, options.iters)


def visual_nodes(v_bpd: Array, *, options: HyperedgeOptions) -> VisualNodes:
    """The part of hyperedge construction that depends on the image alone.

    Args:
      v_bpd: visual states `[B,P,D]`, all of them valid.
      options: the same as given to `build`.

    Raises:
      ValueError: `init="grid"` and the visual nodes are not a square grid, see `grid_centres`.
    """
    mask = jnp.ones(v_bpd.shape[:2], bool)
    x_bpd = centred(v_bpd if options.incidence_grad == "pass" else lax.stop_gradient(v_bpd), mask)
    phi = unit(x_bpd)
    if not options.has_clusters:
        return VisualNodes(phi)
    seed = grid_centres(phi, options.grid) if options.init == "grid" else longest(x_bpd)
    if options.scope == "both":
        return VisualNodes(phi, seed)
    centre = clustered(phi, mask, seed, options)
    score = similarity(phi, centre)
    fixed = options.mode == "cluster_knn" and options.knn_quota == "modality"
    near = nearest(lax.stop_gradient(score), (mask, options.k_v)) if fixed else None
    return VisualNodes(phi, None, centre, score, near)


def build(visual: VisualNodes, text_bld: Array, mask_bl: Array, *, options: HyperedgeOptions) -> Hypergraph:
    """Hypergraphs over the nodes `[V; T]`.

    Args:
      visual: `visual_nodes(v_bpd)`, one row per row of text.
      text_bld: text states `[B,L,D]`; `L = 0` gives a hypergraph of the image alone.
      mask_bl: bool `[B,L]`, True = token. Padded rows may hold anything.
      options: see `HyperedgeOptions`.

    Returns:
      `Hypergraph` with `E = grid**2`, `N`, or their sum by mode.
    """
    passes = options.incidence_grad == "pass"
    phi_t = features(text_bld if passes else lax.stop_gradient(text_bld), mask_bl)
    phi = jnp.concatenate([visual.phi_bpd, phi_t], 1)
    mask = jnp.concatenate([jnp.ones(visual.phi_bpd.shape[:2], bool), mask_bl], 1)
    parts = []
    if options.has_clusters:
        parts.append(_cluster_edges(visual, phi, mask, options))
    if options.mode.endswith("knn_node"):
        parts.append(_node_edges(phi, mask, options))
    member, assigned, square = (jnp.concatenate(x, -1) for x in zip(*parts, strict=True))
    h = member.astype(jnp.float32)
    if options.incidence == "prob":
        h = h * closeness(square, mask, options.incidence_p)
    return Hypergraph(h, assigned, phi, mask)


def closeness(square_bne: Array, mask_bn: Array, p: float) -> Array:
    """`exp(-(d / (p mean d))**2)` in (0,1], from squared distances; the mean is over the valid nodes (HGNN)."""
    positive = square_bne > 0
    distance = jnp.where(positive, jnp.sqrt(jnp.where(positive, square_bne, 1.0)), 0.0)
    valid = mask_bn[..., None]
    total = jnp.where(valid, distance, 0.0).sum(1, keepdims=True)
    mean = total / jnp.maximum(valid.sum(1, keepdims=True), 1)
    scale = jnp.where(mean > 0, p * mean, 1.0)
    return jnp.exp(-jnp.square(distance / scale))


def _cluster_edges(
    visual: VisualNodes, phi: Array, mask: Array, options: HyperedgeOptions
) -> tuple[Array, Array, Array]:
    """(membership, membership before neighbours, squared distances), each `[B,N,E]` with `E` clusters."""
    visuals = visual.phi_bpd.shape[1]
    if visual.centre_bed is None:
        assert visual.seed_bed is not None
        centre = clustered(phi, mask, visual.seed_bed, options)
        score = similarity(phi, centre)
    else:
        assert visual.score_bpe is not None
        centre = visual.centre_bed
        score = jnp.concatenate([visual.score_bpe, similarity(phi[:, visuals:], centre)], 1)
    constant = lax.stop_gradient(score)
    assigned = best(constant, options.adjacent) & mask[..., None]
    member = assigned
    if options.mode == "cluster_knn":
        member = member | _neighbours(visual, constant, mask, options)
    return member, assigned, _square_distance(phi, centre, score)


def _neighbours(visual: VisualNodes, score: Array, mask: Array, options: HyperedgeOptions) -> Array:
    if options.knn_quota == "joint":
        return nearest(score, (mask, options.knn_k))
    visuals = visual.phi_bpd.shape[1]
    first = jnp.arange(mask.shape[1]) < visuals
    words = (mask & ~first, options.k_t)
    if visual.near_bpe is None:
        return nearest(score, (mask & first, options.k_v), words)
    near = jnp.pad(visual.near_bpe, ((0, 0), (0, mask.shape[1] - visuals), (0, 0)))
    return near | nearest(score, words)


def _node_edges(phi: Array, mask: Array, options: HyperedgeOptions) -> tuple[Array, Array, Array]:
    """As `_cluster_edges`, for one hyperedge per node; that of a padded node is empty."""
    own = jnp.eye(phi.shape[1], dtype=bool)
    square = jnp.where(own, 0.0, _square_distance(phi, phi, similarity(phi, phi)))
    rank = jnp.where(own, jnp.inf, -lax.stop_gradient(square))  # the centre itself is always a member
    member = nearest(rank, (mask, options.knn_k)) & mask[:, None, :]
    return member, member, square


def _square_distance(phi_bnd: Array, centre_bed: Array, score_bne: Array) -> Array:
    """Of rows that are unit or 0: rounding their squared norms makes ties with a zero row exact."""
    node, centre = (jnp.round(jnp.square(x).sum(-1)) for x in (phi_bnd, centre_bed))
    return jnp.maximum(node[:, :, None] + centre[:, None, :] - 2 * score_bne, 0.0)
