"""Pre-training on image-text pairs, alone or beside a fixed teacher: contrastive, matching and masked-language losses.

Shape legend: `B` batch, `M` text tokens, `P` image tokens, `D` width, `V` vocabulary.

One step encodes the images once, the texts and the masked texts in one call, and fuses once: the matching pairs, half
of which are broken up, and the masked texts go through the cross-modal layers as one batch. The teacher does the same
for the pairs that it is asked about. Sources: Huang and Guo, Computer Science 51(9), 2024; Kim et al., "ViLT", 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvl import losses
from jaxvl.scores import matching_alarm
from jaxvl.tasks import momentum as averaging
from jaxvl.tasks import pair_losses as pairs
from jaxvl.tasks import predictors as predict
from jaxvl.tasks import pretrain_losses as parts
from jaxvl.tasks import teaching
from jaxvl.tasks.momentum import call
from jaxvl.tasks.options import (
    DEFAULTS,
    InBatch,
    Mismatching,
    PairTeaching,
    Tokens,
    masking,
    options,
    required,
)
from jaxvl.tasks.pair_losses import Seen
from jaxvl.types import Array, Batch, CrossQK, Encoded, Key, Metrics, Predictor, PyTree


class Step(NamedTuple):
    """What the parts of one step share.

    Attributes:
      batch: the batch.
      rows: `[B]` f32, 0 for padding rows.
      params, taught: parameters of student and teacher.
      ours, theirs: what student and teacher made of the batch; `theirs` is None without teacher.
      pairing: which image each text is matched with; None without the matching loss.
      corrupted: the masked texts; None without the masked-language loss.
    """

    batch: Batch
    rows: Array
    params: PyTree
    taught: PyTree
    ours: Seen
    theirs: Seen | None
    pairing: losses.Mismatch | None
    corrupted: losses.Corrupted | None

    def images(self) -> Encoded:
        """The student's `B` own images, without the false ones."""
        size = len(self.rows)
        return jax.tree.map(lambda x: x if len(x) == size else x[:size], self.ours.image)

    def texts(self, *, masked: bool = False) -> Encoded:
        """The student's `B` texts, or the masked ones."""
        size = len(self.rows)
        return teaching.take(self.ours.text, jnp.arange(size) + (size if masked else 0))


class PairPretrainTask(teaching.TaughtTask):
    """ITC + ITM + MLM and what is imitated of a teacher, each of weight 1; a part given as None is left out.

    Args:
      model: BridgeTower, ViLT or any object with their methods.
      tokens: `dict(pad=, cls=, sep=, mask=, size=)`, and `continues=` for whole words.
      teacher: a model with the same pixels, ids and masks; its parameters are `extra["frozen"]`. None = none.
      itc: see `InBatch`; must be None for a model without contrastive heads.
      itm: see `Mismatching`. Exactly `floor(n/2)` of `n` pairs are broken up (`losses.mismatch_half`).
      mlm: see `Masking`.
      distill: see `PairTeaching`; None = hard labels only. What it asks of a part that is None is left out.

    Batches: `image`, `text`, `text_mask`, `image_id` if an option asks for it, `false_image` and `false_image_id` for
    negatives of the whole data set, and optionally `mask`.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokens: Mapping[str, Any],
        teacher: Any = None,
        itc: Mapping[str, Any] | None = DEFAULTS,
        itm: Mapping[str, Any] | None = DEFAULTS,
        mlm: Mapping[str, Any] | None = DEFAULTS,
        distill: Mapping[str, Any] | None = None,
    ):
        self.model, self.teacher = model, teacher
        self.tokens = required(Tokens, "tokens", tokens)
        self.itc, self.itm = options(InBatch, "itc", itc), options(Mismatching, "itm", itm)
        self.false_images = self.itm is not None and self.itm.negatives == "dataset"
        self.mlm = masking(mlm, self.tokens)
        self.distill = options(PairTeaching, "distill", distill)
        self.renames: tuple[tuple[str, str], ...] = getattr(model, "renames", ())
        self._check()
        self.predictors: dict[str, Predictor] = {
            **predict.of_pairs(model),
            "match": lambda p, batch, rng: jax.nn.softmax(predict.pair_match_logits(model, p, batch))[..., 1],
            "match_logit": lambda p, batch, rng: predict.pair_match_logits(model, p, batch)[..., 1],
        }

    def _check(self) -> None:
        if self.itc is None and self.itm is None and self.mlm is None:
            raise ValueError("itc, itm and mlm are all None: there is no loss to train on")
        if self.itc is not None and not self.model.contrastive:
            raise ValueError(f"{type(self.model).__name__} has no contrastive heads: set itc=None")
        asked = self.asked.values()
        if self.teacher is not None and self.distill is not None and not any(asked):
            raise ValueError(
                "distill asks nothing of the teacher: name terms in distill.itm, distill.itc or distill.mlm"
            )
        attention = any("attn" in terms or "cross" in terms for terms in asked)
        teaching.check_teacher(self.model, self.teacher, self.distill, attention=attention, classify=False)

    @property
    def asked(self) -> dict[str, frozenset[str]]:
        """What each loss that there is asks of the teacher."""
        parts = {k: () if self.distill is None else getattr(self.distill, k) for k in ("itm", "itc", "mlm")}
        return {k: frozenset(terms if getattr(self, k) is not None else ()) for k, terms in parts.items()}

    # ---- loss -------------------------------------------------------------------------------------------

    def alarm(self, scalars: Mapping[str, float], *, share: float) -> str | None:
        """What is wrong with a log's row after this share of the updates; None if nothing is."""
        found = scalars.get("itm_accuracy")
        return None if found is None else matching_alarm(100 * found, share, of="of training batches ")

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """Sum of the terms.

        Metrics: "loss"; the terms "itc", "itm", "mlm", "{part}_soft", "{part}_attn_uni", "{part}_attn_cross" as far
        as they apply; "itm_accuracy", "mlm_accuracy", "temperature"; on the matching pairs the mean entropies
        "entropy_{uni,cross,teacher}_{t2v,v2t}" of attention rows. Rows with `mask` False count nowhere.
        """
        k_mask, k_pair, k_run = jax.random.split(rng, 3)
        rows = averaging.row_weights(batch)
        pairing = None if self.itm is None else losses.mismatch_half(k_pair, valid=rows > 0)
        false = pairs.false_images(self.itm, batch, pairing)
        if pairing is not None and false is not None:
            pairing = losses.mismatch_further(pairing)
        corrupted = None
        if self.mlm is not None:
            shared = parts.Step(batch, rows, alpha=None, tau=jnp.ones(()), queue=None)
            corrupted = parts.corrupt(self.mlm, key=k_mask, tokens=self.tokens, step=shared)
        ours_fused, theirs_fused = (
            pairs.groups(names, size=len(rows), pairing=pairing) for names in self._group_names()
        )
        ours = pairs.see(
            self.model, params, batch, corrupted, ours_fused, further=false, rng=k_run, train=True
        )
        taught, theirs = None, None
        if self.teacher is not None:
            taught = teaching.frozen(extra)
            theirs = self._teach(taught, batch, corrupted, theirs_fused, false)
        step = Step(batch, rows, params, taught, ours, theirs, pairing, corrupted)
        terms: Metrics = {}
        others: Metrics = {}
        for part in (self._contrast, self._imitate_own, self._matching, self._words):
            more, aside = part(step)
            terms, others = terms | more, others | aside
        loss = pairs.total(terms)
        return loss, ({}, {**terms, **others, "loss": (loss * rows.sum(), rows.sum())})

    def _teach(
        self,
        taught: PyTree,
        batch: Batch,
        corrupted: losses.Corrupted | None,
        groups: pairs.Groups,
        false: Array | None,
    ) -> Seen:
        """What the teacher makes of the batch, in its own pixels and tokens."""
        how = dict(student=self.model, teacher=self.teacher)
        image = teaching.pixels(batch["image"], **how)
        further = None if false is None or "itm" not in groups else teaching.pixels(false, **how)
        masked = corrupted if self.asked["mlm"] else None
        batch = {**teaching.own_text(batch, self.distill), "image": image}
        return pairs.see(self.teacher, taught, batch, masked, groups, further=further)

    def _group_names(self) -> tuple[set[str], set[str]]:
        """The groups of pairs that the student fuses, and those that the teacher does."""
        ours = {name for name in ("itm", "mlm") if getattr(self, name) is not None}
        theirs = {name for name in ("itm", "mlm") if self.asked[name]}
        own = self._own_kinds()
        return ours | ({"own"} if "cross" in own else set()), theirs | ({"own"} if own else set())

    def _own_kinds(self) -> set[str]:
        """The kinds of attention that are imitated on the true pairs for the contrastive loss."""
        if self.distill is None:
            return set()
        wanted = {"uni": self.distill.uni and "attn" in self.asked["itc"]}
        wanted["cross"] = self.distill.cross and "cross" in self.asked["itc"]
        return {kind for kind, on in wanted.items() if on}

    def _contrast(self, step: Step) -> tuple[Metrics, Metrics]:
        if self.itc is None:
            return {}, {}
        tau = call(self.model, step.params, "temperature")
        image = call(self.model, step.params, "image_embed", step.images())
        text = call(self.model, step.params, "text_embed", step.texts())
        same = pairs.same_image(self.itc, step.batch, name="itc")
        terms = pairs.contrast(image, text, tau=tau, same_bb=same, rows=step.rows)
        return terms, {"temperature": (tau, jnp.ones((), jnp.float32))}

    def _imitate_own(self, step: Step) -> tuple[Metrics, Metrics]:
        """Attention on the true pairs, the contrastive loss's share."""
        kinds, found = self._own_kinds(), {}
        if not kinds or step.theirs is None:
            return {}, {}
        if "uni" in kinds:
            found["uni"] = call(self.model, step.params, "uni_qk", step.texts(), step.images())
        if "cross" in kinds:
            found["cross"] = pairs.own_qk(step.ours, step.pairing)
        return self._attention("itc", found, pairs.own_qk(step.theirs, step.pairing), step, step.rows), {}

    def _matching(self, step: Step) -> tuple[Metrics, Metrics]:
        """The matching loss, what is imitated on its pairs, and the entropies of attention there."""
        if step.pairing is None or self.itm is None:
            return {}, {}
        weights = pairs.matching_weights(self.itm, step.batch, pairing=step.pairing, rows=step.rows)
        fused = step.ours.fused["itm"]
        logits = call(self.model, step.params, "match_logits", fused)
        terms = pairs.matching(logits, pairing=step.pairing, weights=weights)
        others = {"itm_accuracy": terms.pop("itm_accuracy")}
        image = teaching.take(step.ours.image, step.pairing.column)
        qks = teaching.maps(
            self.model, step.params, self.distill, text=step.texts(), image=image, fused=fused
        )
        if step.theirs is not None and self.distill is not None and self.asked["itm"]:
            their = step.theirs.fused["itm"]
            if "soft" in self.asked["itm"]:
                soft = call(self.teacher, step.taught, "match_logits", their)
                kl = teaching.soft_labels(logits, soft, self.distill) * weights
                terms["itm_soft"] = (kl.sum(), weights.sum())
            if "attn" in self.asked["itm"]:
                terms |= self._attention("itm", qks, their.qk, step, weights)
            qks |= {} if their.qk is None else {"teacher": their.qk}
        words = teaching.words(step.batch, self.distill)
        mask = step.batch["text_mask"]
        return terms, others | teaching.entropies(qks, text_mask=mask, weights=weights, words=words)

    def _words(self, step: Step) -> tuple[Metrics, Metrics]:
        """The masked-language loss and what is imitated on its pairs."""
        if step.corrupted is None or self.mlm is None:
            return {}, {}
        fused, soft = step.ours.fused["mlm"], None
        their = step.theirs.fused["mlm"] if step.theirs is not None and self.asked["mlm"] else None
        if their is not None and "soft" in self.asked["mlm"]:
            soft = _logits_at(self.teacher, step.taught, their.text)
        terms = pairs.words(
            self.mlm,
            ids=step.batch["text"],
            corrupted=step.corrupted,
            student=_logits_at(self.model, step.params, fused.text),
            teacher=soft,
            distill=self.distill,
        )
        others = {"mlm_accuracy": terms.pop("mlm_accuracy")}
        if their is not None and "attn" in self.asked["mlm"]:
            qks = teaching.maps(
                self.model,
                step.params,
                self.distill,
                text=step.texts(masked=True),
                image=step.images(),
                fused=fused,
            )
            terms |= self._attention("mlm", qks, their.qk, step, step.rows)
        return terms, others

    def _attention(
        self, part: str, qks: Mapping[str, CrossQK], their: CrossQK | None, step: Step, weights: Array
    ) -> Metrics:
        words = teaching.words(step.batch, self.distill)
        how: dict[str, Any] = dict(text_mask=step.batch["text_mask"], weights=weights, words=words)
        return teaching.attention(f"{part}_attn", qks, their, distill=self.distill, **how)


def _logits_at(model: Any, params: PyTree, states_bmd: Array | None) -> Callable[[Array], Array]:
    """Positions `[B,K]` -> vocabulary logits `[B,K,V]` of these states."""
    if states_bmd is None:
        raise ValueError(
            f"{type(model).__name__}.fuse returned no text states, which masked words are read from"
        )

    def logits(order_bk: Array) -> Array:
        picked = jnp.take_along_axis(states_bmd, order_bk[..., None], axis=1)
        return call(model, params, "mlm_logits", picked)

    return logits
