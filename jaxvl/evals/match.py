"""Image-text matching: does the matching head tell captions of an image from captions of another?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvl.data.source import Captions, Images, Pairs
from jaxvl.scores import matching_alarm
from jaxvl.types import Predict


class MatchEval:
    """Accuracy of the predictor "match" at probability 1/2 on true pairs and on pairs with a wrong image.

    Args:
      negatives: which wrong images each caption meets: "random" ones, and the "hard" one, which is the most
        similar by contrastive embedding.
      seed: of the random choice.

    Returns (when called):
      "accuracy/positive", "accuracy/random", "accuracy/hard", and "accuracy": positives and random (else hard)
      negatives in equal parts. Percent.

    Raises (when called):
      ValueError: fewer than two images.
    """

    def __init__(self, *, negatives: tuple[str, ...] = ("random", "hard"), seed: int = 0):
        if not negatives or set(negatives) - {"random", "hard"}:
            raise ValueError(f"negatives={negatives}: expected a choice of 'random' and 'hard'")
        self.negatives, self.seed = tuple(negatives), seed

    def __call__(self, predict: Predict, source: Any) -> dict[str, float]:
        """Score every caption of a caption source once per kind of pair."""
        images, captions = Images(source), Captions(source)
        if len(images) < 2:
            raise ValueError(
                "matching needs two images at least: there is no wrong one to pair a caption with"
            )
        own, every = np.asarray(captions.image_row), np.arange(len(captions))

        def accepted(image_rows: np.ndarray) -> np.ndarray:
            return np.asarray(predict("match", Pairs(source, image_rows, every))) > 0.5

        share = {"positive": accepted(own).mean()}
        if "random" in self.negatives:
            share["random"] = (~accepted(random_others(own, count=len(images), seed=self.seed))).mean()
        if "hard" in self.negatives:
            text, image = (
                np.asarray(predict(*x)) for x in (("text_embed", captions), ("image_embed", images))
            )
            similarity = text @ image.T
            share["hard"] = (~accepted(hardest_others(similarity, own=own))).mean()
        wrong = share["random"] if "random" in share else share["hard"]
        overall = 50.0 * float(share["positive"] + wrong)
        return {"accuracy": overall, **{f"accuracy/{k}": 100.0 * float(v) for k, v in share.items()}}

    def alarm(self, scores: Mapping[str, float], *, share: float) -> str | None:
        """What is wrong with these scores after this share of the updates; None if nothing is.

        The matching head of a dual encoder can stay at chance for long (specification of the Bridge tower, 15.10).
        """
        return matching_alarm(scores["accuracy"], share)


def random_others(own: np.ndarray, *, count: int, seed: int) -> np.ndarray:
    """For each entry of `own [T]` another number in `[0, count)`, uniformly."""
    shift = np.random.default_rng(seed).integers(1, count, len(own))
    return (own + shift) % count


def hardest_others(similarity: np.ndarray, *, own: np.ndarray) -> np.ndarray:
    """Most similar column of each row of `similarity [T,I]` other than `own [T]`."""
    other = np.array(similarity, np.float32)
    other[np.arange(len(own)), own] = -np.inf
    return other.argmax(1)
