"""VQA on regions: the loss by hand, the loss network and when its gradient ends, and MCAN learning by heart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny_regions import TinyRegions, images, questions

from jaxvl.models.mcan import MCAN
from jaxvl.sharding import Partition
from jaxvl.tasks import loss_learning
from jaxvl.tasks.loss_learning import LossLearning
from jaxvl.tasks.region_vqa import RegionVQATask
from jaxvl.train import Trainer

KEY = jax.random.key(5)
STILL = TinyRegions(dropout=0.0)


def started(task, rows):
    params = jax.jit(lambda k: nn.unbox(task.init(k, rows)))(KEY)
    params = jax.tree.map(
        lambda x: x + 0.5 * np.random.default_rng(x.size).standard_normal(x.shape, np.float32), params
    )
    return params, task.start(params, KEY)


def evaluated(task, params, extra, rows):
    loss, (_, metrics) = jax.jit(task.loss)(params, extra, rows, KEY)
    return float(loss), {name: float(total / weight) for name, (total, weight) in metrics.items()}


def rows_by_hand(task, params, rows):
    """Loss and score of each row, float64."""
    z = np.asarray(task.predictors["logits"](params, rows, KEY), np.float64)
    t = np.zeros_like(z)
    t[0, [2, 4]] = 1.0, 0.3
    t[np.arange(2, len(z)), np.arange(len(z) - 2) % 5] = 0.6
    p = 1 / (1 + np.exp(-z))
    return -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(1), t[np.arange(len(z)), z.argmax(1)]


def test_loss_is_the_sum_over_answers_and_rows_and_rows_without_an_answer_count():
    task, rows = RegionVQATask(STILL), questions(5)
    params, extra = started(task, rows)
    each, score = rows_by_hand(task, params, rows)
    loss, found = evaluated(task, params, extra, rows)
    np.testing.assert_allclose([loss, found["loss"]], [each.sum(), each.mean()], rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], score.mean(), rtol=1e-5)
    padded = {**rows, "mask": jnp.arange(5) < 3}
    loss, found = evaluated(task, params, extra, padded)
    np.testing.assert_allclose([loss, found["loss"]], [each[:3].sum(), each[:3].mean()], rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], score[:3].mean(), rtol=1e-5)
    assert extra == {} == task.finish({}, {})


def test_dropout_acts_in_training_only():
    task, rows = RegionVQATask(TinyRegions()), questions()
    params, extra = started(task, rows)
    a, b = (float(jax.jit(task.loss)(params, extra, rows, jax.random.key(i))[0]) for i in (0, 1))
    assert abs(a - b) > 1e-3
    c, d = (task.predictors["logits"](params, rows, jax.random.key(i)) for i in (0, 1))
    np.testing.assert_array_equal(c, d)


@pytest.mark.parametrize("kind", loss_learning.KINDS)
def test_the_loss_network_adds_its_mean_over_pairs_to_the_sum_over_rows(kind):
    option = dict(kind=kind, margin=0.7, weight=3.0)
    task, rows = RegionVQATask(STILL, loss_net=option), questions(6)
    params, extra = started(task, rows)
    each, _ = rows_by_hand(task, params, rows)
    out = STILL.apply({"params": params}, *(rows[k] for k in ("regions", "region_mask", "text", "text_mask")))
    guess = STILL.loss_net().apply({"params": params["loss_net"]}, out.taps, out.fused)
    terms, right = [], []
    for i in range(3):
        sign = 1 if each[i] > each[5 - i] else -1
        gap = sign * float(guess[i] - guess[5 - i])
        terms.append(max(0, 0.7 - gap) if kind == "margin" else np.log1p(np.exp(-gap)))
        right.append(gap > 0)
    loss, found = evaluated(task, params, extra, rows)
    np.testing.assert_allclose(loss, each.sum() + 3 * np.mean(terms), rtol=1e-5)
    np.testing.assert_allclose(
        [found["ranking"], found["ranked"]], [np.mean(terms), np.mean(right)], rtol=1e-5
    )


def test_ranking_of_perfect_equal_and_padded_rows():
    truth, rows = jnp.array([4.0, 1.0, 3.0, 2.0]), jnp.ones(4)

    def rank(guess, rows=rows):
        return loss_learning.rank(jnp.asarray(guess), truth=truth, rows=rows, option=LossLearning())

    assert float(rank([8.0, 2.0, 6.0, 4.0]).loss) == 0.0
    assert float(rank([1.0, 1.0, 1.0, 1.0]).loss) == 1.0  # the margin
    for padded in (
        [1.0, 0.0, 1.0, 1.0],
        [1.0, 1.0, 0.0, 1.0],
    ):  # the pair of rows 1 and 2, in wrong order, is out
        wrong = rank([4.0, 5.0, 1.0, 2.0], jnp.array(padded))
        assert float(wrong.loss) == 0.0 and float(wrong.metrics["ranked"][1]) == 1.0
    with pytest.raises(ValueError, match="batch_size=3 must be even"):
        loss_learning.rank(truth[:3], truth=truth[:3], rows=rows[:3], option=LossLearning())


def test_gradient_of_the_loss_network_ends_after_its_share_of_training():
    plain, task, rows = RegionVQATask(STILL), RegionVQATask(STILL, loss_net=dict(cut=0.6)), questions()
    params, extra = started(task, rows)
    step = jax.jit(jax.value_and_grad(lambda p, e: task.loss(p, e, rows, KEY)[0]))
    at = {n: step(params, {"updates": jnp.int32(n), "steps": jnp.int32(10)}) for n in (0, 5, 6, 9)}
    own = {k: v for k, v in params.items() if k != "loss_net"}
    alone = jax.grad(lambda p: plain.loss(p, {}, rows, KEY)[0])(own)
    for n, (value, grads) in at.items():
        assert value == at[0][0] and np.asarray(grads["loss_net"]["out"]["kernel"]).any()
        gap = max(float(jnp.abs(grads[k][i] - alone[k][i]).max()) for k in own for i in own[k])
        assert gap > 1e-3 if n < 6 else gap < 1e-6
    never = step(params, extra)[1]
    np.testing.assert_array_equal(never["image"]["kernel"], at[5][1]["image"]["kernel"])


def test_updates_are_counted_and_the_number_of_steps_does_not_compile_anew():
    task, rows = RegionVQATask(STILL, loss_net={}), questions()
    partition = Partition.create(mesh=dict(data=1), rules="dp", devices=jax.devices()[:1])
    trainer = Trainer(task, optax.sgd(1e-3), partition=partition)
    batch = {k: np.asarray(v) for k, v in rows.items()}
    for steps in (10, 20):
        state = trainer.init(batch)
        rep = partition.replicated()
        state = state.replace(extra={**state.extra, "steps": jax.device_put(jnp.int32(steps), rep)})
        for _ in range(2):
            placed = partition.place_batch({**batch, "signals": np.zeros((4, 2), np.int32)})
            state, _, _ = trainer.step(state, placed)
        assert (int(state.extra["updates"]), int(state.extra["steps"])) == (2, steps)
    assert trainer.traces["step"] == 1


def test_mcan_learns_32_questions_by_heart():
    sizes = dict(feat_dim=4, width=32, heads=2, mlp=64, depth=1, flat=32, flat_mlp=16, word_dim=16)
    model = MCAN(words=24, classes=5, dropout=0.0, **sizes)
    task, rows = RegionVQATask(model), questions(32, seed=3) | images(32, seed=4)
    rows |= {"label_score": jnp.where(rows["label_score"] > 0, 1.0, 0.0)}  # whose least loss is 0
    params, tx = jax.jit(lambda k: nn.unbox(task.init(k, rows)))(KEY), optax.adam(3e-3)

    def step(carry, _):
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: task.loss(p, {}, rows, KEY)[0])(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    _, curve = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=300))(params)
    assert curve[-1] < 0.05 * curve[0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(prob="sigmoid"), "prob='sigmoid'"),
        (dict(passes=0), "passes=0: must be at least 1"),
        (dict(loss_net=dict(kind="hinge")), "loss_net.kind='hinge'"),
        (dict(loss_net=dict(cut=2.0)), "loss_net.cut=2.0"),
        (dict(loss_net=dict(weight=0.0)), "loss_net.weight=0.0"),
        (dict(loss_net=dict(lam=1.0)), "unknown option loss_net.lam"),
    ],
)
def test_wrong_options_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RegionVQATask(STILL, **kwargs)
