"""Sources: readers turned into model-ready arrays, and the views on them that evaluators use.

Shape legend: `H`, `W` pixels.

A *reader* has `__len__`, `annotation(i) -> dict` and `image(i) -> [H, W, 3] uint8`; one of pairs of images, whose
annotations have the key `image2`, has `image2(i)` too. `Examples` joins a reader with
a format (what becomes of the strings) and an image transform. The views `Subset`, `Images`, `Captions`, `Pairs`
and `WithRows` are sources again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from jaxvl.data.formats import (
    FORMATS,
    Arrays,
    CaptionFormat,
    ClassifyFormat,
    Encoded,
    Format,
    QuestionFormat,
    field,
)
from jaxvl.data.images import ImageError, ImageTransform
from jaxvl.data.records import DataError, Records

__all__ = [
    "FORMATS", "CaptionFormat", "Captions", "ClassifyFormat", "Encoded", "Examples", "FalseImages", "Format", "Images",
    "Pairs", "QuestionFormat", "Reader", "Subset", "WithRows",
]  # fmt: skip


class Reader(Protocol):
    """Annotated images with random access; see `jaxvl.data.SOURCES` for the ones that exist."""

    def __len__(self) -> int: ...

    def annotation(self, i: int) -> dict[str, Any]:
        """Strings and ragged truth of example `i`: `image` (a key), `image_id`, and its captions or question."""
        ...

    def image(self, i: int) -> np.ndarray:
        """`[H, W, 3]` uint8 RGB; raises `ImageError` naming the file."""
        ...


class _Base:
    """A source in parts, so that views can leave the image out: `pixels`, `fields`, `annotation`."""

    def __len__(self) -> int:
        raise NotImplementedError

    def annotation(self, i: int) -> Mapping[str, Any]:
        raise NotImplementedError

    def pixels(self, i: int) -> np.ndarray:
        """Normalised image `[H, W, 3]` of example `i` under the evaluation transform."""
        raise NotImplementedError

    def pictures(self, i: int) -> Arrays:
        """`image` of example `i`, and `image2` where it has two, under the evaluation transform."""
        return {"image": self.pixels(i)}

    def fields(self, i: int) -> Arrays:
        """Everything of example `i` that needs no decoded image."""
        raise NotImplementedError

    def caption_fields(self, caption: str) -> Arrays:
        """`text` and `text_mask` of any caption in this source's format."""
        raise NotImplementedError

    def __getitem__(self, i: int) -> Arrays:
        return {**self.pictures(i), **self.fields(i)}

    def augmented(self, i: int, rng: np.random.Generator) -> Arrays:
        raise TypeError(f"{type(self).__name__} is a view for evaluation: train on the source below it")

    @property
    def check_command(self) -> str:
        """The command that inspects the files behind this source, or an empty string."""
        return ""

    @cached_property
    def image_rows(self) -> np.ndarray:
        """`[images]`: the first position of each distinct `image_id`, in order of appearance."""
        first: dict[int, int] = {}
        for i in range(len(self)):
            first.setdefault(int(self.annotation(i)["image_id"]), i)
        return np.fromiter(first.values(), np.int64, len(first))

    @cached_property
    def caption_rows(self) -> np.ndarray:
        """`[captions, 3]`: position, which caption of that position, and row in `image_rows`."""
        image_row = {int(self.annotation(int(i))["image_id"]): r for r, i in enumerate(self.image_rows)}
        rows = []
        for i in range(len(self)):
            annotation = self.annotation(i)
            captions = field(annotation, "captions", "a caption reader")
            rows += [(i, c, image_row[int(annotation["image_id"])]) for c in range(len(captions))]
        return np.array(rows, np.int64).reshape(-1, 3)


class Examples(_Base):
    """A reader as model-ready arrays.

    Args:
      reader: see `Reader`.
      format: `CaptionFormat`, `QuestionFormat` or `ClassifyFormat`.
      images: the image transform. A number instead shows the model a constant zero image of that side in pixels
        (the blind baseline); no image file is opened then.
    """

    def __init__(self, reader: Reader, format: Format, images: ImageTransform | int) -> None:
        if not isinstance(images, (ImageTransform, int)):
            raise TypeError(
                f"images={images!r} must be an ImageTransform, or the side of a constant zero image"
            )
        self.reader, self.format, self.images = reader, format, images

    def __len__(self) -> int:
        return len(self.reader)

    def annotation(self, i: int) -> Mapping[str, Any]:
        return self.reader.annotation(_position(i, len(self)))

    def pixels(self, i: int) -> np.ndarray:
        if isinstance(self.images, int):
            return _blank(self.images)
        return self.images(self.reader.image(_position(i, len(self))))

    def pictures(self, i: int) -> Arrays:
        first = {"image": self.pixels(i)}
        if "image2" not in self.annotation(i):
            return first
        if isinstance(self.images, int):
            return {**first, "image2": _blank(self.images)}
        return {**first, "image2": self.images(_second(self.reader)(i))}

    def fields(self, i: int) -> Arrays:
        annotation = self.annotation(i)
        return {**self.format.encode(annotation, None).arrays, **_image_id(annotation)}

    def caption_fields(self, caption: str) -> Arrays:
        if not isinstance(self.format, CaptionFormat):
            raise TypeError(f"captions need a CaptionFormat, this source has {type(self.format).__name__}")
        return self.format.caption(caption).arrays

    def augmented(self, i: int, rng: np.random.Generator) -> Arrays:
        """The arrays of training row `i`, a function of (i, rng)."""
        return self._augmented(i, rng)[0]

    def _augmented(self, i: int, rng: np.random.Generator) -> tuple[Arrays, str]:
        """The row, and the words that its images were kept true to."""
        annotation = self.annotation(i)
        encoded = self.format.encode(annotation, rng)
        bare = not annotation.get("answers", True) and not annotation.get("targets", True)
        if bare and isinstance(self.format, QuestionFormat):
            raise DataError(
                f"{', '.join(getattr(self.reader, 'files', []))}: example {i} (question_id "
                f"{annotation.get('question_id')}), field 'answers': holds no answer. Questions without answers can "
                "be predicted, not trained on: add answers or remove the row."
            )
        images = {"image": self._training(self.reader.image, i, rng, encoded.text)}
        if "image2" in annotation:  # drawn after the first image: its augmentation is another one
            images["image2"] = self._training(_second(self.reader), i, rng, encoded.text)
        return {**images, **encoded.arrays, **_image_id(annotation)}, encoded.text

    def _training(
        self, read: Callable[[int], np.ndarray], i: int, rng: np.random.Generator, text: str
    ) -> np.ndarray:
        if isinstance(self.images, int):
            return _blank(self.images)
        return self.images.training(read(i), rng, text=text)

    def shapes(self) -> Arrays:
        """Arrays of the shapes and types of a training example, without decoding an image.

        Raises:
          DataError: questions without answers or sentences without labels, which cannot be trained on.
        """
        labelled = isinstance(self.format, (QuestionFormat, ClassifyFormat))
        if labelled and isinstance(self.reader, Records):
            self.reader.require_answers()
        annotation = self.annotation(0)
        size = self.images if isinstance(self.images, int) else self.images.size
        arrays = self.format.encode(annotation, np.random.default_rng(0)).arrays
        images = {name: _blank(size) for name in ("image", "image2") if name in annotation}
        return {**images, **arrays, **_image_id(annotation)}

    @property
    def check_command(self) -> str:
        return getattr(self.reader, "check_command", "")


class FalseImages(Examples):
    """`Examples` whose training rows bring an image that does not belong to them: `false_image`, `false_image_id`.

    It is that of a row drawn from the whole data set, of another `image_id`, and a function of (i, rng) like the rest
    of the row, augmented for the same words as the row's own. One that cannot be read is drawn anew: as an image of
    its own row the loader counts it. Where `DRAWS` rows all show the row's own image, `false_image_id` says so, and a
    task gives the pair no weight.
    """

    DRAWS = 20

    def augmented(self, i: int, rng: np.random.Generator) -> Arrays:
        own, words = self._augmented(i, rng)  # drawn first: the rest of the row is as without a false image
        unreadable = None
        for _ in range(self.DRAWS):
            other = int(rng.integers(len(self)))
            if self.annotation(other)["image_id"] == own["image_id"]:
                continue
            try:
                image = self._training(self.reader.image, other, rng, words)
            except ImageError as error:
                unreadable = error
                continue
            return {
                **own,
                "false_image": image,
                "false_image_id": _image_id(self.annotation(other))["image_id"],
            }
        if unreadable is not None:
            raise unreadable
        return {**own, "false_image": own["image"], "false_image_id": own["image_id"]}

    def shapes(self) -> Arrays:
        found = super().shapes()
        return {**found, "false_image": found["image"], "false_image_id": found["image_id"]}


class _View(_Base):
    """A source over another one."""

    def __init__(self, source: _Base) -> None:
        self.source = source

    def caption_fields(self, caption: str) -> Arrays:
        return self.source.caption_fields(caption)

    @property
    def check_command(self) -> str:
        return getattr(self.source, "check_command", "")


class Subset(_View):
    """The rows `positions` of a source, in that order; repeats are allowed."""

    def __init__(self, source: _Base, positions: Sequence[int] | np.ndarray) -> None:
        super().__init__(source)
        self.positions = _rows(positions, len(source), "positions")

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> Arrays:
        return self.source[self._at(i)]

    def augmented(self, i: int, rng: np.random.Generator) -> Arrays:
        return self.source.augmented(self._at(i), rng)

    def annotation(self, i: int) -> Mapping[str, Any]:
        return self.source.annotation(self._at(i))

    def pixels(self, i: int) -> np.ndarray:
        return self.source.pixels(self._at(i))

    def pictures(self, i: int) -> Arrays:
        return self.source.pictures(self._at(i))

    def fields(self, i: int) -> Arrays:
        return self.source.fields(self._at(i))

    def _at(self, i: int) -> int:
        return int(self.positions[_position(i, len(self))])


class Images(_View):
    """One row per distinct image of a source: `image`, `image_id`."""

    def __len__(self) -> int:
        return len(self.source.image_rows)

    def annotation(self, i: int) -> Mapping[str, Any]:
        return self.source.annotation(self._at(i))

    def pixels(self, i: int) -> np.ndarray:
        return self.source.pixels(self._at(i))

    def fields(self, i: int) -> Arrays:
        return _image_id(self.annotation(i))

    def _at(self, i: int) -> int:
        return int(self.source.image_rows[_position(i, len(self))])


class Captions(_View):
    """One row per caption of a source, without its image: `text`, `text_mask`, `image_id`.

    `image_row [captions]` is the row of `Images(source)` that each caption describes. The annotation of a row is
    that of its example with `captions` reduced to this one.
    """

    @property
    def image_row(self) -> np.ndarray:
        """`[captions]`: the row of `Images(source)` each caption belongs to."""
        return self.source.caption_rows[:, 2]

    def __len__(self) -> int:
        return len(self.source.caption_rows)

    def __getitem__(self, i: int) -> Arrays:
        return self.fields(i)

    def annotation(self, i: int) -> Mapping[str, Any]:
        position, which, _ = self.source.caption_rows[_position(i, len(self))]
        annotation = self.source.annotation(int(position))
        return {**annotation, "captions": [annotation["captions"][int(which)]]}

    def fields(self, i: int) -> Arrays:
        annotation = self.annotation(i)
        return {**self.caption_fields(annotation["captions"][0]), **_image_id(annotation)}


class Pairs(_View):
    """Row `i` joins row `image_rows[i]` of `Images(source)` with row `caption_rows[i]` of `Captions(source)`.

    `image_id` is that of the image; the caption's own is `caption_image_id` of the annotation.
    """

    def __init__(
        self, source: _Base, image_rows: Sequence[int] | np.ndarray, caption_rows: Sequence[int] | np.ndarray
    ) -> None:
        super().__init__(source)
        self._images, self._captions = Images(source), Captions(source)
        self.pair_images = _rows(image_rows, len(self._images), "image_rows")
        self.pair_captions = _rows(caption_rows, len(self._captions), "caption_rows")
        if len(self.pair_images) != len(self.pair_captions):
            raise ValueError(
                f"{len(self.pair_images)} image rows against {len(self.pair_captions)} caption rows"
            )

    def __len__(self) -> int:
        return len(self.pair_images)

    def annotation(self, i: int) -> Mapping[str, Any]:
        caption = self._captions.annotation(int(self.pair_captions[i]))
        image = self._images.annotation(int(self.pair_images[i]))
        return {**image, "captions": caption["captions"], "caption_image_id": caption["image_id"]}

    def pixels(self, i: int) -> np.ndarray:
        return self._images.pixels(int(self.pair_images[i]))

    def fields(self, i: int) -> Arrays:
        text = self._captions.fields(int(self.pair_captions[i]))
        return {**text, **self._images.fields(int(self.pair_images[i]))}


class WithRows(_View):
    """A source whose `image` is replaced by rows of given arrays (cached image states); images stay undecoded.

    Args:
      rows: `[len(source)]`, the row of the arrays that each example takes; None = row `i` for example `i`.
      **arrays: `name=[R, ...]`; a name that the source has too is replaced.
    """

    def __init__(
        self, source: _Base, *, rows: Sequence[int] | np.ndarray | None = None, **arrays: np.ndarray
    ) -> None:
        super().__init__(source)
        if not arrays:
            raise ValueError("WithRows needs arrays, e.g. image_states=states")
        for name, array in arrays.items():
            if rows is None and len(array) != len(source):
                raise ValueError(f"{name} has {len(array)} rows for {len(source)} examples: give rows=")
        self.arrays = arrays
        self.rows = np.arange(len(source)) if rows is None else np.asarray(rows)
        if len(self.rows) != len(source):
            raise ValueError(f"rows has {len(self.rows)} entries for {len(source)} examples")
        _rows(self.rows, min(len(array) for array in arrays.values()), "rows")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Arrays:
        return self.fields(i)

    def annotation(self, i: int) -> Mapping[str, Any]:
        return self.source.annotation(i)

    def fields(self, i: int) -> Arrays:
        row = self.rows[_position(i, len(self))]
        return {**self.source.fields(i), **{name: array[row] for name, array in self.arrays.items()}}


def _blank(size: int) -> np.ndarray:
    return np.zeros((size, size, 3), np.float32)


def _second(reader: Reader) -> Callable[[int], np.ndarray]:
    read = getattr(reader, "image2", None)
    if read is None:
        raise TypeError(f"{type(reader).__name__} annotates a second image, but has no method image2(i)")
    return read


def _image_id(annotation: Mapping[str, Any]) -> Arrays:
    return {"image_id": np.asarray(annotation["image_id"], np.int32)}


def _position(i: int, length: int) -> int:
    if not 0 <= i < length:  # also ends the implicit iteration `for row in source`
        raise IndexError(f"row {i} of a source with {length} rows")
    return int(i)


def _rows(rows: Sequence[int] | np.ndarray, length: int, name: str) -> np.ndarray:
    array = np.asarray(rows, np.int64)
    if array.ndim != 1 or (array.size and not (array.min() >= 0 and array.max() < length)):
        raise IndexError(f"{name} must be a list of rows in [0, {length})")
    return array
