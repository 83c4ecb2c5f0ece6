"""Predictors that several tasks offer, as functions of a model; see `types.Predictor`.

Shape legend: `B` batch, `L` text length, `P` patches, `D` width, `C` contrastive width, `K` texts of an image.
Dropout is off unless said otherwise. Wherever an image is needed, `batch["image_states"]` (its encoding) is taken if
present.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxvl.tasks.momentum import call
from jaxvl.types import Array, Batch, Encoded, Key, Predictor, PyTree


def image_states(
    model: Any, params: PyTree, batch: Batch, *, rng: Key | None = None, train: bool = False
) -> Array:
    """`[B,P,D]` encoded images."""
    if "image_states" in batch:
        return batch["image_states"]
    return call(model, params, "encode_image", batch["image"], rng=rng, train=train)


def image_embed(model: Any, params: PyTree, batch: Batch) -> Array:
    """`[B,C]` f32 unit vectors of the images."""
    return call(model, params, "image_embed", image_states(model, params, batch))


def text_embed(model: Any, params: PyTree, batch: Batch) -> Array:
    """`[B,C]` f32 unit vectors of the texts."""
    states = call(model, params, "encode_text", batch["text"], batch["text_mask"])
    return call(model, params, "text_embed", states, batch["text_mask"])


def fused_states(
    model: Any,
    params: PyTree,
    batch: Batch,
    *,
    rng: Key | None = None,
    train: bool = False,
    one_image: bool = False,
) -> Array:
    """`[B,L,D]` text states after fusion with their images.

    Args:
      model: with `encode_image`, `encode_text`, `fuse`.
      params: its parameters.
      batch: `image` or `image_states`, `text`, `text_mask`.
      rng: of dropout, with `train=True`.
      train: whether dropout is active.
      one_image: all images of the batch are the same; the first is encoded for all.
    """
    k_image, k_text, k_fuse = (None if rng is None else jax.random.fold_in(rng, i) for i in range(3))
    text, mask, index = batch["text"], batch["text_mask"], None
    if one_image and "image_states" not in batch:
        batch, index = {**batch, "image": batch["image"][:1]}, jnp.zeros(len(text), jnp.int32)
    images = image_states(model, params, batch, rng=k_image, train=train)
    states = call(model, params, "encode_text", text, mask, rng=k_text, train=train)
    return call(model, params, "fuse", states, mask, images, image_index=index, rng=k_fuse, train=train)


def match_logits(model: Any, params: PyTree, batch: Batch) -> Array:
    """Logits (no match, match) of each image with its text, or with each of its `K` texts.

    Args:
      model: with `encode_image`, `encode_text`, `fuse`, `match_logits`.
      params: its parameters.
      batch: `text` and `text_mask` are `[B,L]`, or `[B,K,L]` to compare one image with several texts; the keys
        and values of the image are then computed once.

    Returns:
      `[B,2]` or `[B,K,2]` f32.
    """
    text, mask = batch["text"], batch["text_mask"]
    shape = text.shape[:-1]
    text, mask = text.reshape(-1, text.shape[-1]), mask.reshape(-1, mask.shape[-1])
    index = jnp.repeat(jnp.arange(shape[0], dtype=jnp.int32), len(text) // shape[0])
    states = call(model, params, "encode_text", text, mask)
    fused = call(model, params, "fuse", states, mask, image_states(model, params, batch), image_index=index)
    return call(model, params, "match_logits", fused, mask).reshape(*shape, 2)


# Models of pairs whose encodings are `Encoded` and that fuse to `Fused` -------------------------------------


def encoded_image(
    model: Any,
    params: PyTree,
    batch: Batch,
    *,
    key: str = "image",
    rng: Key | None = None,
    train: bool = False,
) -> Encoded:
    """The images `batch[key]`, or their records `batch[key + "_states"]` as they are."""
    if f"{key}_states" in batch:
        return Encoded(batch[f"{key}_states"])
    return call(model, params, "encode_image", batch[key], rng=rng, train=train)


def encoded_text(
    model: Any, params: PyTree, batch: Batch, *, rng: Key | None = None, train: bool = False
) -> Encoded:
    """The texts, or their records `batch["text_states"]` as they are."""
    if "text_states" in batch:
        return Encoded(batch["text_states"])
    return call(model, params, "encode_text", batch["text"], batch["text_mask"], rng=rng, train=train)


def pair_match_logits(model: Any, params: PyTree, batch: Batch) -> Array:
    """As `match_logits`; texts may be records too, `[B,Z,L,D]` or `[B,K,Z,L,D]`."""
    shape = batch["text_mask"].shape[:-1]
    folded = {"text_mask": batch["text_mask"].reshape(-1, batch["text_mask"].shape[-1])}
    for name in ("text", "text_states"):
        if name in batch:
            folded[name] = batch[name].reshape(-1, *batch[name].shape[len(shape) :])
    mask = folded["text_mask"]
    index = jnp.repeat(jnp.arange(shape[0], dtype=jnp.int32), len(mask) // shape[0])
    text, image = encoded_text(model, params, folded), encoded_image(model, params, batch)
    fused = call(model, params, "fuse", text, mask, image, image_index=index, tokens="class")
    return call(model, params, "match_logits", fused).reshape(*shape, 2)


def of_pairs(model: Any) -> dict[str, Predictor]:
    """The predictors that a model of pairs has whatever it is trained for; embeddings only if it is contrastive."""

    def embed(side: str) -> Predictor:
        def run(params: PyTree, batch: Batch, rng: Key) -> Array:
            pixels_or_ids = {
                k: v for k, v in batch.items() if not k.endswith("_states")
            }  # a record has no last state
            encode = encoded_image if side == "image" else encoded_text
            return call(model, params, f"{side}_embed", encode(model, params, pixels_or_ids))

        return run

    found: dict[str, Predictor] = {
        "image_states": lambda p, batch, rng: encoded_image(model, p, batch).record,
        "text_states": lambda p, batch, rng: encoded_text(model, p, batch).record,
    }
    if model.contrastive:
        found |= {"image_embed": embed("image"), "text_embed": embed("text")}
    return found


def hypergraph(model: Any, params: PyTree, batch: Batch) -> dict[str, Array]:
    """Per-example diagnostics of the hypergraph layers, `{"layers_<i>/<quantity>": [B]}`.

    They are what the fusion layers wrote to the "diagnostics" collection; scanned layers are told apart.

    Raises:
      ValueError: the model has no hypergraph layer.
    """
    states = call(model, params, "encode_text", batch["text"], batch["text_mask"])
    images = image_states(model, params, batch)
    _, written = call(model, params, "fuse", states, batch["text_mask"], images, mutable=["diagnostics"])
    found: dict[str, Array] = {}
    for path, value in _leaves(written.get("diagnostics", {})):
        found.update(_per_layer(path, value))
    if not found:
        raise ValueError("the model has no hypergraph layers, so there is nothing to diagnose")
    return found


def _leaves(tree: Mapping[str, Any] | Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Array]]:
    if isinstance(tree, Mapping):
        return [leaf for k, v in tree.items() for leaf in _leaves(v, (*path, k))]
    return [(path, tree)]


def _per_layer(path: tuple[str, ...], value: Array) -> dict[str, Array]:
    """`{"layers_<i>/<rest>": [B]}`; the stack `layers_<a>_<b>` holds `[b-a,B]`."""
    at = next(i for i, part in enumerate(path) if part.startswith("layers_"))
    numbers = [int(n) for n in path[at].split("_")[1:]]
    rest = path[-1]
    if len(numbers) == 1:
        return {f"layers_{numbers[0]}/{rest}": value}
    return {f"layers_{n}/{rest}": value[n - numbers[0]] for n in range(*numbers)}
