"""Matching and answering in one optimisation, on encoders that both share (Zhang et al., CCRL, algorithm 1 read as one
loop; decision register, A12).

Parameters are one tree, `{image_encoder, text_encoder, match: {...}, answer: {...}}`, in which both models find theirs.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxvl.tasks.answer_uncertainty import AnswerUncertaintyTask
from jaxvl.tasks.question_match import QuestionMatchTask
from jaxvl.tasks.stateless import Stateless
from jaxvl.types import Array, Batch, Key, Metrics, Predictor, PyTree

SHARED = ("image_encoder", "text_encoder")
PARTS = ("match", "answer")


def view(params: PyTree, part: str) -> PyTree:
    """The parameters of one of the two models, "match" or "answer"; nothing is copied."""
    return {**{name: params[name] for name in SHARED}, **params[part]}


def joined(match: PyTree, answer: PyTree) -> PyTree:
    """One tree of two models' parameters, with the encoders of the first."""
    rest = [{k: v for k, v in tree.items() if k not in SHARED} for tree in (match, answer)]
    return {**{name: match[name] for name in SHARED}, **dict(zip(PARTS, rest, strict=True))}


class MatchAndAnswerTask(Stateless):
    """The loss of `QuestionMatchTask` + `answer_weight` times that of `AnswerUncertaintyTask`.

    Args:
      model: `SharedEncoders`, or anything with a matcher as `match` and an answer model as `answer` whose encoders have
        the same parameters.
      answer_weight: see above; positive.
      label: of the answers, "hard" or "soft".
      **matching: arguments of `QuestionMatchTask`.

    Batches and predictors: those of both tasks.
    """

    def __init__(self, model: Any, *, answer_weight: float = 1.0, label: str = "hard", **matching: Any):
        if not answer_weight > 0:
            raise ValueError(f"answer_weight={answer_weight}: expected a positive number")
        self.model, self.answer_weight = model, answer_weight
        self.match = QuestionMatchTask(model.match, **matching)
        self.answer = AnswerUncertaintyTask(model.answer, label=label)
        self.renames: tuple[tuple[str, str], ...] = ()
        self.predictors: dict[str, Predictor] = {
            **{name: _of("match", predictor) for name, predictor in self.match.predictors.items()},
            **{name: _of("answer", predictor) for name, predictor in self.answer.predictors.items()},
        }

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh boxed parameters."""
        rngs = jax.random.split(rng)
        return joined(self.match.init(rngs[0], batch), self.answer.init(rngs[1], batch))

    def rescaled(self, params: PyTree, *, scale: float, shift: float) -> PyTree:
        """See `QuestionMatchTask.rescaled`; answers stay as they are."""
        match = self.match.rescaled(view(params, "match"), scale=scale, shift=shift)
        return joined(match, view(params, "answer"))

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """The sum. Metrics: "loss", and those of the two tasks after "match/" and "answer/"."""
        keys = jax.random.split(rng)
        match, (_, of_match) = self.match.loss(view(params, "match"), {}, batch, keys[0])
        answer, (_, of_answer) = self.answer.loss(view(params, "answer"), {}, batch, keys[1])
        loss = match + self.answer_weight * answer
        found: Metrics = {"loss": (loss, jnp.ones(()))}
        found |= {f"match/{name}": value for name, value in of_match.items()}
        found |= {f"answer/{name}": value for name, value in of_answer.items()}
        return loss, ({}, found)


def _of(part: str, predictor: Predictor) -> Predictor:
    return lambda params, batch, rng: predictor(view(params, part), batch, rng)
