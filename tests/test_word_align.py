"""A RoBERTa student beside a WordPiece teacher, from the config on: who reads which tokens."""

from __future__ import annotations

import jax
import pytest
import tokenizers
from pair_run import SMALLER, tiny

from jaxvl import build
from jaxvl import config as cfg
from jaxvl.config import ConfigError
from jaxvl.data import scenes
from jaxvl.data.text import Tokenizer


def byte_level(folder) -> str:
    """A `tokenizer.json` of RoBERTa's kind without merges: every byte is a piece."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *letters])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(special)
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return str(folder)


def config(tmp_path, **values):
    (tmp_path / "vocab.txt").write_text("\n".join(scenes.vocabulary()), encoding="utf-8")
    given = {
        "text.vocab": byte_level(tmp_path / "roberta"),
        "text.teacher_vocab": str(tmp_path / "vocab.txt"),
        "model.text.arch": "roberta",
        "model.text.max_positions": 66,
        "stages.pretrain.format.length": 60,
        "stages.pretrain.task.distill.word_align": True,
        **{f"stages.teacher_pretrain.model.{name}": 64 for name in ("max_positions",)},
    }
    return cfg.override(tiny().get_config("scale=tiny"), {**SMALLER, **given, **values})


def test_the_student_reads_bytes_the_teacher_words_and_the_same_captions(tmp_path):
    found = config(tmp_path)
    tok, theirs = build.tokenizer(found), build.teacher_tokenizer(found)
    stage = build.stage(found, "pretrain", tok, tmp_path, theirs)
    row = stage.train[0]
    text = theirs.decode(row["teacher_text"])
    assert tok.decode(row["text"]) == stage.train.annotation(0)["captions"][0]
    assert tok.decode(row["text"]).lower().replace(" ", "") == text.replace(" ", "")
    assert row["text_word"].max() == row["teacher_text_word"].max() == len(text.split()) + 1
    assert (stage.task.model.vocab_size, stage.task.teacher.vocab_size) == (tok.size, theirs.size)
    batch = build.first_batch(stage)
    key = jax.random.key(0)
    params, frozen = jax.eval_shape(lambda: (stage.task.init(key, batch), stage.task.init_frozen(key, batch)))
    loss, (_, metrics) = jax.eval_shape(stage.task.loss, params, {"frozen": frozen}, batch, key)
    assert loss.shape == () and {"itm_attn_uni", "itm_attn_cross", "itc_attn_uni", "itm_soft"} <= set(metrics)
    own = build.stage(found, "teacher_pretrain", tok, tmp_path, theirs)
    assert own.task.model.vocab_size == theirs.size and "teacher_text" not in own.train.shapes()
    assert own.task.tokens.mask == theirs.mask_id


def test_a_teacher_that_teaches_only_before_keeps_its_words(tmp_path):
    """Distilled in pre-training only: the teacher's fine-tuning starts from its pre-training, so it reads the same."""
    found = config(tmp_path, **{"stages.vqa.teacher": None, "stages.vqa.task.distill": None})
    tok, theirs = build.tokenizer(found), build.teacher_tokenizer(found)
    stages = ("teacher_pretrain", "teacher_vqa", "pretrain", "vqa", "plain_pretrain", "plain_vqa")
    assert [build.reading(found, stage, tok, theirs)[0] is theirs for stage in stages] == [True] * 2 + [
        False
    ] * 4


def test_a_workdirs_copy_of_the_teachers_tokenizer_is_read_first(tmp_path):
    found = config(tmp_path)
    Tokenizer.from_vocab(scenes.vocabulary() + ["extra"]).save(tmp_path / build.TEACHER_TOKENIZER)
    assert build.teacher_tokenizer(found, tmp_path).size == build.teacher_tokenizer(found).size + 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"text.teacher_vocab": None},
            "word_align=True with config.text.teacher_vocab=None.*set both or none",
        ),
        (
            {"stages.pretrain.task.distill.word_align": False},
            "word_align=False with config.text.teacher_vocab='",
        ),
    ],
)
def test_a_vocabulary_and_alignment_go_together(tmp_path, values, message):
    found = config(tmp_path, **values)
    with pytest.raises(ConfigError, match=message):
        build.stage(found, "pretrain", build.tokenizer(found), tmp_path, build.teacher_tokenizer(found))
