"""VaB-AL's task: its loss by hand, what learns from it, evidence by loops, and groups that are recovered."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from sampler_fits import exported, fitted, numbers, stack, trainer

from jaxvl.active.strategies.vabal import OneOfImage
from jaxvl.models.sampler_nets import VaBAL
from jaxvl.tasks import batch_statistics
from jaxvl.tasks.adversarial import noise
from jaxvl.tasks.bayes_vae import BayesVAETask

KEY, G, K, D = jax.random.key(3), 4, 3, 6
MODEL = VaBAL(groups=G, per_group=K, width=16, depth=2)
TASK = BayesVAETask(MODEL, group_weight=0.25, samples=3, seed=5)


def source(n=40, *, rng=0):
    """States around a centre for each group."""
    draw = np.random.default_rng(rng)
    centre = np.random.default_rng(9).standard_normal((G, 3, D)) * 2
    group = np.arange(n) % G
    states = centre[group] + 0.5 * draw.standard_normal((n, 3, D))
    return OneOfImage(states.astype(np.float32), group, np.arange(n), groups=G)


def batch_of(size=12):
    return {k: jnp.asarray(v) for k, v in stack([source()[i] for i in range(size)]).items()}


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(lambda k: nn.unbox(TASK.init(k, batch_of())))(KEY)
    filled = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(x.size).uniform(0.5, 1.5, x.shape), jnp.float32),
                          fresh["statistics"])  # fmt: skip
    return {**fresh, "statistics": filled}


def test_the_loss_by_hand_with_a_padded_row(params):
    batch = batch_of()
    batch["mask"] = batch["mask"].at[5].set(False)
    keep = np.asarray(batch["mask"])
    loss, (_, metrics) = jax.jit(TASK.loss)(params, TASK.start(params, KEY), batch, KEY)
    args = (batch["states"], noise(KEY, 12, G * K), batch["group"])
    features, found = batch_statistics.train(MODEL, params, "__call__", *args).out
    mean, log_var = (np.asarray(x, np.float64) for x in found.posterior)
    norms = (np.asarray(found.z, np.float64).reshape(12, G, K) ** 2).sum(-1)
    log_q = -norms - np.log(np.exp(-norms).sum(1, keepdims=True))
    want = {
        "rebuild": ((np.asarray(found.states) - features) ** 2).mean(1)[keep].mean(),
        "kl": (0.5 * (mean**2 + np.exp(log_var) - 1 - log_var)).mean(1)[keep].mean(),
        "group": -log_q[np.arange(12), np.arange(12) % G][keep].mean(),
        "shortest": (norms.argmin(1) == np.arange(12) % G)[keep].mean(),
    }
    got = numbers(metrics)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)
    total = want["rebuild"] + want["kl"] + 0.25 * want["group"]
    np.testing.assert_allclose([loss, got["loss"]], total, rtol=1e-4)


def test_what_is_rebuilt_is_a_constant_for_the_layers_before(params):
    """Moving the target alone would be a way to a small loss; the gradient must be that of a fixed target."""
    batch, extra = batch_of(), TASK.start(params, KEY)
    args = (batch["states"], noise(KEY, 12, G * K), batch["group"])
    target = batch_statistics.train(MODEL, params, "__call__", *args).out[0]

    def fixed(p):
        found = batch_statistics.train(MODEL, p, "__call__", *args).out[1]
        norms = jnp.square(found.z.reshape(12, G, K)).sum(-1)
        kl = 0.5 * (found.posterior.mean**2 + jnp.exp(found.posterior.log_var) - 1 - found.posterior.log_var)
        group = -(batch["group"] * jax.nn.log_softmax(-norms)).sum(-1)
        return (((found.states - target) ** 2).mean(-1) + kl.mean(-1) + 0.25 * group).mean()

    got = jax.jit(jax.grad(lambda p: TASK.loss(p, extra, batch, KEY)[0]))(params)
    want = jax.jit(jax.grad(fixed))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got["transforms_0"], want["transforms_0"]
    )
    assert float(jnp.abs(got["transforms_0"]["layer_0"]["kernel"]).max()) > 1e-4


def test_evidence_is_the_mean_over_samples_of_decoding_without_each_group(params):
    states, run = batch_of(5)["states"], lambda *a: batch_statistics.evaluate(MODEL, params, *a)
    got = jax.jit(TASK.predictors["evidence"])(params, {"states": states}, jax.random.key(99))
    features = run("features", states)
    posterior = run("encode", features)
    kl = (0.5 * (posterior.mean**2 + jnp.exp(posterior.log_var) - 1 - posterior.log_var)).mean(-1)
    points = [posterior.at(e) for e in noise(jax.random.key(5), 3, G * K)]
    for g in range(G):
        group = jnp.zeros((5, G)).at[:, g].set(1)
        errors = [((run("decode", z, group) - features) ** 2).mean(-1) for z in points]
        np.testing.assert_allclose(got["nll"][:, g], np.mean(errors, 0) + kl, rtol=1e-4)
        lengths = [(z.reshape(5, G, K)[:, g] ** 2).sum(-1) for z in points]
        np.testing.assert_allclose(got["norms"][:, g], np.mean(lengths, 0), rtol=1e-4)


def test_groups_are_recovered_from_the_latents():
    made = trainer(BayesVAETask(MODEL, group_weight=0.1))
    params = exported(made, fitted(made, source(200), steps=300))
    found = made.predict(params, "evidence", source(100, rng=1))
    own = np.arange(100) % G
    assert (found["norms"].argmin(1) == own).mean() > 0.95
    assert (
        found["nll"].argmin(1) == own
    ).mean() > 0.7  # its latents are the ones that rebuilding does not need


def test_other_numbers_of_groups_and_impossible_options_are_named():
    with pytest.raises(ValueError, match="rows have 7 groups of answers, model.groups is 4"):
        TASK.init(KEY, {**batch_of(), "group": jnp.zeros((12, 7))})
    for wrong, message in ((dict(samples=0), "samples=0"), (dict(group_weight=-1), "group_weight=-1")):
        with pytest.raises(ValueError, match=message):
            BayesVAETask(MODEL, **wrong)
