"""Answer generation: the weighted loss against its definition, and ranking against brute force."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_model import TOKENS, TinyModel, batch, started

from jaxvl.tasks import TASKS, GenerateTask

KEY = jax.random.key(3)
CLS, SEP, PAD = TOKENS["cls"], TOKENS["sep"], TOKENS["pad"]
ANSWERS = np.array(
    [
        [CLS, 5, SEP, PAD, PAD],
        [CLS, 5, 6, SEP, PAD],
        [CLS, 7, SEP, PAD, PAD],
        [CLS, 8, 9, 10, SEP],
        [CLS, 5, 9, SEP, PAD],
        [CLS, 11, SEP, PAD, PAD],
    ],
    np.int32,
)


def make(**options) -> GenerateTask:
    return GenerateTask(TinyModel(decoder=True), tokens=TOKENS, **{"answers": ANSWERS, **options})


def questions(size: int = 3) -> dict[str, jax.Array]:
    """A batch with the answers (0, 3, nothing) for every question."""
    answer = np.stack([ANSWERS[0], ANSWERS[3], np.full(5, PAD)])[None].repeat(size, 0)
    weight = np.array([[0.7, 0.3, 0.0]], np.float32).repeat(size, 0)
    return batch(size) | {"answer": jnp.asarray(answer), "answer_weight": jnp.asarray(weight)}


def log_probabilities(task, params, rows, answers: np.ndarray) -> np.ndarray:
    """`[B,A,L-1]` log-probability of every next token of every answer; 0 at padding."""
    model, mask = task.model, rows["text_mask"]

    @jax.jit
    def run(params):
        call = lambda *args, method: model.apply({"params": params}, *args, method=method)  # noqa: E731
        images, texts = (
            call(rows["image"], method="encode_image"),
            call(rows["text"], mask, method="encode_text"),
        )
        states = call(texts, mask, images, method="fuse")
        tiled = jnp.broadcast_to(answers, (len(mask), *answers.shape))
        return jax.nn.log_softmax(call(tiled, states, mask, method="decode"))

    log_p = np.asarray(run(params))[:, :, :-1]
    labels = np.broadcast_to(answers[:, 1:], log_p.shape[:3])
    return np.take_along_axis(log_p, labels[..., None], -1)[..., 0] * (labels != PAD)


def test_the_loss_is_the_weighted_sum_of_the_answers_over_the_batch():
    task, rows = make(distill=None, momentum=None), questions()
    params, extra = started(task, rows)
    loss, (_, metrics) = jax.jit(task.loss)(params, extra, rows, KEY)
    nll = -log_probabilities(task, params, rows, ANSWERS[[0, 3]]).sum(-1)
    np.testing.assert_allclose(loss, (nll @ [0.7, 0.3]).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], loss, rtol=1e-6)


def test_a_blind_task_encodes_one_image_for_the_batch_at_the_same_loss_and_gradient():
    rows = questions()
    rows["image"] = jnp.zeros_like(rows["image"])
    found = {}
    for blind in (False, True):
        task = make(distill=None, momentum=None, blind=blind)
        params, extra = started(task, rows)
        found[blind] = jax.jit(jax.grad(lambda p, t=task, e=extra: t.loss(p, e, rows, KEY)[0]))(params)
        shapes = str(jax.make_jaxpr(lambda p, t=task, e=extra: t.loss(p, e, rows, KEY)[0])(params))
        assert (f"f32[1,{rows['image'].shape[1]}" in shapes) is blind
        answers = str(jax.make_jaxpr(task.predictors["answer"])(params, rows, KEY))
        assert (f"f32[1,{rows['image'].shape[1]}" in answers) is blind
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *found.values())


def test_padding_rows_answers_of_weight_zero_and_longer_padding_change_nothing():
    task, rows = make(), questions()
    params, extra = started(task, rows)
    want = jax.jit(task.loss)(params, extra, rows, KEY)[0]
    padded = {k: jnp.concatenate([v, v[:1]]) for k, v in rows.items()}
    padded["mask"] = jnp.array([True, True, True, False])
    padded["answer"] = jnp.pad(padded["answer"], ((0, 0), (0, 0), (0, 2)), constant_values=PAD)
    padded["answer"] = padded["answer"].at[:, 2].set(jnp.array([CLS, 9, 9, SEP, 0, 0, 0]))
    np.testing.assert_allclose(jax.jit(task.loss)(params, extra, padded, KEY)[0], want, rtol=1e-6)


def test_distillation_from_an_equal_copy_adds_the_entropy_of_the_valid_tokens():
    rows = questions(2)
    values = {}
    for alpha in (0.0, 0.4, 1.0):
        task = make(distill=dict(alpha=alpha))
        params, extra = started(task, rows)
        values[alpha], (_, metrics) = jax.jit(task.loss)(params, extra, rows, KEY)
        np.testing.assert_allclose(metrics["alpha"][0], alpha)
    np.testing.assert_allclose(values[0.4], 0.6 * values[0.0] + 0.4 * values[1.0], rtol=1e-5)
    assert abs(values[0.0] - values[1.0]) > 1e-3


def test_the_momentum_copy_holds_what_answering_reads_and_counts_updates():
    task, rows = make(), questions()
    params, extra = started(task, rows)
    read = {"visual_encoder", "text_encoder", "fusion_encoder", "text_decoder"}
    assert extra["momentum"].keys() == read
    moved = jax.tree.map(lambda x: x + 1.0, params)
    after = task.finish(task.prepare(moved, extra), {})
    assert int(after["updates"]) == 1
    gap = jax.tree.map(lambda new, old: new - old, after["momentum"], extra["momentum"])
    np.testing.assert_allclose(gap["text_decoder"]["bias"], 0.005, rtol=1e-4)


# Ranking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank_score", ["albef", "sum"])
def test_ranking_all_candidates_equals_brute_force(rank_score):
    task, rows = make(k_test=99, top_n=99, rank_score=rank_score), questions()
    params, _ = started(task, rows)
    out = jax.jit(task.predictors["answer"])(params, rows, KEY)
    tokens = log_probabilities(task, params, rows, ANSWERS)
    score = tokens.sum(-1) + (tokens[..., 0] if rank_score == "albef" else 0.0)
    np.testing.assert_array_equal(out["index"], np.argsort(-score, axis=1))
    probability = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    np.testing.assert_allclose(out["score"], -np.sort(-probability, axis=1), rtol=1e-4)


def test_the_cut_keeps_the_likeliest_first_tokens_with_ties_by_index():
    task, rows = make(k_test=2, top_n=2), questions()
    params, _ = started(task, rows)
    out = jax.jit(task.predictors["answer"])(params, rows, KEY)
    first = log_probabilities(task, params, rows, ANSWERS)[..., 0]
    first = np.round(first, 5)  # candidates 0, 1 and 4 share a first token
    want = np.sort(np.argsort(-first, axis=1, kind="stable")[:, :2], axis=1)
    np.testing.assert_array_equal(np.sort(out["index"], axis=1), want)
    np.testing.assert_allclose(out["score"].sum(-1), 1.0, rtol=1e-5)


def test_top_n_returns_the_best_of_those_ranked():
    rows = questions()
    many, few = make(k_test=6, top_n=6), make(k_test=6, top_n=2)
    params, _ = started(many, rows)
    a, b = (jax.jit(t.predictors["answer"])(params, rows, KEY) for t in (many, few))
    for name in ("index", "score"):
        np.testing.assert_array_equal(a[name][:, :2], b[name])


def test_cached_image_states_give_the_same_answers():
    task, rows = make(), questions()
    params, _ = started(task, rows)
    cached = {k: v for k, v in rows.items() if k != "image"}
    cached["image_states"] = jax.jit(task.predictors["image_states"])(params, rows, KEY)
    for name in ("answer", "log_likelihood"):
        want, got = (jax.jit(task.predictors[name])(params, x, KEY) for x in (rows, cached))
        jax.tree.map(lambda w, g: np.testing.assert_allclose(g, w, rtol=1e-6), want, got)


def test_log_likelihood_is_that_of_the_batchs_answers():
    task, rows = make(), questions()
    params, _ = started(task, rows)
    got = jax.jit(task.predictors["log_likelihood"])(params, rows, KEY)
    np.testing.assert_allclose(
        got[:, :2], log_probabilities(task, params, rows, ANSWERS[[0, 3]]).sum(-1), rtol=1e-4
    )
    np.testing.assert_array_equal(got[:, 2], 0.0)


# Errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([5, 6, SEP, PAD, PAD], "no CLS"),
        ([CLS, 5, 6, PAD, PAD], "no SEP"),
        ([CLS, PAD, 5, SEP, PAD], "hole"),
        ([CLS, SEP, 0, 0, 0], "empty"),
    ],
)
def test_a_malformed_candidate_is_named(row, why):
    with pytest.raises(ValueError, match=r"answers\[6\].*expected \[CLS\] pieces \[SEP\]"):
        make(answers=np.vstack([ANSWERS, row]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": None}, "momentum=None leaves nothing to distil from"),
        ({"rank_score": "albe"}, "did you mean 'albef'"),
        ({"k_test": 0}, "k_test=0"),
        ({"answers": np.full((2, 5), 99)}, "outside the vocabulary"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_model_without_decoder_is_refused():
    class Mute(nn.Module):
        @nn.compact
        def __call__(self, image, text, text_mask, answer):
            return nn.Dense(2)(image)

    with pytest.raises(ValueError, match="set its decoder_depth"):
        GenerateTask(Mute(), tokens=TOKENS, answers=ANSWERS).init(KEY, questions())


def test_the_task_is_registered():
    assert TASKS["generate"] is GenerateTask
