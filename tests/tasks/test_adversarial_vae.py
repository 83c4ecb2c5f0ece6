"""VAAL's and TA-VAAL's task: losses by hand, gradients apart, ranks, and a critic that knows labelled images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from sampler_fits import exported, fitted, numbers, stack, trainer

from jaxvl.active.strategies.vectors import Beside, Vectors
from jaxvl.models.sampler_nets import VAAL
from jaxvl.tasks import batch_statistics
from jaxvl.tasks.adversarial import noise
from jaxvl.tasks.adversarial_vae import AdversarialVAETask

KEY, F, SIZES = jax.random.key(3), 6, dict(hidden=(16, 8), latent=4, critic_widths=(16, 16))
PLAIN, RANKED = VAAL(F, **SIZES), VAAL(F, ranked=True, **SIZES)
TA = dict(kl_over="mean", critic_every=1)


def source(n=40, *, ranked=False, rng=0):
    """Labelled states around 0; unlabelled ones around 0 or 3. The rank is 2 for labelled, else -2."""
    draw = np.random.default_rng(rng)
    near = draw.standard_normal((n, F)).astype(np.float32)
    other = (draw.standard_normal((n, F)) + 3 * (np.arange(n) % 2)[:, None]).astype(np.float32)
    rank = {"rank": np.full(n, 2.0, np.float32)} if ranked else {}
    return Beside(
        Vectors(np.arange(n), {"state": near, **rank}),
        Vectors(np.arange(n), {"state": other, **{k: -v for k, v in rank.items()}}),
    )


def start(task, *, ranked=False, size=12):
    rows = source(ranked=ranked)
    batch = {k: jnp.asarray(v) for k, v in stack([rows[i] for i in range(size)]).items()}
    params = jax.jit(lambda k: nn.unbox(task.init(k, batch)))(KEY)
    params = {k: v if k == "statistics" else jax.tree.map(lambda x: 1.5 * x, v) for k, v in params.items()}
    return params, {**task.start(params, KEY), "updates": jnp.int32(1)}, batch


@pytest.mark.parametrize(("model", "options"), [(PLAIN, {}), (RANKED, TA)])
def test_losses_by_hand(model, options):
    task, n = AdversarialVAETask(model, kl=0.5, adversarial=2.0, **options), 12
    params, extra, batch = start(task, ranked=model.ranked)
    loss, (_, metrics) = jax.jit(task.loss)(params, extra, batch, KEY)
    both = jnp.concatenate([batch["state"], batch["pool_state"]])
    rank = jnp.repeat(jnp.array([2.0, -2.0]), n) if model.ranked else None
    drawn = noise(jax.random.split(KEY)[0], 2 * n, 4)
    run = batch_statistics.train(model, params, "rebuild", both, drawn, rank).out
    mean, log_var = (np.asarray(x, np.float64) for x in run.posterior)
    halves = lambda v: v[:n].mean() + v[n:].mean()  # noqa: E731
    kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var)
    p = 1 / (
        1 + np.exp(-np.asarray(batch_statistics.evaluate(model, params, "critic", run.posterior.mean, rank)))
    )
    want = {
        "rebuild": halves(((np.asarray(run.states) - both) ** 2).mean(1)),
        "kl": halves(kl.mean(1) if options else kl.sum(1)),
        "adversarial": halves(-np.log(p)),
        "critic": -np.log(p[:n]).mean() - np.log(1 - p[n:]).mean(),
    }
    found = numbers(metrics)
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    own = want["rebuild"] + 0.5 * want["kl"] + 2 * want["adversarial"]
    np.testing.assert_allclose([found["loss"], loss], [own, own + want["critic"]], rtol=1e-4)


def test_each_network_learns_from_its_own_loss_and_the_critic_in_its_turn():
    size = lambda tree: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))  # noqa: E731
    grads = {}
    for name, options in (("both", {}), ("alone", dict(adversarial=0.0))):
        task = AdversarialVAETask(PLAIN, **options)
        params, extra, batch = start(task)
        grad = jax.jit(jax.grad(lambda p, e, t=task, b=batch: t.loss(p, e, b, KEY)[0]))
        grads[name] = [grad(params, {**extra, "updates": jnp.int32(u)}) for u in (0, 1, 2)]
    assert [size(g["judge"]) > 0 for g in grads["both"]] == [False, True, False]
    np.testing.assert_array_equal(*(g[1]["judge"]["layer_0"]["kernel"] for g in grads.values()))
    first = grads["both"]
    jax.tree.map(np.testing.assert_array_equal, first[0]["encoder"], first[1]["encoder"])
    change = jax.tree.map(lambda a, b: a - b, first[0]["encoder"], grads["alone"][0]["encoder"])
    assert size(change) > 1e-5  # the adversarial loss reaches the encoder


def test_the_first_update_sees_random_ranks():
    task = AdversarialVAETask(RANKED, **TA)
    params, extra, batch = start(task, ranked=True)
    other = {**batch, "rank": batch["rank"] + 1}
    run = jax.jit(lambda e, b: task.loss(params, e, b, KEY)[0])
    blind, seeing = {**extra, "updates": jnp.int32(0)}, extra
    assert run(blind, batch) == run(blind, other) and run(seeing, batch) != run(seeing, other)
    with pytest.raises(ValueError, match="ranked=True, but the rows have no rank"):
        task.loss(params, extra, {k: v for k, v in batch.items() if "rank" not in k}, KEY)


def test_the_critic_tells_images_unlike_the_labelled_ones():
    made = trainer(AdversarialVAETask(PLAIN))
    params = exported(made, fitted(made, source(200), steps=300))
    held = source(100, rng=1).unlabelled
    logit, far = made.predict(params, "critic", held), np.arange(100) % 2 == 1
    assert (logit[far][:, None] < logit[~far][None]).mean() > 0.95


def test_the_critic_uses_the_rank():
    made = trainer(AdversarialVAETask(RANKED, **TA))
    params = exported(made, fitted(made, source(200, ranked=True), steps=150))
    states = source(50, rng=1).labelled.arrays["state"]
    low, high = (
        made.predict(
            params, "critic", Vectors(np.arange(50), {"state": states, "rank": np.full(50, r, np.float32)})
        )
        for r in (-2.0, 2.0)
    )
    assert (high > low).all()


def test_impossible_options_are_named():
    for wrong, message in ((dict(kl_over="max"), "kl_over='max'"), (dict(critic_every=0), "critic_every=0")):
        with pytest.raises(ValueError, match=message):
            AdversarialVAETask(PLAIN, **wrong)
