"""Features of questions that nothing trains: mean regions, mean word vectors, states of a matcher, and users' files.

Shape legend: `N` questions, `M` images, `L` words, `D` width of an image's features, `E` of a question's.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.data.region_source import Provider, RegionImages
from jaxvl.data.words import SPECIAL, Words
from jaxvl.types import Predict

SHOWN = 5  # missing image ids written out in an error


class Rows:
    """A source of the rows of some arrays `[N, ...]`, e.g. the texts of questions without their images."""

    def __init__(self, **arrays: np.ndarray):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return {name: array[i] for name, array in self.arrays.items()}

    def augmented(self, i: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The same as `[i]`."""
        return self[i]

    def annotation(self, i: int) -> Mapping[str, Any]:
        """Nothing."""
        return {}


def mean_regions(provider: Provider, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """`[M,D]` f32: the mean over the regions of each image."""
    out = np.zeros((len(ids), provider.width), np.float32)
    for row, image_id in enumerate(ids):
        found = provider.of(int(image_id))
        if found.mask.any():
            out[row] = found.features[found.mask].mean(0, dtype=np.float64)
    return out


def mean_words(words: Words, text_nl: np.ndarray) -> np.ndarray:
    """`[N,E]` f32: the mean over the vectors of a question's words, those that have one; 0 where none has."""
    known = np.arange(len(words)) >= len(SPECIAL)
    if words.known is not None:
        known &= words.known
    out = np.zeros((len(text_nl), words.vectors.shape[1]), np.float32)
    for row, ids in enumerate(text_nl):
        said = ids[known[ids]]
        if len(said):
            out[row] = words.vectors[said].mean(0, dtype=np.float64)
    return out


def matcher_images(predict: Predict, provider: Provider, ids: np.ndarray) -> np.ndarray:
    """`v [M,D]` f32 of a matcher whose predictor "image_state" `predict` asks."""
    return np.asarray(predict("image_state", RegionImages(provider, ids)), np.float32)


def matcher_texts(predict: Predict, questions: Any) -> np.ndarray:
    """`s [N,E]` f32 of a matcher for the questions of a `RegionQuestions`; their images are not read."""
    source = Rows(text=questions.array("text"), text_mask=questions.array("text_mask"))
    return np.asarray(predict("text_state", source), np.float32)


def from_file(path: Path, ids: np.ndarray) -> np.ndarray:
    """`[M,D]` f32: features of these images from a file that a user made.

    Args:
      path: `.npz` of `image_id [K]` integers, each once, and `features [K,D]` floats, in any order.
      ids: image ids.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another content, or images that it lacks; names the file, the array and the fix.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file of image features")
    try:
        with np.load(path) as file:
            known, features = file["image_id"], file["features"]
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: no .npz of 'image_id' and 'features' ({error}). Write it with "
            "numpy.savez(path, image_id=ids, features=features)"
        ) from error
    if known.dtype.kind not in "iu" or features.dtype.kind != "f" or features.shape[:1] != known.shape:
        raise ValueError(
            f"{path}: image_id is {known.dtype} {list(known.shape)}, features {features.dtype} "
            f"{list(features.shape)}; expected integers [K] and floats [K,D]"
        )
    if features.ndim != 2 or not np.isfinite(features).all() or len(np.unique(known)) != len(known):
        raise ValueError(
            f"{path}: features must be [K,D] and finite, and each image_id there once: make it anew"
        )
    place = {int(image_id): row for row, image_id in enumerate(known)}
    missing = [int(i) for i in ids if int(i) not in place]
    if missing:
        raise ValueError(
            f"{path}: no features of {len(missing)} of {len(ids)} images, e.g. image_id "
            f"{', '.join(map(str, missing[:SHOWN]))}. Add them, of training and evaluation images alike"
        )
    return features[[place[int(i)] for i in ids]].astype(np.float32)
