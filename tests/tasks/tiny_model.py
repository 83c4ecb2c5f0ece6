"""A Linen model with HyperALBEF's methods and none of its layers, so that tasks are tested alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

TOKENS = dict(pad=0, cls=1, sep=2, mask=3, size=24)


class TinyModel(nn.Module):
    """Images are 2x2 pixels = 4 patches; width 8; fusion adds the mean patch and the mean word."""

    decoder: bool = False

    def setup(self) -> None:
        self.visual_encoder, self.text_encoder = nn.Dense(8), nn.Embed(24, 8)
        self.fusion_encoder, self.mlm_head = nn.Dense(8), nn.Dense(24)
        self.vision_proj, self.text_proj, self.itm_head = nn.Dense(5), nn.Dense(5), nn.Dense(2)
        self.temp = self.param("temp", nn.initializers.constant(0.1), ())
        if self.decoder:
            self.text_decoder = nn.Dense(24)

    def encode_image(self, image, *, train=False):
        return self.visual_encoder(image.reshape(len(image), 4, 3))

    def encode_text(self, text, text_mask, *, train=False):
        return self.text_encoder(text) * text_mask[..., None]

    def fuse(self, text_states, text_mask, image_states, *, image_index=None, train=False):
        image = image_states if image_index is None else image_states[image_index]
        words = text_states.sum(1, keepdims=True) / text_mask.sum(1)[:, None, None]
        return jnp.tanh(self.fusion_encoder(text_states + words + image.mean(1, keepdims=True)))

    def image_embed(self, image_states):
        return unit(self.vision_proj(image_states.mean(1)))

    def text_embed(self, text_states, text_mask):
        return unit(self.text_proj(text_states.sum(1)))

    def mlm_logits(self, states):
        return self.mlm_head(states)

    def match_logits(self, fused, text_mask):
        return self.itm_head(fused[:, 0])

    def temperature(self):
        return self.temp

    def decode(self, answer, states, states_mask, *, train=False):
        past = jnp.cumsum(self.text_encoder(answer), axis=2)
        question = (states * states_mask[..., None]).sum(1) / states_mask.sum(1)[:, None]
        return self.text_decoder(jnp.tanh(past * 3 + question[:, None, None]))

    @nn.nowrap
    def embedding_queue(self, rng, size):
        return unit(jax.random.normal(rng, (size, 5))).T

    def __call__(self, image, text, text_mask, answer=None, *, train=False):
        images, texts = self.encode_image(image), self.encode_text(text, text_mask)
        fused = self.fuse(texts, text_mask, images)
        heads = (
            self.image_embed(images),
            self.text_embed(texts, text_mask),
            self.mlm_logits(fused),
            self.match_logits(fused, text_mask),
        )
        return heads, self.decode(answer, fused, text_mask) if self.decoder else None


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def batch(size: int = 4, *, length: int = 6, seed: int = 0) -> dict[str, jax.Array]:
    """`size` pairs; texts are [CLS] and 1 to `length - 1` words, `image_id` is the row."""
    rng = np.random.default_rng(seed)
    mask = np.arange(length) < rng.integers(2, length + 1, size)[:, None]
    text = np.where(mask, rng.integers(4, 24, (size, length)), 0)
    text[:, 0] = TOKENS["cls"]
    rows = dict(
        image=rng.normal(size=(size, 2, 2, 3)).astype(np.float32),
        text=text.astype(np.int32),
        text_mask=mask,
        image_id=np.arange(size, dtype=np.int32),
    )
    return {k: jnp.asarray(v) for k, v in rows.items()}


def started(task, rows, *, seed: int = 0):
    """Parameters and extra of a task, unboxed."""
    params = jax.jit(lambda k: nn.unbox(task.init(k, rows)))(jax.random.key(seed))
    return params, jax.jit(lambda k: nn.unbox(task.start(params, k)))(jax.random.key(seed + 1))


class Counting:
    """A model that notes the methods applied to it and the leading sizes of their first arguments."""

    def __init__(self, model: nn.Module):
        self.model, self.calls = model, []
        self.init, self.embedding_queue = model.init, model.embedding_queue

    def apply(self, variables, *args, method, **kwargs):
        self.calls.append((method, len(args[0]) if args else 0))
        return self.model.apply(variables, *args, method=method, **kwargs)
