"""Proves that questions become the word ids of openvqa, and that GloVe files give each word its own vector."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.data.records import DataError
from jaxvl.data.words import CLS, PAD, SPECIAL, UNK, Words, read_glove, tokens

LINES = ["the 1 2 3", "at name@domain.com 7 7 7", "cat 4 5 6", ". . . 8 8 8", "at 0.5 0 -1", "cat 9 9 9"]


def glove(path, lines=LINES, header=""):
    path.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is this a T-shirt, sir?", "is this a t shirt sir"),
        ("What's up (now): #1; a*b!", "whats up now 1 ab"),
        ('  "U.S.A." and/or\tCANADA ', "usa and or canada"),
        ("Café № 5 — ok?", "café № 5 — ok"),
        ("?!", ""),
    ],
)
def test_tokens_drop_the_listed_marks_and_split_at_dashes_and_slashes(question, expected):
    assert " ".join(tokens(question)) == expected


def test_ids_are_first_seen_and_cut_and_padded_on_the_right():
    words = Words.build(["Is it red?", "it is a cat"], length=5, dim=4)
    assert words.vocab == [*SPECIAL, "is", "it", "red", "a", "cat"] and (PAD, UNK, CLS) == (0, 1, 2)
    assert words.ids("a dog, is it?").tolist() == [6, UNK, 3, 4, PAD]
    assert words.ids("red red red red red a").tolist() == [5] * 5
    assert words.ids("?").tolist() == [PAD] * 5 and words.ids("a").dtype == np.int32
    assert words.text(words.ids("Is a CAT")) == "is a cat" and words.size == len(words) == 8


def test_keys_are_equal_for_questions_that_say_the_same():
    words = Words.build(["is it red"], length=3, dim=2)
    assert words.key("Is it, RED now?") == words.key("is it red") == "is it red" != words.key("it is red")


def test_vectors_without_glove_are_a_function_of_seed_and_word():
    one, two = Words(["cat", "dog"], dim=50), Words(["bird", "dog", "cat"], dim=50)
    assert np.array_equal(one.vectors[3], two.vectors[5]) and np.array_equal(one.vectors[4], two.vectors[4])
    assert not one.vectors[PAD].any() and one.vectors[UNK].any() and one.known is None
    other = Words(["cat", "dog"], dim=50, seed=1)
    assert abs(np.corrcoef(one.vectors[3], other.vectors[3])[0, 1]) < 0.5
    many = Words([f"w{i}" for i in range(200)], dim=50).vectors[3:]
    assert abs(many.mean()) < 0.03 and abs(many.std() - 1) < 0.03


@pytest.mark.parametrize("header", ["", "6 3\n"])
def test_a_stanford_file_gives_exact_words_their_first_vector(tmp_path, header):
    words = Words(["at", "cat", "zebra"], glove=glove(tmp_path / "g.txt", header=header), dim=3)
    assert words.vectors[3:].tolist() == [[0.5, 0, -1], [4, 5, 6], [0, 0, 0]]
    assert words.known.tolist() == [False] * 3 + [True, True, False] and not words.vectors[:3].any()


def test_a_folder_of_vectors_reads_as_the_text_file(tmp_path):
    (tmp_path / "words.txt").write_text("the\ncat\nat\n")
    np.save(tmp_path / "vectors_f16.npy", np.array([[1, 2, 3], [4, 5, 6], [0.5, 0, -1]], np.float16))
    folder = read_glove(tmp_path, ["at", "zebra", "cat"], dim=3)
    text = read_glove(glove(tmp_path / "g.txt"), ["at", "zebra", "cat"], dim=3)
    assert np.array_equal(folder.vectors, text.vectors) and np.array_equal(folder.known, text.known)
    np.save(tmp_path / "vectors_f16.npy", np.zeros((2, 3), np.float16))
    with pytest.raises(DataError, match=r"expected floats \[3, 3\] for the 3 lines"):
        read_glove(tmp_path, ["at"], dim=3)


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        (["the 1 2 3 4"], "", r"line 1: has 4 numbers, expected 3: set words.dim to 4"),
        (["the 1 2 3"], "1 5\n", r"line 1: has 5 numbers, expected 3"),
        (["the 1 2 3", "x 1 2 3", "cat 1 two 3"], "", r"line 3: not a word and 3 numbers"),
        (["the 1 2 3", "x 1 2 3", "cat 1 2"], "", r"line 3: not a word and 3 numbers"),
        (["the 1 2 3", "x 1 2 3", "cat 1"], "", r"line 3: not a word and 3 numbers"),
        (["cat 1 nan 3"], "", "vector of 'cat' is not finite"),
        (["the 1 2 3"], "", "has none of the 1 words, e.g. 'cat'"),
    ],
)
def test_bad_files_are_refused_with_their_line(tmp_path, lines, header, message):
    with pytest.raises(DataError, match=message):
        read_glove(glove(tmp_path / "g.txt", lines, header), ["cat"], dim=3)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.txt: no such GloVe"):
        read_glove(tmp_path / "none.txt", ["cat"], dim=3)


def test_a_saved_vocabulary_comes_back(tmp_path):
    words = Words.build(["is it café?"], length=4, dim=6)
    words.save(tmp_path / "words.json")
    again = Words.load(tmp_path / "words.json", dim=6)
    assert again.vocab == words.vocab and again.length == 4 and again.digest == words.digest
    assert Words.load(tmp_path / "words.json", dim=6, seed=1).digest != words.digest
    assert Words.load(tmp_path / "words.json", dim=7).digest != words.digest


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[]", "schema"),
        ('{"schema": "jaxvl.words/1", "words": 3, "length": 2}', "words"),
        ('{"schema": "jaxvl.words/1", "words": ["a"], "length": "x"}', "length"),
    ],
)
def test_another_file_is_no_vocabulary(tmp_path, text, field):
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(DataError, match=rf"w.json, field '{field}'"):
        Words.load(tmp_path / "w.json")


@pytest.mark.parametrize("words", [["cat", "cat"], ["Cat"], ["a b"], [""], ["PAD"], ["don't"]])
def test_a_vocabulary_holds_each_sayable_word_once(words):
    with pytest.raises(ValueError, match="words:"):
        Words(words, dim=2)
