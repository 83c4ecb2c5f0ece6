"""Answer uncertainty: cross entropy of labelled rows by hand, hard and soft, and what its predictors say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_regions import C, F, questions

from jaxvl.models.vaue import VAUE
from jaxvl.objectives.uncertainty import indicator
from jaxvl.tasks.answer_uncertainty import TEMPERATURES, AnswerUncertaintyTask

KEY = jax.random.key(4)
MODEL = VAUE(words=24, classes=C, feat_dim=F, width=8, heads=2, word_dim=4, dropout=0.0)
HARD = np.array([2, -1, 0, 1, 4])


def rows():
    """Row 1 has no label; row 0 was answered 2 three times and 4 once."""
    share = np.zeros((5, 3), np.float32)
    share[0, :2], share[2:, 0] = (0.75, 0.25), 1.0
    label = np.full((5, 3), C, np.int32)
    label[0, :2], label[2:, 0] = (2, 4), HARD[2:]
    more = dict(label=label, label_share=share, hard_label=HARD.astype(np.int32))
    return {**questions(5), **{k: jnp.asarray(v) for k, v in more.items()}}


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(lambda k: nn.unbox(AnswerUncertaintyTask(MODEL).init(k, rows())))(KEY)
    return jax.tree.map(
        lambda x: x + 0.3 * np.random.default_rng(x.size).standard_normal(x.shape, np.float32), fresh
    )


def logits(params, batch):
    args = (batch[k] for k in ("regions", "region_mask", "text", "text_mask"))
    return np.asarray(MODEL.apply({"params": params}, *args).logits, np.float64)


def evaluated(task, params, batch):
    loss, (_, metrics) = jax.jit(task.loss)(params, {}, batch, KEY)
    return float(loss), {name: (float(total), float(weight)) for name, (total, weight) in metrics.items()}


@pytest.mark.parametrize("label", ["hard", "soft"])
def test_the_mean_over_labelled_rows_by_hand(params, label):
    task, batch = AnswerUncertaintyTask(MODEL, label=label), rows()
    z = logits(params, batch)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    each = -log_p[np.arange(5), HARD]
    if label == "soft":
        each[0] = -(0.75 * log_p[0, 2] + 0.25 * log_p[0, 4])
    for mask, used in ((None, [0, 2, 3, 4]), (jnp.array([True, True, False, True, False]), [0, 3])):
        seen = batch if mask is None else {**batch, "mask": mask}
        loss, metrics = evaluated(task, params, seen)
        np.testing.assert_allclose(loss, each[used].mean(), rtol=1e-5)
        right = (z.argmax(1) == HARD)[used].sum()
        np.testing.assert_allclose(metrics["loss"], (each[used].sum(), len(used)), rtol=1e-5)
        assert metrics["accuracy"] == (right, len(used))


def test_a_batch_without_labels_trains_nothing(params):
    batch = {**rows(), "hard_label": jnp.full(5, -1)}
    loss, grads = jax.jit(
        jax.value_and_grad(lambda p: AnswerUncertaintyTask(MODEL).loss(p, {}, batch, KEY)[0])
    )(params)
    assert loss == 0.0 and all(not np.asarray(g).any() for g in jax.tree.leaves(grads))


def test_predictors_need_no_labels_and_agree_with_the_logits(params):
    task = AnswerUncertaintyTask(MODEL, top_n=3)
    batch = {k: v for k, v in rows().items() if "label" not in k}
    z = logits(params, batch)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    answer = jax.jit(task.predictors["answer"])(params, batch, KEY)
    np.testing.assert_array_equal(answer["index"], np.argsort(-p, axis=1)[:, :3])
    np.testing.assert_allclose(answer["score"], -np.sort(-p, axis=1)[:, :3], atol=1e-5)
    got = jax.jit(task.predictors["uncertainty"])(params, batch, KEY)
    want = indicator(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(got["f"], want.f, atol=1e-5)
    np.testing.assert_allclose(got["p_max"], p.max(1), atol=1e-5)
    np.testing.assert_array_equal(got["index"], p.argmax(1))


def test_more_answers_than_there_are_mean_all_and_wrong_options_are_named():
    assert AnswerUncertaintyTask(MODEL, top_n=99).top_n == C
    with pytest.raises(ValueError, match="label='both'"):
        AnswerUncertaintyTask(MODEL, label="both")


def test_temperatures_divide_the_logits_and_a_rescaled_model_has_that_temperature(params):
    task, batch = AnswerUncertaintyTask(MODEL), rows()
    found = jax.jit(task.predictors["temperatures"])(params, batch, KEY)
    z = logits(params, batch)
    for at in (0, 17, 30, 60):
        scaled = z / TEMPERATURES[at]
        log_p = (
            scaled
            - np.log(np.exp(scaled - scaled.max(1, keepdims=True)).sum(1, keepdims=True))
            - scaled.max(1, keepdims=True)
        )
        np.testing.assert_allclose(found["confidence"][:, at], np.exp(log_p.max(1)), rtol=1e-4)
        known = HARD >= 0
        np.testing.assert_allclose(found["nll"][known, at], -log_p[known, HARD[known]], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            logits(task.rescaled(params, temperature=TEMPERATURES[at]), batch), scaled, rtol=1e-4, atol=1e-5
        )
    np.testing.assert_array_equal(found["right"], z.argmax(1) == HARD)
    assert TEMPERATURES[30] == pytest.approx(1)
