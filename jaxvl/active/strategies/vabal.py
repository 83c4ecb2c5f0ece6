"""VaB-AL: images whose answers the task model is least likely to get right, by Bayes' rule over groups of answers.

Source: Choi et al., "VaB-AL: Incorporating Class Imbalance and Difficulty with Variational Bayes for Active Learning",
CVPR 2021 (specification 8.7). An auto-encoder gives the likelihood of each group, the predictions on the pool its
prior, the labelled questions how often a prediction of the group is right.

Shape legend: `N` images, `J` asked questions, `P` pairs of image and question, `D` width of vectors, `L` words,
`G` groups, `T` answer types, `C` answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active.strategies.base import Selection, Strategy, enough, finite, there, top
from jaxvl.active.strategies.vectors import Arrays, Vectors
from jaxvl.types import Predict, Source

FORMS = ("bayes", "as_released")
PARTS = ("image", "language", "fused")


@dataclass(frozen=True)
class VaBAL(Strategy):
    """Takes the images with the lowest expected accuracy, averaged over what is asked.

    Attributes:
      form: "bayes" = 1 - sum over groups of accuracy times posterior; "as_released" = 1 - sum of negative log
        likelihood times prior, as the published code has it.
      groups: `G`; the most frequent answers have one each, the others share one for each answer type.
      stage: a model trained by the task "bayes_vae", with as many groups.
      block: images whose vectors are computed at a time; the selection does not depend on it.
    """

    form: str = "bayes"
    groups: int = 100
    stage: str = "vabal"
    block: int = 4096

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"vabal.form={self.form!r}: expected one of {', '.join(FORMS)}")
        if self.block < 1:
            raise ValueError(f"vabal.block={self.block}: must be at least 1")

    @property
    def needs(self) -> tuple[str, ...]:
        """The stage."""
        return (self.stage,)

    def data(
        self, stage: str, predict: Predict, pool: Any, labelled: Any, rng: np.random.Generator
    ) -> Source:
        """A row an image of the pool: its vectors with one of the asked questions, and the group of the prediction."""
        group_of, found = self._groups(labelled.questions), []
        for images in blocks(pool, self.block):
            pairs = asked_pairs(predict, images)
            answers = np.asarray(predict("task/probs", images)).argmax(-1)[pairs.where]
            kinds = images.asked("asked_kind")[pairs.where]
            found.append((pairs.states.astype(np.float16), group_of[kinds, answers], pairs.image_ids))
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        return OneOfImage(*columns, groups=self.groups)

    def __call__(
        self, predict: Predict, pool: Any, labelled: Any, budget: int, rng: np.random.Generator
    ) -> Selection:
        """The best `budget`; equal ones by image id."""
        enough(budget, len(pool))
        known, seen = self._labelled(predict, labelled), self._pool(predict, pool)
        prior = np.bincount(seen.shortest, minlength=self.groups) / len(seen.shortest)
        if self.form == "bayes":
            each = bayes(seen.nll, prior=prior, accuracy=known.accuracy, scale=known.scale)
        else:
            each = 1 - seen.nll @ prior
        order = np.argsort(pool.ids)
        rows = order[np.searchsorted(pool.ids, seen.image_ids, sorter=order)]
        score = np.bincount(rows, each, len(pool)) / np.maximum(np.bincount(rows, minlength=len(pool)), 1)
        return Selection(top(score, pool.ids, budget), score)

    def _groups(self, questions: Any) -> np.ndarray:
        labels, kinds = questions.array("hard_label"), questions.kinds
        counts = np.bincount(labels[labels >= 0], minlength=len(questions.answers))
        return answer_groups(counts, kinds=len(kinds), groups=self.groups)

    def _pool(self, predict: Predict, pool: Any) -> Evidence:
        found = [self._evidence(predict, asked_pairs(predict, images)) for images in blocks(pool, self.block)]
        return Evidence(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _labelled(self, predict: Predict, labelled: Any) -> Known:
        """Accuracy of each group's predictions, and the spread of the likelihoods, over the labelled questions."""
        questions = labelled.questions
        truth, group_of = questions.array("hard_label"), self._groups(questions)
        own = group_of[questions.array("answer_kind"), np.maximum(truth, 0)]
        order, shortest, nll = [], [], []
        for images, rows in own_questions(labelled):
            for start, part in enumerate(blocks(images, self.block)):
                pairs = asked_pairs(predict, part)
                found = self._evidence(predict, pairs)
                order.append(rows[start * self.block :][pairs.where])
                shortest.append(found.shortest)
                nll.append(found.nll)
        rows, predicted = np.concatenate(order), np.concatenate(shortest)
        answered = truth[rows] >= 0
        accuracy = accuracies(predicted[answered], own[rows[answered]], groups=self.groups)
        return Known(accuracy, float(np.concatenate(nll).std()))

    def _evidence(self, predict: Predict, pairs: Pairs) -> Evidence:
        name = f"{self.stage}/evidence"
        found: Any = predict(name, Vectors(pairs.image_ids, {"states": pairs.states}))
        nll = finite(np.asarray(found["nll"], np.float32), name=name, ids=pairs.image_ids)
        if nll.shape[1] != self.groups:
            raise ValueError(
                f"{name} knows {nll.shape[1]} groups of answers, the strategy has groups={self.groups}: set "
                f"stages.{self.stage}.model.groups and the strategy's groups to the same number"
            )
        return Evidence(nll, np.asarray(found["norms"]).argmin(1), pairs.image_ids)


class Pairs(NamedTuple):
    """Pairs of images and what is asked of them: `states [P,3,D]` f32, `image_ids [P]`, and `where`, their positions
    in arrays `[N,J]` (two arrays `[P]`)."""

    states: np.ndarray
    image_ids: np.ndarray
    where: tuple[np.ndarray, ...]


class Evidence(NamedTuple):
    """Of pairs: `nll [P,G]` of each group, `shortest [P]`, the group with the shortest latents, and `image_ids [P]`."""

    nll: np.ndarray
    shortest: np.ndarray
    image_ids: np.ndarray


class Known(NamedTuple):
    """From labelled pairs: `accuracy [G]` of predictions of each group, and `scale`, the deviation of all `nll`."""

    accuracy: np.ndarray
    scale: float


class OneOfImage(Vectors):
    """A row an image: `states [3,D]` f32 and `group [G]`, one-hot, of a pair of it; in training of a random one.

    Args:
      states: `[P,3,D]`; pairs of one image are consecutive.
      group: `[P]`.
      image_ids: `[P]`.
      groups: `G`.
    """

    def __init__(self, states: np.ndarray, group: np.ndarray, image_ids: np.ndarray, *, groups: int):
        self.states, self.group, self.groups = states, group, groups
        self.first = np.flatnonzero(np.diff(image_ids, prepend=-1))
        self.count = np.diff(self.first, append=len(image_ids))
        super().__init__(image_ids[self.first], {"pair": self.first})

    def __getitem__(self, i: int) -> Arrays:
        return self._row(super().__getitem__(i), 0)

    def augmented(self, i: int, rng: np.random.Generator) -> Arrays:
        """A random pair of image `i`."""
        return self._row(super().__getitem__(i), int(rng.integers(self.count[i])))

    def _row(self, found: Arrays, which: int) -> Arrays:
        pair = int(found["pair"]) + which
        group = (np.arange(self.groups) == self.group[pair]).astype(np.float32)
        return {
            "states": self.states[pair].astype(np.float32), "group": group, "image_id": found["image_id"],
        }  # fmt: skip


def blocks(images: Any, size: int) -> Iterator[Any]:
    """`images` in parts of `size`."""
    for start in range(0, len(images), size):
        yield images.subset(np.arange(start, min(start + size, len(images))))


def asked_pairs(predict: Predict, images: Any) -> Pairs:
    """The task model's vectors of each image with each question asked of it."""
    found: Any = predict("task/states", images)
    where = np.nonzero(there(images))
    states = np.stack([np.asarray(found[part], np.float32)[where] for part in PARTS], axis=1)
    ids = images.ids[where[0]]
    return Pairs(finite(states, name="task/states", ids=ids), ids, where)


def own_questions(labelled: Any) -> list[tuple[Any, np.ndarray]]:
    """Labelled images asked their own questions, as many at a time as all images are asked.

    Returns:
      (rows of `labelled`, one an image, and `[n,J]` positions in `labelled.questions` of what they are asked, -1 =
      nothing), as many as it takes.
    """
    questions, width = labelled.questions, labelled[0]["asked"].shape[0]
    text, kind = questions.array("text"), questions.array("answer_kind")
    order = np.lexsort((np.arange(len(questions)), questions.image_ids))
    ids, first, count = np.unique(questions.image_ids[order], return_index=True, return_counts=True)
    place = np.argsort(labelled.image_ids, kind="stable")
    place = place[np.searchsorted(labelled.image_ids[place], ids)]
    out = []
    for start in range(0, int(count.max()), width):
        some = np.flatnonzero(count > start)
        at = first[some, None] + start + np.arange(width)
        rows = np.where(
            start + np.arange(width) < count[some, None], order[np.minimum(at, len(order) - 1)], -1
        )
        asked = np.where((rows >= 0)[..., None], text[rows], 0)
        out.append((labelled.subset(place[some]).asking(asked, np.where(rows >= 0, kind[rows], 0)), rows))
    return out


def answer_groups(counts: np.ndarray, *, kinds: int, groups: int) -> np.ndarray:
    """`[T,C]`: group of each answer to questions of each type.

    The `groups - kinds` most frequent answers have groups of their own, in order of frequency (equal ones in order of
    class); all others share the last groups, one a type.

    Args:
      counts: `[C]`, how often each answer was given.
      kinds: `T`.
      groups: `G`, more than `T`.
    """
    own = groups - kinds
    if own < 1:
        raise ValueError(f"vabal.groups={groups}: must be more than the {kinds} answer types")
    rest = np.repeat(own + np.arange(kinds)[:, None], len(counts), axis=1)
    frequent = np.argsort(-counts, kind="stable")[:own]
    rest[:, frequent] = np.arange(len(frequent))
    return rest


def accuracies(predicted: np.ndarray, truth: np.ndarray, *, groups: int) -> np.ndarray:
    """`[G]`: share of right ones among the predictions of each group, as if one right and one wrong had been seen."""
    right = np.bincount(predicted[predicted == truth], minlength=groups)
    return (right + 1) / (np.bincount(predicted, minlength=groups) + 2)


def bayes(nll: np.ndarray, *, prior: np.ndarray, accuracy: np.ndarray, scale: float) -> np.ndarray:
    """`[P]` in [0, 1]: 1 - sum over groups of accuracy times posterior, which is `softmax(log prior - nll / scale)`.

    Args:
      nll: `[P,G]`.
      prior: `[G]`, sums to 1; a group without any has posterior 0.
      accuracy: `[G]`.
      scale: deviation that likelihoods are measured in; 0 counts as 1.
    """
    with np.errstate(divide="ignore"):
        logits = np.log(prior) - nll.astype(np.float64) / (scale or 1.0)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return 1 - (weights / weights.sum(1, keepdims=True)) @ accuracy
