"""Every sentence of the world is true (checked by an independent reading), readable by its tokenizer, and lawful."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import scene_oracle as oracle

from jaxvl.data import scenes
from jaxvl.data.scenes.hard_questions import HARD
from jaxvl.data.scenes.questions import EASY

N = 1000
READERS = [
    scenes.SceneCaptions,
    scenes.SceneQuestions,
    scenes.SceneStatements,
    scenes.SceneEntailment,
    scenes.SceneReferring,
]


def sentences(record: dict) -> list[str]:
    found = [
        record.get("question"),
        record.get("sentence"),
        record.get("expression"),
        *record.get("captions", []),
    ]
    return [s for s in found if s] + record.get("answers", [])


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_agree_with_an_independent_reading_of_the_scene(split):
    reader = scenes.SceneQuestions(split, size=5000, hard=0.5)
    seen = Counter()
    for i in range(len(reader)):
        record = reader.annotation(i)
        assert oracle.answer(reader.scene(i), record["question"]) == record["answer"], (i, record["question"])
        seen[record["question_type"]] += 1
    assert set(seen) == {*EASY, *HARD} and min(seen.values()) >= 10, seen


@pytest.mark.parametrize("split", ["train", "val"])
def test_captions_are_true_and_different(split):
    reader = scenes.SceneCaptions(split, size=N)
    texts = []
    for i in range(N):
        captions = reader.annotation(i)["captions"]
        assert len(set(captions)) == 5
        texts += captions
        false = [c for c in captions if not oracle.caption(reader.scene(i), c)]
        assert not false, (i, false)
    assert len(set(texts)) > 0.7 * len(texts)


def test_a_caption_of_another_picture_is_mostly_false():
    reader = scenes.SceneCaptions("test", size=500)
    true = [
        oracle.caption(reader.scene((i + 1) % 500), c)
        for i in range(500)
        for c in reader.annotation(i)["captions"]
    ]
    assert sum(true) / len(true) < 0.25


def test_statements_are_labelled_truly():
    reader = scenes.SceneStatements("test", size=N)
    for i in range(N):
        record = reader.annotation(i)
        truth = oracle.statement(reader.scene(i), reader.scene2(i), record["sentence"])
        assert record["label"] == truth and record["label_name"] == str(truth), (i, record["sentence"])


def test_hypotheses_are_labelled_by_what_can_be_seen():
    reader = scenes.SceneEntailment("test", size=N)
    for i in range(N):
        record = reader.annotation(i)
        assert oracle.entailment(reader.scene(i), record["sentence"]) == record["label_name"], (
            i,
            record["sentence"],
        )


def test_expressions_fit_their_thing_alone():
    reader = scenes.SceneReferring("test", size=N)
    for i in range(N):
        record = reader.annotation(i)
        thing = oracle.refers_to(reader.scene(i), record["expression"])
        assert scenes.box(thing) == record["box"] == record["proposals"][record["target"]], (
            i,
            record["expression"],
        )


@pytest.mark.parametrize("reader", READERS)
def test_the_vocabulary_covers_every_word(reader):
    vocabulary = scenes.vocabulary()
    known, data = set(vocabulary), reader("test", size=N)
    said = {w for i in range(N) for s in sentences(data.annotation(i)) for w in re.findall(r"\w+|[^\w\s]", s)}
    assert said <= known
    assert all(len(set(w)) for w in said)


def test_the_vocabulary_is_a_wordpiece_list():
    vocabulary = scenes.vocabulary()
    assert vocabulary[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(set(vocabulary)) == len(vocabulary) < 400
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    assert {*characters, *("##" + c for c in characters), *"?,.:;'-!()"} <= set(vocabulary)
    assert "_" not in "".join(w for w in vocabulary if len(w) > 1)


@pytest.mark.parametrize("reader", READERS)
def test_training_texts_never_name_a_held_out_pair(reader):
    data = reader("train", size=N)
    pair = re.compile("|".join(f"{c} {s}" for c, s in scenes.HELD_OUT))
    for i in range(N):
        record = data.annotation(i)
        assert not record["heldout"] and not pair.search(" | ".join(sentences(record)))


@pytest.mark.parametrize("reader", READERS)
def test_held_out_pairs_are_asked_about_at_test_beside_ordinary_ones(reader):
    data = reader("test", size=N)
    assert 0.02 < sum(data.annotation(i)["heldout"] for i in range(N)) / N < 0.6
