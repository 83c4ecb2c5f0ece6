"""Intervals and verdicts against closed forms and printed tables of t."""

from __future__ import annotations

import math

import pytest

from jaxvl.reproduce.statistics import Estimate, estimate, paired, quantile, ratio, verdict


@pytest.mark.parametrize(("n", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (30, 2.045)])
def test_quantiles_are_those_of_a_printed_table(n, t):
    assert quantile(n) == pytest.approx(t, abs=5e-4)


def test_interval_of_three_values_is_the_mean_and_t_standard_errors():
    found = estimate([1.0, 2.0, 3.0])  # sd 1
    half = 4.302653 / math.sqrt(3)
    assert found == pytest.approx((2.0, 2.0 - half, 2.0 + half, 3), abs=1e-5)
    assert found.text() == "2.00 [-0.48, 4.48]"


def test_two_values_have_the_interval_of_the_cauchy_quantile():
    found = estimate([0.0, 2.0])  # t with one degree of freedom: tan(pi (0.975 - 1/2))
    assert found.high - 1.0 == pytest.approx(math.tan(math.pi * 0.475))


def test_one_value_has_no_interval():
    assert estimate([7.0]) == Estimate(7.0, None, None, 1)
    assert estimate([7.0]).text(sign=True) == "+7.00"


@pytest.mark.parametrize("values", [[], [1.0, math.nan]])
def test_nothing_and_what_is_not_finite_are_refused(values):
    with pytest.raises(ValueError, match="finite values, and at least one"):
        estimate(values)


def test_differences_are_paired_by_seed_and_unpaired_seeds_do_not_count():
    a, b = {0: 50.0, 1: 80.0, 2: 99.0}, {1: 78.0, 0: 49.0, 3: 0.0}
    found = paired(a, b)  # 1 and 2, whatever the seeds' own levels are
    assert found == pytest.approx(estimate([1.0, 2.0]))
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_shares_are_ratios_by_seed():
    assert ratio({0: 49.0, 1: 20.0}, {0: 50.0, 1: 20.0}, scale=100.0) == pytest.approx(
        estimate([98.0, 100.0])
    )
    assert ratio({0: 49.0}, {0: 0.0}) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 1.1, 1.2], "shown"),
        ([-1.0, -1.1, -1.2], "reversed"),
        ([-0.5, 1.0, 3.0], "not shown"),
        ([5.0], "not shown (one seed has no interval)"),
        ([1.0, 1.0], "not shown (no spread over seeds)"),
    ],
)
def test_an_ordering_is_shown_only_if_its_whole_interval_is_above_zero(values, said):
    assert verdict(estimate(values)) == said
    assert verdict(None) == "no data"
