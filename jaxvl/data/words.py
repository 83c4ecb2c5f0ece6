"""Whole words: the tokeniser of questions, their vocabulary, and GloVe vectors.

Models with an LSTM (MCAN, VQME, VAUE) read whole words, not pieces: ids 0, 1, 2 are padding, an unknown word and a
class mark; the words follow in the order in which the questions say them first (MILVLG/openvqa).

Shape legend: `V` words of the vocabulary, `L` words of a question, `E` width of word vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl.atomic import write_file
from jaxvl.data.records import DataError, read_json, read_text

PAD, UNK, CLS = 0, 1, 2
SPECIAL = ("PAD", "UNK", "CLS")  # upper case: no word can be equal to one
LENGTH = 14
SCHEMA = "jaxvl.words/1"
_CLEAN = str.maketrans({**dict.fromkeys(".,'!?\"()*#:;", ""), "-": " ", "/": " "})


def tokens(question: str) -> list[str]:
    """Words of a question: lower case, the marks `. , ' ! ? " ( ) * # : ;` deleted, `-` and `/` become spaces."""
    return question.lower().translate(_CLEAN).split()


class Words:
    """A fixed vocabulary with a vector for each word.

    Attributes:
      vocab: `[V]` strings, the three special ones first; position = id.
      vectors: `[V,E]` f32. From GloVe, with zeros for words that it lacks; without it, N(0, 1) by a hash of the word.
        The rows of the three special words are zeros with GloVe; without it, only the padding's.
      known: `[V]` bool, whether GloVe has the word; None without GloVe.

    Args:
      words: the vocabulary without the special words.
      length: L; longer questions are cut.
      glove: see `read_glove`; None = random vectors.
      dim: E.
      seed: of the random vectors.

    Raises:
      ValueError: a word twice, one that no question can contain, or a length or dim below 1.
      DataError: GloVe files that cannot be used.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        length: int = LENGTH,
        glove: str | Path | None = None,
        dim: int = 300,
        seed: int = 0,
    ) -> None:
        if length < 1 or dim < 1:
            raise ValueError(f"words: length={length} and dim={dim} must be at least 1")
        strange = [w for w in words if tokens(w) != [w]]
        if strange:
            raise ValueError(
                f"words: no question can contain {strange[:5]}: give words as `tokens` makes them"
            )
        self.vocab, self.length = [*SPECIAL, *words], length
        self._ids = {word: i for i, word in enumerate(self.vocab)}
        if len(self._ids) != len(self.vocab):
            repeated = [w for i, w in enumerate(self.vocab) if self._ids[w] != i]
            raise ValueError(f"words: {repeated[:5]} are repeated: give each word once")
        self.known: np.ndarray | None = None
        if glove is None:
            self.vectors = np.stack([_hashed(word, dim, seed) for word in self.vocab])
            self.vectors[PAD] = 0.0
        else:
            found = read_glove(glove, self.vocab[len(SPECIAL) :], dim=dim)
            special = len(SPECIAL)
            self.vectors = np.concatenate([np.zeros((special, dim), np.float32), found.vectors])
            self.known = np.concatenate([np.zeros(special, bool), found.known])

    @classmethod
    def build(cls, questions: Iterable[str], **kwargs: Any) -> Words:
        """The vocabulary of these questions, in the order in which they say their words first.

        Args:
          questions: of all splits whose words shall have a vector of their own; answers play no part.
          **kwargs: of `Words`.

        Raises:
          ValueError: no question has a word.
        """
        words = list(dict.fromkeys(word for question in questions for word in tokens(question)))
        if not words:
            raise ValueError("words: no question has a word to make a vocabulary of")
        return cls(words, **kwargs)

    def __len__(self) -> int:
        return len(self.vocab)

    @property
    def size(self) -> int:
        """V, the special words included."""
        return len(self.vocab)

    @cached_property
    def digest(self) -> str:
        """A hash of the vocabulary, the length and the vectors."""
        found = hashlib.sha256(json.dumps([self.length, self.vocab]).encode())
        found.update(np.ascontiguousarray(self.vectors).tobytes())
        return found.hexdigest()[:16]

    def ids(self, question: str) -> np.ndarray:
        """`[L]` i32: ids of the question's first L words, then padding."""
        found = [self._ids.get(word, UNK) for word in tokens(question)[: self.length]]
        out = np.full(self.length, PAD, np.int32)
        out[: len(found)] = found
        return out

    def key(self, question: str) -> str:
        """The first L words with single spaces: equal for questions that say the same (specification 1.5)."""
        return " ".join(tokens(question)[: self.length])

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """Words of these ids with single spaces, without padding."""
        return " ".join(self.vocab[int(i)] for i in ids if i != PAD)

    def save(self, path: str | Path) -> None:
        """Write the vocabulary and the length as JSON; the vectors are made anew by `load`."""
        content = {"schema": SCHEMA, "length": self.length, "words": self.vocab[len(SPECIAL) :]}
        text = json.dumps(content, ensure_ascii=False, indent=0) + "\n"
        write_file(Path(path), lambda p: p.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path, **kwargs: Any) -> Words:
        """Read what `save` wrote; `kwargs` (`glove`, `dim`, `seed`) say where the vectors come from.

        Raises:
          DataError: another content.
        """
        content = read_json(path)
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise DataError(f"{path}, field 'schema': is not {SCHEMA!r}. Write the file with Words.save.")
        words, length = content.get("words"), content.get("length")
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise DataError(f"{path}, field 'words': is no list of strings. Write the file with Words.save.")
        if not isinstance(length, int):
            raise DataError(
                f"{path}, field 'length': is {length!r}, no number. Write the file with Words.save."
            )
        try:
            return cls(words, length=length, **kwargs)
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error


class Glove(NamedTuple):
    """`vectors [N,E]` f32 of N words, zeros where `known [N]` is False."""

    vectors: np.ndarray
    known: np.ndarray


def read_glove(path: str | Path, words: Sequence[str], *, dim: int) -> Glove:
    """Vectors of these words; the rest of a file is not kept.

    Args:
      path: a folder of `words.txt` (a word a line) and one `.npy` file `[words, E]`, or a text file as Stanford gives
        it: a word and E numbers a line, with or without a first line of two counts. A word may contain spaces, as in
        the file of 840 billion tokens: the last E fields are the numbers.
      words: any strings without spaces.
      dim: E.

    Raises:
      FileNotFoundError: nothing there.
      DataError: another width, a line that cannot be read, numbers that are not finite, or none of the words.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such GloVe file or folder")
    rows = {word: i for i, word in enumerate(words)}
    found = Glove(np.zeros((len(words), dim), np.float32), np.zeros(len(words), bool))
    (_read_folder if path.is_dir() else _read_text)(path, rows, found)
    if len(words) and not found.known.any():
        raise DataError(
            f"{path}: has none of the {len(words)} words, e.g. {words[0]!r}: is it in their language?"
        )
    if not np.isfinite(found.vectors).all():
        bad = words[int(np.flatnonzero(~np.isfinite(found.vectors).all(1))[0])]
        raise DataError(f"{path}: the vector of {bad!r} is not finite. Fetch the file again.")
    return found


def _read_folder(path: Path, rows: dict[str, int], found: Glove) -> None:
    arrays, listed = sorted(path.glob("*.npy")), path / "words.txt"
    if len(arrays) != 1 or not listed.is_file():
        raise DataError(
            f"{path}: a folder of GloVe vectors has words.txt and one .npy file (it has {len(arrays)} .npy files)"
        )
    names = read_text(listed).splitlines()
    table = np.load(arrays[0], mmap_mode="r", allow_pickle=False)
    dim = found.vectors.shape[1]
    if table.shape != (len(names), dim) or table.dtype.kind != "f":
        raise DataError(
            f"{arrays[0]}: is {table.dtype} {list(table.shape)}, expected floats [{len(names)}, {dim}] for the "
            f"{len(names)} lines of words.txt: set words.dim to the width of the vectors"
        )
    for line, name in enumerate(names):
        row = rows.get(name)
        if row is not None and not found.known[row]:
            found.vectors[row], found.known[row] = table[line], True


def _read_text(path: Path, rows: dict[str, int], found: Glove) -> None:
    dim = found.vectors.shape[1]
    with path.open(encoding="utf-8", newline="\n") as file:  # a word may contain other line separators
        for number, line in enumerate(_decoded(file, path), start=1):
            if number == 1:
                counts = line.split()
                if len(counts) == 2 and all(c.isdigit() for c in counts):  # vectors and their width
                    _check_width(path, number, int(counts[1]), dim)
                    continue
            if number <= 2:
                _check_width(path, number, _numbers(line), dim)
            word = line.split(" ", 1)[0]
            row = rows.get(word)
            if row is None or found.known[row]:  # most lines: not worth being taken apart
                continue
            name, *values = line.rstrip().rsplit(" ", dim)
            if name != word and len(values) == dim:
                continue  # another word, with spaces
            try:
                # Without the shape, one number would fill the row.
                found.vectors[row] = np.array(values, np.float32).reshape(dim)
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number}: not a word and {dim} numbers. Fetch the file again."
                ) from error
            found.known[row] = True


def _decoded(lines: Iterable[str], path: Path) -> Iterable[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}). Fetch the file again.") from error


def _numbers(line: str) -> int:
    """How many fields at the end of a line are numbers, the first field left out."""
    count = 0
    for field in reversed(line.split()[1:]):
        try:
            float(field)
        except ValueError:
            break
        count += 1
    return count


def _check_width(path: Path, number: int, width: int, dim: int) -> None:
    if width != dim:
        raise DataError(
            f"{path}, line {number}: has {width} numbers, expected {dim}: set words.dim to {width}"
        )


def _hashed(word: str, dim: int, seed: int) -> np.ndarray:
    digest = hashlib.blake2b(f"{seed}:{word}".encode(), digest_size=4).digest()
    # RandomState's stream is frozen by NumPy, unlike that of Generator.
    draws = np.random.RandomState(int.from_bytes(digest, "little")).standard_normal(dim)
    return draws.astype(np.float32)
