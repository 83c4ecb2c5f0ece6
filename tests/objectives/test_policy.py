"""What choices are worth, by loops over pairs, and that the loss follows the gradient of the expected worth."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.objectives.policy import policy_loss, reward

T = 4
RNG = np.random.default_rng(0)
X = RNG.standard_normal((T, 3)) * 4
SQUARED = ((X[:, None] - X[None]) ** 2).sum(-1)
D = RNG.random((T, T)) * 5
DIVERSITY = np.where(np.eye(T, dtype=bool), 0, D + D.T)
EVERY = np.array(list(product([False, True], repeat=T)))


def by_hand(taken, there):
    rows = [i for i in range(T) if taken[i] and there[i]]
    if not rows:
        return 0.0
    pairs = [DIVERSITY[i, j] for i in rows for j in rows if i != j]
    near = [min(SQUARED[i, j] for j in rows) for i in range(T) if there[i]]
    return 1.5 * (np.mean(pairs) if pairs else 0.0) + 0.5 * np.exp(-np.mean(near) / 50)


def test_every_choice_is_worth_what_loops_over_its_pairs_say():
    for there in (np.ones(T, bool), np.arange(T) < 3):
        found = jax.jit(reward)(
            jnp.asarray(EVERY), diversity_tt=jnp.asarray(DIVERSITY, jnp.float32),
            squared_tt=jnp.asarray(SQUARED, jnp.float32), there_t=jnp.asarray(there),
        )  # fmt: skip
        np.testing.assert_allclose(found, [by_hand(taken, there) for taken in EVERY], rtol=1e-5)


def test_the_mean_gradient_over_all_choices_is_that_of_the_expected_worth_whatever_the_baseline():
    worth = jnp.asarray([by_hand(taken, np.ones(T)) for taken in EVERY], jnp.float32)
    logits, there = jnp.asarray([0.3, -1.0, 0.8, 0.0]), jnp.ones(T, bool)

    def chance(x):
        p = jax.nn.sigmoid(x)
        return jnp.where(EVERY, p, 1 - p).prod(1)

    want = -jax.jit(jax.grad(lambda x: (chance(x) * worth).sum()))(logits) / T
    likely = chance(logits) * len(EVERY)  # the loss takes a plain mean over episodes

    def loss(x, advantage):
        return policy_loss(x, jnp.asarray(EVERY), advantage, there_t=there, share=0.5, weight=0.0)

    slope = jax.jit(jax.grad(loss))
    for baseline in (0.0, 3.0):
        np.testing.assert_allclose(slope(logits, (worth - baseline) * likely), want, atol=1e-5)


def test_padding_has_no_part_and_the_mean_probability_is_drawn_to_the_share():
    logits, there = jnp.asarray([2.0, 1.0, -1.0, 9.0]), jnp.arange(T) < 3

    def value(x):
        return policy_loss(x, jnp.asarray(EVERY[:1]), jnp.zeros(1), there_t=there, share=0.2, weight=2.0)

    mean = np.mean(1 / (1 + np.exp(-np.array([2.0, 1.0, -1.0]))))
    np.testing.assert_allclose(value(logits), 2 * (mean - 0.2) ** 2, rtol=1e-5)
    slope = jax.jit(jax.grad(value))(logits)
    assert slope[3] == 0 and (slope[:3] > 0).all()
