"""SRAAL's task: its losses by hand, whose gradients reach whom and when, and a critic that learns uncertainty."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from sampler_fits import exported, fitted, numbers, stack, trainer

from jaxvl.active.strategies.vectors import Beside, Vectors
from jaxvl.models.sampler_nets import SRAAL
from jaxvl.tasks import batch_statistics
from jaxvl.tasks.adversarial import noise
from jaxvl.tasks.state_discrepancy import StateDiscrepancyTask

KEY, F, C = jax.random.key(3), 6, 5
MODEL = SRAAL(F, 9, C, word_dim=4, hidden=(16, 8), latent=4, text_width=4, learner=(8,), critic_width=16)


def source(n=40, *, rng=0):
    """Labelled states around 0; unlabelled ones too with uncertainty 0.1, or around 3 with uncertainty 0.9."""
    draw = np.random.default_rng(rng)
    far = np.arange(n) % 2 == 1
    text = draw.integers(1, 9, (n, 3)).astype(np.int32)
    asked = {
        "text": text,
        "text_mask": text != 0,
        "hard_label": (np.arange(n) % (C + 1) - 1).astype(np.int32),
    }
    states = draw.standard_normal((n, F)).astype(np.float32)
    other = (draw.standard_normal((n, F)) + 3 * far[:, None]).astype(np.float32)
    pool = {"state": other, "uncertainty": np.where(far, 0.9, 0.1).astype(np.float32)}
    return Beside(Vectors(np.arange(n), {"state": states, **asked}), Vectors(np.arange(n), pool))


def start(task, size=12):
    batch = {k: jnp.asarray(v) for k, v in stack([source()[i] for i in range(size)]).items()}
    params = jax.jit(lambda k: nn.unbox(task.init(k, batch)))(KEY)
    params = {k: v if k == "statistics" else jax.tree.map(lambda x: 1.5 * x, v) for k, v in params.items()}
    return params, task.start(params, KEY), batch


def by_hand(task, params, batch, wanted):
    """All parts, float64, from the model's outputs."""
    n = len(batch["mask"])
    both = jnp.concatenate([batch["state"], batch["pool_state"]])
    run = batch_statistics.train(MODEL, params, "rebuild", both, noise(KEY, 2 * n, 4))
    mean, log_var = (np.asarray(x, np.float64) for x in run.out.posterior)
    keep = np.asarray(batch["mask"])
    halves = lambda v: v[:n][keep].mean() + v[n:][keep].mean()  # noqa: E731
    logits = np.asarray(
        batch_statistics.evaluate(MODEL, params, "target", run.out.z[:n], batch["text"], batch["text_mask"])
    )
    label = np.asarray(batch["hard_label"])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    some = keep & (label >= 0)
    p = 1 / (
        1 + np.exp(-np.asarray(batch_statistics.evaluate(MODEL, params, "critic", run.out.posterior.mean)))
    )
    target = np.concatenate([np.zeros(n), batch["pool_uncertainty"]])
    bce = lambda t: halves(-(t * np.log(p) + (1 - t) * np.log(1 - p)))  # noqa: E731
    return {
        "rebuild": halves(((np.asarray(run.out.states) - both) ** 2).mean(1)),
        "kl": halves(0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(1)),
        "answer": -log_p[np.arange(n), label][some].mean(),
        "adversarial": bce(wanted),
        "critic": bce(target),
    }


@pytest.mark.parametrize(("adversarial", "wanted"), [("labelled", 0.0), ("as_released", 1.0)])
def test_losses_by_hand_with_a_padded_row(adversarial, wanted):
    task = StateDiscrepancyTask(MODEL, adversarial=adversarial)
    params, extra, batch = start(task)
    batch["mask"] = batch["mask"].at[3].set(False)
    loss, (_, metrics) = jax.jit(task.loss)(params, extra, batch, KEY)
    found, want = numbers(metrics), by_hand(task, params, batch, wanted)
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    own = 5 * want["rebuild"] + want["kl"] + 5 * want["answer"] + want["adversarial"]
    np.testing.assert_allclose([found["loss"], loss], own, rtol=1e-4)
    loss, _ = jax.jit(task.loss)(params, {**extra, "updates": jnp.int32(1)}, batch, KEY)
    np.testing.assert_allclose(loss, own + want["critic"], rtol=1e-4)  # the critic's turn


def test_each_network_learns_from_its_own_loss_alone():
    task = StateDiscrepancyTask(MODEL)
    params, extra, batch = start(task)
    grad = jax.jit(jax.grad(lambda p, e, b: task.loss(p, e, b, KEY)[0]))
    size = lambda tree: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))  # noqa: E731
    first, second = grad(params, extra, batch), grad(params, {**extra, "updates": jnp.int32(1)}, batch)
    assert size(first["judge"]) == 0 and size(second["judge"]) > 1e-4
    assert size(first["statistics"]) == 0
    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))  # noqa: E731
    told = grad(params, {**extra, "updates": jnp.int32(1)}, {**batch, "pool_uncertainty": jnp.ones(12)})
    for name in set(params) - {"judge", "statistics"}:
        assert size(first[name]) > 0 and same(second[name], told[name]), name
    assert not same(second["judge"], told["judge"])
    alone = StateDiscrepancyTask(MODEL, adversarial_weight=0.0)
    without = jax.jit(jax.grad(lambda p: alone.loss(p, extra, batch, KEY)[0]))(params)
    for name, alike in (
        ("encoder", False),
        ("decoder", True),
    ):  # of another program, which may round otherwise
        pairs = zip(*map(jax.tree.leaves, (first[name], without[name])), strict=True)
        assert all(np.allclose(a, b, 1e-5, 1e-5) for a, b in pairs) == alike, name


def test_rows_without_any_label_leave_the_target_learner_alone():
    task = StateDiscrepancyTask(MODEL)
    params, extra, batch = start(task)
    none = {**batch, "hard_label": jnp.full(12, -1)}
    (_, (_, metrics)), grads = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(params, extra, none, KEY)
    assert numbers(metrics)["answer"] == 0 and not np.asarray(grads["answers"]["layer_1"]["kernel"]).any()


def test_the_critic_ranks_uncertain_states_first():
    made = trainer(StateDiscrepancyTask(MODEL))
    params = exported(made, fitted(made, source(200), steps=300))
    held = source(100, rng=1).unlabelled
    score, far = made.predict(params, "critic", held), held.arrays["uncertainty"] > 0.5
    assert (score[far][:, None] > score[~far][None]).mean() > 0.95


def test_impossible_options_are_named():
    for wrong, message in (
        (dict(adversarial="paper"), "adversarial='paper'"), (dict(critic_every=0), "critic_every=0"),
        (dict(kl=-1.0), "kl=-1.0: expected 0 or more"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            StateDiscrepancyTask(MODEL, **wrong)
