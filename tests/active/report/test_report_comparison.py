"""Tests and resampling: known p values, corrections, and that a difference which is there is found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fake_runs import study
from scipy import stats

from jaxvl.active.report import comparison as co
from jaxvl.active.report.statistics import curves

FIVE = [0.8, 1.1, 0.9, 1.4, 0.7]


def test_the_paired_t_test_is_scipys():
    assert co.t_test(FIVE) == pytest.approx(stats.ttest_1samp(FIVE, 0).pvalue, rel=1e-9)


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.0, 1.0]])
def test_without_spread_there_is_no_t_test(values):
    assert co.t_test(values) is None


def test_wilcoxon_is_scipys_and_five_cannot_go_below_0_0625():
    mixed = [0.8, -0.3, 0.9, 1.4, -0.1, 0.5, 2.0]
    assert co.wilcoxon(mixed) == pytest.approx(stats.wilcoxon(mixed, mode="exact").pvalue, abs=1e-12)
    assert co.wilcoxon(FIVE) == 0.0625


def test_equal_differences_share_their_rank():
    d = np.array([1.0, 1, 1, 1, -2, 3, -1])
    ranks = stats.rankdata(np.abs(d))
    null = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s)
        for signs in itertools.product([0, 1], repeat=7)
    ]
    seen = abs(ranks[d > 0].sum() - ranks.sum() / 2)
    assert co.wilcoxon(d) == np.mean([abs(w - ranks.sum() / 2) >= seen for w in null])


def test_wilcoxon_of_many_needs_a_generator():
    many = list(np.linspace(0.1, 2, 20))
    with pytest.raises(ValueError, match="give a generator"):
        co.wilcoxon(many)
    assert co.wilcoxon(many, np.random.default_rng(0)) < 0.001


def test_signs_are_enumerated():
    d = [1.0, 2.0, -0.5]
    sums = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True)))
        for signs in itertools.product([1, -1], repeat=3)
    ]
    assert co.sign_test(d, np.random.default_rng(0)) == np.mean([s >= 2.5 for s in sums])


def test_holm_steps_down_and_never_falls():
    got = co.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
    assert got == {"a": pytest.approx(0.03), "c": pytest.approx(0.06), "b": pytest.approx(0.06), "d": None}


def test_a_real_gain_is_called_better_and_none_is_not():
    found = curves(study(methods={"random": 0, "good": 1.5, "same": 0.0, "bad": -1.5}))
    verdicts = {m: p.verdict for m, p in co.against(found).items()}
    assert verdicts == {"good": "better", "same": "no difference shown", "bad": "worse"}


def test_one_repeat_gets_no_verdict_however_large_the_gain():
    found = curves(study(methods={"random": 0, "good": 20}, repeats=1))
    assert co.against(found)["good"].verdict == "one repeat: no verdict"


def test_a_method_without_common_repeats_is_not_compared():
    runs = [
        r for r in study(methods={"random": 0, "good": 1}, repeats=2) if (r.method, r.repeat) != ("good", 0)
    ]
    found = curves([r for r in runs if (r.method, r.repeat) != ("random", 1)])
    assert co.against(found) == {}


def test_penalties_say_who_beats_whom():
    names, share = co.penalties(curves(study(methods={"random": 0, "good": 3}, noise=0.2)))
    assert names == ["random", "good"]
    assert share[1, 0] == 1 and share[0, 1] == 0 and np.isnan(share[0, 0])


def test_rounds_are_paired_within_a_repeat_and_the_first_does_not_count():
    found = curves(study(methods={"random": 0, "good": 3}, repeats=2, rounds=4))
    assert len(co.round_differences(found, "good", "random")) == 2 * 3


def test_the_bootstrap_covers_the_difference_that_was_seen(tmp_path):
    runs = study(tmp_path, methods={"random": 0, "good": 30}, repeats=2, rounds=2)
    got = co.bootstrap(runs, rng=np.random.default_rng(0), resamples=300)
    seen = [100 * np.load(r.folder(1) / "evaluation.npz")["value"].mean(dtype=np.float64) for r in runs]
    one = got.difference["good"]
    assert (got.round, got.images) == (1, 200)
    assert one.mean == pytest.approx(np.mean(seen[2:]) - np.mean(seen[:2]), abs=1e-9)
    assert 0 < one.low < one.mean < one.high


def test_the_bootstrap_resamples_images_with_all_their_questions():
    sums, counts = np.array([[0.0, 9.0]]), np.array([1, 9])
    drawn = co._resample(sums, counts, 400, np.random.default_rng(0))[:, 0]
    assert set(drawn.round(6)) == {0.0, 90.0, 100.0}  # the first twice, one each, the second twice


def test_other_evaluation_questions_are_refused(tmp_path):
    runs = study(tmp_path, methods={"random": 0, "good": 1}, repeats=1, rounds=1)
    path = runs[1].folder(0) / "evaluation.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "question_id": arrays["question_id"] + 1})
    with pytest.raises(ValueError, match="good, repeat 0: it was scored on other questions"):
        co.bootstrap(runs, rng=np.random.default_rng(0), resamples=2)


def test_without_question_scores_there_is_no_bootstrap():
    assert (
        co.bootstrap(study(methods={"random": 0, "good": 1}, repeats=1), rng=np.random.default_rng(0)) is None
    )
