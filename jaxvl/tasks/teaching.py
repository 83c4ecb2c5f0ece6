"""A fixed teacher beside a student: what must agree, what it sees, and the attention terms of a loss.

Shape legend: `B` batch, `M` text tokens, `P` image tokens, `H` heads, `K` head dim. A teacher's parameters are
`extra["frozen"]`; it runs without dropout and no gradient flows into it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxvl import distillation
from jaxvl.tasks.momentum import call
from jaxvl.tasks.options import Teaching
from jaxvl.tasks.stateless import Stateless
from jaxvl.types import Array, Batch, CrossQK, Encoded, Fused, Key, Metrics, PyTree

SAME = {
    "image_size": "give both models one image_size",
    "image_tokens": "give both models one patch size: image token i must be the same pixels on both sides",
    "vocab_size": "use the teacher's tokenizer: both models read the same ids",
}
SAME_CLASSES = {
    "classes": "the label lists must be equal, in order too: use the list that the teacher was trained on",
    "images": "give both models the same number of images a text is about",
}


def check_teacher(
    model: Any, teacher: Any, distill: Teaching | None, *, attention: bool, classify: bool
) -> None:
    """Refuse a teacher that cannot teach this model; reads fields only.

    Args:
      model: the student.
      teacher: None = none.
      distill: options; None = hard labels only.
      attention: whether any term imitates attention.
      classify: whether class logits are imitated.

    Raises:
      ValueError: names the field and what to change.
    """
    if teacher is None and distill is None:
        return
    if teacher is None:
        raise ValueError("distill is given but there is no teacher: set distill=None, or give a teacher")
    if distill is None:
        raise ValueError("distill=None learns nothing from the teacher: set distill={}, or teacher=None")
    ours, theirs = (getattr(x, "text_arch", "bert") for x in (model, teacher))
    if (ours == "roberta") != (theirs == "roberta") and not distill.word_align:
        raise ValueError(
            f"text_arch={ours!r} with a teacher of text_arch={theirs!r}: byte-level BPE and WordPiece do not cut words "
            "alike, so no token has a counterpart. Set the student's text.arch=\"bert\" and the teacher's tokenizer, "
            "or distill.word_align=True to compare words"
        )
    for name, fix in {**SAME, **(SAME_CLASSES if classify else {})}.items():
        if name == "vocab_size" and distill.word_align:
            continue
        ours, theirs = getattr(model, name), getattr(teacher, name)
        if ours != theirs:
            raise ValueError(f"{name}={ours} but the teacher's {name}={theirs}: {fix}")
    if attention:
        _check_attention(model, teacher, distill)


def _check_attention(model: Any, teacher: Any, distill: Teaching) -> None:
    if not (distill.uni or distill.cross):
        raise ValueError(
            "distill.uni=False and distill.cross=False leave no attention to imitate: set one, or drop the terms"
        )
    if distill.heads == "equal" and model.head_count != teacher.head_count:
        raise ValueError(
            f"head_count={model.head_count} but the teacher's head_count={teacher.head_count}: "
            'set distill.heads="mean" to compare the mean over heads'
        )
    if distill.uni and not hasattr(model, "uni_qk"):
        raise ValueError("distill.uni=True needs a model with two towers: set distill.uni=False")
    interaction = getattr(model, "interaction", "bridge")
    if distill.cross and interaction != "bridge":
        raise ValueError(
            f"distill.cross=True, but interaction={interaction!r} has no cross-modal encoder: "
            "set distill.cross=False"
        )


def init_frozen(teacher: Any, rng: Key, batch: Batch) -> PyTree:
    """Fresh boxed parameters of the teacher; None without one."""
    return None if teacher is None else init_model(teacher, rng, batch)


def init_model(model: Any, rng: Key, batch: Batch) -> PyTree:
    """Fresh boxed parameters of a model of pairs, student or teacher."""
    keys = dict(zip(("params", "dropout"), jax.random.split(rng), strict=True))
    inputs = (batch["image"], batch["text"], batch["text_mask"])
    return model.init(keys, *inputs, image2=batch.get("image2"))["params"]


class TaughtTask(Stateless):
    """What tasks on pairs share: a `model`, maybe a `teacher`, and no state but the parameters."""

    model: Any
    teacher: Any

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters."""
        return init_model(self.model, rng, batch)

    def init_frozen(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters of the teacher; None without one."""
        return init_frozen(self.teacher, rng, batch)


def frozen(extra: PyTree) -> PyTree:
    """The teacher's parameters, as constants."""
    if "frozen" not in extra:
        raise KeyError('the task has a teacher, so extra["frozen"] must hold its parameters')
    return jax.lax.stop_gradient(extra["frozen"])


def words(batch: Batch, distill: Teaching | None) -> distillation.Words | None:
    """The words that attention is compared on; None = token by token.

    Raises:
      KeyError: words are asked for, and the batch has no text of the teacher's.
    """
    if distill is None or not distill.word_align:
        return None
    if "teacher_text" not in batch:
        raise KeyError(
            f'distill.word_align=True needs batch["teacher_text"]; the batch has {sorted(batch)}. Give the format the '
            "teacher's tokenizer: config.text.teacher_vocab"
        )
    return distillation.Words(batch["text_word"], batch["teacher_text_word"], batch["teacher_text_mask"])


def own_text(batch: Batch, distill: Teaching | None) -> Batch:
    """The batch with the text in the teacher's own tokens, where it has some."""
    if words(batch, distill) is None:
        return batch
    return {**batch, "text": batch["teacher_text"], "text_mask": batch["teacher_text_mask"]}


def pixels(image: Array, *, student: Any, teacher: Any) -> Array:
    """`image [B,H,W,3]`, normalised for the student, as the teacher expects it."""
    ours, theirs = ((x.pixel_mean, x.pixel_std) for x in (student, teacher))
    if ours == theirs:
        return image
    (mean, std), (mean_t, std_t) = (jnp.asarray(x, jnp.float32) for x in (ours, theirs))
    return (image * std + mean - mean_t) / std_t


def take(tree: Any, index: Array) -> Any:
    """The given rows of every array of a tree."""
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0), tree)


def maps(
    model: Any,
    params: PyTree,
    distill: Teaching | None,
    *,
    text: Encoded,
    image: Encoded,
    fused: Fused | None,
) -> dict[str, CrossQK]:
    """What the student's attention is made of, `{"uni", "cross"}` as far as it has and `distill` wants it."""
    found = {}
    if hasattr(model, "uni_qk") and (distill is None or distill.uni):
        found["uni"] = call(model, params, "uni_qk", text, image)
    if fused is not None and fused.qk is not None and (distill is None or distill.cross):
        found["cross"] = fused.qk
    return found


def soft_labels(student_logits: Array, teacher_logits: Array, distill: Teaching) -> Array:
    """`distillation.soft_categorical` with these options, `[...,A]` twice -> `[...]`."""
    how: dict[str, Any] = dict(tau=distill.tau, direction=distill.direction)
    return distillation.soft_categorical(student_logits, teacher_logits, **how)


def attention(
    name: str,
    student: Mapping[str, CrossQK],
    teacher: CrossQK | None,
    *,
    text_mask: Array,
    weights: Array,
    distill: Teaching | None,
    words: distillation.Words | None = None,
) -> Metrics:
    """Terms `{name}_uni`, `{name}_cross`: how far the student's attention, as far as given, is from the teacher's."""
    if teacher is None or distill is None:
        raise ValueError(
            "the teacher has no attention across modalities: its interaction has no cross-modal layer"
        )
    found = {}
    for kind, qk in student.items():
        how: dict[str, Any] = dict(text_mask=text_mask, weights=weights, words=words, **distill.kl())
        kl = distillation.attention_kl(qk, teacher, **how)
        found[f"{name}_{kind}"] = (kl * weights.sum(), weights.sum())
    return found


def entropies(
    qks: Mapping[str, CrossQK], *, text_mask: Array, weights: Array, words: distillation.Words | None = None
) -> Metrics:
    """`entropy_{kind}_{direction}`: mean entropies of the attention rows, in nats, over the network's own tokens."""
    found: Metrics = {}
    for kind, qk in qks.items():
        mask = words.teacher_mask if kind == "teacher" and words is not None else text_mask
        for way, value in distillation.attention_entropy(qk, mask, weights).items():
            found[f"entropy_{kind}_{way}"] = (value * weights.sum(), weights.sum())
    return found
