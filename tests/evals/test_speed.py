"""Speed: what is timed, that compilation is not, and that stored states replace pixels and words."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.evals import EVALS
from jaxvl.evals.speed import Held


class Clock:
    """Seconds that pass only when a predictor spends them."""

    now = 0.0

    def __call__(self):
        return self.now


def predictor(clock, calls):
    def predict(name, source):
        keys = set(source[0])
        calls.append((name, frozenset(keys)))
        compiling = 100.0 if calls.count(calls[-1]) == 1 else 0.0
        clock.now += compiling + len(source) * (0.006 if "image" in keys else 0.002)
        return np.zeros((len(source), 2, 3))

    return predict


ROWS = Held([{"image": np.ones(4), "text": np.arange(3), "text_mask": np.ones(3, bool)}] * 5)


def test_times_are_per_pair_without_compilation():
    clock, calls = Clock(), []
    found = EVALS["speed"](examples=4, cached=True, clock=clock)(predictor(clock, calls), ROWS)
    expected = {"ms_per_pair": 6.0, "ms_per_pair/cached": 2.0, "ratio": 3.0}
    assert found == {name: pytest.approx(value) for name, value in expected.items()}
    assert ("answer", frozenset({"image_states", "text_states", "text_mask"})) in calls


def test_a_second_image_has_stored_states_too():
    clock, calls = Clock(), []
    rows = Held([{**row, "image2": np.ones(4)} for row in ROWS.rows])
    EVALS["speed"](cached=True, clock=clock)(predictor(clock, calls), rows)
    assert ("answer", frozenset({"image_states", "image2_states", "text_states", "text_mask"})) in calls


def test_without_cached_nothing_but_answers_is_asked_for():
    clock, calls = Clock(), []
    found = EVALS["speed"](clock=clock)(predictor(clock, calls), ROWS)
    assert found == {"ms_per_pair": pytest.approx(6.0)} and {name for name, _ in calls} == {"answer"}


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds=0"):
        EVALS["speed"](rounds=0)
