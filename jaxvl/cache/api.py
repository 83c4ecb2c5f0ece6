"""Encode once, ask often: images and texts to states that a `Store` keeps, and states to logits.

The functions are pure and take a model of the pair protocol (BridgeTower, ViLT) with its parameters; `CachedModel`
holds them jitted, once for each shape.

Shape legend: `B` rows, `U` distinct images, `Z` layers, `M` text tokens, `P` image tokens, `D` width, `A` classes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.cache.fingerprint import Fingerprint, hash_arrays
from jaxvl.cache.records import Layout
from jaxvl.cache.store import States
from jaxvl.models.bridge import Primed
from jaxvl.models.layers import unstack_layers
from jaxvl.models.pair_options import merged
from jaxvl.types import Array, Encoded, Fused, PyTree

BUCKETS = (8, 12, 16, 24, 40)
# Parameters that a record depends on, by the beginning of their path; ViLT's are the embeddings alone.
USED = {
    "image": ("visual_encoder/", "bridge/image_proj", "cls_token", "pos_embed", "patch_embed/"),
    "text": ("text_encoder/", "bridge/text_proj", "embeddings/"),
}


PRIMED_USED = ("bridge/token_type/", "cross/layers_0/")
PRIMED = 4  # more states of a primed record: input, query, key and value of the first cross-modal layer


class PrimedStates(NamedTuple):
    """`States` with the type row, and after them what the first cross-modal layer makes of one modality alone.

    Attributes:
      x: `[B,Z+4,S,D]`.
      mask: `[B,S]` bool, True = token; None of images.
    """

    x: Any
    mask: Any = None


# ---- pure functions ---------------------------------------------------------------------------------------


def encode_images(model: Any, params: PyTree, image: Array) -> States:
    """Normalised pixels `[B,H,W,3]` to states `[B,Z,P,D]`."""
    return States(_call(model, params, "encode_image", image).record)


def encode_texts(model: Any, params: PyTree, text: Array, text_mask: Array) -> States:
    """Ids `[B,M]` and mask `[B,M]` to states `[B,Z,M,D]` with the mask."""
    return States(_call(model, params, "encode_text", text, text_mask).record, text_mask)


def prime_images(model: Any, params: PyTree, image: States, *, image_type: int = 1) -> PrimedStates:
    """States of images and what the first cross-modal layer makes of them alone: `[B,Z+4,P,D]`.

    They are those of a first or of a second image (`image_type`). Only for `interaction="bridge"`.
    """
    return _pack(_call(model, params, "prime_image", Encoded(image.x), image_type=image_type), None)


def prime_texts(model: Any, params: PyTree, text: States) -> PrimedStates:
    """States of texts and what the first cross-modal layer makes of them alone: `[B,Z+4,M,D]`, with the mask."""
    return _pack(_call(model, params, "prime_text", Encoded(text.x), text.mask), text.mask)


def fuse(
    model: Any,
    params: PyTree,
    text: States,
    image: States,
    *,
    image_type: int = 1,
    image_index: Array | None = None,
    tokens: str = "all",
) -> Fused:
    """States of both modalities to `Fused`; see `BridgeTower.fuse` for the arguments."""
    how: dict[str, Any] = dict(image_type=image_type, image_index=image_index, tokens=tokens)
    return _call(model, params, "fuse", Encoded(text.x), text.mask, Encoded(image.x), **how)


def answer(
    model: Any,
    params: PyTree,
    text: States | PrimedStates,
    images: Sequence[States | PrimedStates],
    *,
    image_index: Sequence[Array | None] | None = None,
    tokens: str = "class",
) -> Array:
    """Class logits `[B,A]`: answers of VQA, entailment, two-image reasoning.

    What depends on one modality alone is computed once: of a text in front of several images, and of an image that
    many texts ask about.

    Args:
      model: with `classes`, and `images` as many as given.
      params: its parameters.
      text: of `encode_texts` or `prime_texts`, `B` rows.
      images: the images of each text, `U` rows each, of `encode_images` or `prime_images`.
      image_index: for each of `images`, the row `[B]` i32 of each text; None = its own row.
      tokens: "class" computes the last layer for the tokens that the head reads only; "all" gives the same.
    """
    index = (None,) * len(images) if image_index is None else tuple(image_index)
    pairs = list(enumerate(zip(images, index, strict=True), start=1))
    if _primes(model):
        ready = prime_texts(model, params, text) if isinstance(text, States) else text
        shown = [
            prime_images(model, params, image, image_type=kind) if isinstance(image, States) else image
            for kind, (image, _) in pairs
        ]
        how: dict[str, Any] = dict(tokens=tokens)
        fused = [
            _call(
                model,
                params,
                "join",
                _unpack(model, ready),
                text.mask,
                _unpack(model, image),
                image_index=rows,
                **how,
            )
            for image, rows in zip(shown, index, strict=True)
        ]
    else:
        fused = [
            fuse(
                model, params, States(*text), States(*image), image_type=kind, image_index=rows, tokens=tokens
            )
            for kind, (image, rows) in pairs
        ]
    return _call(model, params, "class_logits", tuple(f.pooled for f in fused))


def _pack(primed: Primed, mask: Array | None) -> PrimedStates:
    flat = [x.reshape(primed.x.shape) for x in (primed.query, primed.key, primed.value)]
    assert primed.record is not None
    return PrimedStates(jnp.concatenate([primed.record, jnp.stack([primed.x, *flat], 1)], 1), mask)


def _unpack(model: Any, states: PrimedStates) -> Primed:
    x, *flat = (states.x[:, i].astype(model.dtype) for i in range(-PRIMED, 0))
    query, key, value = (part.reshape(*part.shape[:2], model.head_count, -1) for part in flat)
    return Primed(x, query, key, value, states.x[:, :-PRIMED])


def _call(model: Any, params: PyTree, method: str, *args: Any, **kwargs: Any) -> Any:
    return model.apply({"params": params}, *args, method=method, **kwargs)


def _primes(model: Any) -> bool:
    """Whether the first cross-modal layer can be prepared for each modality."""
    return getattr(model, "interaction", None) == "bridge"


# ---- what a store must know -------------------------------------------------------------------------------


def layout(model: Any, params: PyTree, modality: str, *, primed: bool = False) -> Layout:
    """The records of a model, plain or primed; nothing is computed."""
    more = PRIMED if primed else 0
    if modality == "image":
        pixels = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), jnp.float32)
        _, layers, tokens, dim = jax.eval_shape(
            lambda p, x: encode_images(model, p, x), params, pixels
        ).x.shape
        return Layout("image", layers + more, tokens, dim)
    ids, mask = jax.ShapeDtypeStruct((1, 2), jnp.int32), jax.ShapeDtypeStruct((1, 2), jnp.bool_)
    _, layers, _, dim = jax.eval_shape(
        lambda p, x, m: encode_texts(model, p, x, m), params, ids, mask
    ).x.shape
    return Layout("text", layers + more, None, dim)


def fingerprint(
    model: Any, params: PyTree, modality: str, *, inputs: Mapping[str, Any], primed: bool = False
) -> Fingerprint:
    """What makes the states of a modality.

    Args:
      model: with parameters `params`, in any form of layers.
      modality: "image" or "text".
      inputs: plain JSON: how pixels are made of an image (kept as "preprocessing"), or ids of a text ("tokenizer").
      primed: of `PrimedStates`; of images, `inputs` should name the `image_type`.
    """
    prefixes = USED[modality] + ((f"bridge/{modality}_norm_0/", *PRIMED_USED) if primed else ())
    leaves = jax.tree_util.tree_leaves_with_path(unstack_layers(params))
    flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    used = {name: np.asarray(leaf) for name, leaf in flat.items() if name.startswith(prefixes)}
    if not used:
        raise ValueError(
            f"{type(model).__name__} has no encoder of {modality}s of its own: nothing can be cached"
        )
    fields = mapping(model, modality)
    if primed:
        fields["primed"] = {key: merged("cross", model.cross)[key] for key in ("order", "eps", "heads")}
    name = "preprocessing" if modality == "image" else "tokenizer"
    return Fingerprint({"weights": hash_arrays(used), "mapping": fields, name: dict(inputs)})


def mapping(model: Any, modality: str) -> dict[str, Any]:
    """The fields of a model, beside its parameters, that its records depend on."""
    tower_keys = ("arch", "depth", "width", "heads", "mlp", "eps", "patch", "max_positions")
    cross_keys = ("mapping", "cumulative_scope", "share_projection", "depth", "bridge")
    if hasattr(model, "cross"):
        name = "vision" if modality == "image" else "text"
        tower = merged(name, getattr(model, name))
        cross = merged("cross", model.cross)
    else:  # one encoder of both
        tower, cross = {key: getattr(model, key) for key in tower_keys if hasattr(model, key)}, {}
    if cross and cross["bridge"] != "none":
        cross["bridge"] = None  # the bridges differ in what they do with the same taps
    return dict(
        model=type(model).__name__,
        interaction=getattr(model, "interaction", None),
        compute=str(jnp.dtype(model.dtype)),
        heads=model.heads,
        tower={key: tower[key] for key in tower_keys if key in tower},
        taps={key: cross[key] for key in cross_keys if key in cross},
    )


# ---- jitted -----------------------------------------------------------------------------------------------


def buckets(length: int, sizes: Sequence[int] = BUCKETS) -> tuple[int, ...]:
    """Lengths that texts of at most `length` tokens are padded to: at most five, the last one is `length`."""
    smaller = tuple(size for size in sizes if size < length)
    return (*smaller[: len(sizes) - 1], length)


@dataclasses.dataclass
class CachedModel:
    """A model with parameters whose functions are compiled once for each shape.

    Attributes:
      model, params: see `answer`.
      length: the most tokens of a text.
      batch_size: rows of a call; fewer are padded.
      traces: how often each function was traced.
    """

    model: Any
    params: PyTree
    length: int
    batch_size: int = 64

    def __post_init__(self) -> None:
        self.buckets = buckets(self.length)
        self.traces: collections.Counter[str] = collections.Counter()
        self._images = self._jit("encode_images", encode_images)
        self._texts = self._jit("encode_texts", encode_texts)
        self._answer = self._jit("answer", answer)

    def _jit(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(params: PyTree, *args: Any, **kwargs: Any) -> Any:
            self.traces[name] += 1
            return function(self.model, params, *args, **kwargs)

        return jax.jit(counted, static_argnames="tokens")

    def encode_images(self, pixels: np.ndarray) -> States:
        """Up to `batch_size` images `[B,H,W,3]`; host arrays of as many rows."""
        return self._rows(self._images, len(pixels), pixels)

    def encode_texts(self, text: np.ndarray, text_mask: np.ndarray) -> States:
        """Up to `batch_size` texts `[B,M]`, cut to the bucket of the longest; host arrays of as many rows."""
        size = self.bucket(int(np.asarray(text_mask).sum(-1).max()))
        text, text_mask = (_columns(np.asarray(x), size) for x in (text, text_mask))
        return self._rows(self._texts, len(text), text, text_mask)

    def answer(
        self,
        text: States | PrimedStates,
        images: Sequence[States | PrimedStates],
        image_index: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Class logits `[B,A]` of up to `batch_size` texts; see the function of that name.

        Images are padded to one of three numbers, so that one image, a few, or one for each text are three programs.
        """
        size = self.bucket(np.shape(text.mask)[1])
        padded = text._replace(x=_axis(text.x, size, axis=2), mask=_columns(text.mask, size))
        count = len(padded.x)
        rows = [np.arange(count)] * len(images) if image_index is None else image_index
        most = max(len(image.x) for image in images)
        if max(count, most) > self.batch_size:
            raise ValueError(f"{count} texts and {most} images in a batch of at most {self.batch_size}")
        places = next(n for n in (1, -(-self.batch_size // 4), self.batch_size) if n >= most)
        shown = [image._replace(x=_axis(image.x, places, axis=0)) for image in images]
        index = [_axis(np.asarray(r, np.int32), self.batch_size, axis=0) for r in rows]
        out = self._answer(self.params, _padded(padded, self.batch_size), shown, image_index=index)
        return np.asarray(out)[:count]

    def bucket(self, tokens: int) -> int:
        """The length that a text of so many tokens is padded to; ValueError if none is large enough."""
        for size in self.buckets:
            if tokens <= size:
                return size
        raise ValueError(f"a text of {tokens} tokens is longer than {self.length}")

    def _rows(self, function: Callable[..., Any], count: int, *arrays: np.ndarray) -> States:
        out = function(self.params, *_padded(arrays, self.batch_size))
        return jax.tree.map(lambda x: np.asarray(x)[:count], out)


def _padded(tree: Any, size: int) -> Any:
    """Host arrays with rows of zeros up to `size` rows."""
    return jax.tree.map(lambda x: _axis(x, size, axis=0), tree)


def _axis(x: Any, size: int, *, axis: int) -> np.ndarray:
    """`x` padded with zeros to `size` along an axis; ValueError if it is longer."""
    x = np.asarray(x)
    if x.shape[axis] > size:
        raise ValueError(f"{x.shape[axis]} rows or tokens, but at most {size} are taken")
    if x.shape[axis] == size:
        return x
    return np.pad(x, [(0, size - x.shape[i] if i == axis else 0) for i in range(x.ndim)])


def _columns(x: np.ndarray, size: int) -> np.ndarray:
    """`[B,M]` cut or padded to `[B,size]`."""
    return _axis(x[:, :size], size, axis=1)
