"""Vision-language pre-training: contrastive, matching and masked-language losses with a momentum copy (ALBEF).

Shape legend: `B` batch, `L` text length, `P` patches, `D` width, `C` contrastive width, `Q` queue size.

One step encodes each image once with the model and once with the momentum copy, and fuses once: the positives,
both kinds of negatives and the corrupted texts go through the fusion layers as one batch of `4B` texts that
point at `B` images. Source: Li et al., "Align before Fuse", NeurIPS 2021; repository `salesforce/ALBEF`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.tasks import momentum as averaging
from jaxvl.tasks import predictors as predict
from jaxvl.tasks import pretrain_losses as parts
from jaxvl.tasks.momentum import call
from jaxvl.tasks.options import (
    DEFAULTS,
    Contrast,
    Distill,
    Matching,
    Momentum,
    Tokens,
    masking,
    options,
    required,
)
from jaxvl.tasks.pretrain_losses import NO_ID, Pairing, Step, Views
from jaxvl.types import Array, Batch, Key, Metrics, Predictor, PyTree

STUDENT_ONLY = frozenset(("itm_head", "temp", "text_decoder"))  # the momentum copy's forward passes read none


class PretrainTask:
    """ITC + ITM + MLM, each of weight 1; a part given as None is left out.

    Args:
      model: HyperALBEF or any object with its methods.
      tokens: `dict(pad=, cls=, sep=, mask=, size=)`, and `continues=` for whole words.
      momentum: see `Momentum`. None: plain in-batch InfoNCE; then `queue_size` and `distill` must be None too.
      queue_size: momentum features kept as further negatives; a multiple of the batch. None = no queue.
      distill: see `Distill`.
      itc: see `Contrast`.
      itm: see `Matching`.
      mlm: see `Masking`.

    Batches: `image`, `text`, `text_mask`, `image_id` if an option asks for it, and optionally `mask`.
    `extra`: `{"updates": i32, "momentum": params, "queue": {"image" [C,Q], "text" [C,Q], "ids" [Q], "ptr"}}`.
    """

    renames: tuple[tuple[str, str], ...] = ()

    def __init__(
        self,
        model: Any,
        *,
        tokens: Mapping[str, Any],
        momentum: Mapping[str, Any] | None = DEFAULTS,
        queue_size: int | None = 65536,
        distill: Mapping[str, Any] | None = DEFAULTS,
        itc: Mapping[str, Any] | None = DEFAULTS,
        itm: Mapping[str, Any] | None = DEFAULTS,
        mlm: Mapping[str, Any] | None = DEFAULTS,
    ):
        self.model = model
        self.tokens = required(Tokens, "tokens", tokens)
        self.momentum = options(Momentum, "momentum", momentum)
        self.distill = options(Distill, "distill", distill)
        self.itc, self.itm = options(Contrast, "itc", itc), options(Matching, "itm", itm)
        self.mlm = masking(mlm, self.tokens)
        self.queue_size = queue_size
        self._check()
        self.predictors: dict[str, Predictor] = {
            "image_states": lambda p, batch, rng: predict.image_states(model, p, batch),
            "image_embed": lambda p, batch, rng: predict.image_embed(model, p, batch),
            "text_embed": lambda p, batch, rng: predict.text_embed(model, p, batch),
            "match": lambda p, batch, rng: jax.nn.softmax(predict.match_logits(model, p, batch))[..., 1],
            "match_logit": lambda p, batch, rng: predict.match_logits(model, p, batch)[..., 1],
            "hypergraph": lambda p, batch, rng: predict.hypergraph(model, p, batch),
        }

    def _check(self) -> None:
        if self.itc is None and self.itm is None and self.mlm is None:
            raise ValueError("itc, itm and mlm are all None: there is no loss to train on")
        if self.momentum is None:
            for name in ("queue_size", "distill"):
                if getattr(self, name) is not None:
                    raise ValueError(f"momentum=None leaves nothing to fill {name}: set {name}=None as well")

    # ---- state ------------------------------------------------------------------------------------------

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters; a batch that does not divide the queue is refused here."""
        if self.queue_size is not None:
            losses.require_divisible(self.queue_size, batch=len(batch["text"]))
        keys = dict(zip(("params", "dropout"), jax.random.split(rng), strict=True))
        return self.model.init(keys, batch["image"], batch["text"], batch["text_mask"])["params"]

    def start(self, params: PyTree, rng: Key) -> PyTree:
        """The momentum copy equals `params`; the queues hold random unit vectors."""
        extra: dict[str, Any] = {"updates": jnp.zeros((), jnp.int32)}
        if self.momentum is not None:
            extra["momentum"] = averaging.copy(params, without=STUDENT_ONLY)
        if self.queue_size is not None:
            k_image, k_text = jax.random.split(rng)
            extra["queue"] = {
                "image": self.model.embedding_queue(k_image, self.queue_size),
                "text": self.model.embedding_queue(k_text, self.queue_size),
                "ids": jnp.full((self.queue_size,), NO_ID, jnp.int32),
                "ptr": jnp.zeros((), jnp.int32),
            }
        return extra

    def prepare(self, params: PyTree, extra: PyTree) -> PyTree:
        """Move the momentum copy towards the parameters."""
        return averaging.update(params, extra, momentum=self.momentum)

    def finish(self, extra: PyTree, aux: PyTree) -> PyTree:
        """Count the update and overwrite the oldest queue entries with this batch's momentum features."""
        extra = {**extra, "updates": extra["updates"] + 1}
        if self.queue_size is None:
            return extra
        queue = extra["queue"]
        new = {k: losses.enqueue(queue[k], rows=rows, ptr=queue["ptr"]) for k, rows in aux.items()}
        new["ptr"] = (queue["ptr"] + len(aux["ids"])) % self.queue_size
        return {**extra, "queue": new}

    # ---- loss -------------------------------------------------------------------------------------------

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """Sum of the losses; metrics are "loss", "itc", "itm", "itm_accuracy", "mlm", "mlm_accuracy",
        "temperature" and "alpha", as far as they apply.

        Rows with `mask` False count nowhere: not in a loss, not as a negative. `aux` is what `finish` enqueues.
        """
        k_mask, k_student, k_teacher, k_draw, k_fuse, k_taught = jax.random.split(rng, 6)
        step = self._step(params, extra, batch)
        corrupted = None
        if self.mlm is not None:
            corrupted = parts.corrupt(self.mlm, key=k_mask, tokens=self.tokens, step=step)
        student = self._views(params, batch, corrupted, rng=k_student, train=True)
        copy, teacher = None, None
        if self.momentum is not None:
            copy = averaging.teacher(params, extra)
            read = None if self.distill is None else corrupted  # only distillation reads its corrupted texts
            train = averaging.train_flag(self.momentum)
            teacher = self._views(copy, batch, read, rng=k_teacher, train=train)
        similar = parts.similarities(student, keys=teacher or student, step=step)
        pairing = None
        if self.itm is not None:
            pairing = parts.draw_negatives(self.itm, key=k_draw, similar=similar, step=step)
        match, masked_bld = self._fuse(params, student, batch["text_mask"], pairing, rng=k_fuse)

        total, metrics = jnp.zeros((), jnp.float32), _scalars(temperature=step.tau)
        if step.alpha is not None:
            metrics |= _scalars(alpha=step.alpha)
        if self.itc is not None:
            soft = None if teacher is None else parts.similarities(teacher, keys=teacher, step=step)
            itc_b = parts.contrastive(self.itc, similar=similar, taught=soft, step=step)
            total += losses.mean(itc_b, weights=step.rows)
            metrics["itc"] = ((itc_b * step.rows).sum(), step.rows.sum())
        if pairing is not None:
            loss, found = parts.matching(match, pairing=pairing, step=step)
            total, metrics = total + loss, metrics | found
        if self.mlm is not None and corrupted is not None:
            taught = self._taught_logits(copy, teacher, batch["text_mask"], rng=k_taught)
            words = self._logits_at(params, masked_bld)
            loss, found = parts.masked(self.mlm, logits=words, taught=taught, corrupted=corrupted, step=step)
            total, metrics = total + loss, metrics | found
        metrics["loss"] = (total * step.rows.sum(), step.rows.sum())
        return total, (self._enqueued(teacher, batch), metrics)

    def _step(self, params: PyTree, extra: PyTree, batch: Batch) -> Step:
        return Step(
            batch=batch,
            rows=averaging.row_weights(batch),
            alpha=None if self.distill is None else averaging.alpha(extra, distill=self.distill),
            tau=call(self.model, params, "temperature"),
            queue=extra.get("queue"),
        )

    def _views(
        self, params: PyTree, batch: Batch, corrupted: losses.Corrupted | None, *, rng: Key, train: bool
    ) -> Views:
        k_image, k_text = jax.random.split(rng)
        image_bpd = call(self.model, params, "encode_image", batch["image"], rng=k_image, train=train)
        texts = [batch["text"]] if corrupted is None else [batch["text"], corrupted.ids]
        masks = jnp.concatenate([batch["text_mask"]] * len(texts))
        states = call(
            self.model, params, "encode_text", jnp.concatenate(texts), masks, rng=k_text, train=train
        )
        text_bld, *corrupt = jnp.split(states, len(texts))
        return Views(
            image_bpd,
            text_bld,
            corrupt[0] if corrupt else None,
            call(self.model, params, "image_embed", image_bpd),
            call(self.model, params, "text_embed", text_bld, batch["text_mask"]),
        )

    def _fuse(
        self, params: PyTree, views: Views, mask_bl: Array, pairing: Pairing | None, *, rng: Key
    ) -> tuple[Any, Any]:
        """Matching logits `[3B,2]` of (I,T), (I_neg,T), (I,T_neg), and fused states `[B,L,D]` of the corrupted texts.

        One that is not due is None or empty.
        """
        own = jnp.arange(len(mask_bl), dtype=jnp.int32)
        texts, masks, images = [], [], []
        if pairing is not None:
            swap = pairing.texts.column
            texts += [views.text_bld, views.text_bld, jnp.take(views.text_bld, swap, axis=0)]
            masks += [mask_bl, mask_bl, jnp.take(mask_bl, swap, axis=0)]
            images += [own, pairing.images.column, own]
        at = len(texts) * len(mask_bl)
        if views.corrupt_bld is not None:
            texts, masks, images = [*texts, views.corrupt_bld], [*masks, mask_bl], [*images, own]
        if not texts:
            return None, None
        states, mask, index = (jnp.concatenate(x) for x in (texts, masks, images))
        fused = call(
            self.model, params, "fuse", states, mask, views.image_bpd, image_index=index, rng=rng, train=True
        )
        match = call(self.model, params, "match_logits", fused[:at], mask[:at]) if at else None
        return match, fused[at:]

    def _logits_at(self, params: PyTree, states_bld: Array) -> Callable[[Array], Array]:
        """Positions `[B,K]` -> vocabulary logits `[B,K,V]` of these states."""

        def logits(order_bk: Array) -> Array:
            picked = jnp.take_along_axis(states_bld, order_bk[..., None], axis=1)
            return call(self.model, params, "mlm_logits", picked)

        return logits

    def _taught_logits(
        self, copy: PyTree, teacher: Views | None, mask_bl: Array, *, rng: Key
    ) -> Callable[[Array], Array] | None:
        """As `_logits_at` for the momentum copy's own fusion of the corrupted texts, if they are distilled from."""
        if teacher is None or teacher.corrupt_bld is None:
            return None
        states = (teacher.corrupt_bld, mask_bl, teacher.image_bpd)
        fused = call(self.model, copy, "fuse", *states, rng=rng, train=averaging.train_flag(self.momentum))
        return self._logits_at(copy, fused)

    def _enqueued(self, teacher: Views | None, batch: Batch) -> PyTree:
        if self.queue_size is None or teacher is None:
            return {}
        ids = batch["image_id"] if "image_id" in batch else jnp.full(len(batch["text"]), NO_ID, jnp.int32)
        return {"image": teacher.image_bc, "text": teacher.text_bc, "ids": ids}


def _scalars(**values: Array) -> Metrics:
    return {name: (value, jnp.ones((), jnp.float32)) for name, value in values.items()}
