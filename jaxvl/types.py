"""The nouns of jaxvl as protocols, and the vocabulary of a batch.

Batch keys (leading axis = example; `B` batch, `L` text, `N` answers, `R` regions, `A` classes):

| key                        | shape and type                  | meaning                                              |
|----------------------------|---------------------------------|------------------------------------------------------|
| `image`, `image2`          | `[B,H,W,3]` f32                 | normalised pixels                                    |
| `image_states`             | `[B,P,D]` f32                   | encoded image, given instead of `image` when cached  |
| `text`, `text_mask`        | `[B,L]` i32, `[B,L]` bool       | token ids; True = token                              |
| `label`                    | `[B]` i32 or `[B,A]` f32        | class, or soft targets                               |
| `answer`, `answer_weight`  | `[B,N,L]` i32, `[B,N]` f32      | answers to generate; weight 0 = no answer            |
| `regions`, `boxes`         | `[B,R,F]` f32, `[B,R,4]` f32    | region features; xyxy pixels of the resized image    |
| `image_id`                 | `[B]` i32                       | equal for captions of one image                      |
| `id`, `mask`               | `[B]` i32, `[B]` bool           | position in the source; False = padding              |

Strings and ragged data (ten human answers) never enter a batch: evaluators read them from
`Source.annotation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from jax import Array
else:
    Array = Any

PyTree = Any
Key = Array
Batch = Mapping[str, Array]
Rows = np.ndarray | dict[str, np.ndarray]  # [N, ...], row i <-> source[i]; padding already dropped
Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, weight); merged by adding
Predictor = Callable[[PyTree, Batch, Key], Any]


class Source(Protocol):
    """A data set with random access. Never batches, never shuffles, knows no hosts."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Mapping[str, np.ndarray]:
        """Model-ready arrays of example `i` under the evaluation transform: fixed shapes, no randomness."""
        ...

    def augmented(self, i: int, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Model-ready arrays of example `i` under the training transform; a function of (i, rng) alone."""
        ...

    def annotation(self, i: int) -> Mapping[str, Any]:
        """Strings and ragged truth of example `i`, without decoding its image."""
        ...


Predict = Callable[[str, Source], Rows]


class Task(Protocol):
    """A loss and named predictors over one batch format; holds a model, keeps no state."""

    predictors: Mapping[str, Predictor]

    def init(self, rng: Key, batch: Batch) -> PyTree:
        """Fresh parameters, boxed with their logical axes."""
        ...

    def start(self, params: PyTree, rng: Key) -> PyTree:
        """Fresh `extra` for (loaded or fresh) params: checkpointed non-gradient state such as a momentum copy."""
        ...

    def prepare(self, params: PyTree, extra: PyTree) -> PyTree:
        """The `extra` that this optimiser update sees; called once before its micro-batches (momentum update)."""
        ...

    def loss(
        self, params: PyTree, extra: PyTree, batch: Batch, rng: Key
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """(scalar loss, (aux, metrics)). `aux` leaves have a leading example axis and go to `finish`."""
        ...

    def finish(self, extra: PyTree, aux: PyTree) -> PyTree:
        """The `extra` after this update, from the aux of all its micro-batches concatenated (queue write)."""
        ...


class Evaluator(Protocol):
    """Scores from predictions. Never calls a model itself."""

    def __call__(self, predict: Predict, source: Source) -> dict[str, float]: ...


class Strategy(Protocol):
    """Picks `budget` distinct positions of `pool` to annotate."""

    def __call__(
        self, predict: Predict, pool: Source, labelled: Source, budget: int, rng: np.random.Generator
    ) -> np.ndarray: ...
