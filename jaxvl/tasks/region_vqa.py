"""VQA on region features, as MCAN is trained, and what active learners read off such a model.

A strategy asks the same few questions of every image: predictors of images take `asked` and reduce over these questions
on the device. Sources: Yu et al., "Deep Modular Co-Attention Networks for VQA", CVPR 2019 (loss); Gal et al., "Deep
Bayesian Active Learning with Image Data", ICML 2017 (dropout as a posterior).

Shape legend: `B` rows, `J` asked questions, `L` words, `R` regions, `C` classes, `F` feature width, `D` width of a
pooled vector, `T` dropout passes, `K` labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.objectives import acquisition
from jaxvl.objectives.uncertainty import indicator
from jaxvl.tasks import loss_learning
from jaxvl.tasks.asked import Asked, asked_of, kinds_of, mean_over
from jaxvl.tasks.loss_learning import LossLearning
from jaxvl.tasks.momentum import call
from jaxvl.tasks.options import one_of, options
from jaxvl.tasks.stateless import Stateless
from jaxvl.types import Array, Batch, Key, Metrics, Predictor, PyTree

if TYPE_CHECKING:
    from jaxvl.models.mcan import MCANOutput
else:
    MCANOutput = Any

PROBABILITIES = ("softmax", "sigmoid_norm", "bernoulli")
LOSS_NET = "loss_net"  # the loss network's parameters, beside the model's


class RegionVQATask(Stateless):
    """Cross entropy of independent answers with soft scores, summed over answers and rows.

    Args:
      model: `MCAN`, or any Linen module with its methods and its fields `classes`, `dropout`, `masks`.
      loss_net: options of a network that learns losses, see `LossLearning`; None = no such network.
      prob: how strategies read logits as probabilities: "softmax", "sigmoid_norm" or "bernoulli" (see
        `objectives.acquisition.probabilities`).
      passes: `T`, dropout passes of "bald", "mc_entropy", "mocu" and "members".
      top_n: classes that "answer" returns; more than there are means all.
      sketch_dim: size of "badge" rows.
      seed: of the dropout masks and the sketch.
      kinds: number of answer types.

    Training batches: `regions`, `region_mask`, `text`, `text_mask`, `label [B,K]`, `label_score [B,K]`, maybe `mask`.

    Predictors of questions (batches with `text`): "answer", "logits", "confidence". Predictors of images (batches with
    `asked [B,J,L]`, or `asked_shared [B,J,L]` whose rows are all equal: encoded once): "least_conf", "entropy",
    "margin", "bald", "mc_entropy", "mocu", "uncertainty", "embed", "badge", "states", "probs", "members", with
    `asked_kind [B,J]` "kind_mixture" and "kind_present", with a loss network "loss"; "vision" needs no question.
    A question without words counts as not asked.
    """

    def __init__(
        self,
        model: Any,
        *,
        loss_net: Mapping[str, Any] | None = None,
        prob: str = "softmax",
        passes: int = 10,
        top_n: int = 10,
        sketch_dim: int = 4096,
        seed: int = 0,
        kinds: int = 3,
    ):
        one_of("prob", prob, PROBABILITIES)
        for name, number in dict(passes=passes, top_n=top_n, sketch_dim=sketch_dim, kinds=kinds).items():
            if number < 1:
                raise ValueError(f"{name}={number}: must be at least 1")
        self.model, self.prob, self.passes, self.kinds = model, prob, passes, kinds
        self.top_n, self.sketch_dim, self.seed = min(top_n, model.classes), sketch_dim, seed
        self.learning = options(LossLearning, LOSS_NET, loss_net)
        self.predictors: dict[str, Predictor] = {
            "answer": self._answer,
            "logits": lambda p, batch, rng: self._questions(p, batch).logits,
            "confidence": lambda p, batch, rng: self._p(self._questions(p, batch).logits).max(-1),
            "truth": self._truth,
            **self._of_images(),
        }
        if self.learning is not None:
            self.loss_net = model.loss_net()
            self.predictors["loss"] = self._predicted_loss

    # ---- training -----------------------------------------------------------------------------------------

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters, the loss network's among them."""
        keys = jax.random.split(rng, 2)
        inputs = (batch["regions"], batch["region_mask"], batch["text"], batch["text_mask"])
        out, variables = self.model.init_with_output(keys[0], *inputs)
        if self.learning is None:
            return variables["params"]
        net = self.loss_net.init(keys[1], out.taps, out.fused)["params"]
        return {**variables["params"], LOSS_NET: net}

    def start(self, params: PyTree, rng: Key) -> PyTree:
        """With a loss network the state of `loss_learning.started`, else nothing."""
        return {} if self.learning is None else loss_learning.started()

    def finish(self, extra: PyTree, aux: PyTree) -> PyTree:
        """`extra` with the update counted."""
        return {**extra, "updates": extra["updates"] + 1} if "updates" in extra else extra

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """The sum over rows; with a loss network, `weight` times the mean of its loss over pairs of rows is added.

        Rows whose `mask` is False count nowhere; rows without any answer are trained towards none, as in openvqa.

        Metrics: "loss", a row's; "accuracy", the score of the likeliest answer; with a loss network also "ranking", its
        loss, and "ranked", the share of pairs that it puts in the right order.
        """
        out = self._questions(params, batch, rng=rng, train=True)
        targets = losses.dense_targets(batch["label"], score=batch["label_score"], classes=self.model.classes)
        rows = batch["mask"].astype(jnp.float32) if "mask" in batch else jnp.ones(len(targets), jnp.float32)
        each = losses.binary_cross_entropy(out.logits, targets=targets)
        scored = jnp.take_along_axis(targets, out.logits.argmax(-1)[:, None], axis=-1)[:, 0]
        loss = (each * rows).sum()
        metrics = {"accuracy": ((scored * rows).sum(), rows.sum())}
        if self.learning is not None:
            seen = loss_learning.gated((out.taps, out.fused), extra, cut=self.learning.cut)
            predicted = call(self.loss_net, params[LOSS_NET], "__call__", *seen)
            ranked = loss_learning.rank(predicted, truth=each, rows=rows, option=self.learning)
            loss, metrics = loss + self.learning.weight * ranked.loss, metrics | ranked.metrics
        return loss, ({}, {**metrics, "loss": (loss, rows.sum())})

    # ---- the model ----------------------------------------------------------------------------------------

    def _questions(
        self, params: PyTree, batch: Batch, *, rng: Key | None = None, train: bool = False
    ) -> MCANOutput:
        """Each row's image with its own question."""
        inputs = (batch["regions"], batch["region_mask"], batch["text"], batch["text_mask"])
        return call(self.model, params, "__call__", *inputs, rng=rng, train=train)

    def _pairs(
        self, params: PyTree, batch: Batch, asked: Asked, *, model: Any = None, rng: Key | None = None
    ) -> MCANOutput:
        """Each image with each question asked of it, arrays `[B,J,...]`; dropout is active if there is an `rng`."""
        model, train = self.model if model is None else model, rng is not None
        mask = asked.text != 0
        keys = (None, None) if rng is None else tuple(jax.random.split(rng))
        text = call(model, params, "encode_text", asked.text, mask, rng=keys[0], train=train)
        index = dict(image_index=asked.image_index, text_index=asked.text_index)
        inputs = (batch["regions"], batch["region_mask"], text, mask)
        out = call(model, params, "answer", *inputs, **index, rng=keys[1], train=train)
        return jax.tree.map(lambda x: x.reshape(*asked.there.shape, *x.shape[1:]), out)

    def _p(self, logits: Array) -> Array:
        return acquisition.probabilities(logits, kind=self.prob)

    def _members(self, params: PyTree, batch: Batch, asked: Asked) -> Array:
        """Probabilities `[T,B,J,C]` of the sub-networks that the dropout masks cut out.

        The masks of pass `t` come from `fold_in(key(seed), t)` and are shared by all rows (`masks="shared"`), so it is
        one sub-network for the whole pool, whatever the batches.
        """
        if not self.model.dropout:
            raise ValueError(
                "model.dropout=0: all dropout passes are the same network, so they tell nothing about its uncertainty; "
                "set model.dropout (0.1 in the paper), or take another strategy"
            )
        model = self.model.clone(masks="shared")

        def one(t: Array) -> Array:
            key = jax.random.fold_in(jax.random.key(self.seed), t)
            return self._p(self._pairs(params, batch, asked, model=model, rng=key).logits)

        return jax.lax.map(one, jnp.arange(self.passes))

    # ---- predictors ---------------------------------------------------------------------------------------

    def _answer(self, params: PyTree, batch: Batch, rng: Key) -> dict[str, Array]:
        """Best classes first: `index [B,n]` i32, `score [B,n]` f32, the probability of each alone."""
        score, index = jax.lax.top_k(jax.nn.sigmoid(self._questions(params, batch).logits), self.top_n)
        return {"index": index, "score": score}

    def _truth(self, params: PyTree, batch: Batch, rng: Key) -> Array:
        """`[B]` f32: the probability of the consensus answer `hard_label`; 0 where it is no class (-1)."""
        p, label = self._p(self._questions(params, batch).logits), batch["hard_label"]
        found = jnp.take_along_axis(p, jnp.maximum(label, 0)[:, None], axis=-1)[:, 0]
        return jnp.where(label >= 0, found, 0.0)

    def _of_images(self) -> dict[str, Predictor]:
        def pairs(value: Callable[[MCANOutput], Array]) -> Predictor:
            def run(params: PyTree, batch: Batch, rng: Key) -> Array:
                asked = asked_of(batch)
                return mean_over(value(self._pairs(params, batch, asked)), asked.there)

            return run

        def passes(value: Callable[[Array], Array]) -> Predictor:
            def run(params: PyTree, batch: Batch, rng: Key) -> Array:
                asked = asked_of(batch)
                return mean_over(value(self._members(params, batch, asked)), asked.there)

            return run

        return {
            "least_conf": pairs(lambda out: acquisition.least_confidence(self._p(out.logits))),
            "entropy": pairs(lambda out: acquisition.entropy(self._p(out.logits))),
            "margin": pairs(lambda out: acquisition.margin(self._p(out.logits))),
            "uncertainty": pairs(lambda out: indicator(out.logits).f),
            "embed": pairs(lambda out: out.fused),
            "bald": passes(acquisition.bald),
            "mc_entropy": passes(acquisition.mc_entropy),
            "mocu": passes(acquisition.mocu),
            "badge": self._badge,
            "vision": lambda p, batch, rng: mean_over(batch["regions"], batch["region_mask"]),
            "kind_mixture": self._kind_mixture,
            "kind_present": self._kind_present,
            "states": self._states,
            "probs": lambda p, batch, rng: self._p(self._pairs(p, batch, asked_of(batch)).logits),
            "members": lambda p, batch, rng: jnp.moveaxis(self._members(p, batch, asked_of(batch)), 0, 2),
        }

    def _badge(self, params: PyTree, batch: Batch, rng: Key) -> Array:
        """`[B,sketch_dim]`: sketches of (p - onehot(argmax)) x fused, summed over the questions."""
        asked = asked_of(batch)
        out = self._pairs(params, batch, asked)
        p = self._p(out.logits)
        residual = (p - jax.nn.one_hot(p.argmax(-1), p.shape[-1])) * asked.there[..., None]
        sizes = (p.shape[-1], out.fused.shape[-1])
        hashes = acquisition.sketch_hashes(jax.random.key(self.seed), sizes, self.sketch_dim)
        return acquisition.tensor_sketch(residual, out.fused, hashes).sum(1)

    def _kind_mixture(self, params: PyTree, batch: Batch, rng: Key) -> Array:
        """`[B,kinds,C]`: per answer type, the mean answer distribution, weighted by entropy (CDAL)."""
        asked = asked_of(batch)
        p = self._p(self._pairs(params, batch, asked).logits)
        return acquisition.kind_mixture(p, kinds_of(batch, asked), self.kinds)[0]

    def _kind_present(self, params: PyTree, batch: Batch, rng: Key) -> Array:
        """`[B,kinds]` bool: which answer types are asked for."""
        kind = kinds_of(batch, asked_of(batch))
        return (kind[..., None] == jnp.arange(self.kinds)).any(1)

    def _states(self, params: PyTree, batch: Batch, rng: Key) -> dict[str, Array]:
        """`image`, `language`, `fused`, each `[B,J,D]`."""
        out = self._pairs(params, batch, asked_of(batch))
        return {"image": out.image, "language": out.language, "fused": out.fused}

    def _predicted_loss(self, params: PyTree, batch: Batch, rng: Key) -> Array:
        """`[B]`: what the loss network expects, averaged over the questions."""
        asked = asked_of(batch)
        out = self._pairs(params, batch, asked)
        flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), (out.taps, out.fused))
        found = call(self.loss_net, params[LOSS_NET], "__call__", *flat)
        return mean_over(found.reshape(asked.there.shape), asked.there)
