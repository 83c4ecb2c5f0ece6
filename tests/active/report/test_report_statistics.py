"""Areas, intervals, savings and forecasts against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runs import FakeRun, study

from jaxvl.active.report import statistics as st
from jaxvl.active.report.forecast import fit, forecast, next_steps


def line(x, y, repeat=0, method="m"):
    x = np.asarray(x, float)
    n = (1000 * x).astype(int)
    return st.Curve(method, repeat, np.arange(len(x)), x, n, n, n, x, {"overall": np.asarray(y, float)})


def test_the_interval_of_five_repeats_uses_2_776():
    one = st.estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776 * np.std([1, 2, 3, 4, 5], ddof=1) / np.sqrt(5)
    assert one.mean == 3 and one.n == 5
    assert one.low == pytest.approx(3 - half, abs=1e-3) and one.high == pytest.approx(3 + half, abs=1e-3)


def test_one_repeat_has_no_interval():
    assert st.estimate([7.0]) == (7.0, None, None, 1)
    assert st.estimate([7.0]).text() == "7.00"


def test_the_area_is_the_formula_of_the_specification():
    t, acc = np.array([0.02, 0.04, 0.10]), np.array([50.0, 54.0, 60.0])
    by_hand = (0.5 * (50 + 54) * 0.02 + 0.5 * (54 + 60) * 0.06) / 0.08
    assert st.aulc(t, acc) == pytest.approx(by_hand, abs=1e-12)


def test_a_part_of_the_area_interpolates_its_ends():
    assert st.aulc(np.array([0.0, 1.0, 2.0]), np.array([0.0, 10.0, 0.0]), st.Span(0.5, 1.5)) == pytest.approx(
        7.5
    )


def test_an_area_outside_the_curve_is_an_error():
    with pytest.raises(ValueError, match="from 0 to 1 has no area from 0 to 2"):
        st.aulc(np.array([0.0, 1.0]), np.array([1.0, 2.0]), st.Span(0.0, 2.0))


def test_areas_are_over_what_all_runs_have_reached():
    curves = {"a": {0: line([0.1, 0.2, 0.3], [0, 1, 99])}, "b": {0: line([0.1, 0.2], [0, 1], method="b")}}
    assert st.areas(curves) == {"a": {0: pytest.approx(0.5)}, "b": {0: pytest.approx(0.5)}}


def test_areas_over_questions_begin_where_the_last_run_begins():
    curves = {"a": {0: line([0.1, 0.2, 0.3], [0, 1, 2])}, "b": {0: line([0.2, 0.3], [5, 7], method="b")}}
    assert st.span(curves, "questions") == (200, 300)
    assert st.areas(curves, axis="questions") == {"a": {0: pytest.approx(1.5)}, "b": {0: pytest.approx(6)}}


def test_a_round_whose_images_had_no_questions_ends_no_report():
    curves = {
        "a": {0: line([0.1, 0.2, 0.2, 0.3], [0, 50, 1, 2])},
        "b": {0: line([0.1, 0.3], [0, 2], method="b")},
    }
    assert st.areas(curves, axis="questions") == {"a": {0: pytest.approx(1)}, "b": {0: pytest.approx(1)}}


def test_saving_is_read_off_between_the_rounds():
    ours, random = line([0.1, 0.2, 0.3], [50, 60, 70]), line([0.1, 0.2, 0.3], [50, 55, 60])
    assert st.saving(ours, random) == pytest.approx(1 - 0.2 / 0.3)
    assert st.saving(line([0.1, 0.2], [50, 65]), random) == pytest.approx(1 - (0.1 + 0.1 * 10 / 15) / 0.3)


def test_saving_is_not_extrapolated():
    assert st.saving(line([0.1, 0.3], [50, 59]), line([0.1, 0.3], [50, 60])) is None


def test_the_gain_is_to_the_best_other_of_each_round():
    curves = {
        "a": {0: line([0.1, 0.2, 0.3], [50, 60, 70])},
        "b": {0: line([0.1, 0.2, 0.3], [50, 58, 60])},
        "c": {0: line([0.1, 0.2, 0.3], [50, 50, 69])},
    }
    assert st.average_gain(curves, "a") == pytest.approx((2 + 1) / 2)


def test_a_band_counts_the_repeats_of_each_round():
    band = st.band({0: line([0.1, 0.2], [50, 60]), 1: line([0.1], [52])})
    assert band.mean.tolist() == [51, 60] and band.n.tolist() == [2, 1]
    assert np.isfinite(band.low[0]) and np.isnan(band.low[1])


def test_runs_become_curves_and_the_reference_comes_first():
    found = st.curves(study(methods={"ccrl": 1, "random": 0}, repeats=2, rounds=3))
    assert list(found) == ["random", "ccrl"] and list(found["ccrl"]) == [0, 1]
    assert found["ccrl"][0].fraction.tolist() == [0.04, 0.08, 0.12]
    assert found["ccrl"][0].questions.tolist() == [60, 120, 180]


def test_a_metric_that_is_missing_is_named():
    run = FakeRun("ccrl", 1, rounds=2)
    del run.rounds[1]["n_qas"]
    with pytest.raises(ValueError, match="ccrl, repeat 1, round 1: its metrics have no 'n_qas'"):
        st.curves([run])


def test_the_same_run_twice_is_an_error():
    with pytest.raises(ValueError, match="two runs of it"):
        st.curves([FakeRun("ccrl", 1), FakeRun("ccrl", 1)])


def test_a_power_curve_is_found_again():
    x = np.arange(1, 9) * 0.02
    power = fit(x, 70 - 25 * (x / 0.02) ** -0.5)
    assert power(0.5) == pytest.approx(70 - 25 * 25**-0.5, abs=0.1)


def test_a_falling_curve_is_forecast_by_its_mean():
    assert fit(np.array([1.0, 2, 3, 4]), np.array([60.0, 58, 56, 54]))(9.0) == pytest.approx(57)


def test_a_forecast_needs_four_rounds_and_stops_at_the_pool():
    short, long = line([0.1, 0.2, 0.3], [50, 55, 57]), line([0.2, 0.4, 0.6, 0.8], [50, 55, 57, 58])
    assert forecast({0: short}, steps=[0.4]) is None
    assert next_steps([long]) == [pytest.approx(1.0)]
    assert 58 < forecast({0: long}, steps=[1.0])[0].mean < 60
