"""What is said of a choice: what images stand for, how scores are spread over the pool, which questions contributed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_scoring import RATES, C, N, Q, engine, params, request

from jaxvl.active.report import balance
from jaxvl.active.selecting import arrays_of, contributors, score_summary, selection_rows, standing
from jaxvl.active.strategies.base import Selection


class Pool:
    ids = np.arange(50) + 100


@pytest.mark.parametrize("block", [7, 50])
def test_each_unselected_image_counts_for_its_nearest_selected_one(block):
    vectors = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    rows = np.array([3, 17, 40])
    found = standing(lambda name, pool: vectors, "v", Pool(), rows, block=block)
    distance = np.linalg.norm(vectors[:, None] - vectors[rows], axis=-1)
    nearest = np.delete(distance.argmin(1), rows)
    assert found.tolist() == np.bincount(nearest, minlength=3).tolist() and found.sum() == 47


def test_vectors_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="v is not finite for 50 of 50 images, e.g. image 100"):
        standing(lambda name, pool: np.full((50, 2), np.nan), "v", Pool(), np.array([0]))


def test_images_of_the_reserve_stand_for_none():
    scores = {"ids": Pool.ids, "rows": np.array([5, 6]), "score": np.zeros(0), "stands_for": np.array([48])}
    first, second = selection_rows(scores, 1, None, [])
    assert first["stands_for"] == 48 and second["reserve"] and "stands_for" not in second


def test_what_is_said_of_scores_is_said_of_the_pool_also_where_most_of_it_is_pruned(monkeypatch):
    """Images with many matches alone would tell less of how far the score is a count."""
    monkeypatch.setattr(balance, "SAMPLE", 12)
    wanted = request(budget=1, prune="exact", rates=RATES**0.2)
    pruned, full = (engine(1, 7)(params(), w) for w in (wanted, replace(wanted, prune=None)))
    assert np.isnan(pruned["score"]).any() and not np.isnan(full["score"]).any()
    some = balance.representative(full["n_match"])
    np.testing.assert_allclose(pruned["score"][some], full["score"][some], rtol=1e-6)
    for found, rows in ((pruned, some), (full, np.arange(N))):
        said = score_summary(
            Selection(np.arange(1), found["score"], {k: found[k] for k in ("n_match", "sum_f")})
        )
        score, count = full["score"][rows], full["n_match"][rows]
        assert said["images"] == len(rows) and said["mean"] == pytest.approx(score.mean(), rel=1e-6)
        assert said["spearman_n_match"] == pytest.approx(balance.rank_correlation(score, count), abs=1e-9)
        assert said["mean_f"] == pytest.approx(full["sum_f"][rows].sum() / count.sum(), rel=1e-6)


def test_no_guess_and_no_match_is_shown_that_nobody_was_asked_for():
    """`count_only` has no answer model, `match_all` no matcher."""
    weights = params()
    bank = SimpleNamespace(patterns=[SimpleNamespace(id=f"{q}", question=f"q{q}", kind=0) for q in range(Q)])
    counts = dict(uncertainty="one", rates=np.ones((3, C)))
    for stage, asked, lacks in (
        ("vqme", counts, {"answer", "p_max"}),
        ("vaue", dict(match="all"), {"match"}),
    ):
        found = engine()({stage: weights[stage]}, request(**asked))
        notes = {k: v for k, v in found.items() if k != "score"}
        arrays = arrays_of(Selection(np.arange(N), found["score"], notes), np.arange(N))
        shown = [c for row in range(N) for c in contributors(arrays, row, bank, [f"a{i}" for i in range(C)])]
        every = {"pattern_id", "question", "type", "match", "uncertainty", "p_max", "rate", "answer"}
        assert shown and all(set(c) == every - lacks for c in shown)
