"""A Linen model with MCAN's methods and none of its layers, and batches for it, so that its task is tested alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvl.models.mcan import LossNet, MCANOutput

C, F, J, L, R = 5, 4, 3, 6, 4


class TinyRegions(nn.Module):
    """The product of the mean region and the mean word, with dropout on both; width 8."""

    classes: int = C
    dropout: float = 0.4
    masks: str = "each"

    def setup(self) -> None:
        self.words, self.image, self.head = nn.Embed(24, 8), nn.Dense(8), nn.Dense(self.classes)
        self.drop = nn.Dropout(self.dropout, broadcast_dims=(0,) if self.masks == "shared" else ())

    @nn.nowrap
    def loss_net(self):
        return LossNet(8, 8)

    def encode_text(self, text, text_mask, *, train=False):
        return self.drop(self.words(text) * text_mask[..., None], deterministic=not train)

    def answer(
        self, regions, region_mask, states, text_mask, *, image_index=None, text_index=None, train=False
    ):
        image = jnp.tanh(self.image((regions * region_mask[..., None]).mean(1)))
        image = self.drop(image, deterministic=not train)
        text = 0.5 + states.sum(1) / jnp.maximum(text_mask.sum(1), 1)[:, None]  # also no words say something
        image = image if image_index is None else image[image_index]
        text = text if text_index is None else text[text_index]
        fused = image * text
        return MCANOutput(self.head(fused), fused, image, text, (image, text, jnp.tanh(image + text)))

    def __call__(self, regions, region_mask, text, text_mask, *, train=False):
        states = self.encode_text(text, text_mask, train=train)
        return self.answer(regions, region_mask, states, text_mask, train=train)


class Counting:
    """A model that notes the methods applied to it and the leading sizes of their first arguments."""

    def __init__(self, model, calls=None):
        self.model, self.calls = model, [] if calls is None else calls

    def __getattr__(self, name):
        return getattr(self.model, name)

    def clone(self, **kwargs):
        return Counting(self.model.clone(**kwargs), self.calls)

    def apply(self, variables, *args, method, **kwargs):
        self.calls.append((method, len(args[0])))
        return self.model.apply(variables, *args, method=method, **kwargs)


def images(size: int = 4, *, seed: int = 0) -> dict[str, jnp.ndarray]:
    """Image rows without questions."""
    rng = np.random.default_rng(seed)
    mask = np.arange(R) < rng.integers(1, R + 1, size)[:, None]
    regions = rng.standard_normal((size, R, F), np.float32) * mask[..., None]
    return {"regions": jnp.asarray(regions), "region_mask": jnp.asarray(mask)}


def words(*shape: int, seed: int = 0) -> np.ndarray:
    """Questions of 1 to `L` words."""
    rng = np.random.default_rng(seed)
    there = np.arange(L) < rng.integers(1, L + 1, shape)[..., None]
    return np.where(there, rng.integers(3, 24, (*shape, L)), 0).astype(np.int32)


def asked(size: int = 4, *, seed: int = 0) -> dict[str, jnp.ndarray]:
    """Image rows with `J` questions, the same for all; the last is only padding."""
    text = words(J, seed=seed)
    text[-1] = 0
    every = jnp.asarray(np.repeat(text[None], size, 0))
    kind = jnp.asarray(np.repeat(np.array([[0, 2, 1]], np.int32), size, 0))
    return {**images(size, seed=seed), "asked": every, "asked_shared": every, "asked_kind": kind}


def questions(size: int = 4, *, seed: int = 0) -> dict[str, jnp.ndarray]:
    """Question rows: row 0 has two answers, row 1 none, the others one; unused places hold class `C`."""
    label, score = np.full((size, 3), C, np.int32), np.zeros((size, 3), np.float32)
    label[0, :2], score[0, :2] = (2, 4), (1.0, 0.3)
    label[2:, 0], score[2:, 0] = np.arange(size - 2) % C, 0.6
    text = jnp.asarray(words(size, seed=seed))
    labels = {"label": jnp.asarray(label), "label_score": jnp.asarray(score)}
    return {**images(size, seed=seed), "text": text, "text_mask": text != 0, **labels}
