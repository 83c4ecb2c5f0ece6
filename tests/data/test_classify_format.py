"""Proves what becomes of labelled sentences: text with its end mark, classes with soft scores, pairs of images."""

from __future__ import annotations

import numpy as np
import pytest
from data_fakes import VOCAB, FakeCaptions, picture

from jaxvl import scores
from jaxvl.data import SOURCES, scenes
from jaxvl.data.answers import soft_scores
from jaxvl.data.images import ImageTransform
from jaxvl.data.source import FORMATS, CaptionFormat, ClassifyFormat, Examples, Images, Subset
from jaxvl.data.text import Tokenizer
from jaxvl.vqa_normalise import normalise

TOK = Tokenizer.from_vocab(VOCAB)
QUESTION = ClassifyFormat(TOK, length=8, field="question", answers=("no", "yes", "2", "red"), max_labels=3)


def words(ids: np.ndarray) -> list[str]:
    return [VOCAB[i] for i in ids if i != TOK.pad_id]


def labels(annotation, format=QUESTION) -> dict[str, float]:
    row = format.encode({"question": "a dog", **annotation}, None).arrays
    assert row["label"].dtype == np.int32 and row["label_score"].dtype == np.float32
    used = row["label"] < len(format.answers)
    assert not row["label_score"][~used].any() and (row["label"][~used] == len(format.answers)).all()
    return {
        format.answers[k]: round(float(s), 6)
        for k, s in zip(row["label"][used], row["label_score"][used], strict=True)
    }


def test_a_text_keeps_its_end_mark_when_it_is_cut():
    row = ClassifyFormat(TOK, length=4).encode({"sentence": "a dog the cat", "label": 1}, None).arrays
    assert words(row["text"]) == ["[CLS]", "a", "dog", "[SEP]"] and row["label"] == 1
    short = ClassifyFormat(TOK, length=6).encode({"sentence": "Dog", "label": 0}, None).arrays
    assert words(short["text"]) == ["[CLS]", "dog", "[SEP]"] and short["text_mask"].sum() == 3
    assert CaptionFormat(TOK, 4, style="bert").caption("a dog the").arrays["text"][-1] == TOK.sep_id
    with pytest.raises(ValueError, match="style='roberta' is none of albef, bert, bert_clean"):
        ClassifyFormat(TOK, style="roberta").encode({"sentence": "x", "label": 0}, None)


@pytest.mark.parametrize("n", range(11))
def test_soft_scores_are_the_leave_one_out_average(n):
    answers = ["yes"] * n + [f"other {k}" for k in range(10 - n)]
    left_out = [min(1, sum(a == "yes" for j, a in enumerate(answers) if j != i) / 3) for i in range(10)]
    found = soft_scores(answers).get("yes", 0.0)
    assert found == pytest.approx(sum(left_out) / 10) == pytest.approx(min(1, 0.3 * n))
    assert found == pytest.approx(scores.vqa_accuracy("yes", answers=answers))


def test_normal_forms_of_the_specification():
    table = {
        "a Dog.": "dog", "2,000": "2000", "none": "0", "dont": "don't", "t-shirt": "t shirt", "u.s.a": "usa",
        "3.5": "3.5", "no one": "no 1", "A": "",
    }  # fmt: skip
    assert {raw: normalise(raw) for raw in table} == table


def test_human_answers_become_classes_with_scores():
    said = ["Yes."] * 2 + ["yes"] * 2 + ["two"] * 3 + ["no"] + ["a cow"] * 2
    assert labels({"answers": said}) == {"yes": 1.0, "2": 0.9, "no": 0.3}
    raw = ClassifyFormat(TOK, field="question", answers=QUESTION.answers, matching="raw")
    assert labels({"answers": said}, raw) == {"yes": 0.6, "no": 0.3}


def test_given_scores_come_before_human_answers_and_the_highest_are_kept():
    given = {"yes": 0.3, "cow": 1.0, "red": 0.9, "no": 0.6, "2": 0.3}
    assert labels({"scores": given, "answers": ["2"] * 10}) == {"red": 0.9, "no": 0.6, "yes": 0.3}
    assert labels({"answers": ["cow"] * 10}) == {} == labels({"scores": {}})


def test_what_the_format_loses_is_counted():
    class Reader:
        rows = ({"answers": ["cow"]}, {"scores": dict.fromkeys(QUESTION.answers, 1.0)})

        def __len__(self):
            return 2

        def annotation(self, i):
            return {"question": "dog " * (6 + i), **self.rows[i]}

    assert QUESTION.losses(Reader()) == {"texts_cut": 1, "unlabelled": 1, "labels_dropped": 1}


class FakePairs(FakeCaptions):
    """Pairs of pictures with a true statement; `image2` of example i is picture 100 + i."""

    def annotation(self, i):
        row = {"image": f"{i}", "image2": f"{i}b", "sentence": "a dog", "label": 1, "image_id": i}
        return row if i < self.size else None

    def image2(self, i):
        return picture(100 + i)


def test_two_images_share_the_transform_and_are_augmented_apart():
    source = Examples(FakePairs(3), ClassifyFormat(TOK), ImageTransform(16, augment="randaug"))
    assert np.array_equal(source[2]["image2"], source.images(picture(102)))
    for row in (Subset(source, [2])[0], Subset(source, [2]).pictures(0)):
        assert np.array_equal(row["image2"], source[2]["image2"])
    assert set(Images(source)[0]) == {"image", "image_id"}
    FakePairs.image2, keep = FakePairs.image, FakePairs.image2  # the same picture twice
    try:
        apart = [source.augmented(0, np.random.default_rng(s)) for s in range(8)]
    finally:
        FakePairs.image2 = keep
    assert sum(not np.array_equal(a["image"], a["image2"]) for a in apart) > 5
    assert sum(not np.array_equal(a["image2"], apart[0]["image2"]) for a in apart) > 5


def test_shapes_and_the_blind_form_have_both_images():
    source, blind = (Examples(FakePairs(3), ClassifyFormat(TOK), i) for i in (ImageTransform(16), 16))
    example = source.augmented(0, np.random.default_rng(0))
    for other in (source.shapes(), blind.shapes(), blind[0], blind.augmented(0, np.random.default_rng(0))):
        assert {k: (v.shape, v.dtype) for k, v in other.items()} == {
            k: (v.shape, v.dtype) for k, v in example.items()
        }
    assert not blind[0]["image2"].any()


def test_a_second_image_needs_a_method_that_reads_it():
    class Annotated(FakePairs):
        image2 = None

    with pytest.raises(TypeError, match=r"Annotated annotates a second image, but has no method image2\(i\)"):
        Examples(Annotated(1), ClassifyFormat(TOK), ImageTransform(8))[0]


@pytest.mark.parametrize("name", ["scenes_statements", "scenes_entailment"])
def test_the_embedded_world_feeds_the_format(name):
    tokenizer = Tokenizer.from_vocab(scenes.vocabulary())
    format = FORMATS["classify"](tokenizer, style="bert_clean")
    source = Examples(SOURCES[name](split="train", size=8), format, ImageTransform(32, augment=None))
    for row in (source[3], source.augmented(3, np.random.default_rng(0))):
        assert ("image2" in row) == (name == "scenes_statements") and row["label"].shape == ()
        assert not (row["text"] == tokenizer.unk_id).any()
    assert np.array_equal(source[3]["image"], source.augmented(3, np.random.default_rng(0))["image"])
