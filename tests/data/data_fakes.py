"""Readers, vocabularies and files for the tests of the data package."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tokenizers

from jaxvl.data.images import ImageError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "man",
    "left",
    "right",
    "is",
    "yes",
    "no",
    "red",
    "##s",
    "run",
    "un",
    "##known",
]
CHARACTERS = [prefix + c for prefix in ("", "##") for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
VOCAB = SPECIAL + WORDS + [c for c in CHARACTERS if c not in WORDS]


def byte_level(merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """RoBERTa's kind of tokenizer: bytes, and these merges of them; a space before a word is written as Ġ."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *letters, *(a + b for a, b in merges)])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(special)
    return made


def picture(seed: int, height: int = 40, width: int = 50) -> np.ndarray:
    """A smooth random RGB picture, so that JPEG keeps it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


class FakeCaptions:
    """Two captions per example, two examples per image id; images in `broken` cannot be read."""

    def __init__(self, size: int, broken: tuple[int, ...] = ()) -> None:
        self.size, self.broken = size, frozenset(broken)
        self.check_command = "python -m jaxvl.data check captions.json"

    def __len__(self) -> int:
        return self.size

    def annotation(self, i: int) -> dict[str, Any]:
        return {"image": f"{i // 2}.jpg", "captions": [f"a dog {i}", f"a cat {i}"], "image_id": i // 2}

    def image(self, i: int) -> np.ndarray:
        if i in self.broken:
            raise ImageError(f"broken{i}.jpg: cannot decode the image")
        return picture(i)


def encoded(image: np.ndarray, kind: str = ".png") -> bytes:
    return cv2.imencode(kind, image[..., ::-1])[1].tobytes()


def write_images(folder: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture(i), Path(name).suffix))
    return folder


def write_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, encoded(picture(i), Path(name).suffix))
    return path


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
