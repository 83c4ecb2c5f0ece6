"""Word pieces of one's own texts, for data whose words MiniLM's or BERT's vocabulary lacks or does not need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import trainers

from jaxvl.data.records import DataError, NotJson, read_json, read_rows, read_text
from jaxvl.data.text import SPECIAL_TOKENS, word_piece

FIELDS = (
    "caption", "captions", "sentence", "sentence2", "statement", "hypothesis", "question", "answer", "answers",
)  # fmt: skip


def texts(files: Sequence[str | Path], *, fields: Sequence[str] = FIELDS) -> Iterator[str]:
    """The strings of some files: of JSON and JSON Lines what stands under `fields`, at any depth; else every line.

    Raises:
      DataError: a line that is not JSON, or a file without any such string; names file, line and fields.
    """
    for file in map(Path, files):
        found = 0
        for text in _fields(file, set(fields)) if file.suffix in (".json", ".jsonl") else _lines(file):
            found += 1
            yield text
        if not found:
            raise DataError(f"{file}: no text; looked for {', '.join(fields)}. Name the fields with --field")


def learn(lines: Iterable[str], *, size: int, lowercase: bool = True) -> list[str]:
    """A WordPiece vocabulary of at most `size` pieces; the position is the id, the special tokens come first.

    Args:
      lines: texts; the same ones give the same vocabulary.
      lowercase: fold case and accents, as BERT's uncased tokenizer does.

    Raises:
      ValueError: `size` has no room for the special tokens and the characters of the texts.
    """
    backend = word_piece(list(SPECIAL_TOKENS), lowercase, origin="special tokens")
    trained = tokenizers.Tokenizer(backend.model)
    trained.normalizer, trained.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    known = list(lines)
    # The trainer numbers characters within words by a hash map, in another order each time, and settles ties by number:
    # with their places given, the same texts have the same vocabulary.
    parts = {word for text in known for word in _words(trained, text)}
    letters = sorted({letter for word in parts for letter in word})
    inner = sorted({letter for word in parts for letter in word[1:]})
    first = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in inner)]
    if len(first) > size:
        raise ValueError(f"size={size}: special tokens and characters alone are {len(first)} pieces")
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=first, show_progress=False, min_frequency=2
    )
    trained.train_from_iterator(known, trainer)
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return [piece for piece, _ in pieces]


def _words(backend: tokenizers.Tokenizer, text: str) -> list[str]:
    return [
        word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
    ]


def _lines(file: Path) -> Iterator[str]:
    yield from filter(None, map(str.strip, read_text(file).splitlines()))


def _fields(file: Path, fields: set[str]) -> Iterator[str]:
    try:
        rows = [(1, read_json(file))] if file.suffix == ".json" else None
    except DataError:  # some published .json files hold JSON Lines
        rows = None
    for number, row in read_rows(file) if rows is None else rows:
        if isinstance(row, NotJson):
            raise DataError(f"{file}, line {number}: {row.what}. {row.fix}")
        yield from _strings(row, fields, inside=False)


def _strings(value: Any, fields: set[str], *, inside: bool) -> Iterator[str]:
    """The strings of a JSON value that stand under one of `fields`, alone or in lists."""
    if isinstance(value, str):
        if inside and value.strip():
            yield value
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one, fields, inside=inside)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from _strings(one, fields, inside=name in fields)
