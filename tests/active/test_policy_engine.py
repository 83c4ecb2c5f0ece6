"""The engine of policies learns to take the images that make a choice worth more, and says the same again."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxvl.active.policy import Batch, State, learn, programs
from jaxvl.active.strategies.cdal import PolicyOptions, Sequences


def pool(seed):
    """Six sequences of five or six images, of which two are of a kind that is diverse; its feature says so."""
    rng = np.random.default_rng(0)
    special = np.stack([rng.permutation(6) < 2 for _ in range(6)])
    there = np.arange(6) < np.array([[6], [6], [6], [5], [5], [5]])
    pairs = special[:, :, None] & special[:, None] & ~np.eye(6, dtype=bool)
    noise = rng.standard_normal((6, 6, 3)).astype(np.float32)
    features = np.concatenate([noise, 2.0 * special[..., None]], -1).astype(np.float32) * there[..., None]
    options = PolicyOptions(width=8, length=6, batch=4, episodes=8, epochs=60, lr=2e-2)
    squared = np.full((6, 6, 6), 10.0, np.float32) * ~np.eye(6, dtype=bool)
    return special & there, Sequences(features, there, 4.0 * pairs, squared, 1 / 3, seed, options)


def test_it_learns_to_take_the_diverse_images_and_is_a_function_of_its_seed():
    special, request = pool(seed=3)
    p = learn({}, request)
    plain = request.there & ~special
    assert p.shape == (6, 6) and p[special].mean() > p[plain].mean() + 0.3
    short = request._replace(options=replace(request.options, epochs=2))  # of the same programs
    np.testing.assert_array_equal(learn({}, short), learn({}, short))
    assert not np.array_equal(learn({}, short), learn({}, short._replace(seed=4)))


def test_rows_that_fill_up_a_batch_change_nothing():
    _, request = pool(seed=3)
    model, tx, update, _ = programs(8, 2e-2, 8)
    lengths = request.there.sum(1)
    weights = jax.jit(model.init)(jax.random.key(0), request.features[:1], lengths[:1])
    found = []
    for filling in (2, 5):
        at = np.array([0, 4, filling, filling])
        parts = (request.features, lengths, request.there, request.diversity, request.squared)
        rows = Batch(*(p[at] for p in parts), at, np.array([True, True, False, False]))
        found.append(
            update(State(weights, tx.init(weights), jnp.zeros(6)), jax.random.key(1), rows, 1 / 3, 0.0)
        )
    jax.tree.map(np.testing.assert_array_equal, *found)
    assert (np.asarray(found[0].baseline) != 0).tolist() == [True, False, False, False, True, False]
