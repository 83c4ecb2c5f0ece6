"""Running averages: means over the updates, the same on more devices, and no prediction without them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from sampler_fits import exported, fitted, trainer

from jaxvl.active.strategies.vectors import Beside, Vectors
from jaxvl.models.sampler_nets import VAAL
from jaxvl.tasks import batch_statistics
from jaxvl.tasks.adversarial_vae import AdversarialVAETask
from jaxvl.tasks.batch_statistics import BatchNormTask

RNG = np.random.default_rng(0)
SOURCE = Beside(
    *(Vectors(np.arange(n), {"state": RNG.standard_normal((n, 6), np.float32)}) for n in (20, 40))
)


def task():
    return AdversarialVAETask(VAAL(6, hidden=(8,), latent=4, critic_widths=(5,)))


def test_averages_weigh_updates_by_their_age_and_have_no_share_of_the_start():
    params = {"w": jnp.ones(2), "statistics": {"mean": jnp.full(3, jnp.nan)}}
    base, moments = BatchNormTask(), np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    extra = base.prepare(params, base.start(params, jax.random.key(0)))
    for m in moments:
        extra = base.finish(extra, batch_statistics.as_rows({"mean": jnp.asarray(m)}, 7))
    weights = 0.9 ** np.arange(4, -1, -1)
    kept = base.export(params, extra)
    np.testing.assert_allclose(kept["statistics"]["mean"], weights @ moments / weights.sum(), rtol=1e-5)
    assert int(extra["updates"]) == 5 and kept["w"] is params["w"]


def test_no_update_no_averages():
    params = {"statistics": {"mean": jnp.zeros(3)}}
    assert np.isnan(
        batch_statistics.kept(params, batch_statistics.started(params))["statistics"]["mean"]
    ).all()


def test_optimisers_leave_the_statistics_alone_and_export_fills_them():
    made = trainer(task())
    state = fitted(made, SOURCE, steps=3, batch=8)
    assert all(np.isnan(x).all() for x in jax.tree.leaves(state.params["statistics"]))
    others = {k: v for k, v in state.params.items() if k != "statistics"}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(others))
    assert np.isnan(made.predict(state.params, "critic", SOURCE.unlabelled)).all()
    full = exported(made, state)
    assert np.isfinite(made.predict(full, "critic", SOURCE.unlabelled)).all()
    assert made.traces["step"] == 1


def test_statistics_are_those_of_the_whole_batch_on_any_number_of_devices():
    one, four = (trainer(task(), devices=n) for n in (1, 4))
    a, b = (exported(made, fitted(made, SOURCE, steps=3, batch=8)) for made in (one, four))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), a, b)


def test_a_prediction_does_not_depend_on_its_batch():
    made = trainer(task())
    params = exported(made, fitted(made, SOURCE, steps=3, batch=8))
    states = SOURCE.unlabelled.arrays["state"]
    whole = made.predict(params, "critic", SOURCE.unlabelled)
    some = made.predict(params, "critic", Vectors(np.arange(3), {"state": states[[30, 2, 17]]}))
    np.testing.assert_allclose(some, whole[[30, 2, 17]], atol=1e-5)
