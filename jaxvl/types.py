"""The nouns of jaxvl as protocols, and the vocabulary of a batch.

Batch keys (leading axis = example; `B` batch, `L` text, `N` answers, `R` regions, `A` classes):

| key                        | shape and type                  | meaning                                              |
|----------------------------|---------------------------------|------------------------------------------------------|
| `image`, `image2`          | `[B,H,W,3]` f32                 | normalised pixels                                    |
| `false_image`, `false_image_id` | as `image`, `image_id`     | an image drawn from the data set that is no match    |
| `image_states`             | `[B,(Z,)P,D]` f32               | encoded image, given instead of `image` when cached  |
| `image2_states`            | `[B,Z,P,D]` f32                 | the same of `image2`                                 |
| `text`, `text_mask`        | `[B,L]` i32, `[B,L]` bool       | token ids; True = token                              |
| `teacher_text`, `.._mask`  | as `text`, `text_mask`          | the text in the tokens of a teacher that has its own |
| `text_word`, `teacher_text_word` | `[B,L]` i32               | word of each token on both sides; -1 = padding       |
| `text_states`              | `[B,Z,L,D]` f32                 | encoded text, given instead of `text` when cached    |
| `label`                    | `[B]` i32                       | class                                                |
| `label`, `label_score`     | `[B,K]` i32, `[B,K]` f32        | classes with soft scores; unused = class A, score 0  |
| `answer`, `answer_weight`  | `[B,N,L]` i32, `[B,N]` f32      | answers to generate; weight 0 = no answer            |
| `label_share`              | `[B,K]` f32                     | share of the human answers of each of these classes  |
| `hard_label`, `answer_kind` | `[B]` i32                      | consensus class (-1 = none); type of the answer      |
| `question_key`             | `[B]` i32                       | equal for questions that say the same                |
| `keys_of_image`            | `[B,M]` i32                     | keys of all questions of the image, padded with -1   |
| `regions`, `region_mask`   | `[B,R,F]` f32, `[B,R]` bool     | region features; True = region                       |
| `region_boxes`             | `[B,R,4]` f32                   | xyxy in units of the image's sides                   |
| `asked`, `asked_kind`      | `[B,J,L]` i32, `[B,J]` i32      | questions to ask of an image; their answer types     |
| `asked_shared`             | `[B,J,L]` i32                   | the same as `asked`, equal in all rows               |
| `image_id`                 | `[B]` i32                       | equal for captions of one image                      |
| `id`, `mask`               | `[B]` i32, `[B]` bool           | position in the source; False = padding              |

Strings and ragged data (ten human answers) never enter a batch: evaluators read them from
`Source.annotation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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


class CrossQK(NamedTuple):
    """Queries and keys of attention across two modalities, after the bias and before scaling.

    Text looks at image with `text_q [B,M,H,K]` and `image_k [B,P,H,K]`, image at text with `image_q [B,P,H,K]` and
    `text_k [B,M,H,K]` (`M` text tokens, `P` image tokens, `H` heads, `K` head dim).
    """

    text_q: Array
    image_k: Array
    image_q: Array
    text_k: Array


class Encoded(NamedTuple):
    """One modality before fusion, `S` tokens.

    Attributes:
      record: `[B,Z,S,D]`, all that fusion reads and a store keeps.
      last: `[B,S,D]`, last state of a tower; None if made from a stored record.
      qkv: queries, keys and values `[B,S,H,K]` of a tower's last layer; None where there is no tower.
    """

    record: Array
    last: Array | None = None
    qkv: tuple[Array, Array, Array] | None = None


class Fused(NamedTuple):
    """Two modalities after fusion.

    Attributes:
      text, image: `[B,M,D]`, `[B,P,D]`; None if only the class tokens were computed.
      pooled: `[B,W]`, what heads read.
      qk: of the last cross-modal layer; None where there is none.
    """

    text: Array | None
    image: Array | None
    pooled: Array
    qk: CrossQK | None


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
    """A loss and named predictors over one batch format; holds a model, keeps no state.

    One that learns from a fixed teacher also has `init_frozen(rng, batch)`, fresh boxed parameters of the teacher.
    """

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
