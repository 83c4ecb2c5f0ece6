"""Classification of image-text pairs, alone or beside a fixed teacher: VQA answers, entailment, two-image reasoning.

Shape legend: `B` batch, `M` text tokens, `P` image tokens, `A` classes, `K` labels of a row, `W` pooled width.
Sources: Huang and Guo, Computer Science 51(9), 2024 (soft labels and attention replace the hard loss); Kim et al.,
"ViLT", 2021 (answers as independent classes); Wang et al., "Distilled Dual-Encoder Model", 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvl import distillation, losses
from jaxvl.tasks import momentum as averaging
from jaxvl.tasks import predictors as predict
from jaxvl.tasks import teaching
from jaxvl.tasks.momentum import call
from jaxvl.tasks.options import ClassTeaching, one_of, options
from jaxvl.types import Array, Batch, Encoded, Fused, Key, Metrics, Predictor, PyTree

HARD = ClassTeaching(hard=1.0, soft=0.0, attn=0.0)


class Forward(NamedTuple):
    """One network's pass: `logits [B,A]`, and per image (one or two) its encoding and its fusion with the text."""

    logits: Array
    text: Encoded
    images: tuple[Encoded, ...]
    fused: tuple[Fused, ...]


class ClassifyTask(teaching.TaughtTask):
    """`hard L_hard + soft L_soft + attn L_attn`, averaged over the rows that have a label.

    Args:
      model: BridgeTower, ViLT or any object with their methods, with `classes`; with `images=2` the text is encoded
        once, fused with each image, and both pooled states are classified together.
      teacher: a model for the same classes, with the same pixels, ids and masks; its parameters are
        `extra["frozen"]`. None = none.
      loss: "bce" = independent classes with soft scores, summed over classes; "ce" = exactly one class.
      distill: see `ClassTeaching`; None = hard loss only, of weight 1.
      top_n: classes that "answer" returns; more than there are means all.
      blind: all images are one constant, so that of the first row is encoded for the whole batch.

    Batches: `image` (and `image2`) or their records `image_states` (`image2_states`), `text` or `text_states`,
    `text_mask`, optionally `mask`; to train also `label [B]`, or `label [B,K]` with `label_score [B,K]` for "bce".
    """

    def __init__(
        self,
        model: Any,
        *,
        teacher: Any = None,
        loss: str = "bce",
        distill: Mapping[str, Any] | None = None,
        top_n: int = 10,
        blind: bool = False,
    ):
        self.model, self.teacher, self.blind = model, teacher, blind
        self.kind, self.distill = loss, options(ClassTeaching, "distill", distill)
        self.weights = HARD if self.distill is None else self.distill
        self.renames: tuple[tuple[str, str], ...] = getattr(model, "renames", ())
        self._check(top_n)
        self.top_n = min(top_n, model.classes)
        self.predictors: dict[str, Predictor] = {
            **predict.of_pairs(model),
            "logits": lambda p, batch, rng: self._logits(p, batch),
            "class": lambda p, batch, rng: self._logits(p, batch).argmax(-1).astype(jnp.int32),
            "answer": self._answer,
            "attention": self._looks,
        }

    def _check(self, top_n: int) -> None:
        one_of("loss", self.kind, ("bce", "ce"))
        if self.model.classes is None:
            raise ValueError("model.classes=None: a classification task needs the number of classes")
        if top_n < 1:
            raise ValueError(f"top_n={top_n}: must be at least 1")
        teaching.check_teacher(
            self.model, self.teacher, self.distill, attention=self.weights.attn > 0, classify=True
        )
        if not (self.weights.hard or self.weights.soft or self.weights.attn):
            raise ValueError(
                "distill.hard, distill.soft and distill.attn are all 0: there is no loss to train on"
            )

    # ---- loss -------------------------------------------------------------------------------------------

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """The weighted sum of the terms.

        Metrics: "loss", "hard" (logged even if its weight is 0), "soft", "attn_uni", "attn_cross" as far as they apply,
        "accuracy" (the score of the likeliest class) and "teacher_accuracy", and the mean entropies
        "entropy_{uni,cross,teacher}_{t2v,v2t}" of the attention rows that are imitated. Rows with `mask` False or
        without any label count nowhere.
        """
        targets_ba = self._targets(batch)
        rows = averaging.row_weights(batch) * (targets_ba.sum(-1) > 0)
        attention = self.teacher is not None and self.weights.attn > 0
        cross = attention and self.weights.cross
        ours = self._forward(
            self.model, params, batch, tokens="all" if cross else "class", rng=rng, train=True
        )
        hard_b = self._hard(ours.logits, targets_ba)
        terms = {"hard": (self.weights.hard, _over(hard_b, rows))}
        others = {"accuracy": _over(_score(ours.logits, targets_ba), rows)}
        if self.teacher is not None:
            taught = teaching.frozen(extra)
            theirs = self._forward(
                self.teacher, taught, self._for_teacher(batch), tokens="all" if attention else "class"
            )
            others["teacher_accuracy"] = _over(_score(theirs.logits, targets_ba), rows)
            terms["soft"] = (self.weights.soft, _over(self._soft(ours.logits, theirs.logits), rows))
            if attention:
                found, entropy = self._attention(params, ours, theirs, batch, rows)
                terms |= {name: (self.weights.attn, term) for name, term in found.items()}
                others |= entropy
        loss = sum((w * _mean(term) for w, term in terms.values()), jnp.zeros((), jnp.float32))
        metrics = {name: term for name, (_, term) in terms.items()} | others
        return loss, ({}, {**metrics, "loss": (loss * rows.sum(), rows.sum())})

    def _targets(self, batch: Batch) -> Array:
        """`[B,A]` f32: scores of the classes, one-hot for single labels."""
        label, classes = batch["label"], self.model.classes
        if label.ndim == 1:
            return jax.nn.one_hot(label, classes, dtype=jnp.float32)
        if self.kind == "ce":
            raise ValueError(f'loss="ce" needs one label a row, not label {label.shape}: use loss="bce"')
        return losses.dense_targets(label, score=batch["label_score"], classes=classes)

    def _hard(self, logits_ba: Array, targets_ba: Array) -> Array:
        if self.kind == "bce":
            return losses.binary_cross_entropy(logits_ba, targets=targets_ba)
        return losses.soft_cross_entropy(logits_ba, targets=targets_ba)

    def _soft(self, ours_ba: Array, theirs_ba: Array) -> Array:
        if self.kind == "bce" and self.weights.vqa_soft == "bernoulli":
            return distillation.soft_bernoulli(ours_ba, theirs_ba)
        return teaching.soft_labels(ours_ba, theirs_ba, self.weights)

    def _for_teacher(self, batch: Batch) -> Batch:
        """The batch with the teacher's pixels and, if it has its own, tokens."""
        images = {k: batch[k] for k in ("image", "image2") if k in batch}
        seen = {k: teaching.pixels(v, student=self.model, teacher=self.teacher) for k, v in images.items()}
        given = teaching.own_text(batch, self.distill)
        return {**{k: v for k, v in given.items() if not k.endswith("_states")}, **seen}

    def _attention(
        self, params: PyTree, ours: Forward, theirs: Forward, batch: Batch, rows: Array
    ) -> tuple[Metrics, Metrics]:
        """Terms "attn_uni", "attn_cross", summed over the images of a row, and the entropies."""
        terms: Metrics = {}
        entropies: Metrics = {}
        mask, words = batch["text_mask"], teaching.words(batch, self.distill)
        for image, fused, taught in zip(ours.images, ours.fused, theirs.fused, strict=True):
            image = teaching.take(image, self._index(len(mask), image))
            qks = teaching.maps(self.model, params, self.distill, text=ours.text, image=image, fused=fused)
            found = teaching.attention(
                "attn", qks, taught.qk, text_mask=mask, weights=rows, distill=self.distill, words=words
            )
            terms = {name: (terms[name][0] + x, n) if terms else (x, n) for name, (x, n) in found.items()}
            qks |= {} if taught.qk is None else {"teacher": taught.qk}
            seen = teaching.entropies(qks, text_mask=mask, weights=rows, words=words)
            entropies = {
                name: (entropies[name][0] + x, entropies[name][1] + n) if entropies else (x, n)
                for name, (x, n) in seen.items()
            }
        return terms, entropies

    # ---- networks ---------------------------------------------------------------------------------------

    def _forward(
        self,
        model: Any,
        params: PyTree,
        batch: Batch,
        *,
        tokens: str,
        rng: Key | None = None,
        train: bool = False,
    ) -> Forward:
        """Encode the text once and each image, fuse each pair, classify."""
        k_image, k_text, k_fuse, k_head = (
            None if rng is None else jax.random.fold_in(rng, i) for i in range(4)
        )
        mask = batch["text_mask"]
        text = predict.encoded_text(model, params, batch, rng=k_text, train=train)
        images = self._images(model, params, batch, rng=k_image, train=train)
        fused = []
        for i, image in enumerate(images):
            key = None if k_fuse is None else jax.random.fold_in(k_fuse, i)
            how: dict[str, Any] = dict(image_type=i + 1, tokens=tokens, rng=key, train=train)
            index = self._index(len(mask), image) if self.blind else None
            fused.append(call(model, params, "fuse", text, mask, image, image_index=index, **how))
        pooled = tuple(f.pooled for f in fused)
        logits = call(model, params, "class_logits", pooled, rng=k_head, train=train)
        return Forward(logits, text, images, tuple(fused))

    def _images(
        self, model: Any, params: PyTree, batch: Batch, *, rng: Key | None, train: bool
    ) -> tuple[Encoded, ...]:
        """The encoded images; pixels of two images go through the encoder as one batch."""
        names = ("image", "image2")[: model.images]
        if model.images == 1 and ("image2" in batch or "image2_states" in batch):
            raise ValueError('the batch has "image2", but model.images=1: set model.images=2')
        missing = [n for n in names if n not in batch and f"{n}_states" not in batch]
        if missing:
            raise KeyError(f"model.images={model.images} needs {missing[0]!r}; the batch has {sorted(batch)}")
        if self.blind:
            batch = {**batch, **{n: batch[n][:1] for n in names if n in batch}}
        raw = [n for n in names if f"{n}_states" not in batch]
        if len(raw) < 2:
            return tuple(
                predict.encoded_image(model, params, batch, key=n, rng=rng, train=train) for n in names
            )
        both = jnp.concatenate([batch[n] for n in raw])
        encoded = call(model, params, "encode_image", both, rng=rng, train=train)
        size = len(both) // 2
        return tuple(teaching.take(encoded, jnp.arange(size) + at) for at in (0, size))

    def _index(self, size: int, image: Encoded) -> Array:
        """The row of `image` that belongs to each text: its own, or the only one."""
        count = image.record.shape[0]
        return jnp.zeros(size, jnp.int32) if count == 1 else jnp.arange(size, dtype=jnp.int32)

    # ---- predictors -------------------------------------------------------------------------------------

    def _logits(self, params: PyTree, batch: Batch) -> Array:
        """`[B,A]` f32."""
        return self._forward(self.model, params, batch, tokens="class").logits

    def _answer(self, params: PyTree, batch: Batch, rng: Key) -> dict[str, Array]:
        """Best classes first: `index [B,n]` i32, `score [B,n]` f32, their probability (of each alone for "bce")."""
        logits = self._logits(params, batch)
        probability = jax.nn.sigmoid(logits) if self.kind == "bce" else jax.nn.softmax(logits, axis=-1)
        score, index = jax.lax.top_k(probability, self.top_n)
        return {"index": index, "score": score}

    def _looks(self, params: PyTree, batch: Batch, rng: Key) -> Array:
        """`[B,I,M,P]` f32: how much each token looks at each patch of each image, among the image's tokens; mean over
        heads.

        Of the last cross-modal layer; where there is none, of the towers' last queries and keys, which distillation
        compares. What the class token of the image gets is left out, so that rows sum to less than 1. A ViLT's text
        looks at text, too, in the same softmax: that part is divided out.
        """
        seen, mask = self._forward(self.model, params, batch, tokens="all"), batch["text_mask"]
        found = []
        for image, fused in zip(seen.images, seen.fused, strict=True):
            qk = fused.qk
            if qk is None:
                image = teaching.take(image, self._index(len(mask), image))
                qk = call(self.model, params, "uni_qk", seen.text, image)
            looks, _ = distillation.cross_maps(qk, mask)
            found.append(looks.mean(1)[..., 1:])
        return jnp.stack(found, 1)


def _over(values_b: Array, rows: Array) -> tuple[Array, Array]:
    return (values_b * rows).sum(), rows.sum()


def _mean(term: tuple[Array, Array]) -> Array:
    return term[0] / jnp.where(term[1] == 0, 1.0, term[1])


def _score(logits_ba: Array, targets_ba: Array) -> Array:
    """Target score of the likeliest class, `[B]`."""
    return jnp.take_along_axis(targets_ba, logits_ba.argmax(-1)[:, None], axis=-1)[:, 0]
