"""Choosing questions instead of images: every strategy does it or says why not, each row with its own question."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from strategy_fakes import TABLE, WORDS, C, Pool, Predict, Provider

from jaxvl.active.balance import Shares
from jaxvl.active.pool import Labelled
from jaxvl.active.strategies import STRATEGIES
from jaxvl.active.strategies.ccrl import CCRL
from jaxvl.active.strategies.coreset import Coreset
from jaxvl.active.strategies.vabal import own_questions

NAMES = {"cdal": "types have none in common", "sraal": "no question", "vaal": "no question"}
TEXTS = ("is there a cat", "how many dogs", "what is it")


class PairPredict(Predict):
    """Rows that depend on the item, not on its image alone; one question is asked of each."""

    def _row(self, name, source, i):
        if name in self.given:
            return self.given[name][int(source.ids[i])] if hasattr(source, "ids") else self.given[name][i]
        item = int(source.ids[i]) if hasattr(source, "ids") else int(source[i]["image_id"])
        row = TABLE[name](np.random.default_rng((zlib.crc32(name.encode()), item)))
        one = {"task/probs", "task/members", "task/states"}
        cut = lambda a: a[:1] if name in one else a  # noqa: E731
        return {k: cut(v) for k, v in row.items()} if isinstance(row, dict) else cut(row)


def pairs(n=12):
    """`n` questions of `n / 2` images."""
    ids = np.random.default_rng(0).permutation(1000)[:n]
    text = np.stack([WORDS.ids(TEXTS[i % 3]) for i in range(n)])
    out = Pool(
        Provider(), ids, image_ids=ids // 200, asked=text[:, None], asked_kinds=(np.arange(n) % 3)[:, None]
    )
    out.shares, out.bank = Shares.from_counts(np.arange(15.0).reshape(3, C)), None
    return out


def known(n=6):
    """Labelled questions, two an image, in another order than their records."""
    records = [
        dict(image=f"{i // 2}.jpg", image_id=1500 + i // 2, question=TEXTS[i % 3], question_id=1000 + (3 * i + 2) % 7,
             answers=["yes"] * 10, answer_type=("yes/no", "number", "other")[i % 3])
        for i in range(n)
    ]  # fmt: skip
    ids = np.array([r["question_id"] for r in records])[::-1]
    out = Labelled(
        Provider(), ids, image_ids=np.array([r["image_id"] for r in records])[::-1], records=records, words=WORDS,
        answers=["yes", "no", "1", "a dog", "a cat"], bank=None,
    )  # fmt: skip
    kinds = np.array([i % 3 for i in range(n)])[::-1]
    out.ask(np.stack([WORDS.ids(r["question"]) for r in records])[::-1][:, None], kinds[:, None])
    return out


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_chooses_distinct_questions_or_says_why_not(name):
    if name in NAMES:
        with pytest.raises(ValueError, match=f"{NAMES[name]}; it chooses images only"):
            STRATEGIES[name]().on("qa")
        return
    strategy = STRATEGIES[name]().on("qa")
    labelled, predict, rng = known(), PairPredict(), np.random.default_rng(0)
    for stage in strategy.needs:
        source = strategy.data(stage, predict, pairs(), labelled, rng)
        assert len(source) and source[len(source) - 1]
    found = strategy(predict, pairs(), labelled, 5, rng)
    assert len(set(found.rows.tolist())) == 5 and all(len(n) == 12 for n in found.notes.values())
    if found.score is not None and name != "vabal":  # which knows no accuracy of the fake's groups
        assert len(np.unique(found.score)) == 12  # questions about one image are told apart


@pytest.mark.parametrize("name", STRATEGIES)
def test_for_images_a_strategy_is_itself(name):
    strategy = STRATEGIES[name]()
    assert strategy.on("image") is strategy


def test_labelled_questions_are_asked_with_their_own_images():
    labelled, seen = known(), set()
    for images, rows in own_questions(labelled):
        for row, (at,) in zip(images, rows, strict=True):
            assert row["image_id"] == labelled.questions.image_ids[at]
            assert row["text"].tolist() == labelled.questions.array("text")[at].tolist()
            seen.add(int(at))
    assert seen == set(range(6))


def uncertainty(pool):
    rng = np.random.default_rng(1)
    f, index = rng.random(len(pool)), rng.integers(0, C, len(pool))
    rows = {int(i): dict(f=f[n], p_max=1 - f[n], index=index[n]) for n, i in enumerate(pool.ids)}
    return f, index, rows


def test_ccrl_is_uncertainty_times_the_rate_of_the_openings_type():
    pool = pairs()
    f, index, rows = uncertainty(pool)
    strategy = CCRL().on("qa")
    found = strategy(PairPredict(vaue__uncertainty=rows), pool, known(), 3, None)
    want = f * (1 - pool.shares.share[np.arange(12) % 3, index])
    np.testing.assert_allclose(found.score, want, rtol=1e-12)
    assert found.rows.tolist() == np.lexsort((pool.ids, -want))[:3].tolist()
    assert strategy.needs == ("vaue",) and "top_match" not in found.notes


@pytest.mark.parametrize(
    ("match", "threshold", "limit"),
    [("critic", 0.5, 0.0), ("critic", 0.9, np.log(9.0)), ("contrast", 0.1, 0.1)],
)
def test_as_a_filter_the_matcher_sends_questions_that_do_not_match_to_the_end(match, threshold, limit):
    pool = pairs()
    _, _, rows = uncertainty(pool)
    strength = np.random.default_rng(2).normal(size=12) * 3
    unit = np.array([1.0, 0.0])
    given = {int(i): s for i, s in zip(pool.ids, strength, strict=True)}
    sides = {i: dict(z=unit, w=unit * s) for i, s in given.items()}
    plain = CCRL().on("qa")(PairPredict(vaue__uncertainty=rows), pool, known(), 3, None)
    strategy = CCRL(match=match, threshold=threshold, min_k=0).on("qa")
    predict = PairPredict(vaue__uncertainty=rows, vqme__match=given, vqme__encoded=sides)
    found = strategy(predict, pool, known(), 3, None)
    assert strategy.needs == ("vqme", "vaue") and 0 < (strength > limit).sum() < 12
    np.testing.assert_array_equal(found.score, np.where(strength > limit, plain.score, 0.0))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (CCRL(match="similarity"), "only one"),
        (CCRL(diversify="kcenter"), "not questions about one image"),
        (CCRL(uncertainty="one", rate="none"), "same score"),
        (Coreset(feature="vision"), "same point"),
    ],
)
def test_options_that_say_nothing_of_a_question_are_refused(strategy, message):
    with pytest.raises(ValueError, match=message):
        strategy.on("qa")


def test_quotas_of_questions_go_by_their_own_types():
    pool = pairs()
    _, _, rows = uncertainty(pool)
    found = CCRL(diversify="type_quota").on("qa")(PairPredict(vaue__uncertainty=rows), pool, known(), 3, None)
    assert sorted(found.rows % 3) == [0, 1, 2]
