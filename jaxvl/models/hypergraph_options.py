"""Options of hypergraphs: names, defaults, allowed values; no arrays.

`HypergraphOptions.parse` reads the `hypergraph` mapping of a configuration and refuses what it does not know.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless `value` of the option `name` is one of `choices`; suggests the nearest."""
    choices = tuple(choices)
    if value not in choices:
        close = difflib.get_close_matches(str(value), [c for c in choices if isinstance(c, str)], n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"hypergraph.{name}={value!r}: expected one of {choices}{hint}")


def check_positive(name: str, value: Any, kind: type) -> None:
    """Raise ValueError unless `value` of the option `name` is a number above zero; `kind` int refuses 2.5."""
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < math.inf:
        raise ValueError(f"hypergraph.{name}={value!r}: expected a positive {kind.__name__}")


@dataclass(frozen=True)
class HyperedgeOptions:
    """How hyperedges are made.

    Attributes:
      mode: "cluster_knn": members of a cluster and the nearest neighbours of its centre. "cluster": members
        alone. "knn_node": one hyperedge per node, itself and its nearest (HGNN). "cluster+knn_node": the
        hyperedges of "cluster" and of "knn_node" side by side (DHGNN).
      grid: the number of clusters is `grid**2`.
      iters: Lloyd steps.
      init: first centres. "grid": patches on a `grid x grid` lattice. "farthest": farthest-point traversal,
        independent of the order of the nodes, one sequential step per centre.
      k_v, k_t: visual and text neighbours of a centre, with `knn_quota="modality"`.
      knn_quota: "modality" guarantees both modalities in every hyperedge; "joint" takes the best of all nodes.
      knn_k: neighbours with `knn_quota="joint"`; members of a "knn_node" hyperedge, its centre included.
      adjacent: clusters that a node joins, best first.
      scope: what is clustered. "visual" finds centres from the image alone and attaches the words to them.
      incidence: "binary", or "prob": members weigh `exp(-(d / (incidence_p * mean d))**2)`.
      incidence_p: width of "prob"; larger is closer to binary.
      incidence_grad: "stop" treats the incidence as constant; "pass" differentiates the distances of "prob"
        (who is a member, and the centres of clusters, stay constant).
    """

    mode: str = "cluster_knn"
    grid: int = 4
    iters: int = 3
    init: str = "grid"
    k_v: int = 16
    k_t: int = 4
    knn_quota: str = "modality"
    knn_k: int = 20
    adjacent: int = 1
    scope: str = "both"
    incidence: str = "binary"
    incidence_p: float = 1.0
    incidence_grad: str = "stop"

    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "mode": ("cluster_knn", "cluster", "knn_node", "cluster+knn_node"),
        "init": ("grid", "farthest"),
        "knn_quota": ("modality", "joint"),
        "scope": ("both", "visual"),
        "incidence": ("binary", "prob"),
        "incidence_grad": ("stop", "pass"),
    }

    def __post_init__(self) -> None:
        for name, choices in self.CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in ("grid", "iters", "k_v", "k_t", "knn_k", "adjacent"):
            check_positive(name, getattr(self, name), int)
        check_positive("incidence_p", self.incidence_p, float)
        if self.adjacent > self.clusters:
            raise ValueError(
                f"hypergraph.adjacent={self.adjacent}: there are only grid**2={self.clusters} clusters"
            )
        if self.scope == "visual" and self.mode == "knn_node":
            raise ValueError("hypergraph.scope='visual' needs a mode with clusters, not mode='knn_node'")
        if self.incidence_grad == "pass" and self.incidence == "binary":
            raise ValueError(
                "hypergraph.incidence_grad='pass' needs incidence='prob': a binary incidence is flat"
            )

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return self.grid**2

    @property
    def has_clusters(self) -> bool:
        """Whether the mode clusters at all."""
        return self.mode != "knn_node"


@dataclass(frozen=True)
class HypergraphOptions(HyperedgeOptions):
    """Everything about the hypergraph of a fusion encoder: `HyperedgeOptions` and what follows.

    Attributes:
      layers: fusion layers that have a hypergraph, 1-based; `parse` defaults to all layers there are.
      layout: "cross": ALBEF's layer (text queries text, then the image), beside it a hypergraph over both.
        "concat": one sequence of image and text through self-attention (equations 3-9 taken literally).
        "visual_pre": a hypergraph over the image, which cross attention then reads; `fusion` has no effect.
      ffn_placement: "after": the feed-forward layer follows fusion. "in_branch": it belongs to the attention
        branch, and a new residual one, zero at first, follows fusion.
      norm: exponents of the node degrees, see `hypergraph.NORMS`.
      weights: of hyperedges. "identity": 1. "slot": one scalar per hyperedge. "content": from the mean feature
        of the members.
      mlp_ratio: hidden width of the hypergraph's MLP over the model width.
      residual: "identity" adds input to output around convolution and MLP; None is equation 8 literally.
      theta_bias: "zeros" gives the convolution a bias, zero at first.
      visual_update: "residual" updates the image states too, by a projection that is zero at first.
      fusion: "xattn": tokens attend to all nodes. "branch": to the two branches at their own position.
        "gate": a sigmoid gate.
      fusion_init: "zero" starts as the network without hypergraph; "normal" does not.
    """

    layers: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    layout: str = "cross"
    ffn_placement: str = "after"
    norm: str = "hgnn"
    weights: str = "identity"
    mlp_ratio: float = 1.0
    residual: str | None = "identity"
    theta_bias: str | None = None
    visual_update: str | None = None
    fusion: str = "xattn"
    fusion_init: str = "zero"

    CHOICES: ClassVar[dict[str, tuple[Any, ...]]] = HyperedgeOptions.CHOICES | {
        "layout": ("cross", "concat", "visual_pre"),
        "ffn_placement": ("after", "in_branch"),
        "norm": ("hgnn", "paper", "hgnn_plus"),
        "weights": ("identity", "slot", "content"),
        "residual": ("identity", None),
        "theta_bias": (None, "zeros"),
        "visual_update": (None, "residual"),
        "fusion": ("xattn", "branch", "gate"),
        "fusion_init": ("zero", "normal"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("mlp_ratio", self.mlp_ratio, float)
        if not isinstance(self.layers, (tuple, list)):
            raise ValueError(f"hypergraph.layers={self.layers!r}: expected a sequence of layer numbers")
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"hypergraph.layers={self.layers}: a layer is named twice")
        conflicts = {
            "weights='slot' needs a fixed number of hyperedges: mode 'cluster' or 'cluster_knn'": (
                self.weights == "slot" and self.mode.endswith("knn_node")
            ),
            "visual_update='residual' needs layout='cross'": (
                self.visual_update is not None and self.layout != "cross"
            ),
            "ffn_placement='in_branch' needs a fusion: layout 'cross' or 'concat'": (
                self.ffn_placement == "in_branch" and self.layout == "visual_pre"
            ),
            "residual=None with layout='visual_pre' needs fusion_init='normal': from zero it never learns": (
                self.residual is None and self.layout == "visual_pre" and self.fusion_init == "zero"
            ),
        }
        broken = [message for message, holds in conflicts.items() if holds]
        if broken:
            raise ValueError("hypergraph: " + "; ".join(broken))

    @classmethod
    def parse(cls, mapping: Mapping[str, Any] | None, *, depth: int) -> HypergraphOptions | None:
        """Validated options of a fusion encoder of `depth` layers; None for no hypergraph, or on no layer.

        Raises:
          ValueError: an unknown key, a value outside its choices, layers outside 1..depth, or options that
            contradict each other. The message names the key and, for a misspelling, what it resembles.
        """
        if mapping is None:
            return None
        names = [f.name for f in fields(cls)]
        for key in mapping:
            if key not in names:
                close = difflib.get_close_matches(str(key), names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(names))}"
                raise ValueError(f"unknown option hypergraph.{key}{hint}")
        options = cls(**({"layers": tuple(range(1, depth + 1))} | dict(mapping)))
        outside = [i for i in options.layers if isinstance(i, bool) or i not in range(1, depth + 1)]
        if outside:
            raise ValueError(
                f"hypergraph.layers={options.layers}: {outside} not in 1..{depth} (layers count from 1)"
            )
        return options if options.layers else None
