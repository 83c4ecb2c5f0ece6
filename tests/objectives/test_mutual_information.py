"""Information from a critic and from contrast: closed forms of Gaussians, definitions by hand, and false negatives."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxvl.models.vqme import VQME
from jaxvl.objectives import mutual_information as mi

LOG2 = np.log(2)


def others(size):
    return ~jnp.eye(size, dtype=bool)


def gaussians(size, d, rho, seed):
    x, e = np.random.default_rng(seed).standard_normal((2, size, d))
    return x, rho * x + np.sqrt(1 - rho**2) * e


def best_critic(x, y, rho):
    """`log p(x,y)/(p(x)p(y))` of all pairs."""
    sums = rho**2 * ((x**2).sum(1)[:, None] + (y**2).sum(1)[None]) - 2 * rho * x @ y.T
    critic = -0.5 * x.shape[1] * np.log(1 - rho**2) - sums / (2 * (1 - rho**2))
    return jnp.asarray(critic, jnp.float32)


def noise(size=6, seed=0):
    return np.random.default_rng(seed).standard_normal((size, size), np.float32) * 2


@pytest.mark.parametrize(
    ("d", "rho", "want"),
    [(1, 0.0, 1.3863), (1, 0.5, 1.3127), (1, 0.9, 0.9569), (1, 0.99, 0.5033), (4, 0.3, 1.2939), (4, 0.5, 1.1174),
     (4, 0.7, 0.8129), (4, 0.9, 0.3075)],
)  # fmt: skip
def test_the_best_critic_of_gaussians_has_the_known_loss(d, rho, want):
    run = jax.jit(lambda t: mi.jsd_loss(t, negative=others(1500)))
    found = [run(best_critic(*gaussians(1500, d, rho, seed), rho)) for seed in range(8)]
    np.testing.assert_allclose(np.mean(found), want, atol=0.01)


@pytest.mark.parametrize(("size", "want"), [(8, 1.46), (64, 1.89), (512, 1.93)])
def test_contrast_bounds_the_information_of_gaussians_from_below(size, want):
    """The information is 1.959 nats; a batch of 8 cannot show more than log 8 = 2.08, nor comes near it."""
    run = jax.jit(lambda t: mi.contrast_loss(t, negative=others(size)))
    found = [run(best_critic(*gaussians(size, 1, 0.99, seed), 0.99)) for seed in range(4096 // size)]
    np.testing.assert_allclose(np.log(size) - np.mean(found), want, atol=0.06)


def learn(critic, *rhos, steps=500, size=64, d=4):
    """Train a VQME's critic on Gaussians; for each correlation the information it finds, and its balanced accuracy."""
    model = VQME(words=4, feat_dim=2, width=d, heads=2, critic=critic, critic_width=64, project=2, word_dim=2)
    inputs = jnp.zeros((1, 2, 2)), jnp.ones((1, 2), bool), jnp.ones((1, 2), jnp.int32), jnp.ones((1, 2), bool)
    params = jax.jit(lambda k: nn.unbox(model.init(k, *inputs)))(jax.random.key(0))
    tx = optax.adam(5e-3)

    def pairs(params, key, size, rho):
        x, e = jax.random.normal(key, (2, size, d))
        a = model.apply(params, x, method="critic_image")
        b = model.apply(params, rho * x + (1 - rho**2) ** 0.5 * e, method="critic_text")
        return model.apply(params, a, b, method="critic_all")

    def loss(params, key, size, rho):
        return mi.jsd_loss(pairs(params, key, size, rho), negative=others(size))

    def step(rho, carry, key):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, key, size, rho), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params, rho):
        keys = jax.random.split(jax.random.key(1), steps)
        (params, _), _ = jax.lax.scan(partial(step, rho), (params, tx.init(params)), keys)
        t = pairs(params, jax.random.key(2), 1500, rho)
        right = jnp.diag(t > 0).mean() + (others(1500) & (t <= 0)).sum() / others(1500).sum()
        return mi.jsd_estimate(mi.jsd_loss(t, negative=others(1500))), right / 2

    return [tuple(map(float, run(params, rho))) for rho in rhos]


def test_a_learned_separable_critic_finds_more_where_there_is_more():
    (low, at_low), (high, at_high) = learn("separable", 0.5, 0.9)
    assert low == pytest.approx(0.2689, abs=0.12) and high == pytest.approx(1.0788, abs=0.12)
    assert at_low == pytest.approx(0.704, abs=0.035) and at_high == pytest.approx(0.941, abs=0.035)


@pytest.mark.slow
def test_a_learned_critic_of_concatenated_sides_finds_twice_the_divergence():
    ((found, right),) = learn("concat1", 0.9, steps=1500, size=96)
    assert found == pytest.approx(1.0788, abs=0.06) and right == pytest.approx(0.941, abs=0.02)


def test_the_loss_by_hand_and_its_identity_with_the_estimate():
    t, valid = noise(), np.random.default_rng(1).random((6, 6)) < 0.6
    off = valid & ~np.eye(6, dtype=bool)
    want = np.logaddexp(0, -np.diag(t)).mean() + np.logaddexp(0, t)[off].mean()
    got = mi.jsd_loss(jnp.asarray(t), negative=jnp.asarray(valid))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    f_gan = (LOG2 - np.logaddexp(0, -np.diag(t))).mean() - (np.logaddexp(0, t)[off] - LOG2).mean()
    np.testing.assert_allclose(mi.jsd_estimate(got), f_gan, atol=1e-6)
    np.testing.assert_allclose(mi.jsd_loss(jnp.zeros((5, 5)), negative=others(5)), 2 * LOG2, rtol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_enormous_values_have_finite_losses_and_gradients(sign):
    t = sign * 1e4 * (2 * jnp.eye(4) - 1)
    value, grad = jax.value_and_grad(lambda t: mi.jsd_loss(t, negative=others(4)))(t)
    assert np.isfinite(grad).all() and value == (0.0 if sign > 0 else 2e4)
    np.testing.assert_allclose(
        grad, 0 * grad if sign > 0 else jnp.where(others(4), 1 / 12, -1 / 4), rtol=1e-6
    )


def test_the_threshold_stays_at_a_ratio_of_one_whatever_the_number_of_negatives():
    """With a constant critic the loss is least at 0; negatives summed over a row would move it by -log(B-1)."""
    grad = jax.grad(lambda c: mi.jsd_loss(jnp.full((64, 64), c), negative=others(64)))
    assert abs(grad(0.0)) < 1e-6 and grad(-np.log(63.0)) < -0.4


def test_contrast_by_hand_in_both_forms():
    s, valid = noise(), np.random.default_rng(1).random((6, 6)) < 0.6
    eye = np.eye(6, dtype=bool)
    e, seen = np.exp(s.astype(np.float64)), valid | eye
    want = -0.5 * (
        np.log(np.diag(e) / (e * seen).sum(1)).mean() + np.log(np.diag(e) / (e * seen).sum(0)).mean()
    )
    run = lambda s, v, **kw: mi.contrast_loss(jnp.asarray(s), negative=jnp.asarray(v), **kw)  # noqa: E731
    np.testing.assert_allclose(run(s, valid), want, rtol=1e-5)
    np.testing.assert_allclose(run(s.T, valid.T), want, rtol=1e-5)  # the modalities are equals
    printed = -(np.log(np.diag(e).sum()) - np.log(e[valid & ~eye].sum()))
    np.testing.assert_allclose(run(s, valid, form="printed"), printed, rtol=1e-5)
    with pytest.raises(ValueError, match="cl_form='nce': expected one of infonce, printed"):
        run(s, valid, form="nce")


def test_contrast_of_equal_and_of_perfect_rows():
    loss = lambda s: float(mi.contrast_loss(s, negative=others(8)))  # noqa: E731
    assert loss(jnp.full((8, 8), 3.0)) == pytest.approx(np.log(8), abs=1e-6)
    assert loss(jnp.eye(8) / 0.01) == pytest.approx(0.0, abs=1e-6)


def test_gradients_of_the_contrast_are_finite_differences():
    s, step = noise(4, seed=3), 1e-2
    for form in mi.FORMS:
        f = lambda s, form=form: mi.contrast_loss(s, negative=others(4), form=form)  # noqa: E731
        grad = np.asarray(jax.grad(f)(jnp.asarray(s)))
        for i, j in ((0, 0), (1, 3), (2, 1)):
            bump = np.zeros_like(s)
            bump[i, j] = step
            slope = (float(f(jnp.asarray(s + bump))) - float(f(jnp.asarray(s - bump)))) / (2 * step)
            np.testing.assert_allclose(grad[i, j], slope, rtol=1e-2, atol=2e-4)


def test_padding_counts_nowhere():
    t, rows = noise(7), jnp.arange(7) < 4
    for fn, kwargs in (
        (mi.jsd_loss, {}),
        (mi.contrast_loss, {}),
        (mi.contrast_loss, {"form": "printed"}),
    ):
        alone = fn(jnp.asarray(t[:4, :4]), negative=others(4), **kwargs)
        padded = fn(jnp.asarray(t), negative=others(7), rows=rows, **kwargs)
        np.testing.assert_allclose(padded, alone, rtol=1e-6)


def test_pairs_of_an_image_and_questions_asked_of_it_are_no_negatives():
    """Images 0, 0, 1, 2, 3; image 2 was asked question 9 of row 2 too, which nobody sees in the batch."""
    image, key = jnp.array([0, 0, 1, 2, 3]), jnp.array([5, 6, 9, 7, 5])
    keys = jnp.array([[5, 6], [5, 6], [9, -1], [7, 9], [5, -1]])
    got = np.asarray(mi.negatives(image, key, keys))
    false = {
        (0, 1),
        (0, 4),
        (1, 4),
        (2, 3),
    }  # one image; key 5 of both; image 0 was asked 5; image 2 was asked 9
    for i in range(5):
        for j in range(5):
            assert got[i, j] == (i != j and (min(i, j), max(i, j)) not in false), (i, j)


def test_a_false_negative_is_as_if_it_were_not_there():
    """Whatever the critic says of the pair, neither loss changes."""
    t, valid = noise(4), others(4).at[0, 2].set(False).at[2, 0].set(False)
    other = t.copy()
    other[0, 2] = other[2, 0] = 50.0
    for fn in (mi.jsd_loss, mi.contrast_loss):
        a, b, c = (
            fn(jnp.asarray(x), negative=v) for x, v in ((t, valid), (other, valid), (other, others(4)))
        )
        assert a == b != c


@pytest.mark.parametrize(("size", "count"), [(2, 1), (3, 2), (17, 5), (4, 9)])
def test_derangements_give_each_row_other_partners_which_differ_by_key(size, count):
    found = np.stack([mi.derangements(jax.random.key(i), size, count=count) for i in range(5)])
    assert found.shape == (5, min(count, size - 1), size)
    assert (np.sort(found, axis=2) == np.arange(size)).all() and (found != np.arange(size)).all()
    assert all(len(set(found[0, :, i].tolist())) == found.shape[1] for i in range(size))
    assert size == 2 or len(np.unique(found, axis=0)) > 1


def test_the_loss_of_given_negatives_is_that_of_all_pairs_without_the_others():
    rng = np.random.default_rng(4)
    t, valid = jnp.asarray(rng.normal(size=(6, 6)), jnp.float32), jnp.asarray(rng.random((6, 6)) < 0.7)
    partner, rows = mi.derangements(jax.random.key(1), 6, count=3), jnp.arange(6) < 5
    chosen = np.zeros((6, 6), bool)
    chosen[np.arange(6), np.asarray(partner)] = True
    want = mi.jsd_loss(t, negative=valid & chosen, rows=rows)
    false = t[jnp.arange(6), partner]
    got = mi.jsd_pairs_loss(jnp.diagonal(t), false, negative=valid, partner=partner, rows=rows)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_pairs_of_an_image_are_no_negatives_though_its_list_of_keys_is_cut_short():
    none = jnp.full((3, 1), -1)
    got = mi.negatives(jnp.array([4, 4, 5]), jnp.array([0, 1, 2]), none)
    np.testing.assert_array_equal(got, [[False, False, True], [False, False, True], [True, True, False]])
