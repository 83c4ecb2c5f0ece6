"""The bank is deterministic, bounded, made of real labelled questions, and its kinds are majorities."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.active.bank import KINDS, build_bank, propose, quotas


class FakeWords:
    """Words by their position in the alphabet of all questions; random vectors."""

    def __init__(self, questions):
        self.vocabulary = {
            w: i for i, w in enumerate(sorted({w for q in questions for w in q.split()}), start=3)
        }
        self.vectors = np.random.default_rng(0).normal(size=(len(self.vocabulary) + 3, 16)).astype(np.float32)

    def key(self, question):
        return " ".join(question.lower().strip("?! ").split())

    def ids(self, question):
        out = np.zeros(6, np.int32)
        found = [self.vocabulary.get(w, 1) for w in self.key(question).split()][:6]
        out[: len(found)] = found
        return out


def records(n=300):
    rng = np.random.default_rng(1)
    nouns = [f"noun{i}" for i in range(60)]
    rows = []
    for i in range(n):
        kind = KINDS[rng.integers(3)]
        head = {"yes/no": "is there a", "number": "how many", "other": "what is the"}[kind]
        question = f"{head} {nouns[rng.integers(60)]}"
        rows.append(
            dict(
                question=question,
                image_id=i // 3,
                question_id=i,
                answers=["x"],
                answer_type=kind,
                question_type=head,
            )
        )
    return rows


@pytest.fixture
def world():
    rows = records()
    return rows, FakeWords([r["question"] for r in rows])


@pytest.mark.parametrize("reduce", ["medoid", "frequency", "prefix"])
def test_a_reduced_bank_holds_real_questions_once_and_no_more_than_allowed(world, reduce):
    rows, words = world
    bank = build_bank(rows, words, rng=np.random.default_rng(0), max=40, reduce=reduce)
    keys = [p.key for p in bank.patterns]
    assert len(set(keys)) == len(keys) <= 40 < bank.distinct
    assert set(keys) <= {words.key(r["question"]) for r in rows}
    assert bank.text.shape == (len(bank), 6) and set(bank.kinds) == {0, 1, 2}


def test_equal_seeds_and_any_order_of_records_give_the_same_bank(world):
    rows, words = world
    banks = [
        build_bank(order, words, rng=np.random.default_rng(5), max=30).patterns
        for order in (rows, rows[::-1])
    ]
    assert banks[0] == banks[1]


def test_a_small_set_is_kept_whole_and_empty_questions_are_dropped(world):
    rows, words = world
    few = [*rows[:20], {**rows[0], "question": " ?"}]
    bank = build_bank(few, words, rng=np.random.default_rng(0))
    assert {p.key for p in bank.patterns} == {words.key(r["question"]) for r in rows[:20]}


def test_kind_is_the_majority_and_ties_go_to_other_then_number(world):
    _, words = world

    def kind(*types):
        rows = [dict(question="is there a noun1", image_id=0, answers=[], answer_type=t) for t in types]
        return KINDS[build_bank(rows, words, rng=np.random.default_rng(0)).patterns[0].kind]

    assert kind("yes/no", "yes/no", "other") == "yes/no"
    assert kind("yes/no", "number") == "number"
    assert kind("yes/no", "number", "other") == "other"


def test_quotas_follow_the_root_of_the_sizes_above_a_floor():
    found = quotas([0] * 400 + [1] * 100 + [2] * 10, most=200)
    assert sum(found.values()) == 200 and found[2] == 10 and found[0] > found[1] >= 64
    found = quotas([0] * 2000 + [1] * 400 + [2] * 5000, most=1024)
    want = 1024 * np.sqrt([2000, 400, 5000]) / np.sqrt([2000, 400, 5000]).sum()  # all above the floor
    assert np.abs(np.array([found[k] for k in range(3)]) - want).max() < 1 and sum(found.values()) == 1024
    assert quotas([0] * 5 + [1] * 7, most=50) == {0: 5, 1: 7} and sum(quotas([0, 1, 2], most=2).values()) == 2


def test_medoids_spread_over_the_clusters():
    rows = [
        dict(question=f"{group} {i}", image_id=i, answers=[], answer_type="other")
        for group in ("cat", "dog") for i in range(30)
    ]  # fmt: skip
    words = FakeWords([r["question"] for r in rows])
    words.vectors *= 0.1
    for name, sign in (("cat", 5.0), ("dog", -5.0)):
        words.vectors[words.vocabulary[name], 0] = sign
    bank = build_bank(rows, words, rng=np.random.default_rng(0), max=2)
    assert {p.key.split()[0] for p in bank.patterns} == {"cat", "dog"}
    assert sum(p.weight for p in bank.patterns) == pytest.approx(1)


def test_proposals_follow_the_kinds_of_the_labels_and_have_each_at_least_once(world):
    rows, words = world
    bank = build_bank(rows, words, rng=np.random.default_rng(0))
    rows = propose(bank, np.array([80, 1, 19]), count=8, rng=np.random.default_rng(0))
    assert len(set(rows.tolist())) == 8
    found = np.bincount(bank.kinds[rows], minlength=3)
    assert found.min() >= 1 and found[0] >= 5


def test_unknown_reductions_and_empty_labels_are_refused(world):
    rows, words = world
    with pytest.raises(ValueError, match="reduce"):
        build_bank(rows, words, rng=np.random.default_rng(0), reduce="best")
    with pytest.raises(ValueError, match="no labelled question has a 'question_type'"):
        plain = [{k: v for k, v in row.items() if k != "question_type"} for row in rows]
        build_bank(plain, words, rng=np.random.default_rng(0), max=40, reduce="prefix")
    with pytest.raises(ValueError, match="empty"):
        build_bank([], words, rng=np.random.default_rng(0))
