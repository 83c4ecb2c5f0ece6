"""Proves that rows of regions hold what batches promise: masks, labels, question keys, and questions that are asked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from jaxvl.data.loader import Loader, evaluation_batches
from jaxvl.data.records import DataError
from jaxvl.data.region_source import RegionImages, RegionQuestions, Regions, features_digest
from jaxvl.data.words import Words


class Few:
    """Regions of images 0 to 9, their feature the image id."""

    regions, width, digest = 3, 2, "few"

    def has(self, image_id: int) -> bool:
        return 0 <= image_id < 10

    def ids(self) -> np.ndarray:
        return np.arange(10)

    def of(self, image_id: int) -> Regions:
        mask = np.arange(3) < 2
        features = np.full((3, 2), image_id, np.float32) * mask[:, None]
        return Regions(features, np.zeros((3, 4), np.float32), mask)

    def __repr__(self) -> str:
        return "Few()"


def row(image_id, question, *answers, kind="other", **more):
    return {"image_id": image_id, "question": question, "answers": list(answers), "answer_type": kind, **more}


RECORDS = [
    row(4, "What color is it?", "red", "red", "red", "blue", "blue"),
    row(2, "is it on", "yes", kind="yes/no"),
    row(4, "How many?", "2", kind="number"),
    row(7, "what COLOR is it", "green", kind="other"),
]
WORDS = Words.build([r["question"] for r in RECORDS], length=4, dim=2)
TEXT, ASKED_KINDS = np.array([[3, 4, 0, 0], [5, 0, 0, 0]]), np.array([2, 0])


def questions(records=RECORDS, **kwargs) -> RegionQuestions:
    return RegionQuestions(Few(), records, WORDS, ["red", "blue", "yes", "2"], **kwargs)


def test_a_question_row_has_every_array_of_the_contract():
    got = questions(max_labels=3, max_keys=4)[0]
    kinds = {name: (a.shape, a.dtype.name) for name, a in ((k, np.asarray(v)) for k, v in got.items())}
    assert kinds == {
        "regions": ((3, 2), "float32"), "region_mask": ((3,), "bool"), "region_boxes": ((3, 4), "float32"),
        "image_id": ((), "int32"), "text": ((4,), "int32"), "text_mask": ((4,), "bool"), "label": ((3,), "int32"),
        "label_score": ((3,), "float32"), "label_share": ((3,), "float32"), "hard_label": ((), "int32"),
        "answer_kind": ((), "int32"), "question_key": ((), "int32"), "keys_of_image": ((4,), "int32"),
    }  # fmt: skip
    assert got["text"].tolist() == [3, 4, 5, 6] and got["text_mask"].all() and got["image_id"] == 4
    assert got["label"].tolist() == [0, 1, 4] and got["hard_label"] == 0 and got["answer_kind"] == 2
    np.testing.assert_allclose(got["label_share"], [0.6, 0.4, 0])
    assert got["regions"][:, 0].tolist() == [4, 4, 0] and got["region_mask"].tolist() == [True, True, False]


def test_keys_are_equal_for_equal_questions_and_all_keys_of_an_image_are_listed():
    source = questions()
    keys = source.array("question_key")
    assert keys[0] == keys[3] and len(set(keys.tolist())) == 3
    for i in range(4):
        mine = {int(k) for k, r in zip(keys, RECORDS, strict=True) if r["image_id"] == RECORDS[i]["image_id"]}
        listed = source[i]["keys_of_image"].tolist()
        assert {k for k in listed if k >= 0} == mine and listed.count(-1) == 32 - len(mine)
    assert source.keys_dropped == 0


def test_where_keys_do_not_fit_those_that_other_images_share_stay():
    source = questions(max_keys=1)
    assert source[0]["keys_of_image"].tolist() == [source.array("question_key")[0]]
    assert source.keys_dropped == 0  # the other question is of this image alone
    records = [*RECORDS, row(2, "how many?", "2", kind="number")]
    assert questions(records, max_keys=1).keys_dropped == 1


def test_questions_whose_answers_are_no_class_have_no_label():
    source = questions()
    assert source[3]["hard_label"] == -1 and source[3]["label"].tolist() == [4] * 10
    assert not source[3]["label_score"].any() and not source[3]["label_share"].any()
    assert [source.truth(i) for i in range(4)] == [(0, 2), (2, 0), (3, 1), (-1, 2)]


def test_a_subset_keeps_its_rows_as_they_were():
    source = questions()
    part = source.subset(np.array([3, 0]))
    for at, i in enumerate([3, 0]):
        assert part.annotation(at) is RECORDS[i]
        for name, value in source[i].items():
            np.testing.assert_array_equal(part[at][name], value, err_msg=name)
    assert part.image_ids.tolist() == [7, 4] and len(part) == 2 and len(source) == 4


@pytest.mark.parametrize(
    "source", [questions(), RegionImages(Few(), [3], asked=TEXT, asked_kinds=ASKED_KINDS)]
)
def test_shapes_are_those_of_a_row_even_if_there_is_none(source):
    one, empty = source[0], source.subset([]).shapes()
    assert {k: (np.shape(v), np.asarray(v).dtype) for k, v in one.items()} == {
        k: (v.shape, v.dtype) for k, v in empty.items()
    }


def test_images_carry_the_shared_questions_and_copies_leave_the_original_alone():
    images = RegionImages(Few(), np.array([5, 1, 9]))
    asking = images.asking(TEXT, ASKED_KINDS)
    assert "asked" not in images[0] and set(asking[0]) - set(images[0]) == {
        "asked",
        "asked_kind",
        "asked_shared",
    }
    assert np.array_equal(asking[2]["asked"], TEXT) and asking[2]["asked"].dtype == np.int32
    part = asking.subset([2, 0])
    assert part.ids.tolist() == [9, 5] and np.array_equal(part[1]["asked_shared"], TEXT)
    images.ask(TEXT[:1], ASKED_KINDS[:1])
    assert images[0]["asked"].shape == (1, 4) and asking[0]["asked"].shape == (2, 4)


def test_images_with_questions_of_their_own_share_none():
    own, kinds = np.stack([TEXT, TEXT[::-1]]), np.stack([ASKED_KINDS, ASKED_KINDS[::-1]])
    images = RegionImages(Few(), [5, 1], asked=own, asked_kinds=kinds).subset([1])
    assert "asked_shared" not in images[0] and np.array_equal(images[0]["asked"], TEXT[::-1])
    assert images[0]["asked_kind"].tolist() == [0, 2]


def test_a_subset_of_a_subclass_is_rows_alone():
    class Labelled(RegionImages):
        secret = "answers"

    part = Labelled(Few(), [1, 2]).subset([0])
    assert type(part) is RegionImages and not hasattr(part, "secret")


def test_loaders_batch_both_kinds_of_rows():
    with Loader(questions(), batch_size=4, seed=0).batches(0, 1) as batches:
        batch = next(batches)
    assert sorted(batch["image_id"].tolist()) == [2, 4, 4, 7] and batch["keys_of_image"].shape == (4, 32)
    (batch,) = evaluation_batches(RegionImages(Few(), [8, 6], asked=TEXT, asked_kinds=ASKED_KINDS), 3)
    assert batch["asked_shared"].shape == (3, 2, 4) and batch["mask"].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegionImages(Few(), range(5, 30)), r"no regions of 20 images of the pool: .* 10, .* and 10"),
        (lambda: RegionImages(Few(), [1, 1]), "occurs twice"),
        (lambda: RegionImages(Few(), [2**31]), r"\[0, 2\^31\)"),
        (lambda: questions([row(12, "a", "b")]), "no regions of 1 images of the questions: image_id 12"),
        (lambda: questions([row(1, "a", "b", kind="color")]), "'answer_type': is 'color', expected one of yes"),
        (lambda: questions([{"image_id": 1, "answer_type": "other"}]), "question 0 has no 'question'"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_work_starts(make, message):
    with pytest.raises(DataError, match=message):
        make()


@pytest.mark.parametrize("shapes", [((2,), ()), ((2, 4), (3,)), ((2, 2, 4), (2, 2))])
def test_questions_to_ask_must_fit(shapes):
    with pytest.raises(ValueError, match=r"questions for 2 images|expected \[J,L\]"):
        RegionImages(Few(), [1]).ask(*map(np.zeros, shapes))


@pytest.mark.parametrize("source", [questions(), RegionImages(Few(), [3, 4])])
def test_rows_end(source):
    assert len(list(source)) == len(source)
    with pytest.raises(IndexError):
        source[-1]


def test_images_that_models_cannot_tell_apart_have_equal_digests_and_empty_ones_have_none():
    def of(image_id):
        features = np.full((2, 3), float(image_id % 2), np.float32)
        return Regions(features, np.zeros((2, 4), np.float32), np.array([image_id < 4, False]))

    provider = SimpleNamespace(of=of)
    found = [features_digest(provider, i) for i in range(5)]
    assert found[0] == found[2] != found[1] == found[3] and found[4] is None
