"""Questions about images by key: states come from stores where these have them, and from the encoders where not.

The key of an image given as a path is that path as it was given; of bytes, a Pillow image or an array it is
`sha256:` and the hash of the decoded pixels. The key of a text is the text.

Shape legend: `B` batch, `N` texts, `A` classes, `Z` layers, `M` text tokens, `P` image tokens, `D` width.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.cache.api import CachedModel, fingerprint, layout
from jaxvl.cache.building import Built, build_store
from jaxvl.cache.files import MANIFEST, StoreError
from jaxvl.cache.fingerprint import Fingerprint
from jaxvl.cache.store import States, Store
from jaxvl.data.images import ImageError, to_rgb

Tokens = tuple[np.ndarray, np.ndarray]


class Asker:
    """A model with what makes its inputs, and at most one store of images and one of texts.

    Args:
      cached: the model.
      tokens: text to `(ids [L] i32, mask [L] bool)`.
      pixels: uint8 RGB to the model's image.
      inputs: what `pixels` and `tokens` are, in plain JSON by modality: part of the stores' fingerprints.
    """

    def __init__(
        self,
        cached: CachedModel,
        *,
        tokens: Callable[[str], Tokens],
        pixels: Callable[[np.ndarray], np.ndarray],
        inputs: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.cached, self.tokens, self.pixels, self.inputs = cached, tokens, pixels, inputs
        self.stores: dict[str, Store] = {}
        self._fingerprints: dict[str, Fingerprint] = {}

    # ---- stores -----------------------------------------------------------------------------------------

    def fingerprint(self, modality: str) -> Fingerprint:
        """What makes the states of a modality here."""
        if modality not in self._fingerprints:
            model, params = self.cached.model, self.cached.params
            self._fingerprints[modality] = fingerprint(model, params, modality, inputs=self.inputs[modality])
        return self._fingerprints[modality]

    def use(self, modality: str, path: str | os.PathLike[str]) -> Store:
        """Take states of a modality from a store; StoreError if it was made otherwise or holds the other modality."""
        self.stores[modality] = open_store(path, modality, self.fingerprint(modality))
        return self.stores[modality]

    def add_images(
        self, images: Mapping[str, Any], path: str | os.PathLike[str] | None = None, **how: Any
    ) -> Built:
        """Encode images, or functions that read them, by key; see `add`. Images that cannot be decoded are left out."""

        def load(key: str) -> dict[str, np.ndarray]:
            image = images[key]
            return {"image": self.pixels(to_rgb(image() if callable(image) else image))}

        encode = lambda rows: self.cached.encode_images(rows["image"])  # noqa: E731
        with self._writing("image", path, how) as store:
            built = self._build(store, list(images), load, encode, **how)
        self._reopen("image")
        return built

    def add_texts(
        self, texts: Iterable[str], path: str | os.PathLike[str] | None = None, **how: Any
    ) -> Built:
        """Encode texts; see `add`. Short ones are encoded together, then longer ones."""
        tokens = {text: self.tokens(text) for text in texts}
        encode = lambda rows: self.cached.encode_texts(rows["text"], rows["text_mask"])  # noqa: E731
        groups: dict[int, list[str]] = {size: [] for size in self.cached.buckets}
        for text, (_, mask) in tokens.items():
            groups[self.cached.bucket(int(mask.sum()))].append(text)
        total = Built(0, 0, {})
        with self._writing("text", path, how) as store:
            for group in groups.values():
                load = lambda text: dict(zip(("text", "text_mask"), tokens[text], strict=True))  # noqa: E731
                built = self._build(store, group, load, encode, **how)
                total = Built(total.written + built.written, total.present + built.present, {})
        self._reopen("text")
        return total

    def _build(self, store: Store, keys: Sequence[str], load: Any, encode: Any, **how: Any) -> Built:
        size = self.cached.batch_size
        return build_store(store, keys, load, encode, batch_size=size, failures=(ImageError,), **how)

    def _writing(self, modality: str, path: str | os.PathLike[str] | None, how: dict[str, Any]) -> Any:
        """The store at `path`, or the one in use, or a new one in memory, for writing."""
        given = {name: how.pop(name) for name in ("dtype", "shard_bytes") if name in how}
        used = self.stores.get(modality)
        if path is None and used is not None and used.path is None:
            if given.get("dtype", used.dtype) != used.dtype:
                raise ValueError(
                    f"the store in memory holds {used.dtype} records: leave dtype out, or give a folder"
                )
            return used
        where = used.path if path is None and used is not None else path
        made_by = self.fingerprint(modality)
        if where is not None and (Path(where).expanduser() / MANIFEST).exists():
            store = open_store(where, modality, made_by, write=True)
            if "dtype" in given and given["dtype"] != store.dtype:
                store.close()
                raise ValueError(
                    f"{where} holds {store.dtype} records: leave dtype out, or give another folder"
                )
        else:
            shape = layout(self.cached.model, self.cached.params, modality)
            store = Store.create(where, shape, fingerprint=made_by, **given)
        self.stores[modality] = store
        return store

    def _reopen(self, modality: str) -> None:
        """Read from now on, so that another process may add to the store."""
        store = self.stores[modality]
        if store.path is not None:
            self.stores[modality] = Store.open(store.path)

    # ---- answers ----------------------------------------------------------------------------------------

    def logits(self, texts: Sequence[str], images: Sequence[Sequence[Any]]) -> np.ndarray:
        """Class logits `[N,A]`.

        Args:
          texts: `N` of them.
          images: for each image that the model reads with a text, `N` images: keys of the store in use, paths, bytes,
            Pillow images or arrays. Each distinct one is encoded once.
        """
        encoded: dict[str, np.ndarray] = {}  # states of images that no store has
        keys = [self._keys(column, encoded) for column in images]
        tokens = {text: self.tokens(text) for text in texts if not self._stored("text", text)}
        lengths = [int(tokens[t][1].sum()) if t in tokens else self.stores["text"].length(t) for t in texts]
        sizes = np.array([self.cached.bucket(length) for length in lengths])
        out: np.ndarray | None = None
        for rows in _batches(sizes, self.cached.batch_size):
            text = self._text_states([texts[i] for i in rows], tokens, int(sizes[rows[0]]))
            pairs = [self._image_states([column[i] for i in rows], encoded) for column in keys]
            found = self.cached.answer(text, *zip(*pairs, strict=True))
            out = np.zeros((len(texts), found.shape[1]), np.float32) if out is None else out
            out[rows] = found
        assert out is not None
        return out

    def _keys(self, images: Sequence[Any], encoded: dict[str, np.ndarray]) -> list[str]:
        """Keys of images; those that no store has are encoded."""
        keys, rows = [], {}
        for image in images:
            key, rgb = image_key(image)
            keys.append(key)
            if not self._stored("image", key) and key not in encoded and key not in rows:
                rows[key] = self.pixels(to_rgb(image) if rgb is None else rgb)
        names, size = list(rows), self.cached.batch_size
        for start in range(0, len(names), size):
            part = names[start : start + size]
            states = self.cached.encode_images(np.stack([rows[key] for key in part]))
            encoded |= zip(part, states.x, strict=True)
        return keys

    def _image_states(
        self, keys: Sequence[str], encoded: Mapping[str, np.ndarray]
    ) -> tuple[States, np.ndarray]:
        """States of the distinct images among `keys`, and the row of each key."""
        distinct = list(dict.fromkeys(keys))
        stored = [key for key in distinct if key not in encoded]
        found = {key: encoded[key] for key in distinct if key in encoded}
        if stored:
            found |= dict(zip(stored, self.stores["image"].get(stored).x, strict=True))
        places = {key: i for i, key in enumerate(distinct)}
        index = np.array([places[key] for key in keys], np.int32)
        return States(np.stack([found[key] for key in distinct])), index

    def _text_states(self, texts: Sequence[str], tokens: Mapping[str, Tokens], size: int) -> States:
        """States `[B,Z,size,D]`, from the store or the encoder."""
        fresh = [text for text in dict.fromkeys(texts) if text in tokens]
        stored = [text for text in dict.fromkeys(texts) if text not in tokens]
        parts = []
        if fresh:
            parts.append(self.cached.encode_texts(*(np.stack([tokens[t][i] for t in fresh]) for i in (0, 1))))
        if stored:
            parts.append(self.stores["text"].get(stored, pad_to=size))
        x, mask = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        places = {text: i for i, text in enumerate([*fresh, *stored])}
        rows = [places[text] for text in texts]
        return States(x[rows], mask[rows])

    def _stored(self, modality: str, key: str) -> bool:
        return modality in self.stores and key in self.stores[modality]


def open_store(
    path: str | os.PathLike[str], modality: str, made_by: Fingerprint, *, write: bool = False
) -> Store:
    """A store of a modality that `made_by` made; StoreError otherwise."""
    found = Store.open(path).layout.modality
    if found != modality:
        raise StoreError(f"{path} is a store of {found}s, not of {modality}s: give another folder")
    return Store.open(path, fingerprint=made_by, write=write)


def image_key(image: Any) -> tuple[str, np.ndarray | None]:
    """The key of an image, and its pixels if they had to be decoded for that."""
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image), None
    rgb = to_rgb(image)
    return f"sha256:{hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).hexdigest()}", rgb


def by_key(images: Any) -> dict[str, Any]:
    """Images by key: a mapping as it is, others under `image_key`; paths are read when they are needed."""
    if isinstance(images, Mapping):
        return dict(images)
    found: dict[str, Any] = {}
    for image in images:
        key, rgb = image_key(image)
        found.setdefault(key, functools.partial(to_rgb, image) if rgb is None else rgb)
    return found


def _batches(sizes: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Positions in batches of one size of text, shortest first."""
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        for start in range(0, len(rows), batch_size):
            yield rows[start : start + batch_size]
