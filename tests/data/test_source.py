"""Proves sources: formats of captions and questions, and views whose rows are the ones evaluators think they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data_fakes import VOCAB, FakeCaptions, picture

from jaxvl.data import SOURCES, scenes
from jaxvl.data.images import ImageError, ImageTransform
from jaxvl.data.source import (
    CaptionFormat,
    Captions,
    Examples,
    FalseImages,
    Images,
    Pairs,
    QuestionFormat,
    Subset,
    WithRows,
)
from jaxvl.data.text import Tokenizer

TOK = Tokenizer.from_vocab(VOCAB)
TRANSFORM = ImageTransform(16, augment=None)
CAPTIONS = Examples(FakeCaptions(6), CaptionFormat(TOK, length=6), TRANSFORM)


class FakeQuestions:
    def __init__(self, question: str = "Is  there a dog?", **targets: float) -> None:
        self.row = {
            "image": "a.jpg",
            "image_id": 9,
            "question": question,
            "targets": targets,
            "answers": list(targets),
        }

    def __len__(self) -> int:
        return 1

    def annotation(self, i: int) -> dict[str, Any]:
        return self.row

    def image(self, i: int) -> np.ndarray:
        return picture(i)


def words(ids: np.ndarray) -> list[str]:
    return [VOCAB[i] for i in ids if i != TOK.pad_id]


def false_images(size: int, broken: tuple[int, ...] = ()) -> FalseImages:
    return FalseImages(FakeCaptions(size, broken), CAPTIONS.format, TRANSFORM)


def test_false_images_are_uniform_over_the_other_images_and_leave_the_row_as_it_is():
    source, own = false_images(8), Examples(FakeCaptions(8), CAPTIONS.format, TRANSFORM)
    seen = np.zeros(4, int)
    for seed in range(600):
        row = source.augmented(3, np.random.default_rng(seed))
        seen[row["false_image_id"]] += 1
    assert seen[1] == 0 and (abs(seen[[0, 2, 3]] - 200) < 50).all()  # rows 2 and 3 show image 1
    again, plain = (s.augmented(3, np.random.default_rng(599)) for s in (source, own))
    assert {k: v.tobytes() for k, v in row.items()} == {k: v.tobytes() for k, v in again.items()}
    assert all((row[k] == v).all() for k, v in plain.items())
    assert {k: (v.shape, v.dtype) for k, v in source.shapes().items()} == {
        k: (v.shape, v.dtype) for k, v in row.items()
    }
    candidates = [TRANSFORM(picture(i)) for i in range(8) if i // 2 == row["false_image_id"]]
    assert any((row["false_image"] == image).all() for image in candidates)


def test_false_images_that_cannot_be_read_are_drawn_anew_and_one_image_has_no_false_one():
    source = false_images(6, broken=(4, 5))
    found = {int(source.augmented(0, np.random.default_rng(s))["false_image_id"]) for s in range(40)}
    assert found == {1}
    row = false_images(2).augmented(0, np.random.default_rng(0))
    assert row["false_image_id"] == row["image_id"] == 0
    with pytest.raises(ImageError, match="broken"):
        false_images(4, broken=(2, 3)).augmented(0, np.random.default_rng(0))


class NoImages(FakeCaptions):
    def image(self, i: int) -> np.ndarray:
        raise AssertionError("an image was decoded")


def test_a_caption_example_has_the_documented_arrays():
    row = CAPTIONS[3]
    assert {k: (v.shape, str(v.dtype)) for k, v in row.items()} == {
        "image": ((16, 16, 3), "float32"), "text": ((6,), "int32"), "text_mask": ((6,), "bool"),
        "image_id": ((), "int32"),
    }  # fmt: skip
    assert words(row["text"]) == ["[CLS]", "a", "dog", "3"] and row["image_id"] == 1
    assert np.array_equal(row["image"], TRANSFORM(picture(3)))


def test_evaluation_takes_the_first_caption_and_training_any():
    seen = {words(CAPTIONS.augmented(0, np.random.default_rng(s))["text"])[2] for s in range(20)}
    assert seen == {"dog", "cat"} and words(CAPTIONS[0]["text"])[2] == "dog"


def test_shapes_are_those_of_a_training_example_and_decode_nothing():
    source = Examples(NoImages(3), CaptionFormat(TOK, length=6), TRANSFORM)
    example = CAPTIONS.augmented(0, np.random.default_rng(0))
    assert {k: (v.shape, v.dtype) for k, v in source.shapes().items()} == {
        k: (v.shape, v.dtype) for k, v in example.items()
    }


def test_a_blind_source_shows_zeros_and_opens_no_image():
    blind = Examples(NoImages(3), CaptionFormat(TOK), 8)
    for row in (blind[0], blind.augmented(0, np.random.default_rng(0))):
        assert row["image"].shape == (8, 8, 3) and not row["image"].any()
    with pytest.raises(TypeError, match=r"images=None must be an ImageTransform, or the side of a constant"):
        Examples(NoImages(3), CaptionFormat(TOK), None)


def test_questions_keep_the_heaviest_answers_ties_by_string():
    source = Examples(FakeQuestions(yes=0.3, no=0.3, red=0.4, dog=0.1), QuestionFormat(TOK, answers=3), 8)
    row = source[0]
    assert [words(a)[1] for a in row["answer"]] == ["red", "no", "yes"]
    assert words(row["answer"][0]) == ["[CLS]", "red", "[SEP]"]
    np.testing.assert_allclose(row["answer_weight"], [0.4, 0.3, 0.3])  # not rescaled to 1
    assert row["answer"].shape == (3, 8) and row["answer"].dtype == np.int32


def test_unused_answer_rows_have_weight_zero():
    row = Examples(FakeQuestions(yes=1.0), QuestionFormat(TOK, answers=4), 8)[0]
    assert row["answer_weight"].tolist() == [1, 0, 0, 0] and not row["answer"][1:].any()
    assert not Examples(FakeQuestions(), QuestionFormat(TOK), 8)[0]["answer_weight"].any()


def test_dropped_and_cut_answers_are_counted():
    reader = FakeQuestions(yes=0.5, no=0.3, **{"a red dog": 0.2})
    assert QuestionFormat(TOK, answers=2).losses(reader) == {
        "texts_cut": 0,
        "answers_dropped": 1,
        "answers_cut": 0,
    }
    assert QuestionFormat(TOK, answer_length=4, length=2).losses(reader) == {
        "texts_cut": 1, "answers_dropped": 0, "answers_cut": 1,
    }  # fmt: skip


def test_questions_have_more_words_at_test_than_in_training():
    format = QuestionFormat(TOK, length=32, eval_length=60)
    source = Examples(FakeQuestions("dog " * 70, yes=1.0), format, 8)
    assert source[0]["text_mask"].sum() == 51
    assert source.augmented(0, np.random.default_rng(0))["text_mask"].sum() == 31
    assert source[0]["text"].shape == (60,) and source.shapes()["text"].shape == (32,)


def test_answers_count_for_the_flip_guard():
    encoded = QuestionFormat(TOK).encode(FakeQuestions(left=1.0).row, None)
    assert "left" in encoded.text.split()


def test_a_format_says_which_reader_it_needs():
    with pytest.raises(
        KeyError, match=r"no 'question' \(only image, captions, image_id\).*needs a question reader"
    ):
        Examples(FakeCaptions(2), QuestionFormat(TOK), 8)[0]
    with pytest.raises(KeyError, match=r"no 'captions'.*needs a caption reader"):
        Examples(FakeQuestions(), CaptionFormat(TOK), 8)[0]


def test_a_subset_is_its_rows():
    subset = Subset(CAPTIONS, [4, 1, 4])
    assert len(subset) == 3 and subset.annotation(1)["captions"] == ["a dog 1", "a cat 1"]
    for name, array in subset[0].items():
        assert np.array_equal(array, CAPTIONS[4][name])
    a, b = (source.augmented(i, np.random.default_rng(0)) for source, i in ((subset, 0), (CAPTIONS, 4)))
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("positions", [[6], [-1], [[0, 1]]])
def test_a_subset_refuses_rows_that_do_not_exist(positions):
    with pytest.raises(IndexError, match=r"positions must be a list of rows in \[0, 6\)"):
        Subset(CAPTIONS, positions)


def test_images_and_captions_count_each_once():
    images, captions = Images(CAPTIONS), Captions(CAPTIONS)
    assert (len(images), len(captions)) == (3, 12)
    assert [int(images[i]["image_id"]) for i in range(3)] == [0, 1, 2]
    assert captions.image_row.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert words(captions[5]["text"])[2:] == ["cat", "2"] and "image" not in captions[5]
    assert np.array_equal(images[1]["image"], CAPTIONS[2]["image"]) and "text" not in images[1]
    assert captions.annotation(5)["captions"] == ["a cat 2"]


def test_views_of_a_subset_see_the_subset():
    images, captions = Images(Subset(CAPTIONS, [5, 4])), Captions(Subset(CAPTIONS, [5, 4]))
    assert (len(images), len(captions)) == (1, 4)
    assert captions.annotation(0)["captions"] == ["a dog 5"]


def test_pairs_join_an_image_with_a_caption():
    pairs = Pairs(CAPTIONS, [2, 0], [5, 5])
    assert len(pairs) == 2 and np.array_equal(pairs[0]["image"], CAPTIONS[4]["image"])
    assert words(pairs[0]["text"])[2:] == ["cat", "2"]
    assert [int(row["image_id"]) for row in pairs] == [2, 0]
    assert pairs.annotation(0)["captions"] == ["a cat 2"] and pairs.annotation(0)["caption_image_id"] == 1
    with pytest.raises(ValueError, match="1 image rows against 2 caption rows"):
        Pairs(CAPTIONS, [0], [0, 1])


def test_given_rows_replace_the_image_without_decoding_it():
    source = Examples(NoImages(6), CaptionFormat(TOK, length=6), TRANSFORM)
    states = np.arange(12.0).reshape(3, 4)
    pairs = Pairs(source, [2, 0], [5, 1])
    rows = WithRows(pairs, image_states=states, rows=pairs.pair_images)
    assert "image" not in rows[0] and rows[0]["image_states"].tolist() == [8, 9, 10, 11]
    assert words(rows[0]["text"])[2:] == ["cat", "2"]
    assert WithRows(source, image_states=np.zeros((6, 2)))[5]["image_states"].shape == (2,)


def test_given_rows_must_fit():
    with pytest.raises(ValueError, match=r"image_states has 3 rows for 6 examples: give rows="):
        WithRows(CAPTIONS, image_states=np.zeros((3, 4)))
    with pytest.raises(IndexError, match=r"rows must be a list of rows in \[0, 3\)"):
        WithRows(CAPTIONS, image_states=np.zeros((3, 4)), rows=[0, 1, 2, 3, 0, 0])
    with pytest.raises(ValueError, match="WithRows needs arrays"):
        WithRows(CAPTIONS)


@pytest.mark.parametrize("view", [Images(CAPTIONS), Captions(CAPTIONS), Pairs(CAPTIONS, [0], [0])])
def test_evaluation_views_refuse_augmentation_and_rows_beyond_the_end(view):
    with pytest.raises(TypeError, match="is a view for evaluation: train on the source below it"):
        view.augmented(0, np.random.default_rng(0))
    with pytest.raises(IndexError):
        view[len(view)]


@pytest.mark.parametrize(
    ("name", "format"), [("scenes_captions", CaptionFormat), ("scenes_vqa", QuestionFormat)]
)
def test_the_embedded_world_feeds_the_same_formats(name, format):
    tokenizer = Tokenizer.from_vocab(scenes.vocabulary())
    source = Examples(
        SOURCES[name](split="train", size=8), format(tokenizer), ImageTransform(32, augment=None)
    )
    for row in (source[3], source.augmented(3, np.random.default_rng(0))):
        assert row["image"].shape == (32, 32, 3) and row["text_mask"].sum() > 2
        assert not (row["text"] == tokenizer.unk_id).any()
