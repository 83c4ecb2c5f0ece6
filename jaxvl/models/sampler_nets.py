"""Networks that samplers train beside the task model: the auto-encoders and critics of SRAAL, VAAL, TA-VAAL and VaB-AL.

Sources: Zhang et al., "State-Relabeling Adversarial Active Learning", CVPR 2020 (SRAAL); Sinha et al., "Variational
Adversarial Active Learning", ICCV 2019 (VAAL); Kim et al., "Task-Aware Variational Adversarial Active Learning", CVPR
2021 (TA-VAAL); Choi et al., "VaB-AL: Incorporating Class Imbalance and Difficulty with Variational Bayes for Active
Learning", CVPR 2021. The originals read pixels; these read vectors of the task model (specification 8.4, 8.7, 8.8).

Batch norm keeps its running statistics in the collection `statistics`: NaN until somebody sets them.

Shape legend: `B` rows, `F` feature width, `Z` latent width, `L` words, `C` answers, `D` width of the task model's
vectors, `G` answer groups, `K` latents a group, `W` hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxvl.models.initial import ones, zeros
from jaxvl.models.layers import Embedding, logical
from jaxvl.models.mcan import words_init
from jaxvl.models.mcan_layers import LSTM, linear

STATISTICS = "statistics"
NORMS = ("before", "after")


class BatchNorm(nn.Module):
    """Batch normalisation of the last axis, float32.

    In training the moments are the batch's, which also become the values of `mean` and `var` in `statistics` (the
    collection must be mutable); otherwise they are read from there.
    """

    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        shape = x.shape[-1:]
        scale = self.param("scale", logical(ones, None), shape, jnp.float32)
        bias = self.param("bias", logical(zeros, None), shape, jnp.float32)
        mean = self.variable(STATISTICS, "mean", jnp.full, shape, jnp.nan, jnp.float32)
        var = self.variable(STATISTICS, "var", jnp.full, shape, jnp.nan, jnp.float32)
        x = x.astype(jnp.float32)
        found = (mean.value, var.value)
        if train:
            axes = tuple(range(x.ndim - 1))
            found = (x.mean(axes), x.var(axes))
            if not self.is_initializing():
                mean.value, var.value = found
        return (x - found[0]) / jnp.sqrt(found[1] + self.eps) * scale + bias


class Trunk(nn.Module):
    """Layers of `widths`, each with ReLU and batch norm "before" or "after" it: `[...,I] -> [...,widths[-1]]`.

    A bias right before a norm would be subtracted again, so there is none.
    """

    widths: Sequence[int]
    norm: str = "before"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}: expected one of {', '.join(NORMS)}")
        for i, width in enumerate(self.widths):
            x = linear(x.shape[-1], width, use_bias=self.norm == "after", name=f"layer_{i}")(x)
            x = x if self.norm == "before" else nn.relu(x)
            x = BatchNorm(name=f"norm_{i}")(x, train=train)
            x = nn.relu(x) if self.norm == "before" else x
        return x


class Perceptron(nn.Module):
    """Layers of `widths` with ReLU between them: `[...,I] -> [...,widths[-1]]`."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i, width in enumerate(self.widths):
            x = linear(x.shape[-1], width, name=f"layer_{i}")(nn.relu(x) if i else x)
        return x


class Posterior(NamedTuple):
    """A diagonal Gaussian: `mean` and `log_var`, both `[B,Z]` f32."""

    mean: Array
    log_var: Array

    def at(self, noise: Array) -> Array:
        """The point `[B,Z]` that standard normal `noise`, `[B,Z]` or `[Z]`, stands for."""
        return self.mean + jnp.exp(0.5 * self.log_var) * noise


class Encoder(nn.Module):
    """A trunk and two linear heads: `[B,I]` -> `Posterior` of width `latent`."""

    widths: Sequence[int]
    latent: int
    norm: str = "before"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Posterior:
        h = Trunk(self.widths, self.norm, name="trunk")(x, train=train)
        return Posterior(*(linear(h.shape[-1], self.latent, name=name)(h) for name in ("mean", "log_var")))


class Decoder(nn.Module):
    """A trunk and a linear head: `[B,Z] -> [B,features]`."""

    widths: Sequence[int]
    features: int

    @nn.compact
    def __call__(self, z: Array, *, train: bool = False) -> Array:
        h = Trunk(self.widths, name="trunk")(z, train=train)
        return linear(h.shape[-1], self.features, name="out")(h)


class Rebuilt(NamedTuple):
    """What an auto-encoder makes of states: the `posterior`, the `states [B,F]` rebuilt from a point of it, and that
    point `z [B,Z]`."""

    posterior: Posterior
    states: Array
    z: Array


class SRAAL(nn.Module):
    """Auto-encoder, target learner and state critic of SRAAL.

    The first half of the latents rebuilds the state; the second half, with the question, has to find the answer.

    Attributes:
      feat_dim: `F`, width of a state (the mean region feature).
      words, word_dim, text_width: vocabulary, word vectors and LSTM of the target learner.
      classes: `C`.
      hidden: widths of the encoder; the decoder has them in reverse.
      latent: `Z`.
      learner: hidden widths of the target learner.
      critic_width, critic_layers: of the state critic.
    """

    feat_dim: int
    words: int
    classes: int
    word_dim: int = 300
    hidden: Sequence[int] = (1024, 512)
    latent: int = 200
    text_width: int = 512
    learner: Sequence[int] = (1024, 256)
    critic_width: int = 512
    critic_layers: int = 4

    def setup(self) -> None:
        if self.latent % 2:
            raise ValueError(f"model.latent={self.latent}: must be even, its halves have different tasks")
        self.encoder = Encoder(self.hidden, self.latent)
        self.decoder = Decoder(self.hidden[::-1], self.feat_dim)
        self.word_embedding = Embedding(self.words, self.word_dim, init_table=words_init)
        self.lstm = LSTM(self.word_dim, self.text_width)
        self.answers = Perceptron((*self.learner, self.classes))
        self.judge = Perceptron((self.critic_width,) * self.critic_layers + (1,))

    def encode(self, states: Array, *, train: bool = False) -> Posterior:
        """States `[B,F]` -> posterior of width `Z`."""
        return self.encoder(states, train=train)

    def rebuild(self, states: Array, noise: Array, *, train: bool = False) -> Rebuilt:
        """States `[B,F]` and standard normal `noise [B,Z]` -> what the auto-encoder makes of them."""
        posterior = self.encode(states, train=train)
        z = posterior.at(noise)
        return Rebuilt(posterior, self.decoder(z[:, : self.latent // 2], train=train), z)

    def target(self, z: Array, text: Array, text_mask: Array) -> Array:
        """Logits `[B,C]` of the answer from points `z [B,Z]` and questions `text`, `text_mask` `[B,L]`."""
        states = self.lstm(self.word_embedding(text))
        last = jnp.maximum(text_mask.sum(1) - 1, 0)
        question = jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]
        return self.answers(jnp.concatenate([z[:, self.latent // 2 :], question], axis=-1))

    def critic(self, mean: Array) -> Array:
        """Logit `[B]`: how much the image of a posterior with this `mean [B,Z]` is worth labelling."""
        return self.judge(mean)[:, 0]

    def __call__(
        self, states: Array, noise: Array, text: Array, text_mask: Array, *, train: bool = False
    ) -> Any:
        """All parts once."""
        found = self.rebuild(states, noise, train=train)
        return found, self.target(found.z, text, text_mask), self.critic(found.posterior.mean)


class VAAL(nn.Module):
    """Auto-encoder and critic of VAAL; `ranked`, they also see what a loss network expects of the image (TA-VAAL).

    Attributes:
      feat_dim: `F`, width of a state (the mean region feature).
      ranked: whether there is a further input `rank [B]`: its sigmoid goes to the decoder, itself to the critic.
      hidden: widths of the encoder; the decoder has them in reverse.
      latent: `Z`.
      critic: hidden widths of the critic.
    """

    feat_dim: int
    ranked: bool = False
    hidden: Sequence[int] = (1024, 512)
    latent: int = 32
    critic_widths: Sequence[int] = (512, 512)

    def setup(self) -> None:
        self.encoder = Encoder(self.hidden, self.latent)
        self.decoder = Decoder(self.hidden[::-1], self.feat_dim)
        self.judge = Perceptron((*self.critic_widths, 1))

    def encode(self, states: Array, *, train: bool = False) -> Posterior:
        """States `[B,F]` -> posterior of width `Z`."""
        return self.encoder(states, train=train)

    def rebuild(self, states: Array, noise: Array, rank: Array | None, *, train: bool = False) -> Rebuilt:
        """States `[B,F]`, standard normal `noise [B,Z]`, `rank [B]` (None unless ranked) -> what becomes of them."""
        posterior = self.encode(states, train=train)
        z = posterior.at(noise)
        seen = self._with(z, None if rank is None else nn.sigmoid(rank))
        return Rebuilt(posterior, self.decoder(seen, train=train), z)

    def critic(self, mean: Array, rank: Array | None) -> Array:
        """Logit `[B]` that the image of a posterior with this `mean [B,Z]` is labelled."""
        return self.judge(self._with(mean, rank))[:, 0]

    def __call__(self, states: Array, noise: Array, rank: Array | None, *, train: bool = False) -> Any:
        """All parts once."""
        found = self.rebuild(states, noise, rank, train=train)
        return found, self.critic(found.posterior.mean, rank)

    def _with(self, x: Array, rank: Array | None) -> Array:
        if (rank is not None) != self.ranked:
            raise ValueError(
                f"model.ranked={self.ranked}, but the rows have {'a' if self.ranked is False else 'no'} rank"
            )
        return x if rank is None else jnp.concatenate([x, rank[:, None].astype(x.dtype)], axis=-1)


class VaBAL(nn.Module):
    """Auto-encoder of VaB-AL: `K` latents for each group of answers; those of an image's own group ought to be zero.

    What it rebuilds are three vectors of the task model (image, language, fused), each through a layer of its own.

    Attributes:
      groups: `G`.
      per_group: `K`.
      width: `W`, of all layers.
      depth: hidden layers of encoder and decoder.
    """

    groups: int = 100
    per_group: int = 10
    width: int = 128
    depth: int = 3

    def setup(self) -> None:
        hidden, latent = (self.width,) * self.depth, self.groups * self.per_group
        self.transforms = [Trunk((self.width,), norm="after") for _ in range(3)]
        self.encoder = Encoder(hidden, latent, norm="after")
        self.first = linear(
            latent, self.width
        )  # of the decoder; linear, so that latents can be taken out of its sum
        self.first_norm = BatchNorm()
        self.rest = Trunk(hidden[1:], norm="after")
        self.out = linear(self.width, 3 * self.width)

    def features(self, states: Array, *, train: bool = False) -> Array:
        """States `[B,3,D]` -> `[B,3W]`, what is encoded and rebuilt."""
        parts = [part(states[:, i], train=train) for i, part in enumerate(self.transforms)]
        return jnp.concatenate(parts, axis=-1)

    def encode(self, features: Array, *, train: bool = False) -> Posterior:
        """`[B,3W]` -> posterior of width `G K`."""
        return self.encoder(features, train=train)

    def decode(self, z: Array, group: Array, *, train: bool = False) -> Array:
        """Points `z [B,GK]` without the latents of `group [B,G]` (one-hot) -> `[B,3W]`."""
        return self._decode(self.first(z * (1 - jnp.repeat(group, self.per_group, axis=-1))), train)

    def without_each(self, z: Array) -> Array:
        """`[B,G,3W]`: points `z [B,GK]` decoded without the latents of each group in turn; evaluation only.

        The first layer is linear, so what a group contributes is subtracted from its sum.
        """
        whole = self.first(z)
        kernel = self.first.variables["params"]["kernel"].reshape(self.groups, self.per_group, self.width)
        own = jnp.einsum("bgk,gkw->bgw", z.reshape(len(z), self.groups, self.per_group), kernel)
        return self._decode(whole[:, None] - own, False)

    def norms(self, z: Array) -> Array:
        """`[B,G]`: squared length of each group's latents of `z [B,GK]`."""
        return jnp.square(z.reshape(len(z), self.groups, self.per_group)).sum(-1)

    def __call__(self, states: Array, noise: Array, group: Array, *, train: bool = False) -> Any:
        """Features of the states, and what is rebuilt of them: (`[B,3W]`, `Rebuilt`)."""
        features = self.features(states, train=train)
        posterior = self.encode(features, train=train)
        z = posterior.at(noise)
        return features, Rebuilt(posterior, self.decode(z, group, train=train), z)

    def _decode(self, h: Array, train: bool) -> Array:
        return self.out(self.rest(self.first_norm(nn.relu(h), train=train), train=train))
