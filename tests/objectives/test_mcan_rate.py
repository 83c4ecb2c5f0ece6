"""The learning rate of MCAN is openvqa's at every update, whatever the size of the data set, in one program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.objectives.mcan_rate import mcan_rate

PROGRAM = jax.jit(lambda step, size: mcan_rate(step, size, base=1e-4, batch=64))


def reference(size: int, *, base: float, batch: int, epochs: int = 13) -> list[float]:
    """A loop over epochs and updates, as a training script has it."""
    rates, done = [], 0
    for epoch in range(epochs):
        if epoch in (10, 12):
            base *= 0.2
        for _ in range(size // batch):
            done += 1
            quarters = 1 + sum(done > int(k * size / batch) for k in (1, 2, 3))
            rates.append(base * quarters / 4)
    return rates


@pytest.mark.parametrize("size", [64, 1000, 12_345])
def test_every_update_has_the_rate_of_the_reference(size):
    want = reference(size, base=1e-4, batch=64)
    got = PROGRAM(jnp.arange(100 * 64)[: len(want)], size)
    np.testing.assert_array_equal(got, np.asarray(want, np.float32))


def test_thresholds_of_a_set_that_no_batch_divides():
    rates = np.asarray(mcan_rate(jnp.arange(500), 8875, base=4.0))
    np.testing.assert_array_equal(np.flatnonzero(np.diff(rates)) + 1, [138, 277, 416])
    np.testing.assert_array_equal(rates[[0, 137, 138, 277, 416]], [1, 1, 2, 3, 4])


def test_a_traced_size_shares_one_program_and_other_schedules_are_options():
    before = PROGRAM._cache_size()
    for size in (64, 999, 5000):
        PROGRAM(jnp.arange(2000), size)
    assert PROGRAM._cache_size() <= before + 1
    rates = mcan_rate(jnp.arange(60), 100, base=1.0, batch=10, decay=0.5, decay_epochs=(4, 5))
    np.testing.assert_array_equal(
        rates[jnp.array([0, 10, 20, 30, 39, 40, 50])], [0.25, 0.5, 0.75, 1, 1, 0.5, 0.25]
    )
    assert (
        float(mcan_rate(100, 10, base=1.0, batch=64, decay_epochs=())) == 1.0
    )  # fewer examples than a batch
