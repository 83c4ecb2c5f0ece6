"""`jaxvl.load(workdir).answer(image, question)`: every kind of input, the same answers, each image encoded once."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import tiny_run
from PIL import Image

import jaxvl
from jaxvl import config as cfg

pytestmark = pytest.mark.slow
QUESTION = "what colour is the circle?"


@pytest.fixture(scope="module")
def questions(finished):
    """The held-out questions of the finished run."""
    return tiny_run.questions(finished.workdir)


@pytest.fixture(scope="module")
def model(finished):
    return jaxvl.load(finished.workdir)


@pytest.fixture
def calls(model, monkeypatch):
    """[(predictor, rows)] of all calls of the model."""
    made, predict = [], model.trainer.predict

    def counted(params, name, source):
        made.append((name, len(source)))
        return predict(params, name, source)

    monkeypatch.setattr(model.trainer, "predict", counted)
    return made


def test_path_bytes_pillow_and_array_give_the_same_answers(model, questions, tmp_path):
    array = questions.image(0)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    want = model.answer(array, QUESTION)
    for image in (
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        Image.open(io.BytesIO(path.read_bytes())),
    ):
        assert model.answer(image, QUESTION) == want


def test_answers_are_probabilities_of_distinct_known_answers_best_first(model, questions):
    found = model.answer(questions.image(0), QUESTION, top_k=len(model.answers))
    assert sorted(a.text for a in found) == sorted(model.answers)
    shares = [a.probability for a in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert model.answer(questions.image(0), QUESTION, top_k=2) == found[:2]


def test_answers_are_those_that_the_evaluation_wrote(model, finished, questions):
    asked = [questions.annotation(i)["question"] for i in range(12)]
    found = model.answer([questions.image(i) for i in range(12)], asked, top_k=1)
    written = json.loads((finished.workdir / "vqa/vqa_results.json").read_text(encoding="utf-8"))
    assert [a.text for (a,) in found] == [row["answer"] for row in written]


def test_many_questions_about_one_image_encode_it_once(model, questions, calls):
    asked = [f"is there a {shape}?" for shape in ("circle", "square", "star", "triangle")]
    found = model.answer(questions.image(0), asked)
    assert calls == [("image_states", 1), ("answer", 4)]
    assert found[2] == model.answer(questions.image(0), asked[2])


def test_equal_images_are_encoded_once_and_answers_keep_their_order(model, questions, calls):
    a, b = questions.image(0), questions.image(1)
    found = model.answer([a, b, a.copy()], QUESTION)
    assert calls == [("image_states", 2), ("answer", 3)]
    assert found[0] == found[2] == model.answer(a, QUESTION)
    assert found[1] == model.answer(b, QUESTION)


def test_lists_give_lists(model, questions):
    image = questions.image(0)
    assert model.answer([image], [QUESTION]) == [model.answer(image, QUESTION)]


def test_one_compilation_serves_any_number_of_questions(model, questions):
    for n in (1, 3, 20):
        assert len(model.answer(questions.image(0), [QUESTION] * n)) == n
    assert set(model.trainer.traces.values()) == {1}


def test_words_that_no_caption_has_are_answered(model, questions):
    assert model.answer(questions.image(0), "Où est le zèbre №7?")


@pytest.mark.parametrize(
    ("image", "question", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), " ", "question is empty"),
        (np.zeros((8, 8, 3), np.uint8), [], "do not pair up"),
        ([np.zeros((8, 8, 3), np.uint8)] * 2, ["a?", "b?", "c?"], "2 images and 3 questions"),
        (b"no image", "a?", "cannot decode the image"),
        (np.full((8, 8, 3), 300.0), "a?", "must lie in"),
    ],
)
def test_bad_input_is_refused_with_its_reason(model, image, question, message):
    with pytest.raises(ValueError, match=message):
        model.answer(image, question)


def test_missing_image_file_is_named(model):
    with pytest.raises((ValueError, OSError), match="nowhere.jpg"):
        model.answer("nowhere.jpg", "a?")


def test_stage_is_chosen_by_name(finished, model, questions):
    blind = jaxvl.load(finished.workdir, stage="vqa_blind")
    found = blind.answer([questions.image(i) for i in range(3)], QUESTION)
    assert found[0] == found[1] == found[2] != model.answer(questions.image(0), QUESTION)
    with pytest.raises(cfg.ConfigError, match="did you mean 'vqa"):
        jaxvl.load(finished.workdir, stage="vqe")


def test_folder_that_is_no_finished_run_is_refused(finished, tmp_path):
    with pytest.raises(cfg.ConfigError, match="not a workdir"):
        jaxvl.load(tmp_path)
    (tmp_path / "config.json").write_text((finished.workdir / "config.json").read_text())
    with pytest.raises(cfg.ConfigError, match="no finished stage among vqa, vqa_blind"):
        jaxvl.load(tmp_path)
