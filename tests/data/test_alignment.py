"""Proves words across two tokenizers: which pieces belong together, and that both sides read the same text."""

from __future__ import annotations

import numpy as np
import pytest
from data_fakes import VOCAB, byte_level

from jaxvl.data.alignment import aligned, words
from jaxvl.data.formats import CaptionFormat, ClassifyFormat
from jaxvl.data.text import Tokenizer

BERT = Tokenizer.from_vocab(VOCAB + ["'"])
MERGES = [("d", "o"), ("do", "g"), ("Ġ", "dog"), ("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t"), ("'", "t")]
BPE = Tokenizer(byte_level(MERGES), origin="merges")


def read(
    text: str, length: int = 24, ours: Tokenizer = BPE, theirs: Tokenizer = BERT
) -> list[tuple[str, str]]:
    """The words of both sides, `(ours, theirs)`, pieces joined by a bar, the special tokens left out."""
    arrays = aligned(ours, theirs, text, length)
    sides = []
    for prefix, tok in (("", ours), ("teacher_", theirs)):
        ids, mask, word = (arrays[f"{prefix}{name}"] for name in ("text", "text_mask", "text_word"))
        assert (word >= 0).tolist() == mask.tolist() and (ids[~mask] == tok.pad_id).all()
        assert ids[word == 0].tolist() == [tok.cls_id] and ids[word == word.max()].tolist() == [tok.sep_id]
        assert (np.diff(word[mask]) >= 0).all() and set(word[mask]) == set(range(word.max() + 1))
        pieces = {n: [tok._backend.id_to_token(int(i)) for i in ids[word == n]] for n in range(1, word.max())}
        sides.append(["|".join(p) for p in pieces.values()])
    return list(zip(*sides, strict=True))


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("dog cat", [("dog", "dog"), ("Ġcat", "cat")]),
        ("Dog  cats", [("D|o|g", "dog"), ("Ġ|Ġcat|s", "cat|##s")]),  # two spaces: one belongs to the word after it
        ("don't", [("do|n", "d|##o|##n"), ("'t", "'|t")]),  # RoBERTa's words are don and 't, BERT's don, ' and t
        ("dog's", [("dog", "dog"), ("'|s", "'|s")]),
        ("a dog ", [("a", "a"), ("Ġdog|Ġ", "dog")]),
        ("", []),
    ],
)  # fmt: skip
def test_words_end_where_both_tokenizers_end_one(text, pairs):
    assert read(text) == pairs


def test_both_sides_are_cut_after_the_same_word():
    text = "dog unknown cat dog"  # BERT: 1 + 2 + 1 + 1 pieces; BPE: 1 + 8 + 1 + 1
    assert read(text, length=4) == [("dog", "dog")]  # the next word has no room on either side
    assert [ours for ours, _ in read(text, length=10)] == ["dog"]  # or on one
    assert (
        len(read(text, length=11)) == 2
        and len(read(text, length=12)) == 3
        and len(read(text, length=13)) == 4
    )
    with pytest.raises(ValueError, match="a text length of 2 leaves no room for a word between"):
        read(text, length=2)


def test_a_first_word_without_room_is_cut_on_each_side():
    """A web address as a caption: neither an error in the middle of training nor an empty text."""
    assert read("x" * 40 + " dog", length=6) == [("x|x|x|x", "x|##x|##x|##x")]
    assert read("", length=6) == []


def test_one_tokenizer_on_both_sides_gives_the_same_tokens_twice():
    arrays = aligned(BERT, BERT, "the red dog", 8)
    assert arrays["text_word"].tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    for name in ("text", "text_mask", "text_word"):
        np.testing.assert_array_equal(arrays[name], arrays[f"teacher_{name}"])


def test_what_only_one_side_has_joins_its_neighbour():
    assert words([[(0, 1), (2, 3), (4, 5)], [(0, 1), (4, 5)]]) == [[0, 0, 1], [0, 1]]
    assert words([[(2, 3)], [(0, 1), (2, 3)]]) == [[0], [0, 0]]
    assert words([[(0, 2), (2, 4)], [(0, 3), (3, 4)]]) == [[0, 0], [0, 0]]


def test_formats_bring_the_teachers_text_and_refuse_a_style_without_an_end():
    caption = CaptionFormat(BPE, 9, style="bert", teacher_tokenizer=BERT).caption("dog cat")
    names = ["teacher_text", "teacher_text_mask", "teacher_text_word", "text", "text_mask", "text_word"]
    assert sorted(caption.arrays) == names
    row = ClassifyFormat(BPE, 9, teacher_tokenizer=BERT).encode({"sentence": "dog cat", "label": 1}, None)
    assert sorted(row.arrays) == ["label", *names] and row.text == "dog cat"
    with pytest.raises(ValueError, match=r'style="albef" has no \[SEP\]'):
        CaptionFormat(BPE, 9, teacher_tokenizer=BERT).caption("dog cat")
