"""One text in the tokens of two tokenizers, with the words that both cut at: what attention maps are compared on.

Shape legend: `L` text length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxvl.data.text import Tokenizer

Span = tuple[int, int]


class Pieces(NamedTuple):
    """Ids of a text without special tokens, and of each the characters `(start, end)` of the word it is part of."""

    ids: list[int]
    spans: list[Span]


def aligned(ours: Tokenizer, theirs: Tokenizer, text: str, length: int) -> dict[str, np.ndarray]:
    """A text for a student and for a teacher with another tokenizer.

    A word is the shortest stretch of characters at whose ends both tokenizers end a word of theirs, before they cut it
    into pieces: BERT reads `don`, `'`, `t`, RoBERTa `don`, `'t`, so the words are `don` and `'t`. The special tokens
    before and after a text are words too. A text is cut after the last word of which both sides have room for all
    pieces, so that both read the same. If not even the first word has room, each side reads as much of it as it can.

    Args:
      ours, theirs: of the student and of the teacher.
      text: as written; neither tokenizer's clean-up moves its offsets.
      length: L, special tokens included.

    Returns:
      `text` [L] i32, `text_mask` [L] bool, `text_word` [L] i32 (0 = the first token, -1 = padding), and the same of
      the teacher with "teacher_" before the names; equal numbers are the same word.

    Raises:
      ValueError: no room for a word.
    """
    if length < 3:
        raise ValueError(f"a text length of {length} leaves no room for a word between the special tokens")
    sides = [pieces(tokenizer, text) for tokenizer in (ours, theirs)]
    numbers = words([side.spans for side in sides])
    kept = _kept(numbers, room=length - 2)
    if not kept and all(numbers):  # both sides have pieces, and not one word fits
        kept = 1
    arrays: dict[str, np.ndarray] = {}
    for prefix, tokenizer, side, number in zip(("", "teacher_"), (ours, theirs), sides, numbers, strict=True):
        count = min(sum(n < kept for n in number), length - 2)
        row = [tokenizer.cls_id, *side.ids[:count], tokenizer.sep_id]
        ids = np.full(length, tokenizer.pad_id, np.int32)
        word = np.full(length, -1, np.int32)
        ids[: len(row)] = row
        word[: len(row)] = [0, *(n + 1 for n in number[:count]), kept + 1]
        arrays |= {f"{prefix}text": ids, f"{prefix}text_mask": word >= 0, f"{prefix}text_word": word}
    return arrays


def pieces(tokenizer: Tokenizer, text: str) -> Pieces:
    """The pieces of a text; spaces belong to no word, and a piece of spaces alone to the word that follows it."""
    ids, offsets, units = tokenizer.located(text)
    trimmed = [_trimmed(text, span) for span in offsets]
    whole: dict[int, Span] = {}  # a tokenizer's own word: all its pieces
    for unit, (start, end) in zip(units, trimmed, strict=True):
        if start < end:
            before = whole.get(unit, (start, end))
            whole[unit] = min(before[0], start), max(before[1], end)
    spans: list[Span] = []
    following: Span | None = None
    for unit in reversed(units):
        following = whole.get(unit, following)
        spans.append(following or (len(text), len(text)))
    return Pieces(ids, spans[::-1])


def words(sides: Sequence[Sequence[Span]]) -> list[list[int]]:
    """The number, from 0, of the word that each piece of each side is part of; every word has pieces on all sides.

    Spans that overlap, on whatever side, are one word. What only one side has (a character that the other drops)
    joins the word before it, or the first.
    """
    joined: list[list[int]] = []  # start, end
    for start, end in sorted({span for side in sides for span in side}):
        if joined and (start < joined[-1][1] or start == end):
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([start, end])
    starts = [start for start, _ in joined]
    found = [[int(np.searchsorted(starts, start, side="right")) - 1 for start, _ in side] for side in sides]
    shared = sorted(set.intersection(*(set(side) for side in found)))
    place = np.searchsorted(shared, np.arange(len(joined)), side="right") - 1
    return [[max(int(place[word]), 0) for word in side] for side in found]


def _kept(numbers: Sequence[Sequence[int]], *, room: int) -> int:
    """How many words fit on all sides."""
    count = min(1 + max(side, default=-1) for side in numbers)
    for side in numbers:
        if len(side) > room:
            count = min(count, side[room])  # the word that the first piece without room is part of
    return count


def _trimmed(text: str, span: Span) -> Span:
    start, end = span
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
