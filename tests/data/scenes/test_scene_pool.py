"""Proves that pools of the world have the skew and the unlearnable questions that were asked for."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxvl.data.scenes import answers
from jaxvl.data.scenes.pool import ScenePool, fits
from jaxvl.data.scenes.questions import NUMBER, OTHER, YES_NO
from jaxvl.data.scenes.world import COLOURS


@functools.cache
def rows(images: int = 250, **options) -> list[dict]:
    pool = ScenePool("train", images=images, **options)
    return [pool.annotation(i) for i in range(len(pool))]


def entropy(records: list[dict], kind: str) -> float:
    counts = np.array(list(Counter(r["answer"] for r in records if r["answer_type"] == kind).values()))
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def test_every_image_has_its_questions_all_different():
    by_image = defaultdict(list)
    for row in rows(questions=6, unlearnable=0.5, skew=0.5):
        by_image[row["image_id"]].append(row)
    assert sorted(by_image) == list(range(250))
    assert all(len({r["question"] for r in found}) == 6 for found in by_image.values())
    ids = [r["question_id"] for found in by_image.values() for r in found]
    assert len(set(ids)) == 1500 and {len(r["answers"]) for r in rows()} == {10}


def test_an_example_depends_on_its_index_alone():
    small, large = (ScenePool("val", images=n, skew=0.5, unlearnable=0.3) for n in (10, 40))
    for i in (39, 0, 17, 18, 0):
        alone = ScenePool("val", images=10, skew=0.5, unlearnable=0.3)
        assert small.annotation(i) == large.annotation(i) == alone.annotation(i)
        np.testing.assert_array_equal(small.image(i), large.image(i))
    small.annotation(0).clear()
    assert small.annotation(0) == large.annotation(0)
    assert small.annotation(0) != ScenePool("val", images=10, skew=0.5, unlearnable=0.3, seed=1).annotation(0)


@pytest.mark.parametrize("kind", [YES_NO, NUMBER, OTHER])
def test_a_skew_makes_answers_uneven_and_leaves_the_kinds_alone(kind):
    even, half, strong = rows(), rows(skew=0.5), rows(skew=0.9)
    assert entropy(even, kind) > entropy(half, kind) + 0.01 > entropy(strong, kind) + 0.1
    shares = [np.mean([r["answer_type"] == kind for r in found]) for found in (even, half, strong)]
    assert max(shares) - min(shares) < 0.05


def test_a_pool_of_what_is_shown_asks_of_nothing_else_and_both_answers_come():
    pool = ScenePool("train", images=250, shown=True, unlearnable=0.1, objects=(1, 3), hard=0.0)
    found = [(pool.annotation(i), pool.scene(i)) for i in range(len(pool))]
    assert all(fits(row["question"], scene) for row, scene in found)
    yes = np.mean([r["answer"] == "yes" for r, _ in found if r["answer_type"] == YES_NO])
    assert 0.4 < yes < 0.6
    kinds = Counter(r["answer_type"] for r, _ in found)
    assert min(kinds[k] for k in (YES_NO, NUMBER, OTHER)) > 100
    # a question about another picture mostly is about something that is not there; in the balanced world it may be
    others = np.mean([fits(row["question"], found[(i + 40) % 1000][1]) for i, (row, _) in enumerate(found)])
    assert others < 0.35
    assert (
        np.mean([fits(r["question"], pool.scene(i)) for i, r in enumerate(rows(objects=(1, 3), hard=0.0))])
        < 0.95
    )


def test_a_scene_in_which_no_hard_question_tells_anything_is_asked_an_easy_one():
    """Of two equal things only the outermost can be asked, and that names nothing."""
    pool = ScenePool("train", images=60, shown=True, hard=1.0, objects=(2, 2))
    assert all(fits(pool.annotation(i)["question"], pool.scene(i)) for i in range(len(pool)))


def test_a_question_fits_where_all_that_it_names_is_shown():
    s = ScenePool("train", images=1, objects=(1, 1)).scene(0)
    (thing,) = s.things
    other = next(c for c in COLOURS if c != thing.colour)
    assert fits(f"what colour is the {thing.shape}?", s) and fits("how many things are there?", s)
    assert fits(f"how many {thing.colour} things are there?", s)
    assert not fits(f"is the {other} thing a {thing.shape}?", s) and not fits(f"how many {other} things?", s)


def test_the_skew_is_as_large_as_it_says():
    yes = [r["answer"] == "yes" for r in rows(skew=0.9) if r["answer_type"] == YES_NO]
    assert 0.82 < np.mean(yes) < 0.92
    even = [r["answer"] == "yes" for r in rows() if r["answer_type"] == YES_NO]
    assert 0.45 < np.mean(even) < 0.58


def test_that_share_of_the_questions_cannot_be_learnt():
    found = rows(unlearnable=0.3)
    secret = [r for r in found if r["question_type"] == "unlearnable"]
    assert 0.26 < len(secret) / len(found) < 0.34
    assert {r["answer_type"] for r in secret} == {YES_NO, NUMBER, OTHER}
    assert {r["level"] for r in secret} == {"unlearnable"}
    assert all(set(r["answers"]) <= set(answers()) for r in secret)
    assert all(r["answers"].count(r["answer"]) >= 6 for r in secret)
    assert not [r for r in rows() if r["question_type"] == "unlearnable"]


def test_answers_nobody_can_see_are_independent_of_the_picture():
    asked = [r for r in rows(images=800, unlearnable=1.0) if "last year" in r["question"]]
    pool = ScenePool("train", images=800)
    shown = [r["answer"] in {t.colour for t in pool._scene(r["image_id"]).things} for r in asked]
    many = [len({t.colour for t in pool._scene(r["image_id"]).things}) / 8 for r in asked]
    assert len(asked) > 300 and abs(np.mean(shown) - np.mean(many)) < 0.06


@pytest.mark.parametrize(
    "options",
    [{"images": 0}, {"skew": 1.0}, {"skew": -0.1}, {"unlearnable": 1.2}, {"questions": 17}, {"questions": 0}],
)
def test_impossible_pools_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options)).replace("questions", "questions|images")):
        ScenePool("train", **{"images": 2, **options})
