"""How well an answer model knows what it does not know, on held-out images, and the temperature that mends it.

Specification 15, risk 7: the uncertainty of equations 14 and 15 needs probabilities that mean what they say,
and a model of few labels is too sure. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

Shape legend: `N` held-out questions, `G` temperatures.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxvl.active.matching import binned_gap
from jaxvl.tasks.answer_uncertainty import TEMPERATURES
from jaxvl.types import Predict, PyTree

PREDICTOR = "temperatures"


def held_out_scores(predict: Predict, held: Any, rng: np.random.Generator) -> dict[str, float]:
    """Scores of an answer model on a source of labelled questions: those whose hard label is a class.

    Returns:
      "accuracy" (share whose likeliest answer is the hard label), "log_loss" (nats), "ece".

    Raises:
      ValueError: no held-out question has such a label.
    """
    nll, confidence, right = _asked(predict, held)
    at = int(np.argmin(np.abs(np.log(TEMPERATURES))))
    return {
        "accuracy": float(right.mean()), "log_loss": float(nll[:, at].mean()),
        "ece": calibration_error(confidence[:, at], right),
    }  # fmt: skip


def finished(
    trainer: Any, params: PyTree, held: Any, rng: np.random.Generator, *, calibrate: bool = False
) -> tuple[PyTree, dict[str, float]]:
    """Parameters with all logits over the temperature of the least held-out log loss.

    Args:
      trainer: with a task that has the predictor "temperatures" and `rescaled(params, temperature=)`.
      calibrate: False = parameters as they are, and no scores.

    Returns:
      The parameters, and "temperature"; of more than one image also "log_loss_calibrated" and "ece_calibrated", on
      images of which the temperature was not chosen: each half is scaled by the other's.
    """
    if not calibrate:
        return params, {}
    nll, confidence, right = _asked(lambda name, source: trainer.predict(params, name, source), held)
    half = _halves(np.asarray(held.image_ids)[_labelled(held)])
    temperature = float(TEMPERATURES[int(nll.mean(0).argmin())])
    scores = {"temperature": temperature}
    if half.any():
        best = [int(nll[half == side].mean(0).argmin()) for side in (1, 0)]  # of the other half
        rows, at = np.arange(len(right)), np.array(best)[half]
        scores["log_loss_calibrated"] = float(nll[rows, at].mean())
        scores["ece_calibrated"] = calibration_error(confidence[rows, at], right)
    return trainer.task.rescaled(params, temperature=temperature), scores


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error of `confidence [N]` in [0, 1] of answers that are `right [N]` or not, in ten bins."""
    return binned_gap(confidence, right, np.full(len(right), 1 / len(right)))


def _labelled(held: Any) -> np.ndarray:
    return np.flatnonzero(np.asarray(held.array("hard_label")) >= 0)


def _asked(predict: Predict, held: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`nll [N,G]`, `confidence [N,G]`, `right [N]` of the rows that have a label, f64."""
    rows = _labelled(held)
    if not len(rows):
        raise ValueError(
            "no held-out question has an answer that is a class: label more images (config.active.init)"
        )
    found = predict(PREDICTOR, held)
    nll, confidence, right = (
        np.asarray(found[name], np.float64)[rows] for name in ("nll", "confidence", "right")
    )
    return nll, confidence, right


def _halves(ids: np.ndarray) -> np.ndarray:
    """0 or 1 for each row, the same for all rows of an image; both occur if there are two images."""
    return np.searchsorted(np.unique(ids), ids) % 2
