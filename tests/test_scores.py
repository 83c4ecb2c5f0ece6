"""The VQA metric against examples worked with the official code, and ranks against hand-made tables."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from jaxvl import scores, vqa_normalise
from jaxvl.vqa_normalise import CONTRACTIONS, normalise

GOLDEN = {
    "2,000 people!": "2000 people",
    "1,2,3": "123",
    "yes,no": "yes no",
    "U.S.A.": "usa",
    "5.5.": "5.5",
    "black / white": "black white",
    "t-shirt": "t shirt",
    "10:30": "10:30",
    "Mr. Smith": "mr smith",
    "the dog": "dog",
    "none": "0",
    "two": "2",
    "dont": "don't",
    "Ive": "ive",
    "$5": "$5",
    "@home": "home",
    "ice-cream, cake": "ice cream cake",
    " a\tcat\n": "cat",
}


@pytest.mark.parametrize(("raw", "normal"), GOLDEN.items())
def test_normaliser_reproduces_the_official_output(raw, normal):
    assert normalise(raw) == normal


def test_contractions_are_the_120_of_the_official_table():
    assert len(CONTRACTIONS) == 120
    capitals = {"Id've", "I'dve", "Im", "Ive"}
    assert capitals < CONTRACTIONS.keys()
    for raw, full in CONTRACTIONS.items():
        assert normalise(raw) == (raw.lower() if raw in capitals else full)


def test_at_most_32_periods_are_removed_so_that_a_second_pass_removes_more():
    once = normalise("a." * 40)
    assert once == "a" * 32 + "a." * 8
    assert normalise(once) == "a" * 40


def slow_normalise(text: str) -> str:
    """Another writing of the same rules, mark by mark and word by word."""
    text = re.sub(r"[\n\t]", " ", text).strip()
    out = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        near_space = re.search(rf" {re.escape(mark)}|{re.escape(mark)} ", text)
        between_digits = re.search(r"[0-9],[0-9]", text)
        out = "".join(("" if near_space or between_digits else " ") if c == mark else c for c in out)
    kept, removed = [], 0
    for i, c in enumerate(out):
        if c == "." and not out[i + 1 : i + 2].isdigit() and removed < 32:
            removed += 1
        else:
            kept.append(c)
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    result = []
    for word in "".join(kept).lower().split():
        word = "0" if word == "none" else str(digits.index(word)) if word in digits else word
        if word not in ("a", "an", "the"):
            result.append(CONTRACTIONS.get(word, word))
    return " ".join(result)


def test_normaliser_equals_a_slow_rewriting_on_random_strings():
    rng = random.Random(0)
    pieces = [
        *vqa_normalise.MARKS,
        ".",
        " ",
        "'",
        ":",
        "$",
        "1",
        "23",
        "\n",
        "the",
        "a",
        "two",
        "none",
        "dont",
        "Cat",
    ]
    for _ in range(10_000):
        text = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        assert vqa_normalise.normalise.__wrapped__(text) == slow_normalise(text), text


# Accuracy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotators", "expected"),
    [
        (10, [0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1]),
        (5, [0, 4 / 15, 8 / 15, 0.8, 1]),
        (4, [0, 0.25, 0.5, 0.75]),
        (3, [0, 1 / 3, 2 / 3, 1]),
        (2, [0, 1 / 2, 1]),
    ],
)
def test_accuracy_by_the_number_of_agreeing_annotators(annotators, expected):
    for matches, value in enumerate(expected):
        others = [f"other {i}" for i in range(annotators - matches)]
        got = scores.vqa_accuracy("cat", answers=["cat"] * matches + others)
        assert got == pytest.approx(value, abs=1e-12)


def test_leave_one_out_as_the_official_loop_computes_it():
    answers = ["red", "Red.", "the red", "blue", "blue", "dark red", "green", "2", "two", "none"]
    truth = [normalise(a) for a in answers]
    for prediction in ("red", "blue", "two", "0", "grey"):
        loops = []
        for j in range(len(truth)):
            others = truth[:j] + truth[j + 1 :]
            loops.append(min(1.0, others.count(normalise(prediction)) / 3))
        assert scores.vqa_accuracy(prediction, answers=answers) == pytest.approx(np.mean(loops), abs=1e-12)


def test_unanimous_answers_are_compared_exactly_unless_the_variant_normalises():
    black = ["black"] * 10
    assert scores.vqa_accuracy("Black.", answers=black) == 0.0
    assert scores.vqa_accuracy("Black.", answers=black, variant="openvqa") == 1.0
    assert scores.vqa_accuracy("black\n", answers=black) == 1.0
    assert scores.vqa_accuracy("Black.", answers=["black"] * 9 + ["white"]) == 1.0


def test_openvqa_variant_does_not_lower_case_the_humans():
    answers = ["Two"] * 5 + ["three"] * 5
    assert scores.vqa_accuracy("two", answers=answers) == 1.0
    assert scores.vqa_accuracy("two", answers=answers, variant="openvqa") == 0.0


def test_a_single_answer_is_matched_after_normalisation():
    assert scores.vqa_accuracy("The cat.", answers=["cat"]) == 1.0
    assert scores.vqa_accuracy("dog", answers=["cat"]) == 0.0


def test_fewer_than_four_answers_are_shares_after_normalisation():
    for variant in scores.VARIANTS:
        assert scores.vqa_accuracy("The dog.", answers=["Dog"] * 2, variant=variant) == 1.0
        assert scores.vqa_accuracy("pen", answers=["book", "Pen."], variant=variant) == 0.5
        assert scores.vqa_accuracy("2", answers=["two", "2", "three"], variant=variant) == pytest.approx(
            2 / 3
        )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"answers": []}, "no human answers"), ({"answers": ["a"], "variant": "x"}, "variant='x'")],
)
def test_wrong_input_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        scores.vqa_accuracy("a", **kwargs)


def test_overall_mean_is_the_weighted_mean_of_the_groups():
    found = scores.mean_by([1.0, 0.5, 0.0, 1.0], groups=["yes/no", "yes/no", "number", ""], name="accuracy")
    assert found == {"accuracy": 0.625, "accuracy/yes_no": 0.75, "accuracy/number": 0.0}
    assert scores.mean_by([], groups=[], name="accuracy") == {}


# Ranks and majority ---------------------------------------------------------------------------------------


def test_best_rank_takes_the_best_relevant_column_and_breaks_ties_by_column():
    table = np.array([[0.1, 0.9, 0.5, 0.4], [0.3, 0.3, 0.3, 0.3], [0.0, 0.1, 0.2, 0.9]])
    relevant = np.array([[0, 0, 1, 1], [0, 1, 0, 0], [1, 0, 0, 0]], bool)
    ranks = scores.best_rank(table, relevant=relevant)
    np.testing.assert_array_equal(ranks, [1, 1, 3])
    assert scores.recalls(ranks, at=(1, 2, 4)) == {1: 0.0, 2: pytest.approx(2 / 3), 4: 1.0}


def test_ranking_refuses_nan_and_rows_without_truth():
    with pytest.raises(ValueError, match=r"NaN scores in rows \[1\]"):
        scores.best_rank(np.array([[0.0], [np.nan]]), relevant=np.ones((2, 1), bool))
    with pytest.raises(ValueError, match=r"without a relevant column: \[0\]"):
        scores.best_rank(np.zeros((2, 1)), relevant=np.array([[False], [True]]))


def test_majority_counts_each_question_once_and_each_type_for_itself():
    train = [
        {"answers": ["yes"] * 10, "answer_type": "yes/no"},
        {"answers": ["no"] * 10, "answer_type": "yes/no"},
        {"answers": ["no"] * 6 + ["yes"] * 4, "answer_type": "yes/no"},
        {"answers": [], "targets": {"2": 0.9, "3": 0.1}, "answer_type": "number"},
        {"answers": []},
    ]
    overall, by_type = scores.majority(train)
    assert overall == "no"
    assert by_type == {"yes/no": "no", "number": "2"}
    with pytest.raises(ValueError, match="none has any"):
        scores.majority([{"answers": []}])
