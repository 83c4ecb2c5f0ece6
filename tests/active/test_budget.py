"""Cumulative counts are exact at the end, costs add up, and runs stop for the reasons they should."""

from __future__ import annotations

import pytest

from jaxvl.active.budget import Cost, Stop, targets


@pytest.mark.parametrize("size", [50, 82_783, 123_287])
def test_a_fifth_is_hit_exactly_by_steps_of_two_percent(size):
    counts = targets(size, init=0.02, step=0.02, budget=0.2)
    assert counts == [(2 * (r + 1) * size + 50) // 100 for r in range(10)]
    assert counts[-1] == (20 * size + 50) // 100


def test_the_papers_numbers_of_train_images():
    assert targets(82_783, init=0.02, step=0.02, budget=0.2)[:2] == [1656, 3311]
    assert targets(123_287, init=0.02, step=0.02, budget=0.2)[-1] == 24_657


def test_a_budget_between_two_steps_is_the_last_round():
    assert targets(100, init=0.1, step=0.2, budget=0.4) == [10, 30, 40]


@pytest.mark.parametrize("kwargs", [dict(init=0), dict(step=0), dict(init=0.5, budget=0.2), dict(step=0.001)])
def test_shares_that_buy_nothing_are_refused(kwargs):
    with pytest.raises(ValueError, match="init="):
        targets(100, **{**dict(init=0.1, step=0.1, budget=0.5), **kwargs})


def test_costs_count_images_questions_answers_and_seconds():
    records = [{"answers": ["a"] * 10}, {"answers": ["b"]}]
    assert Cost().of(records, images=3) == 3
    assert Cost(image=0, question=2, answer=0.5, second=0.1).of(records, images=3, seconds=10) == 4 + 5.5 + 1


def test_each_reason_to_stop():
    flat = [50.0, 50.1, 50.15, 50.2]
    assert Stop().reason(flat, cost=1e9, seconds=1e9) is None
    assert "cost" in Stop(cost=10).reason(flat, cost=10, seconds=0)
    assert "accuracy" in Stop(accuracy=50.2).reason(flat, cost=0, seconds=0)
    assert "each added less" in Stop(plateau=0.2).reason(flat, cost=0, seconds=0)
    assert Stop(plateau=0.2).reason(flat[:3], cost=0, seconds=0) is None  # two gains only
    assert "over" in Stop(seconds=5).reason(flat, cost=0, seconds=6)
