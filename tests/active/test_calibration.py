"""Calibration of answer models: values that are known, and a temperature that is found again."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from jaxvl.active import calibration, matching
from jaxvl.tasks.answer_uncertainty import TEMPERATURES


class Held:
    """Questions with hard labels, two an image."""

    def __init__(self, label):
        self.label, self.image_ids = label, np.arange(len(label)) // 2

    def array(self, name):
        assert name == "hard_label"
        return self.label


def model(size, sharpness, seed=0, classes=4):
    """Questions whose labels are drawn from softmax(z), and what a model says that is `sharpness` times too sure."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(size, classes))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    label = (p.cumsum(1) > rng.random((size, 1))).argmax(1)
    label[::10] = -1  # answers that are no class

    def predict(name, source):
        assert name == "temperatures"
        scaled = sharpness * z[:, None] / TEMPERATURES[:, None]
        log_p = scaled - scaled.max(-1, keepdims=True)
        log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
        nll = -np.take_along_axis(log_p, np.maximum(label, 0)[:, None, None], axis=-1)[..., 0]
        return {"nll": nll, "confidence": np.exp(log_p.max(-1)), "right": z.argmax(1) == label}

    return Held(label), predict


def finished(held, predict, **kwargs):
    task = SimpleNamespace(rescaled=lambda params, *, temperature: params / temperature)
    trainer = SimpleNamespace(predict=lambda params, name, source: predict(name, source), task=task)
    return calibration.finished(trainer, np.float64(6), held, np.random.default_rng(0), **kwargs)


def test_calibration_error_by_hand():
    confidence, right = np.array([0.92, 0.98, 0.55, 1.0]), np.array([1, 0, 1, 1])
    # bin 9: 2.9 said, 2 right; bin 5: 0.55 said, 1 right
    assert calibration.calibration_error(confidence, right) == pytest.approx((0.9 + 0.45) / 4)


def test_a_model_that_is_too_sure_is_found_out_and_gets_its_temperature():
    held, predict = model(6000, sharpness=3.0)
    scores = calibration.held_out_scores(predict, held, np.random.default_rng(0))
    params, more = finished(held, predict, calibrate=True)
    assert scores["ece"] > 0.1 and more["ece_calibrated"] < 0.03
    assert more["temperature"] == pytest.approx(3, rel=0.1) and params == pytest.approx(2, rel=0.1)
    assert more["log_loss_calibrated"] < scores["log_loss"]


def test_a_calibrated_model_is_left_alone_within_a_step():
    held, predict = model(6000, sharpness=1.0)
    assert finished(held, predict, calibrate=True)[1]["temperature"] == pytest.approx(1, rel=0.09)
    assert calibration.held_out_scores(predict, held, np.random.default_rng(0))["ece"] < 0.03
    assert finished(held, predict) == (6, {})  # not asked to


def test_accuracy_is_of_the_questions_that_have_a_class():
    held, predict = model(200, sharpness=1.0)
    known = held.label >= 0
    right = predict("temperatures", held)["right"][known]
    assert calibration.held_out_scores(predict, held, np.random.default_rng(0))["accuracy"] == right.mean()


def test_one_image_gives_a_temperature_but_no_scores_after_it():
    held, predict = model(40, sharpness=3.0)
    held.image_ids[:] = 7
    assert set(finished(held, predict, calibrate=True)[1]) == {"temperature"}


def test_answers_that_are_all_right_are_a_reason_for_doubt():
    held, predict = model(20, sharpness=1.0)
    held.label = predict("temperatures", held)["nll"][:, 0].argsort() * 0
    right = lambda name, source: {**predict(name, source), "nll": 1 / TEMPERATURES[::-1] + np.zeros((20, 1))}  # noqa: E731
    scores = finished(held, right, calibrate=True)[1]
    assert scores["temperature"] == pytest.approx(0.1)
    assert any("the end of what is tried" in line for line in matching.warnings(scores))
    assert matching.warnings({"temperature": 1.5}) == []


def test_held_out_questions_without_any_class_are_refused():
    held, predict = model(20, sharpness=1.0)
    held.label[:] = -1
    with pytest.raises(ValueError, match="no held-out question has an answer that is a class"):
        calibration.held_out_scores(predict, held, np.random.default_rng(0))
