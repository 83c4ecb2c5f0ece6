"""Images as regions: sources of image rows and of question rows for models that read region features.

A *provider* of regions has a fixed number of regions an image (`regions`), their width, and the regions of an image by
its id. The embedded world's is `jaxvl.data.scenes.regions.SceneRegions`; files' is a region store.

Shape legend: `R` regions, `F` feature width, `L` words, `J` asked questions, `K` labels, `M` keys, `N` images, `Q`
questions.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxvl.data import question_rows
from jaxvl.data.records import DataError
from jaxvl.data.words import PAD, Words

Arrays = dict[str, np.ndarray]
KINDS = ("yes/no", "number", "other")
SHOWN = 10  # missing ids written out in an error


class Regions(NamedTuple):
    """Regions of an image.

    Attributes:
      features: `[R,F]` f32; zeros where there is no region.
      boxes: `[R,4]` f32, x1, y1, x2, y2 in units of the image's sides.
      mask: `[R]` bool, True = region.
    """

    features: np.ndarray
    boxes: np.ndarray
    mask: np.ndarray


class Provider(Protocol):
    """Region features of images by their ids."""

    @property
    def regions(self) -> int:
        """R, the same for all images."""
        ...

    @property
    def width(self) -> int:
        """F."""
        ...

    def of(self, image_id: int) -> Regions:
        """The regions of an image."""
        ...

    def has(self, image_id: int) -> bool:
        """Whether there is such an image."""
        ...

    def ids(self) -> np.ndarray:
        """`[N]` i64, sorted: the images there are."""
        ...

    @property
    def digest(self) -> str:
        """A hash of the features: equal for providers that give the same."""
        ...


def require_regions(provider: Provider, ids: Iterable[int], *, wanted_by: str = "the questions") -> None:
    """Raise DataError that lists the images which have no regions."""
    missing = [int(i) for i in ids if not provider.has(int(i))]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"{provider}: no regions of {len(missing)} images of {wanted_by}: image_id "
            f"{', '.join(map(str, missing[:SHOWN]))}{more}. Convert or extract their features too "
            "(python launch/regions.py), or leave these images out."
        )


class RegionImages:
    """A row an image: `regions [R,F]`, `region_mask [R]`, `region_boxes [R,4]`, `image_id`, and what is asked of it.

    With questions to ask, rows have `asked [J,L]` and `asked_kind [J]` i32 (word ids, kinds of answers), and
    `asked_shared`, the same as `asked`, if all images are asked the same: one encoding of them then serves a batch. A
    row that is asked one question of its own also has it as `text [L]`, `text_mask [L]`, as question rows have.

    Attributes:
      ids: `[N]` i64.

    Args:
      provider: of the regions.
      ids: distinct, below 2^31: of the images, or of rows that share images.
      image_ids: the image of each row; None = the ids.
      asked: `[J,L]` word ids of questions for all images, or `[N,J,L]` for each its own; None = no questions.
      asked_kinds: `[J]`, or `[N,J]` where each has its own.

    Raises:
      DataError: images without regions, listed; an id twice or out of range.
    """

    def __init__(
        self,
        provider: Provider,
        ids: Sequence[int] | np.ndarray,
        *,
        image_ids: Sequence[int] | np.ndarray | None = None,
        asked: np.ndarray | None = None,
        asked_kinds: np.ndarray | None = None,
    ) -> None:
        self.provider, self.ids = provider, _ids(ids)
        self._images = None if image_ids is None else _ids(image_ids)
        if len(np.unique(self.ids)) != len(self.ids) or len(self.image_ids) != len(self.ids):
            raise DataError("an image_id occurs twice among the images: give each image once")
        require_regions(provider, np.unique(self.image_ids), wanted_by="the pool")
        self._asked: Arrays = {}
        self._own = False
        if asked is not None:
            self.ask(asked, np.zeros(np.shape(asked)[:-1]) if asked_kinds is None else asked_kinds)

    @property
    def image_ids(self) -> np.ndarray:
        """`[N]` i64, the image of each row."""
        return self.ids if self._images is None else self._images

    def ask(self, text: np.ndarray, kinds: np.ndarray) -> None:
        """Have these questions asked of all images from now on, or of each its own; see `asked`, `asked_kinds`."""
        text, kinds = np.asarray(text, np.int32), np.asarray(kinds, np.int32)
        if text.ndim not in (2, 3) or kinds.shape != text.shape[:-1]:
            raise ValueError(
                f"asked {list(text.shape)} with kinds {list(kinds.shape)}: expected [J,L] with [J]"
            )
        self._own = text.ndim == 3
        if self._own and len(text) != len(self):
            raise ValueError(f"questions for {len(text)} images, there are {len(self)}")
        self._asked = {"asked": text, "asked_kind": kinds}

    def asking(self, text: np.ndarray, kinds: np.ndarray) -> RegionImages:
        """A copy of which these questions are asked."""
        out = copy.copy(self)
        out.ask(text, kinds)
        return out

    def asked(self, name: str = "asked") -> np.ndarray:
        """What is asked of all rows, without reading their regions: "asked" `[N,J,L]` or "asked_kind" `[N,J]`."""
        found = self._asked[name]
        return found if self._own else np.broadcast_to(found, (len(self), *found.shape))

    def subset(self, positions: Sequence[int] | np.ndarray) -> RegionImages:
        """The image rows at these positions, in that order, with what they are asked; nothing else of a subclass."""
        out = object.__new__(RegionImages)
        at = np.asarray(positions, np.int64)
        out.provider, out._own = self.provider, self._own
        out.ids, out._images = self.ids[at], None if self._images is None else self._images[at]
        out._asked = {k: v[at] for k, v in self._asked.items()} if self._own else self._asked
        return out

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Arrays:
        i = _position(i, len(self))
        return {**region_arrays(self.provider, int(self.image_ids[i])), **self._questions(i)}

    def augmented(self, i: int, rng: np.random.Generator) -> Arrays:
        """The same as `[i]`: features of regions are not augmented."""
        return self[i]

    def annotation(self, i: int) -> dict[str, Any]:
        """`image_id` of row `i`."""
        return {"image_id": int(self.image_ids[_position(i, len(self))])}

    def shapes(self) -> Arrays:
        """Arrays of the shapes and types of a row, also of no row."""
        return {**_blank(self.provider), **self._questions(0)}

    def _questions(self, i: int) -> Arrays:
        if not self._asked:
            return {}
        if self._own:
            own = {k: v[i] for k, v in self._asked.items()}
            one = own["asked"][0] if len(own["asked"]) == 1 else None
            return own if one is None else {**own, "text": one, "text_mask": one != PAD}
        return {**self._asked, "asked_shared": self._asked["asked"]}


class RegionQuestions:
    """A row a question about an image.

    Beside the image's arrays as in `RegionImages`: `text [L]` i32, `text_mask [L]`; `label [K]` i32, `label_score [K]`,
    `label_share [K]` f32 and `hard_label` i32 (see `hard_labels.Targets`); `answer_kind` i32, position in `kinds`;
    `question_key` i32, equal for questions that say the same; `keys_of_image [M]` i32, the keys of all questions of the
    image, padded with -1. Questions without answers have no label; they can be predicted.

    Attributes:
      records: as given.
      answers: candidate answers; position = class.
      image_ids: `[Q]` i64.

    Args:
      provider: of the regions.
      records: annotations of a question reader: `image_id`, `question`, `answers`, `answer_type`.
      words: tokeniser.
      answers: candidate answers.
      kinds: answer types.
      max_labels: K.
      max_keys: M. Of an image with more distinct questions, those are kept that most images share: a question that no
        other image has cannot be a false negative. `keys_dropped` counts what is lost of the others.

    Raises:
      DataError: images without regions; a record without a field or with another answer type; names it.
    """

    def __init__(
        self,
        provider: Provider,
        records: Sequence[Mapping[str, Any]],
        words: Words,
        answers: Sequence[str],
        *,
        kinds: Sequence[str] = KINDS,
        max_labels: int = 10,
        max_keys: int = 32,
    ) -> None:
        self.provider, self.records, self.words = provider, list(records), words
        self.answers, self.kinds = list(answers), tuple(kinds)
        question_rows.check(self.records, self.kinds)
        self.image_ids = _ids([r["image_id"] for r in self.records])
        unique = np.unique(self.image_ids)
        require_regions(provider, unique)
        labels = question_rows.labels(self.records, self.answers, most=max_labels)
        self._arrays = {**question_rows.texts(self.records, words), **labels}
        kind_of = {kind: i for i, kind in enumerate(self.kinds)}
        self._arrays["answer_kind"] = np.array([kind_of[r["answer_type"]] for r in self.records], np.int32)
        keys = question_rows.keys(self.records, words, self.image_ids, most=max_keys)
        self._arrays["question_key"], self.keys_dropped = keys.of_question, keys.dropped
        self._rows_of_image, self._keys_of_image = np.searchsorted(unique, self.image_ids), keys.of_image

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Arrays:
        i = _position(i, len(self))
        image = region_arrays(self.provider, int(self.image_ids[i]))
        row = {name: array[i] for name, array in self._arrays.items()}
        return {**image, **row, "keys_of_image": self._keys_of_image[self._rows_of_image[i]]}

    def augmented(self, i: int, rng: np.random.Generator) -> Arrays:
        """The same as `[i]`: features of regions are not augmented."""
        return self[i]

    def annotation(self, i: int) -> Mapping[str, Any]:
        """The record of row `i`."""
        return self.records[_position(i, len(self))]

    def truth(self, i: int) -> tuple[int, int]:
        """Hard label (-1 = none) and answer kind of row `i`."""
        i = _position(i, len(self))
        return int(self._arrays["hard_label"][i]), int(self._arrays["answer_kind"][i])

    def array(self, name: str) -> np.ndarray:
        """`[Q, ...]`: one of the arrays of all rows that are not the image's, e.g. "hard_label"."""
        if name == "keys_of_image":
            return self._keys_of_image[self._rows_of_image]
        return self._arrays[name]

    def subset(self, positions: Sequence[int] | np.ndarray) -> RegionQuestions:
        """The rows at these positions, in that order; question keys and keys of images stay what they are."""
        at = np.asarray(positions, np.int64)
        out = copy.copy(self)
        out.records = [self.records[i] for i in at]
        out.image_ids, out._rows_of_image = self.image_ids[at], self._rows_of_image[at]
        out._arrays = {name: array[at] for name, array in self._arrays.items()}
        return out

    def shapes(self) -> Arrays:
        """Arrays of the shapes and types of a row, also of no row."""
        rows = {name: np.zeros(a.shape[1:], a.dtype) for name, a in self._arrays.items()}
        keys = np.zeros(self._keys_of_image.shape[1], np.int32)
        return {**_blank(self.provider), **rows, "keys_of_image": keys}


def region_arrays(provider: Provider, image_id: int) -> Arrays:
    """The arrays of an image in a batch: `regions`, `region_mask`, `region_boxes`, `image_id`."""
    found = provider.of(image_id)
    return {
        "regions": found.features,
        "region_mask": found.mask,
        "region_boxes": found.boxes,
        "image_id": np.asarray(image_id, np.int32),
    }


def features_digest(provider: Provider, image_id: int) -> str | None:
    """A hash of an image's features, equal for images that models cannot tell apart; None if it has no region."""
    found = provider.of(image_id)
    if not found.mask.any():
        return None
    parts = (np.ascontiguousarray(x).tobytes() for x in (found.features, found.boxes, found.mask))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _ids(ids: Iterable[Any]) -> np.ndarray:
    out = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).reshape(-1)
    if out.size and not (out.min() >= 0 and out.max() < 2**31):
        raise DataError(f"image_id {int(out.min())} to {int(out.max())}: ids must lie in [0, 2^31)")
    return out


def _blank(provider: Provider) -> Arrays:
    r, f = provider.regions, provider.width
    return {
        "regions": np.zeros((r, f), np.float32),
        "region_mask": np.zeros(r, bool),
        "region_boxes": np.zeros((r, 4), np.float32),
        "image_id": np.asarray(0, np.int32),
    }


def _position(i: int, length: int) -> int:
    if not 0 <= i < length:  # also ends the implicit iteration `for row in source`
        raise IndexError(f"row {i} of a source with {length} rows")
    return int(i)
