"""The uncertainty indicator: golden values, bounds, directions; float32 as good as the definition in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl.objectives.uncertainty import indicator

RUN = jax.jit(indicator, static_argnames=("var_ddof", "at_uniform"))
SIZES = (2, 3, 5, 10, 100, 3129)


def f_of(p, **kwargs):
    with np.errstate(divide="ignore"):
        return np.asarray(RUN(jnp.asarray(np.log(np.asarray(p, np.float64)), jnp.float32), **kwargs).f)


def two_sums(p, ddof=0):
    """The definition: least variance with this maximum, over the variance."""
    p = np.asarray(p, np.float64)
    size, m = p.shape[-1], p.max(-1)
    least = ((1 / size - m) ** 2 + (size - 1) * (1 / size - (1 - m) / (size - 1)) ** 2) / size
    return 1 - least / p.var(-1, ddof=ddof) * m


def tie(size):
    return [0.5, 0.5] + [0.0] * (size - 2)


@pytest.mark.parametrize(
    ("p", "want"),
    [
        ([0.5, 0.5], 0.5),
        ([0.25] * 4, 0.75),
        ([1 / 3129] * 3129, 1 - 1 / 3129),
        ([0.7, 0.3], 0.3),
        ([0.5, 0.25, 0.25], 0.5),
        ([0.5, 0.5, 0.0], 0.875),
        ([0.4, 0.4, 0.2], 0.9),
        ([0.4, 0.3, 0.3], 0.6),
        ([0.34, 0.33, 0.33], 0.66),
        ([0.6, 0.4, 0.0, 0.0], 0.637037),
        ([0.6] + [0.4 / 3] * 3, 0.4),
        ([0.0, 1.0, 0.0], 0.0),
        (tie(10), 0.777778),
        (tie(100), 0.752525),
        (tie(3129), 0.750080),
        ([0.5] + [0.5 / 49] * 49, 0.5),
        ([1.0], 0.0),
    ],
)
def test_golden_values(p, want):
    np.testing.assert_allclose(f_of(p), want, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_float32_is_the_two_sums_of_the_definition_also_near_the_uniform_distribution(size):
    rng = np.random.default_rng(size)
    for alpha in (0.05, 1.0, 20.0, 300.0):
        logits = np.log(np.maximum(rng.dirichlet(np.full(size, alpha), 1700), 1e-30)).astype(np.float32)
        p = np.exp(logits.astype(np.float64))
        p /= p.sum(-1, keepdims=True)
        got, want = RUN(jnp.asarray(logits)), two_sums(p)
        clear = size * np.square(p).sum(-1) - 1 > 2e-6  # nearer, it counts as uniform
        np.testing.assert_allclose(np.asarray(got.f)[clear], want[clear], atol=2e-6)
        np.testing.assert_allclose(got.p_max, p.max(-1), rtol=1e-5)
        np.testing.assert_array_equal(got.index, logits.argmax(-1))
        assert (np.asarray(got.f) >= 1 - p.max(-1) - 1e-6).all() and (np.asarray(got.f) <= 1).all()
        assert clear.mean() > 0.9


def test_permuting_the_answers_changes_nothing():
    p = np.random.default_rng(0).dirichlet(np.full(7, 0.5), 200)
    np.testing.assert_allclose(f_of(p[:, ::-1]), f_of(p), atol=1e-6)


def test_it_falls_as_the_peak_rises_and_rises_as_the_rest_gathers_in_few_rivals():
    rng = np.random.default_rng(1)
    rest = rng.dirichlet(np.full(5, 0.7), 300)[:, None]  # of the answers beside the peak
    share = np.linspace(0.5, 0.99, 12)[None, :, None]
    peaks = f_of(np.concatenate([np.broadcast_to(share, (300, 12, 1)), (1 - share) * rest], -1))
    assert (np.diff(peaks, axis=1) < 1e-6).all()
    even = np.full((300, 1, 5), 0.2)
    mix = np.linspace(0, 1, 9)[None, :, None]  # 0 = even rest, 1 = as drawn: the sum of squares grows
    rivals = 0.45 * (even * (1 - mix) + rest * mix)
    gathered = f_of(np.concatenate([np.full((300, 9, 1), 0.55), rivals], -1))
    assert (np.diff(gathered, axis=1) > -1e-6).all() and (gathered[:, -1] > gathered[:, 0] + 1e-3).any()


def test_the_unbiased_variance_is_that_of_the_released_code_of_sraal():
    p = np.random.default_rng(2).dirichlet(np.full(6, 0.4), 200)
    np.testing.assert_allclose(f_of(p, var_ddof=1), two_sums(p, ddof=1), atol=2e-6)
    np.testing.assert_allclose(f_of([0.0, 1.0, 0.0, 0.0], var_ddof=1), 0.25, atol=1e-6)
    with pytest.raises(ValueError, match="var_ddof=2"):
        indicator(jnp.zeros(3), var_ddof=2)


@pytest.mark.parametrize("size", [2, 5, 3129])
def test_a_uniform_distribution_may_have_the_value_one_and_no_other_changes(size):
    even, p = np.full(size, 1 / size), np.random.default_rng(3).dirichlet(np.full(size, 0.4), 50)
    np.testing.assert_allclose(f_of(even), 1 - 1 / size, atol=1e-6)
    assert f_of(even, at_uniform="one") == 1.0
    np.testing.assert_array_equal(f_of(p, at_uniform="one"), f_of(p))
    with pytest.raises(ValueError, match="at_uniform='two'"):
        indicator(jnp.zeros(3), at_uniform="two")


def test_extreme_and_low_precision_logits_give_numbers():
    rows = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4], [3, 3, 3]], np.float32)
    np.testing.assert_allclose(RUN(rows).f, [0, 2 / 3, 0.875, 2 / 3], atol=1e-6)
    low = RUN(jnp.asarray([[2.0, 1.0, 0.0]], jnp.bfloat16))
    assert low.f.dtype == jnp.float32 and low.index.dtype == jnp.int32
