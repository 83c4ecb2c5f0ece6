"""Classification: losses against closed forms, two images, what a teacher adds, and the predictors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import batch
from tiny_pair import Counting, TinyJoint, TinyPair, TinySimulated, noisy, retold, taught

from jaxvl import distillation
from jaxvl.tasks import TASKS, ClassifyTask

KEY = jax.random.key(5)
A = 7


def make(model=None, **options) -> ClassifyTask:
    return ClassifyTask(model or TinyPair(classes=A), **options)


def questions(size: int = 4) -> dict[str, jax.Array]:
    """Row 0 has two answers, row 1 one, row 2 none, the others one; unused places hold class A."""
    label = np.full((size, 3), A, np.int32)
    score = np.zeros((size, 3), np.float32)
    label[0, :2], score[0, :2] = (2, 5), (1.0, 0.3)
    label[1, 0], score[1, 0] = 0, 0.6
    label[3:, 0], score[3:, 0] = A - 1, 0.9
    return batch(size) | {"label": jnp.asarray(label), "label_score": jnp.asarray(score)}


def pairs(size: int = 4) -> dict[str, jax.Array]:
    """Two images and one label a row."""
    label = jnp.arange(size, dtype=jnp.int32) % A
    return batch(size) | {"image2": batch(size, seed=9)["image"], "label": label}


def metrics(task, params, extra, rows) -> dict[str, float]:
    loss, (_, found) = jax.jit(task.loss)(params, extra, rows, KEY)
    means = {name: float(total / weight) for name, (total, weight) in found.items() if weight}
    np.testing.assert_allclose(loss, means["loss"], rtol=1e-6)
    return means


def logits(task, params, rows) -> np.ndarray:
    return np.asarray(jax.jit(task.predictors["logits"])(params, rows, KEY), np.float64)


# Hard labels ----------------------------------------------------------------------------------------------


def test_soft_scores_are_targets_of_independent_classes_and_rows_without_answer_do_not_count():
    task, rows = make(), questions()
    params, extra = taught(task, rows)
    params = noisy(params, 1)
    z, t = logits(task, params, rows), np.zeros((4, A))
    t[0, [2, 5]], t[1, 0], t[3, A - 1] = (1.0, 0.3), 0.6, 0.9
    p = 1 / (1 + np.exp(-z))
    want = -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(1)[[0, 1, 3]].mean()
    found = metrics(task, params, extra, rows)
    np.testing.assert_allclose([found["loss"], found["hard"]], want, rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], t[np.arange(4), z.argmax(1)][[0, 1, 3]].mean(), rtol=1e-5)


def test_single_labels_have_cross_entropy_and_padding_rows_do_not_count():
    task, rows = make(loss="ce"), {**batch(4), "label": jnp.array([1, 6, 0, 3]), "mask": jnp.arange(4) < 3}
    params, extra = taught(task, rows)
    params = noisy(params, 1)
    z, label = logits(task, params, rows)[:3], np.array([1, 6, 0])
    want = (np.log(np.exp(z).sum(1)) - z[np.arange(3), label]).mean()
    found = metrics(task, params, extra, rows)
    np.testing.assert_allclose(found["loss"], want, rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], (z.argmax(1) == label).mean(), rtol=1e-6)


def test_a_batch_in_which_no_row_has_an_answer_gives_no_loss_and_no_gradient():
    task, rows = make(), questions(3)
    rows["label_score"] = jnp.zeros_like(rows["label_score"])
    params, extra = taught(task, rows)
    value, grads = jax.jit(jax.value_and_grad(lambda p: task.loss(p, extra, rows, KEY)[0]))(params)
    assert value == 0.0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_hard_labels_alone_fuse_for_the_class_tokens_only():
    for distill, tokens in (
        (None, "class"),
        ({}, "all"),
        (dict(cross=False), "class"),
        (dict(attn=0.0), "class"),
    ):
        model, other = Counting(TinyPair(classes=A)), Counting(TinyJoint(classes=A))
        task, rows = make(model, teacher=None if distill is None else other, distill=distill), questions()
        jax.eval_shape(task.loss, *taught(task, rows), rows, KEY)
        assert [given["tokens"] for name, given in model.given if name == "fuse"] == [tokens]
        if distill is not None:
            expected = "class" if "attn" in distill else "all"
            assert [given["tokens"] for name, given in other.given if name == "fuse"] == [expected]
            assert not any(given.get("train") for _, given in other.given)


# Two images -----------------------------------------------------------------------------------------------


def test_two_images_are_encoded_in_one_call_and_fused_each_with_the_text_that_is_encoded_once():
    model = Counting(TinyPair(classes=A, images=2))
    task, rows = make(model, loss="ce"), pairs(3)
    jax.eval_shape(task.loss, *taught(task, rows), rows, KEY)
    passes = [c for c in model.calls if c[0] in ("encode_image", "encode_text", "fuse")]
    assert sorted(passes) == [("encode_image", 6), ("encode_text", 3), ("fuse", 3), ("fuse", 3)]
    assert [given["image_type"] for name, given in model.given if name == "fuse"] == [1, 2]


def test_attention_is_summed_over_the_two_images():
    found = []
    for images in (1, 2):
        model, other = (kind(classes=A, images=images) for kind in (TinyPair, TinyJoint))
        task, rows = make(model, teacher=other, loss="ce", distill={}), pairs()
        params, extra = taught(task, rows)
        rows["image2"] = rows["image"]
        for tree in (params, extra["frozen"]):
            tree["type"]["embedding"] = jnp.zeros((3, 8))  # then both pairs of a row are the same
        rows = rows if images == 2 else {k: v for k, v in rows.items() if k != "image2"}
        found.append(metrics(task, params, extra, rows))
    for name in ("attn_uni", "attn_cross"):
        np.testing.assert_allclose(found[1][name], 2 * found[0][name], rtol=1e-5)
        np.testing.assert_allclose(
            found[1]["entropy_teacher_t2v"], found[0]["entropy_teacher_t2v"], rtol=1e-5
        )


def test_images_that_do_not_fit_the_model_are_named():
    task, rows = make(TinyPair(classes=A, images=2), loss="ce"), pairs()
    with pytest.raises(KeyError, match="model.images=2 needs 'image2'"):
        jax.eval_shape(task.loss, *taught(task, rows), {k: v for k, v in rows.items() if k != "image2"}, KEY)
    task = make(loss="ce")
    with pytest.raises(ValueError, match='has "image2", but model.images=1'):
        jax.eval_shape(task.loss, *taught(task, rows), rows, KEY)


# Teacher --------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_of_hard_labels_soft_labels_and_attention():
    weights = dict(hard=0.5, soft=2.0, attn=3.0)
    task, rows = make(teacher=TinyJoint(classes=A), distill=weights), questions()
    params, extra = taught(task, rows)
    found = metrics(task, params, extra, rows)
    want = 0.5 * found["hard"] + 2.0 * found["soft"] + 3.0 * (found["attn_uni"] + found["attn_cross"])
    np.testing.assert_allclose(found["loss"], want, rtol=1e-5)
    ours, theirs = logits(task, params, rows), logits(make(task.teacher), extra["frozen"], rows)
    soft = distillation.soft_bernoulli(jnp.asarray(ours), jnp.asarray(theirs))[jnp.array([0, 1, 3])].mean()
    np.testing.assert_allclose(found["soft"], soft, rtol=1e-5)
    assert min(found[n] for n in ("attn_uni", "attn_cross")) > 1e-3
    for kind in ("uni", "cross", "teacher"):
        assert 0 < found[f"entropy_{kind}_t2v"] <= np.log(5) + 1e-6
    assert make(teacher=TinyJoint(classes=A), distill={}).weights.hard == 0.0


@pytest.mark.parametrize(
    ("images", "part", "options"),
    [
        (1, "cross", dict(vqa_soft="softmax", direction="teacher_student", tau=2.0)),
        (2, "cross", {}),
        (2, "uni", {}),
    ],
)
def test_a_teacher_equal_to_the_student_teaches_nothing_and_gets_no_gradient(images, part, options):
    model, rows = TinyPair(classes=A, images=images), questions() if images == 1 else pairs()
    teacher = model if part == "cross" else TinySimulated(classes=A, images=images)
    distill = dict(options, uni=part == "uni", cross=part == "cross")
    task = make(model, teacher=teacher, distill=distill, loss="bce" if images == 1 else "ce")
    params, _ = taught(task, rows)
    step = jax.jit(jax.value_and_grad(lambda p, e: task.loss(p, e, rows, KEY)[0], argnums=(0, 1)))
    same, other = ({"frozen": noisy(params, seed)} for seed in (3, 4))
    loss, (grads, _) = step(same["frozen"], same)
    assert abs(loss) < 1e-6
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) < 1e-5
    loss, (grads, theirs) = step(same["frozen"], other)
    assert loss > 1e-2
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(theirs))
    assert np.asarray(grads["class_head"]["kernel"]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, "loss='mse'.*bce, ce"),
        ({"model": TinyPair()}, "model.classes=None"),
        ({"top_n": 0}, "top_n=0"),
        ({"distill": {}}, "there is no teacher"),
        ({"teacher": TinyJoint(classes=A)}, "distill=None learns nothing"),
        ({"teacher": TinyJoint(classes=9), "distill": {}}, "classes=7 but the teacher's classes=9: the label lists"),
        ({"teacher": TinyJoint(classes=A, images=2), "distill": {}}, "images=1 but the teacher's images=2"),
        ({"teacher": TinyJoint(classes=A), "distill": dict(soft=0.0, attn=0.0)}, "all 0"),
        ({"teacher": TinyJoint(classes=A), "distill": dict(soft=-1.0)}, "distill.soft=-1.0"),
        ({"teacher": TinyJoint(classes=A), "distill": dict(vqa_soft="sigmoid")}, "distill.vqa_soft.*bernoulli"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_head_count_that_differs_is_no_matter_without_attention():
    make(teacher=TinyJoint(classes=A, head_count=4), distill=dict(attn=0.0))


# Predictors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_answers_are_the_likeliest_classes_first(loss):
    task, rows = make(loss=loss, top_n=3), batch(4)
    params = noisy(taught(task, rows)[0], 1)
    z = logits(task, params, rows)
    p = 1 / (1 + np.exp(-z)) if loss == "bce" else np.exp(z) / np.exp(z).sum(1, keepdims=True)
    out = jax.jit(task.predictors["answer"])(params, rows, KEY)
    np.testing.assert_array_equal(out["index"], np.argsort(-z, axis=1)[:, :3])
    np.testing.assert_allclose(out["score"], -np.sort(-p, axis=1)[:, :3], rtol=1e-5)
    np.testing.assert_array_equal(task.predictors["class"](params, rows, KEY), z.argmax(1))
    assert make(top_n=99).top_n == A


def test_stored_states_give_the_answers_of_pixels_and_words():
    task, rows = make(TinyPair(classes=A, images=2), loss="ce"), pairs(3)
    params = noisy(taught(task, rows)[0], 1)
    states = {
        n: task.predictors["image_states"](params, {"image": rows[n]}, KEY) for n in ("image", "image2")
    }
    stored = {f"{n}_states": v for n, v in states.items()} | {"text_mask": rows["text_mask"]}
    stored["text_states"] = task.predictors["text_states"](params, rows, KEY)
    np.testing.assert_allclose(logits(task, params, stored), logits(task, params, rows), atol=1e-6)


def test_a_blind_task_encodes_one_image_for_the_batch_at_the_same_loss():
    found, rows = [], questions()
    rows["image"] = rows["image"][:1].repeat(4, 0)
    for blind in (False, True):
        model, other = Counting(TinyPair(classes=A)), TinyJoint(classes=A)
        task = make(model, teacher=other, distill=dict(hard=1.0), blind=blind)
        params, extra = taught(task, rows)
        found.append(metrics(task, params, extra, rows))
        assert ("encode_image", 1 if blind else 4) in model.calls
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, err_msg=name)


def test_the_task_is_registered_and_has_no_teacher_unless_given():
    assert TASKS["classify"] is ClassifyTask
    assert make().init_frozen(KEY, batch()) is None
    assert make().renames == (("a", "b"),)


def test_a_teacher_with_another_tokenizer_reads_its_own_text():
    """Equal words on both sides teach what equal tokens do, and only the teacher reads its text."""
    task, rows = make(teacher=TinyJoint(classes=A), distill=dict(word_align=True)), questions()
    plain = make(teacher=TinyJoint(classes=A), distill={})
    params, extra = taught(plain, rows)
    want, found = metrics(plain, params, extra, rows), metrics(task, params, extra, retold(rows))
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    moved = metrics(task, params, extra, retold(rows, teacher_text=(rows["text"] + 3) % 20))
    assert moved["hard"] == found["hard"]
    assert all(abs(moved[name] - found[name]) > 1e-4 for name in ("soft", "attn_uni", "attn_cross"))
