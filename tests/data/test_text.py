"""Proves clean-up and token ids: ALBEF's text rules, equality with BERT's tokenizer, answers, wrong vocabularies."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from data_fakes import SPECIAL, VOCAB, byte_level

from jaxvl.data.text import Tokenizer, answer_array, clean_caption, clean_question
from jaxvl.losses import word_starts

TOK = Tokenizer.from_vocab(VOCAB)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A Dog, (brown) isn't here!", "a dog brown isnt here"),
        ("a red-and-white  bus/tram\n", "a red and white bus tram"),
        ('<person> said: "hi; ~#*"', "person said hi"),
        ("  two   spaces\t here ", "two spaces here"),
        ("?!", ""),
        (" ".join(str(i) for i in range(40)), " ".join(str(i) for i in range(30))),
    ],
)
def test_captions_are_cleaned_as_in_albef(text, clean):
    assert clean_caption(text) == clean


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Is this a red-white bus?  ", "is this a red white bus"),
        (" What's  on it ?", " whats  on it"),  # inner and leading spaces stay
        ("a  b c", "a  b c"),
    ],
)
def test_questions_keep_their_inner_spaces(text, clean):
    assert clean_question(text) == clean


def test_runs_of_spaces_count_as_words_of_a_question_and_not_of_a_caption():
    assert clean_question("a  b c d", max_words=3) == "a  b"
    assert clean_caption("a  b c d", max_words=3) == "a b c"


def test_a_text_is_cls_and_pieces_without_sep():
    ids, mask = TOK.ids("the dogs", 6)
    assert [VOCAB[i] for i in ids] == ["[CLS]", "the", "dog", "##s", "[PAD]", "[PAD]"]
    assert mask.tolist() == [True] * 4 + [False] * 2
    assert (ids.dtype, mask.dtype) == (np.int32, np.bool_)


def test_a_long_text_is_cut_to_the_length_including_cls():
    ids, mask = TOK.ids("the dog the dog the dog", 4)
    assert [VOCAB[i] for i in ids] == ["[CLS]", "the", "dog", "the"] and mask.all()


def test_an_answer_has_sep_unless_it_is_cut():
    assert [VOCAB[i] for i in TOK.answer_ids("red dog", 5)[0]] == ["[CLS]", "red", "dog", "[SEP]", "[PAD]"]
    assert [VOCAB[i] for i in TOK.answer_ids("red dog cat", 4)[0]] == ["[CLS]", "red", "dog", "cat"]


def test_answer_array_takes_the_longest_answer_and_refuses_to_cut():
    rows = answer_array(TOK, ["yes", "a red dog"])
    assert rows.shape == (2, 5) and rows.dtype == np.int32
    assert rows[0].tolist() == [TOK.cls_id, VOCAB.index("yes"), TOK.sep_id, 0, 0]
    assert answer_array(TOK, ["yes"], length=7).shape == (1, 7)
    with pytest.raises(ValueError, match=r"'a red dog' needs 5 tokens, the answer length is 4: raise it"):
        answer_array(TOK, ["yes", "a red dog"], length=4)
    with pytest.raises(ValueError, match="the list of answers is empty"):
        answer_array(TOK, [])


TEXTS = [
    "the unknown dogs!",
    "Ünïcode RÉD 猫 zz",
    "a [MASK] dog [SEP] x",
    "",
    "yes/no 12,5 e-mail ~",
    "a\tb\nc",
]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_equal_those_of_berts_own_tokenizer(text, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="pip install '.[transformers]' to compare with BERT"
    )
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    bert = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    assert TOK.encode(text) == bert(text, add_special_tokens=False)["input_ids"]


def test_list_file_folder_and_saved_json_give_the_same_ids(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB), encoding="utf-8")
    TOK.save(tmp_path / "saved.json")
    folder = tmp_path / "folder"
    folder.mkdir()
    TOK.save(folder / "tokenizer.json")
    for source in (tmp_path / "vocab.txt", tmp_path, tmp_path / "saved.json", folder, str(folder)):
        tok = Tokenizer.from_vocab(source)
        assert [tok.encode(t) for t in TEXTS] == [TOK.encode(t) for t in TEXTS], source
        assert tok.size == len(VOCAB)


def test_a_tokenizer_json_that_adds_special_tokens_and_truncates_is_tamed(tmp_path):
    TOK.save(tmp_path / "tokenizer.json")
    config = json.loads((tmp_path / "tokenizer.json").read_text())
    config["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    assert len(Tokenizer.from_vocab(tmp_path).encode("the dog the dog")) == 4


def test_pieces_that_continue_a_word_are_known_by_their_marker(tmp_path):
    assert [VOCAB[i] for i in np.flatnonzero(TOK.continues)] == [t for t in VOCAB if t.startswith("##")]
    byte_level([("Ġ", "d"), ("o", "g"), ("Ġd", "og")]).save(str(tmp_path / "tokenizer.json"))
    tok = Tokenizer.from_vocab(tmp_path)
    ids, mask = tok.ids("a dog, dogs", 12)
    assert (tok.byte_level, ids[0], tok.pad_id, tok.mask_id) == (True, 0, 1, 4)
    # <s>, a, Ġdog, the comma and Ġdog, s; the first word has no marker
    assert tok.continues[ids].tolist() == [False, True, False, True, False, True] + [False] * 6
    starts = word_starts(tok.continues[ids][None], (mask & (ids > 4))[None])
    assert starts[0].tolist() == [0, 1, 2, 2, 4, 4, *range(6, 12)]


def test_a_byte_level_vocabulary_without_roberta_tokens_is_named(tmp_path):
    made = byte_level([]).to_str().replace('"<s>"', '"<start>"')
    (tmp_path / "tokenizer.json").write_text(made, encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks <s>\. A RoBERTa vocabulary holds <pad> <unk> <s>"):
        Tokenizer.from_vocab(tmp_path)


def test_special_ids_and_pickling():
    copy = pickle.loads(pickle.dumps(TOK))
    assert [copy.pad_id, copy.unk_id, copy.cls_id, copy.sep_id, copy.mask_id] == [0, 1, 2, 3, 4]
    assert copy.encode("the dogs") == TOK.encode("the dogs")
    assert TOK.decode(TOK.ids("the dogs", 8)[0]) == "the dogs"


def test_a_cased_folder_keeps_case(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "dog"]))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tok = Tokenizer.from_vocab(tmp_path)
    assert tok.encode("Dog dog") == [tok.unk_id, 5]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (VOCAB[:3] + VOCAB[4:], r"given list: the vocabulary lacks \[SEP\].*add the missing lines"),
        (["dog"], r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        ([*VOCAB, "dog"], rf"token 'dog' stands at {VOCAB.index('dog')} and {len(VOCAB)}: remove one"),
    ],
)
def test_wrong_vocabularies_are_named(tokens, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_vocab(tokens)


def test_missing_vocabulary_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such vocabulary\. Give a vocab\.txt"):
        Tokenizer.from_vocab(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds neither tokenizer\.json nor vocab\.txt"):
        Tokenizer.from_vocab(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json"):
        Tokenizer.from_vocab(tmp_path)


def test_a_length_without_room_for_a_word_is_refused():
    with pytest.raises(ValueError, match="a text length of 1 leaves no room"):
        TOK.ids("dog", 1)
