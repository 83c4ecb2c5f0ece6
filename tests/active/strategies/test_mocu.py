"""MOCU: its look-ahead against enumeration, its signs, and that blocks and short cuts change nothing."""

from __future__ import annotations

import numpy as np
import pytest
from strategy_fakes import J, Predict, labelled, pool

from jaxvl.active.strategies import mocu
from jaxvl.active.strategies.mocu import FORMS, MOCU, Objective, cut, lookahead

C, T = 5, 3


def members(n, seed=0, c=C, t=T):
    return np.random.default_rng(seed).dirichlet(np.full(c, 0.5), size=(n, t))


def peak(p, sharp):
    return p.max() if sharp is None else np.log(np.exp(sharp * p).sum()) / sharp


def value(held, pi, kind, sharp=None):
    """The mean cost, pair by pair."""
    total = 0.0
    for pair in held:
        k = sum(pi[s] * peak(pair[s], sharp) for s in range(len(pi))) - peak(pi @ pair, sharp)
        total += (1 - k) * k if kind == "weighted" else k
    return total / len(held)


def enumerate_answers(pair, held, kind, sharp=None):
    pi = np.full(T, 1 / T)
    gain = value(held, pi, kind, sharp)
    for y in range(C):
        p_y = pi @ pair[:, y]
        gain -= p_y * value(held, pi * pair[:, y] / p_y, kind, sharp)
    return gain


@pytest.mark.parametrize("kind", mocu.OBJECTIVES)
def test_lookahead_is_what_enumeration_of_all_answers_gives(kind):
    held, candidates = members(6), members(4, seed=1)
    sharp = 7.0 if kind == "soft" else None
    found = lookahead(candidates, Objective(held, kind=kind, sharpness=7.0))
    want = [enumerate_answers(pair, held, kind, sharp) for pair in candidates]
    np.testing.assert_allclose(found, want, atol=1e-9)


@pytest.mark.parametrize("kind", ["plain", "soft"])
@pytest.mark.parametrize("sharpness", [1.0, 10.0])
def test_knowing_an_answer_never_hurts_objectives_that_are_concave(kind, sharpness):
    objective = Objective(members(40, seed=2), kept=3, kind=kind, sharpness=sharpness)
    gain = lookahead(members(500, seed=3), objective)
    assert gain.min() >= -1e-9 and gain.max() > 1e-4


def test_cost_is_zero_where_members_agree_and_positive_where_their_best_answers_differ():
    agree = np.repeat(members(1)[:, :1], T, axis=1)
    differ = np.eye(C)[None, :T]
    cost = Objective(np.concatenate([agree, differ])).cost(np.full((1, T), 1 / T))
    np.testing.assert_allclose(cost, [[0, 1 - 1 / T]], atol=1e-12)
    assert Objective(members(50)).cost(np.random.default_rng(0).dirichlet(np.ones(T), 20)).min() >= 0


def test_an_answer_that_all_members_expect_alike_teaches_nothing():
    same = np.repeat(members(1, seed=4)[:, :1], T, axis=1)
    np.testing.assert_allclose(lookahead(same, Objective(members(6))), 0, atol=1e-12)


def test_few_answers_tell_less_and_the_rest_leaves_the_members_as_they_are():
    held, pair = members(6), members(1, seed=5)
    whole, two = (lookahead(pair, Objective(held, kind="plain"), answers=n)[0] for n in (None, 2))
    mean = pair[0].mean(0)
    kept = np.argsort(-mean)[:2]
    pi = np.full(T, 1 / T)
    want = sum(
        mean[y] * (value(held, pi, "plain") - value(held, pair[0][:, y] / (T * mean[y]), "plain"))
        for y in kept
    )
    assert two == pytest.approx(want, abs=1e-12) and two != pytest.approx(whole, abs=1e-6)


def test_pairs_keep_the_likeliest_answers_of_every_member():
    p = members(8, seed=6, c=30)
    found, counted = cut(p, 4)
    assert found.shape[-1] < 13 and not counted.all()
    np.testing.assert_allclose(found.max(-1), p.max(-1))
    for pair, row, mask in zip(p, found, counted, strict=True):
        union = sorted({a for member in pair for a in np.argsort(-member)[:4]})
        np.testing.assert_array_equal(row[:, mask], pair[:, union])
        assert mask.sum() == len(union) and (row[:, ~mask] == 0).all()


def test_padding_of_kept_answers_does_not_count_in_a_smooth_maximum():
    one, more = members(1, seed=7, c=30), members(6, seed=8, c=30)
    weights = np.array([[0.2, 0.3, 0.5]])
    alone = Objective(one, kept=2, kind="soft").cost(weights)
    among = Objective(np.concatenate([one, more]), kept=2, kind="soft").cost(weights)
    np.testing.assert_allclose(among[:, :1], alone, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_blocks_change_nothing(form, monkeypatch):
    def run():
        strategy = MOCU(form, pairs=7, answers=2, kept=3)
        return strategy(Predict(), pool(), labelled(), 6, np.random.default_rng(0))

    whole = run()
    monkeypatch.setattr(mocu, "IMAGES", 2)
    monkeypatch.setattr(mocu, "NUMBERS", 20)
    blocks = run()
    np.testing.assert_array_equal(whole.rows, blocks.rows)
    np.testing.assert_allclose(whole.score, blocks.score, atol=1e-15)


def test_only_the_best_by_the_pointwise_score_are_looked_at():
    predict = Predict()
    found = MOCU("lookahead", candidates=2, pairs=4)(predict, pool(), labelled(), 3, np.random.default_rng(0))
    looked = np.flatnonzero(np.isfinite(found.score))
    assert len(looked) == 6
    assert found.notes["pointwise"][looked].min() > np.delete(found.notes["pointwise"], looked).max()
    assert [n for name, n in predict.calls if name == "task/members"] == [2, 6]  # 2 images = 4 pairs and more
    assert set(found.rows.tolist()) <= set(looked.tolist())


@pytest.mark.parametrize(("form", "kind", "sharp"), [("lookahead", "weighted", None), ("soft", "soft", 10.0)])
@pytest.mark.parametrize("pairs", [J, 1])
def test_an_images_gain_is_the_mean_over_what_is_asked_of_it(form, kind, sharp, pairs):
    p, images = members(J, seed=9), pool(1)
    predict = Predict(task__members={int(images.ids[0]): p})
    found = MOCU(form, answers=C, pairs=pairs)(predict, images, labelled(), 1, np.random.default_rng(0))
    want = np.mean([enumerate_answers(q, p[:pairs], kind, sharp) for q in p])
    assert found.score[0] == pytest.approx(want, abs=1e-9)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="mocu.form='exact'"):
        MOCU("exact")
    with pytest.raises(ValueError, match="mocu.pairs=0"):
        MOCU(pairs=0)
