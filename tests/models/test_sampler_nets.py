"""Networks of samplers: published sizes, batch norm by hand, latents taken out of a sum, inputs that must be there."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxvl.models.sampler_nets import SRAAL, STATISTICS, VAAL, BatchNorm, Posterior, Trunk, VaBAL

KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def moved(variables, seed=0):
    """Random parameters, and statistics as after training."""
    rng = np.random.default_rng(seed)
    shift = lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    fill = lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), jnp.float32)  # noqa: E731
    variables = nn.unbox(variables)
    return {
        "params": jax.tree.map(shift, variables["params"]),
        STATISTICS: jax.tree.map(fill, variables[STATISTICS]),
    }


def layer(*sizes, per_unit=1):
    """Numbers in dense layers `sizes[0] -> sizes[1] -> ...` with so many beside the kernel for each unit.

    1 = a bias; 2 = scale and bias of a norm; 3 = all of them.
    """
    return sum(a * b + per_unit * b for a, b in pairwise(sizes))


def test_published_sizes():
    one = jnp.zeros((2, 2048))
    text = (jnp.zeros((2, 14), jnp.int32), jnp.ones((2, 14), bool))
    count = lambda p: sum(x.size for x in jax.tree.leaves(p["params"]))  # noqa: E731

    def coder(latent, read):
        heads = 2 * layer(512, latent)
        return (
            layer(2048, 1024, 512, per_unit=2)
            + heads
            + layer(read, 512, 1024, per_unit=2)
            + layer(1024, 2048)
        )

    sraal = jax.eval_shape(SRAAL(2048, 20, 3129).init, KEY, one, jnp.zeros((2, 200)), *text)
    lstm, learner = 300 * 20 + 4 * 512 * (300 + 512 + 2), layer(100 + 512, 1024, 256, 3129)
    assert count(sraal) == lstm + learner + coder(200, 100) + layer(200, 512, 512, 512, 512, 1)
    for ranked in (0, 1):
        rank = jnp.zeros(2) if ranked else None
        found = jax.eval_shape(VAAL(2048, ranked=bool(ranked)).init, KEY, one, jnp.zeros((2, 32)), rank)
        assert count(found) == coder(32, 32 + ranked) + layer(32 + ranked, 512, 512, 1)
    states = (jnp.zeros((2, 3, 1024)), jnp.zeros((2, 1000)), jnp.zeros((2, 100)))
    bayes = (
        layer(384, 128, 128, 128, per_unit=3) + 2 * layer(128, 1000) + layer(1000, 128, 128, 128, per_unit=3)
    )
    found = jax.eval_shape(VaBAL().init, KEY, *states)
    assert count(found) == 3 * layer(1024, 128, per_unit=3) + bayes + layer(128, 384)


def test_batch_norm_takes_the_batchs_moments_in_training_and_the_given_ones_after():
    x, norm = 3 + 2 * draw(50, 4), BatchNorm()
    variables = moved(norm.init(KEY, x, train=True))
    p, s = variables["params"], variables[STATISTICS]
    out, changed = norm.apply(variables, x, train=True, mutable=[STATISTICS])
    standard = (x - x.mean(0)) / np.sqrt(np.var(x, 0) + 1e-5)
    np.testing.assert_allclose(out, standard * p["scale"] + p["bias"], atol=1e-5)
    np.testing.assert_allclose(changed[STATISTICS]["mean"], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(changed[STATISTICS]["var"], np.var(x, 0), rtol=1e-4)
    want = (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]
    np.testing.assert_allclose(norm.apply(variables, x), want, atol=1e-5)


def test_before_anybody_set_the_statistics_predictions_are_nan_not_wrong():
    x = draw(3, 4)
    variables = BatchNorm().init(KEY, x, train=True)
    assert np.isnan(BatchNorm().apply(variables, x)).all()


def test_trunks_have_the_norm_before_or_after_the_relu():
    x = draw(40, 3)
    for norm in ("before", "after"):
        trunk = Trunk((5,), norm)
        variables = nn.unbox(trunk.init(KEY, x, train=True))
        out, _ = trunk.apply(variables, x, train=True, mutable=[STATISTICS])
        h = x @ variables["params"]["layer_0"]["kernel"] + variables["params"]["layer_0"].get("bias", 0.0)
        unit = lambda v: (v - v.mean(0)) / np.sqrt(np.var(v, 0) + 1e-5)  # noqa: E731
        want = np.maximum(unit(h), 0) if norm == "before" else unit(np.maximum(h, 0))
        np.testing.assert_allclose(out, want, atol=1e-4)
    with pytest.raises(ValueError, match="norm='none': expected one of before, after"):
        Trunk((5,), "none").init(KEY, x, train=True)


def test_a_posterior_is_sampled_with_its_mean_and_deviation():
    posterior = Posterior(jnp.full((1, 2), 3.0), jnp.full((1, 2), 2 * jnp.log(0.5)))
    points = posterior.at(draw(20_000, 2))
    np.testing.assert_allclose(points.mean(0), 3.0, atol=0.02)
    np.testing.assert_allclose(points.std(0), 0.5, atol=0.02)


def test_halves_of_sraals_latents_have_one_task_each():
    model = SRAAL(6, 9, 5, word_dim=4, hidden=(8,), latent=4, text_width=4, learner=(8,), critic_width=4)
    x, z, text = draw(3, 6), draw(3, 4), jnp.asarray([[3, 4, 0], [5, 0, 0], [1, 2, 3]])
    variables = moved(model.init(KEY, x, z, text, text != 0, train=True))
    run = lambda z, t: model.apply(variables, z, t, t != 0, method="target")  # noqa: E731
    np.testing.assert_allclose(run(z, text), run(z.at[:, :2].add(1), text), atol=1e-6)
    assert np.abs(run(z, text) - run(z.at[:, 2:].add(1), text)).max() > 1e-3
    longer = jnp.pad(text, ((0, 0), (0, 2)))
    np.testing.assert_allclose(run(z, longer), run(z, text), atol=1e-6)  # the state of the last word counts
    low = lambda n: model.apply(variables, x, n, method="rebuild").states  # noqa: E731
    np.testing.assert_allclose(low(z), low(z.at[:, 2:].add(1)), atol=1e-6)
    with pytest.raises(ValueError, match="latent=5: must be even"):
        SRAAL(6, 9, 5, latent=5).init(KEY, x, draw(3, 5), text, text != 0, train=True)


def test_a_ranked_vaal_sees_the_rank_and_others_refuse_it():
    x, z, rank = draw(3, 6), draw(3, 4), jnp.arange(3.0)
    ranked = VAAL(6, ranked=True, hidden=(8,), latent=4, critic_widths=(5,))
    variables = moved(ranked.init(KEY, x, z, rank, train=True))
    for method, first in (("critic", (z,)), ("rebuild", (x, z))):
        a, b = (ranked.apply(variables, *first, r, method=method) for r in (rank, rank + 1))
        a, b = (v if method == "critic" else v.states for v in (a, b))
        assert np.abs(a - b).max() > 1e-3
    with pytest.raises(ValueError, match="ranked=True, but the rows have no rank"):
        ranked.apply(variables, z, None, method="critic")
    with pytest.raises(ValueError, match="ranked=False, but the rows have a rank"):
        VAAL(6, hidden=(8,), latent=4).init(KEY, x, z, rank, train=True)


def test_taking_a_groups_latents_out_of_the_sum_is_decoding_without_them():
    model = VaBAL(groups=5, per_group=3, width=8, depth=3)
    states, z, group = draw(4, 3, 6), draw(4, 15, seed=1), jnp.eye(5)[:4]
    variables = moved(model.init(KEY, states, z, group, train=True))
    got = model.apply(variables, z, method="without_each")
    assert got.shape == (4, 5, 24)
    for g in range(5):
        only = z.reshape(4, 5, 3).at[:, g].set(0).reshape(4, 15)
        want = model.apply(variables, only, jnp.zeros((4, 5)), method="decode")
        np.testing.assert_allclose(got[:, g], want, atol=1e-5)
        own = model.apply(variables, z, jnp.zeros((4, 5)).at[:, g].set(1), method="decode")
        np.testing.assert_allclose(own, want, atol=1e-6)
    norms = model.apply(variables, z, method="norms")
    np.testing.assert_allclose(norms, (np.asarray(z).reshape(4, 5, 3) ** 2).sum(-1), rtol=1e-5)
