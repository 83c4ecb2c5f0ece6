"""What was picked: entropy, Gini, overlaps and correlations by hand."""

from __future__ import annotations

import numpy as np
import pytest
from fake_runs import FakeRun, study
from scipy import stats

from jaxvl.active.report import balance as ba
from jaxvl.active.report import picked as pi


def asked(question, answers, kind="other", image_id=1):
    return {"image_id": image_id, "question": question, "answers": answers, "answer_type": kind}


def test_entropy_is_one_for_equal_counts_and_less_for_others():
    assert ba.entropy([3, 3, 3]) == pytest.approx(1) and ba.entropy([5]) == 1 and ba.entropy([]) == 0
    assert ba.entropy([3, 1]) == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))


def test_gini_is_half_the_mean_difference_over_the_mean():
    n = np.array([5, 1, 0, 2])
    by_hand = np.abs(n[:, None] - n[None]).mean() / (2 * n.mean())
    assert ba.gini(n) == pytest.approx(by_hand, abs=1e-12)
    assert ba.gini([5, 1, 2], size=4) == pytest.approx(by_hand, abs=1e-12)
    assert ba.gini([2, 2]) == 0


def test_the_consensus_is_in_normal_form_and_ties_go_to_the_first():
    assert ba.consensus(["Two", "2", "three"]) == "2"
    assert ba.consensus(["dog", "cat"]) == "dog"


def test_answers_outside_the_list_are_counted_and_listed():
    records = [asked("a", ["yes"], "yes/no"), asked("b", ["zebra"]), asked("c", ["The dog"])]
    got = ba.answer_balance(records, ["yes", "dog"])
    assert got["outside"] == pytest.approx(1 / 3) and got["outside_answers"] == {"zebra": 1}
    assert got["overall"] == {"questions": 3, "distinct": 2, "entropy": pytest.approx(1), "gini": 0}
    assert got["other"]["distinct"] == 1 and got["other"]["gini"] == 0.5


def test_new_patterns_are_those_nobody_asked_before():
    records = [asked("Is it red?", ["yes"]), asked("is it RED", ["no"]), asked("Who?", ["he"])]
    got = ba.composition(records, seen={"who"})
    assert got["new_patterns"] == 1 and got["questions"] == 3 and got["per_image"] == 3


def test_rank_correlation_is_spearmans_with_ties():
    a, b = [1, 2, 2, 4, 5], [3, 1, 4, 4, 9]
    assert ba.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert np.isnan(ba.rank_correlation([1, 1], [1, 2]))


def test_jaccard():
    assert ba.jaccard({1, 2, 3}, {2, 3, 4}) == 0.5 and ba.jaccard([], []) == 1


def test_each_unselected_image_stands_with_its_nearest():
    rng = np.random.default_rng(0)
    picked, others = rng.normal(size=(5, 3)), rng.normal(size=(40, 3))
    nearest = ((others[:, None] - picked[None]) ** 2).sum(2).argmin(1)
    assert ba.stands_for(picked, others, block=7).tolist() == np.bincount(nearest, minlength=5).tolist()


def test_picks_are_what_each_round_added():
    run = FakeRun("m", 0, rounds=3)
    got = pi.picks_of(run)
    assert [len(x) for x in got.images] == [20, 20, 20]
    assert set.union(*got.images) == set(run.labelled(2))
    assert sum(got.rows[-1]["answers"]["overall"].values()) == 180  # counts are cumulative
    assert (
        sum(n for row in got.rows for n in row["counts"]["overall"].values()) == 180
    )  # those of a round are not
    by_type = [sum(c.values()) for kind, c in got.rows[-1]["answers"].items() if kind != "overall"]
    assert sum(by_type) == 180 and len(by_type) > 1


def test_spread_of_answers_is_by_type_of_new_labels_and_of_all():
    def row(counts, answers):
        return {"counts": counts, "answers": answers}

    first = {"overall": {"yes": 2, "dog": 1}, "yes/no": {"yes": 2}, "other": {"dog": 1}}
    new = {"overall": {"no": 3, "dog": 1}, "yes/no": {"no": 3}, "other": {"dog": 1}}
    total = {"overall": {"yes": 2, "dog": 2, "no": 3}, "yes/no": {"yes": 2, "no": 3}, "other": {"dog": 2}}
    got = pi.spread_rows([pi.Picked("m", 0, [set(), set()], [row(first, first), row(new, total)])])
    assert [r[:2] for r in got] == [["m", "overall"], ["m", "other"], ["m", "yes/no"]]
    overall, other, yes = (r[2:] for r in got)
    want = [ba.entropy([3, 1]), ba.gini([3, 1, 0]), ba.entropy([2, 2, 3]), ba.gini([2, 2, 3])]
    np.testing.assert_allclose(overall, want)
    assert other == [1, 0, 1, 0]  # one answer, and it is the only one that anybody labelled
    np.testing.assert_allclose(yes, [1, ba.gini([3, 0]), ba.entropy([2, 3]), ba.gini([2, 3])])


def test_methods_share_their_initial_images_but_no_more():
    found = [pi.picks_of(r) for r in study(methods={"a": 0, "b": 0}, repeats=2, rounds=4)]
    assert found[0].images[0] == found[2].images[0]
    assert 0 <= pi.overlap(found, "a", "b") < 0.2
    assert pi.overlap(found[:1], "a", "a") is None


def test_overlap_of_random_picks_is_near_chance():
    found = [
        pi.picks_of(r) for r in study(methods={"a": 0, "b": 0}, repeats=20, rounds=5, size=200, per_image=1)
    ]
    assert pi.overlap(found, "a", "b") == pytest.approx(pi.chance(found, 200), abs=0.012)


def test_matches_and_scores_are_correlated_over_the_pool(tmp_path):
    run = FakeRun("ccrl", 0, rounds=2, root=tmp_path, reasons=True)
    ((method, everywhere, chosen, correlation),) = pi.match_counts([run])
    assert method == "ccrl" and chosen > everywhere and 0.9 < correlation < 1


def test_models_that_were_kept_are_no_run_time():
    run = FakeRun("ccrl", 0, rounds=2, reasons=True)
    assert pi.seconds([run])["ccrl"]["task model"] == 120  # that of round 0 was kept
    run.events = lambda number: {"TRAINED": type("E", (), {"data": {"seconds": 1.0, "model": {"hit": True}}})}
    assert pi.seconds([run]) == {"ccrl": {}}
