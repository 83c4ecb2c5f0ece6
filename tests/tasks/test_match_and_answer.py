"""Matching and answering on shared encoders: losses add up, both train the encoders, each model is the plain one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from tiny_regions import C, F, questions

from jaxvl.models.joint import SharedEncoders
from jaxvl.tasks.answer_uncertainty import AnswerUncertaintyTask
from jaxvl.tasks.match_and_answer import SHARED, MatchAndAnswerTask, joined, view
from jaxvl.tasks.question_match import QuestionMatchTask

KEY = jax.random.key(3)
MODEL = SharedEncoders(
    words=24, classes=C, feat_dim=F, width=8, heads=2, critic_width=16, project=4, word_dim=4, dropout=0.0
)


def rows():
    extra = dict(
        image_id=np.arange(6), question_key=np.arange(6), keys_of_image=np.arange(6)[:, None],
        hard_label=np.array([2, -1, 0, 1, 4, 2]),
    )  # fmt: skip
    return {**questions(6), **{k: jnp.asarray(v, jnp.int32) for k, v in extra.items()}}


@pytest.fixture(scope="module")
def params():
    task = MatchAndAnswerTask(MODEL)
    fresh = jax.jit(lambda k: nn.unbox(task.init(k, rows())))(KEY)
    return jax.tree.map(
        lambda x: x + 0.3 * np.random.default_rng(x.size).standard_normal(x.shape, np.float32), fresh
    )


def test_the_loss_is_the_weighted_sum_and_both_models_train_the_encoders(params):
    batch, match, answer = rows(), QuestionMatchTask(MODEL.match), AnswerUncertaintyTask(MODEL.answer)
    task = MatchAndAnswerTask(MODEL, answer_weight=0.5)
    (loss, (_, metrics)), grads = jax.jit(
        jax.value_and_grad(lambda p: task.loss(p, {}, batch, KEY), has_aux=True)
    )(params)

    def alone(one, part):
        return jax.jit(jax.value_and_grad(lambda p: one.loss(p, {}, batch, KEY)[0]))(view(params, part))

    (l_match, g_match), (l_answer, g_answer) = alone(match, "match"), alone(answer, "answer")
    np.testing.assert_allclose(loss, l_match + 0.5 * l_answer, rtol=1e-5)
    np.testing.assert_allclose(metrics["match/mi"][0] + metrics["match/cl"][0], l_match, rtol=1e-5)
    half = jax.tree.map(lambda a, b: a + 0.5 * b, *({k: g[k] for k in SHARED} for g in (g_match, g_answer)))
    for path, value in flatten_dict({k: grads[k] for k in SHARED}).items():
        np.testing.assert_allclose(value, flatten_dict(half)[path], rtol=1e-5, atol=1e-5, err_msg=str(path))
        both = all(np.any(flatten_dict(g)[path]) for g in (g_match, g_answer))
        assert both or "key" in str(path)  # a bias of keys changes no attention


def test_predictors_are_those_of_the_two_models_and_encoders_are_there_once(params):
    task, batch = MatchAndAnswerTask(MODEL), rows()
    assert set(params) == {*SHARED, "match", "answer"} and not set(SHARED) & {
        *params["match"],
        *params["answer"],
    }
    for part, one in (
        ("match", QuestionMatchTask(MODEL.match)),
        ("answer", AnswerUncertaintyTask(MODEL.answer)),
    ):
        for name, predictor in one.predictors.items():
            got = jax.jit(task.predictors[name])(params, batch, KEY)
            want = jax.jit(predictor)(view(params, part), batch, KEY)
            jax.tree.map(np.testing.assert_array_equal, got, want)


def test_calibration_changes_the_critic_alone(params):
    scaled = MatchAndAnswerTask(MODEL).rescaled(params, scale=2.0, shift=1.0)
    changed = {
        path[:2] for path, x in flatten_dict(scaled).items() if np.any(x != flatten_dict(params)[path])
    }
    assert changed == {("match", "critic_weight"), ("match", "critic_offset")}


def test_parts_put_together_again_are_the_whole(params):
    again = joined(view(params, "match"), view(params, "answer"))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_weight_that_trains_no_answers_is_refused():
    with pytest.raises(ValueError, match="answer_weight=0: expected a positive number"):
        MatchAndAnswerTask(MODEL, answer_weight=0)
