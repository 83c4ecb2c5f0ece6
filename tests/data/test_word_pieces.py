"""Proves that word pieces learned from texts read these texts without unknown words, and what bad files are told."""

from __future__ import annotations

import json

import pytest

from jaxvl.data.__main__ import main
from jaxvl.data.records import DataError
from jaxvl.data.text import Tokenizer
from jaxvl.data.word_pieces import learn, texts

WORDS = ["A brown dog runs.", "Two dogs running in brown grass", "the grass is brown"] * 3


def test_texts_are_read_with_whole_words_and_come_back():
    tok = Tokenizer.from_vocab(learn(WORDS, size=200))
    for text in WORDS:
        assert tok.unk_id not in tok.encode(text)
        assert tok.decode(tok.encode(text)).replace(" ", "") == text.lower().replace(" ", "")
    assert len(tok.encode("brown grass")) == 2
    assert learn(WORDS, size=200) == learn(WORDS, size=200)
    assert "A" in learn(WORDS, size=200, lowercase=False) and "A" not in learn(WORDS, size=200)


def test_a_size_below_the_characters_is_refused():
    with pytest.raises(ValueError, match=r"size=9: special tokens and characters alone are \d+ pieces"):
        learn(WORDS, size=9)


def test_strings_under_the_fields_are_read_at_any_depth(tmp_path):
    rows = [{"image": "x.jpg", "captions": ["a cat", "the cat"]}, {"question": "why?", "other": "no"}]
    lines, whole, plain = (tmp_path / name for name in ("a.jsonl", "b.json", "c.txt"))
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole.write_text(
        json.dumps({"annotations": [{"answers": [{"answer": "yes", "answer_confidence": "maybe"}]}]})
    )
    plain.write_text("one line\n\nanother\n")
    assert list(texts([lines, whole, plain])) == ["a cat", "the cat", "why?", "yes", "one line", "another"]
    assert list(texts([lines], fields=["other"])) == ["no"]
    lines.rename(tmp_path / "train.json")  # as NLVR2's
    assert list(texts([tmp_path / "train.json"])) == ["a cat", "the cat", "why?"]


def test_bad_files_are_named(tmp_path):
    bad, empty = tmp_path / "bad.jsonl", tmp_path / "empty.jsonl"
    bad.write_text('{"question": "a"}\n\n{"question"\n')
    empty.write_text('{"other": "a"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 3: is not JSON"):
        list(texts([bad]))
    with pytest.raises(DataError, match=r"empty\.jsonl: no text; looked for caption, .*--field"):
        list(texts([empty]))


def test_the_command_writes_a_vocabulary_that_opens(tmp_path, capsys):
    source, out = tmp_path / "a.txt", tmp_path / "made" / "vocab.txt"
    source.write_text("\n".join(WORDS))
    assert main(["vocabulary", str(source), "--output", str(out)]) == 1  # no such folder
    assert str(out) in capsys.readouterr().err
    out.parent.mkdir()
    assert main(["vocabulary", str(source), "--output", str(out), "--size", "150", "--cased"]) == 0
    assert f"{out}: " in capsys.readouterr().out
    tok = Tokenizer.from_vocab(out.parent)
    assert tok.decode(tok.encode("A brown dog")) == "A brown dog"
    assert main(["vocabulary", str(source), "--output", str(out.with_name("other.txt"))]) == 1
    assert "vocabularies of this folder keep case" in capsys.readouterr().err


def test_characters_that_are_words_of_their_own_have_one_piece_each():
    assert [p for p in learn(["水火", "火水 。"], size=100) if "火" in p] == ["火"]
