"""Spreading a choice over the best candidates: by distance, by types of questions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from strategy_fakes import Predict, labelled, pool

from jaxvl.active.strategies.ccrl import CCRL
from jaxvl.active.strategies.diversity import chosen

ROWS = np.array([40, 7, 23, 11, 5, 31])


def test_k_center_starts_at_the_best_and_goes_to_the_farthest():
    x = np.array([[0.0], [0.1], [5.0], [-3.0], [5.0], [1.2]])
    assert chosen("kcenter", ROWS, 1, x).tolist() == [40]
    # 5 is the farthest from 0 (of two equal ones the better), then -3, then 1.2
    assert chosen("kcenter", ROWS, 4, x).tolist() == [40, 23, 11, 31]


def test_k_center_takes_copies_only_when_nothing_else_is_left():
    x = np.array([[0.0], [0.0], [1.0], [0.0], [1.0], [0.0]])
    assert chosen("kcenter", ROWS, 6, x).tolist() == [40, 23, 7, 11, 5, 31]


def test_k_center_equals_a_naive_search():
    x = np.random.default_rng(0).normal(size=(30, 4)) + 100
    want = [0]
    while len(want) < 9:
        gap = np.linalg.norm(x[:, None] - x[want], axis=-1).min(1)
        want.append(int(gap.argmax()))
    assert chosen("kcenter", np.arange(30), 9, x).tolist() == want


@pytest.mark.parametrize("k", range(1, 9))
def test_quotas_are_even_filled_by_score_and_those_of_fewer_come_first(k):
    kinds = np.array([0, 0, 0, 2, 0, 2, 0, 0])  # type 2 has two candidates only: the rest are of type 0
    assert chosen("type_quota", np.arange(8), k, kinds).tolist() == [0, 3, 1, 5, 2, 4, 6, 7][:k]


def test_too_few_candidates_and_unknown_ways_are_refused():
    with pytest.raises(ValueError, match="7 images of 6"):
        chosen("kcenter", ROWS, 7, np.zeros((6, 1)))
    for options in (dict(diversify="k-center"), dict(pool_factor=0)):
        with pytest.raises(ValueError, match=next(iter(options))):
            CCRL(**options)


class Scores(Predict):
    """What the engine says of images whose contributors are given, and their vectors."""

    def __init__(self, score, patterns, vectors):
        super().__init__()
        self.score, self.patterns, self.vectors, self.budget = score, patterns, vectors, None

    def __call__(self, name, source):
        if name == "vqme/image_state":
            return np.stack([self.vectors[int(i)] for i in source.ids])
        self.budget = source.budget
        ones = np.where(self.patterns >= 0, 0.5, -1.0)
        return {"score": self.score, "top_pattern": self.patterns, "top_uncertainty": ones, "top_rate": ones}


def asked(patterns, score, **options):
    images = pool(len(score))
    images.bank = SimpleNamespace(text=np.ones((4, 3), int), kinds=np.array([0, 1, 2, 2]))
    near = {int(i): np.array([float(n)]) for n, i in enumerate(images.ids)}
    predict = Scores(np.array(score, float), np.array(patterns), near)
    return CCRL(**options)(predict, images, labelled(), 2, None), predict


def test_ccrl_looks_at_the_best_few_and_the_pruning_knows():
    score = [9, 8, 7, 6, 5, np.nan]
    found, predict = asked([[0, -1]] * 6, score, diversify="kcenter", pool_factor=2)
    assert found.rows.tolist() == [0, 3] and predict.budget == 4  # 4 and 5 are not among the best four
    found, predict = asked([[0, -1]] * 6, score)
    assert found.rows.tolist() == [0, 1] and predict.budget == 2


def test_the_type_of_an_image_is_that_of_most_of_its_contributors_value():
    patterns = [[0, -1, -1], [0, 2, 3], [1, 1, 0], [0, -1, -1], [0, -1, -1], [0, -1, -1]]
    found, _ = asked(patterns, [1, 2, 9, 8, 7, 3], diversify="type_quota", pool_factor=2)
    assert found.rows.tolist() == [2, 3]  # types 1 and 0
    found, _ = asked(patterns, [1, 9, 2, 8, 7, 6], diversify="type_quota", pool_factor=1)
    assert found.rows.tolist() == [1, 3]
    found, _ = asked(patterns, [1, 6, 2, 9, 8, 7], diversify="type_quota", pool_factor=2)
    assert found.rows.tolist() == [3, 1]  # the two patterns of type 2 outweigh the first one


def test_spreading_by_distance_needs_the_matcher_also_where_all_match():
    assert CCRL(match="all").needs == ("vaue",)
    assert CCRL(match="all", diversify="kcenter").needs == ("vqme", "vaue")
