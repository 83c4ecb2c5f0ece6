"""Shares of answers and the factors that balance them, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.active.balance import MODES, Shares

COUNTS = np.array([[6, 2, 0, 0], [0, 1, 1, 2], [0, 0, 0, 0]])
EXPECTED = {
    "one_minus": [[0.25, 0.75, 1, 1], [1, 0.75, 0.75, 0.5], [1, 1, 1, 1]],
    "printed": [[0.75, 0.25, 0, 0], [0, 0.25, 0.25, 0.5], [0, 0, 0, 0]],
    "inverse": [[2 / 3, 1, 1, 1], [1, 1, 1, 2 / 3], [1, 1, 1, 1]],
    "sqrt_inverse": [[(2 / 3) ** 0.5, 1, 1, 1], [1, 1, 1, (2 / 3) ** 0.5], [1, 1, 1, 1]],
    "none": np.ones((3, 4)),
}


@pytest.mark.parametrize("mode", EXPECTED)
def test_factors_by_hand(mode):
    np.testing.assert_allclose(Shares.from_counts(COUNTS).rate(mode), EXPECTED[mode], rtol=1e-12)


def test_effective_numbers_fall_slowly_with_the_count():
    got = Shares.from_counts(COUNTS).rate("effective")
    np.testing.assert_allclose(got[0, :3], [0.001 / (1 - 0.999**6), 0.001 / (1 - 0.999**2), 1.0])
    assert (got[2] == 1).all()


def test_shares_sum_to_one_where_there_are_labels_and_are_zero_elsewhere():
    np.testing.assert_allclose(Shares.from_counts(COUNTS).share.sum(1), [1, 1, 0])


@pytest.mark.parametrize("mode", MODES)
def test_factors_lie_in_zero_to_one_and_follow_a_renaming_of_the_answers(mode):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (3, 20)) * (rng.random((3, 20)) < 0.7)
    rate, order = Shares.from_counts(counts).rate(mode), rng.permutation(20)
    assert (rate >= 0).all() and (rate <= 1).all()
    np.testing.assert_array_equal(Shares.from_counts(counts[:, order]).rate(mode), rate[:, order])
    by_count = np.take_along_axis(rate, np.argsort(counts, axis=1), axis=1)
    falls = np.diff(by_count, axis=1) * (-1 if mode == "printed" else 1)
    assert (falls <= 1e-12).all()  # the more frequent an answer, the less it counts; as printed, the more


def test_wrong_options_are_named_and_nothing_is_shared():
    shares = Shares.from_counts(COUNTS)
    with pytest.raises(ValueError, match="rate='share': expected one of one_minus, printed"):
        shares.rate("share")
    shares.rate("printed")[:] = 9
    assert shares.share.max() < 1
