"""Neither the words of a question nor the mean colours of its picture give its answer away."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxvl.data import scenes
from jaxvl.data.scenes.world import COLOURS, SHAPES

N = 14_000


@pytest.fixture(scope="module")
def records():
    reader = scenes.SceneQuestions("train", size=N)
    return [reader.annotation(i) for i in range(N)]


def official(answer: str, given: list[str]) -> float:
    """Mean over the ten leave-one-out sets of min(1, matches / 3)."""
    return float(np.mean([min(1, (given.count(answer) - (g == answer)) / 3) for g in given]))


def pattern(question: str) -> str:
    """The question with its colours and shapes left out."""
    names = {
        **dict.fromkeys(COLOURS, "C"),
        **dict.fromkeys(SHAPES, "S"),
        **{s + "s": "P" for s in SHAPES},
        "crosses": "P",
    }
    return " ".join(names.get(w, w) for w in re.findall(r"\w+", question))


def blind_accuracy(records, key) -> dict[str, float]:
    """Official accuracy per answer type of the best answer to each `key`, learnt on one half, scored on the other."""
    table, scores = defaultdict(Counter), defaultdict(list)
    for r in records[: N // 2]:
        table[key(r)].update(r["targets"])
    for r in records[N // 2 :]:
        counts = table.get(key(r), Counter(yes=1))
        score = official(counts.most_common(1)[0][0], r["answers"])
        scores[r["answer_type"]].append(score)
        scores["all"].append(score)
    return {name: float(np.mean(values)) for name, values in scores.items()}


@pytest.mark.parametrize("by", ["string", "pattern", "family"])
def test_a_blind_model_stays_under_forty_percent(records, by):
    key = {
        "string": lambda r: r["question"],
        "pattern": lambda r: pattern(r["question"]),
        "family": lambda r: r["question_type"],
    }[by]
    accuracy = blind_accuracy(records, key)
    assert accuracy["all"] < 0.37, accuracy
    assert accuracy["yes/no"] < 0.6 and accuracy["number"] < 0.37 and accuracy["other"] < 0.22, accuracy


def test_yes_and_no_are_even_for_every_family_and_word(records):
    counts = defaultdict(Counter)
    for r in records:
        if r["answer_type"] == "yes/no":
            for word in {"", *re.findall(r"\w+", r["question"])}:
                counts[r["question_type"], word][r["answer"]] += 1
    for key, c in counts.items():
        n = sum(c.values())
        if n >= 100:  # four standard deviations of a fair coin
            assert abs(c["yes"] / n - 0.5) < 2 / np.sqrt(n) + 0.02, (key, c)


def test_colours_shapes_and_counts_are_flat(records):
    counts = defaultdict(Counter)
    for r in records:
        counts[r["question_type"]][r["answer"]] += 1
    for family, limit in (("colour_of", 0.15), ("shape_of", 0.2), ("texture_of", 0.42), ("count_all", 0.3)):
        assert max(counts[family].values()) / sum(counts[family].values()) < limit, counts[family]
    for family in ("count_some", "count_side"):
        assert max(counts[family].values()) / sum(counts[family].values()) < 0.35, counts[family]


def test_the_mixture_is_mostly_easy(records):
    shares = Counter(r["answer_type"] for r in records)
    assert [round(shares[t] / N, 1) for t in ("yes/no", "number", "other")] == [0.4, 0.2, 0.4]
    assert 0.2 < np.mean([r["level"] == "hard" for r in records]) < 0.3


def test_ten_annotators_mostly_agree_but_not_always(records):
    assert all(len(r["answers"]) == 10 and r["answers"].count(r["answer"]) >= 6 for r in records)
    assert all(
        sum(r["targets"].values()) == pytest.approx(1) and set(r["targets"]) == set(r["answers"])
        for r in records
    )
    assert 0.25 < np.mean([len(r["targets"]) > 1 for r in records]) < 0.5
    assert {a for r in records for a in r["answers"]} <= set(scenes.answers())
    assert np.mean([official(r["answer"], r["answers"]) for r in records]) == 1


def test_several_questions_about_one_scene_differ():
    reader = scenes.SceneQuestions("val", size=400, questions_per_scene=4)
    for start in range(0, 400, 4):
        group = [reader.annotation(i) for i in range(start, start + 4)]
        assert len({r["question"] for r in group}) == len({r["question_id"] for r in group}) == 4
        assert len({r["image_id"] for r in group}) == 1
        assert reader.scene(start) == reader.scene(start + 3) == scenes.scene("val", start // 4)


@pytest.mark.parametrize(
    ("name", "value"), [("questions_per_scene", 0), ("questions_per_scene", 99), ("hard", 1.5)]
)
def test_impossible_question_options_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        scenes.SceneQuestions("val", size=4, **{name: value})


@pytest.mark.parametrize(("reader", "labels"), [(scenes.SceneStatements, 2), (scenes.SceneEntailment, 3)])
def test_labels_are_even_for_every_word(reader, labels):
    data, counts = reader("train", size=2500), defaultdict(Counter)
    for i in range(len(data)):
        r = data.annotation(i)
        for word in {"", *r["sentence"].split()}:
            counts[word][r["label"]] += 1
    for word, c in counts.items():
        n = sum(c.values())
        if n >= 100:
            assert max(c.values()) / n < 1 / labels + 2.2 / np.sqrt(n) + 0.02, (word, c)


def test_a_screen_alone_does_not_label_a_hypothesis():
    data = scenes.SceneEntailment("train", size=2500)
    joint = Counter((r["screened"], r["label"]) for r in map(data.annotation, range(2500)))
    best = sum(max(joint[screened, label] for label in range(3)) for screened in (False, True)) / 2500
    assert best < 0.61


def test_the_right_proposal_has_no_favourite_place_or_size():
    data = scenes.SceneReferring("train", size=1500)
    rows = [data.annotation(i) for i in range(1500)]
    chance = np.mean([1 / len(r["proposals"]) for r in rows])
    assert np.mean([r["target"] == 0 for r in rows]) == pytest.approx(chance, abs=0.04)
    area = [np.argmax([(b[2] - b[0]) * (b[3] - b[1]) for b in r["proposals"]]) == r["target"] for r in rows]
    assert np.mean(area) < 0.35


def probe(features_bf: np.ndarray, answers: list[str]) -> float:
    """Held-out accuracy of a linear classifier (ridge regression on one-hot labels) minus the majority share."""
    x = (features_bf - features_bf.mean(0)) / features_bf.std(0)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    names = sorted(set(answers))
    y = np.array([[a == n for n in names] for a in answers], float)
    half = len(x) // 2
    w = np.linalg.solve(x[:half].T @ x[:half] + 0.1 * np.eye(x.shape[1]), x[:half].T @ y[:half])
    return float(((x[half:] @ w).argmax(1) == y[half:].argmax(1)).mean() - y[half:].mean(0).max())


@pytest.mark.parametrize(
    ("grid", "kind", "limit"),
    [
        (1, "yes/no", 0.03),
        (4, "yes/no", 0.03),
        (1, "shape_of", 0.06),
        (4, "shape_of", 0.06),
        (1, "colour_of", 0.08),
        (4, "colour_of", 0.18),
    ],
)
def test_mean_colours_do_not_answer_without_the_question(records, grid, kind, limit):
    rows = [i for i, r in enumerate(records) if kind in (r["answer_type"], r["question_type"])][:3000]
    reader = scenes.SceneQuestions("train", size=N, image_size=32)
    images = np.stack([reader.image(i) for i in rows]).astype(np.float64)
    cells = (
        images.reshape(len(rows), grid, 32 // grid, grid, 32 // grid, 3).mean((2, 4)).reshape(len(rows), -1)
    )
    assert probe(cells, [records[i]["answer"] for i in rows]) < limit
