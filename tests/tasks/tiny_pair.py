"""Linen models with the methods of BridgeTower and ViLT and none of their layers, so that tasks are tested alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tiny_model import unit

from jaxvl.types import CrossQK, Encoded, Fused


class TinyJoint(nn.Module):
    """As ViLT. Images are 2x2 pixels = 4 patches and a mean patch in front; width 8, 2 heads of 4; no dropout."""

    towers: bool = False
    classes: int | None = None
    images: int = 1
    image_size: int = 2
    image_tokens: int = 5
    vocab_size: int = 24
    head_count: int = 2
    text_arch: str = "bert"
    interaction: str = "bridge"
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def contrastive(self):
        return self.towers

    @property
    def renames(self):
        return (("a", "b"),)

    def setup(self) -> None:
        self.visual_encoder, self.text_encoder = nn.Dense(8), nn.Embed(self.vocab_size, 8)
        self.visual_qk, self.text_qk, self.type = nn.Dense(16), nn.Dense(16), nn.Embed(3, 8)
        self.cross_text, self.cross_image = nn.Dense(16), nn.Dense(16)
        self.itm_head, self.mlm_head, self.pool = nn.Dense(2), nn.Dense(self.vocab_size), nn.Dense(8)
        if self.towers:
            self.vision_proj, self.text_proj = nn.Dense(5), nn.Dense(5)
            self.temp = self.param("temp", nn.initializers.constant(0.1), ())
        if self.classes:
            self.class_head = nn.Dense(self.classes)

    def _heads(self, qk):
        return tuple(x.reshape(*x.shape[:2], self.head_count, -1) for x in jnp.split(qk, 2, axis=-1))

    def encode_image(self, image, *, train=False):
        patches = self.visual_encoder(image.reshape(len(image), 4, 3))
        states = jnp.concatenate([patches.mean(1, keepdims=True), patches], 1)
        return self._encoded(states, self.visual_qk)

    def encode_text(self, text, text_mask, *, train=False):
        return self._encoded(self.text_encoder(text) * 3, self.text_qk)

    def _encoded(self, states, qk):
        if not self.towers:
            return Encoded(states[:, None])
        query, key = self._heads(qk(states))
        return Encoded(states[:, None], states, (query, key, key))

    def fuse(self, text, text_mask, image, *, image_type=1, image_index=None, train=False, tokens="all"):
        t, v = text.record[:, 0], image.record[:, 0] + self.type.embedding[image_type]
        v = v if image_index is None else v[image_index]
        (tq, tk), (vq, vk) = self._heads(self.cross_text(t)), self._heads(self.cross_image(v))
        words = (t * text_mask[..., None]).sum(1, keepdims=True) / text_mask.sum(1)[:, None, None]
        t, v = jnp.tanh(t + v.mean(1, keepdims=True) + words), jnp.tanh(v + words)
        pooled = jnp.tanh(self.pool(jnp.concatenate([t[:, 0] * v[:, 0], t[:, 0]], -1)))
        if tokens == "class" or self.interaction != "bridge":
            return Fused(None if tokens == "class" else t, None, pooled, None)
        return Fused(t, v, pooled, CrossQK(tq, vk, vq, tk))

    def match_logits(self, fused):
        return self.itm_head(fused.pooled)

    def mlm_logits(self, states):
        return self.mlm_head(states)

    def class_logits(self, pooled, *, train=False):
        return self.class_head(jnp.concatenate(pooled, -1))

    def __call__(self, image, text, text_mask, *, image2=None, train=False):
        images, texts = self.encode_image(image), self.encode_text(text, text_mask)
        fused = self.fuse(texts, text_mask, images)
        self.match_logits(fused), self.mlm_logits(fused.text)
        if self.towers:
            self.image_embed(images), self.text_embed(texts)
        if self.classes:
            self.class_logits((fused.pooled,) * self.images)
        return fused


class TinyPair(TinyJoint):
    """As BridgeTower: two towers with heads of their own, and contrastive embeddings."""

    towers: bool = True

    def uni_qk(self, text, image):
        return CrossQK(text.qkv[0], image.qkv[1], image.qkv[0], text.qkv[1])

    def image_embed(self, image):
        return unit(self.vision_proj(image.last[:, 0]))

    def text_embed(self, text):
        return unit(self.text_proj(text.last.mean(1)))

    def temperature(self):
        return self.temp


class TinySimulated(TinyPair):
    """A teacher whose attention is what towers with its parameters simulate."""

    def fuse(self, text, text_mask, image, *, image_index=None, **kwargs):
        fused = super().fuse(text, text_mask, image, image_index=image_index, **kwargs)
        images = image if image_index is None else jax.tree.map(lambda x: x[image_index], image)
        return fused._replace(qk=self.uni_qk(text, images))


class Counting:
    """A model that notes the methods applied to it and the leading sizes of their first arguments."""

    def __init__(self, model: nn.Module):
        self.model, self.calls, self.given = model, [], []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def apply(self, variables, *args, method, **kwargs):
        self.calls.append((method, len(jax.tree.leaves(args)[0]) if args else 0))
        self.given.append((method, kwargs))
        return self.model.apply(variables, *args, method=method, **kwargs)


def taught(task, rows, *, seed: int = 0):
    """Parameters, and extra with those of a teacher whose attention is far from uniform."""
    make = jax.jit(lambda k: nn.unbox((task.init(k, rows), task.init_frozen(k, rows))))
    params, frozen = make(jax.random.key(seed))
    extra = {} if frozen is None else {"frozen": noisy(frozen, seed + 1)}
    return params, extra


def noisy(params, seed: int, size: float = 0.5):
    """Parameters plus noise."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = [x + size * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)


def retold(rows, *, teacher_text=None, word=None, teacher_word=None):
    """`rows` with the teacher's text; as a default the same tokens, each a word."""
    mask = np.asarray(rows["text_mask"])
    each = np.where(mask, np.arange(mask.shape[1]), -1).astype(np.int32)
    text, ours, theirs = (
        own if given is None else given
        for given, own in ((teacher_text, rows["text"]), (word, each), (teacher_word, each))
    )
    mask = jnp.asarray(theirs) >= 0
    names = ("teacher_text", "teacher_text_mask", "text_word", "teacher_text_word")
    return {**rows, **dict(zip(names, map(jnp.asarray, (text, mask, ours, theirs)), strict=True))}
