"""Proves the SNLI-VE reader: labels by string, hypotheses only, both forms of the file."""

from __future__ import annotations

import numpy as np
import pytest
from data_fakes import picture, write_images, write_json, write_jsonl

from jaxvl.data.check import detect
from jaxvl.data.records import DataError
from jaxvl.data.sentences import ENTAILMENT, SnliVe

ROWS = [
    {
        "Flickr30K_ID": 77,
        "gold_label": "entailment",
        "sentence1": "premise",
        "sentence2": "A dog",
        "pairID": "1",
    },
    {"Flickr30K_ID": "77", "gold_label": "-", "sentence1": "premise", "sentence2": "A cat"},
    {"Flickr30K_ID": "78", "gold_label": "neutral", "sentence1": "premise", "sentence2": "A man"},
    {"Flickr30K_ID": "78", "gold_label": "contradiction", "sentence1": "premise", "sentence2": "A cat"},
]


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "images", ["flickr30k-images/77.jpg", "flickr30k-images/78.jpg"])


def official(tmp_path, rows, root, **options) -> SnliVe:
    return SnliVe(write_jsonl(tmp_path / "snli_ve_dev.jsonl", rows), images=root, **options)


def test_the_official_rows(tmp_path, root, caplog):
    reader = official(tmp_path, ROWS, root)
    assert reader.annotation(0) == {
        "image": "flickr30k-images/77.jpg", "image_id": 0, "sentence": "A dog", "sentence_id": 0, "label": 2,
        "label_name": "entailment",
    }  # fmt: skip
    assert [reader.annotation(i)["label"] for i in range(len(reader))] == [2, 1, 0]
    assert [ENTAILMENT[reader.annotation(i)["label"]] for i in range(3)] == [
        "entailment", "neutral", "contradiction",
    ]  # fmt: skip
    assert (
        reader.dropped == {"a label without agreement": 1}
        and "1 for a label without agreement" in caplog.text
    )
    assert reader.image(1).shape == picture(1).shape


def test_the_form_of_albef_and_dide_is_the_same_data(tmp_path, root):
    rows = [
        {"image": str(r["Flickr30K_ID"]), "sentence": r["sentence2"], "label": r["gold_label"]} for r in ROWS
    ]
    path = write_json(tmp_path / "ve_dev.json", rows)
    one, other = official(tmp_path, ROWS, root), SnliVe(path, images=root / "flickr30k-images")
    assert [one.annotation(i) for i in range(3)] == [other.annotation(i) for i in range(3)]
    assert np.array_equal(one.image(0), other.image(0))
    assert detect(path) == detect(tmp_path / "snli_ve_dev.jsonl") == "snli_ve"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gold_label": 1},
            r"row 2, field 'label': is 1\. Write contradiction, neutral, entailment, or pass label_order",
        ),
        ({"gold_label": "entails"}, r"row 2, field 'label': is 'entails'\. Write contradiction, "),
        ({"sentence2": None}, r"row 2, field 'sentence': is missing .*Add 'sentence2' or 'sentence'"),
        ({"Flickr30K_ID": None}, r"row 2, field 'image': is missing"),
    ],
)
def test_malformed_rows_are_named(change, message, tmp_path, root):
    with pytest.raises(DataError, match=message):
        official(tmp_path, [ROWS[0], {**ROWS[2], **change}], root)


def test_numbers_of_dide_become_canonical(tmp_path, root):
    rows = [{"image": "77", "sentence": str(k), "label": k} for k in range(3)]
    reader = SnliVe(
        write_json(tmp_path / "ve.json", rows),
        images=root,
        label_order=("contradiction", "entailment", "neutral"),
    )
    assert [reader.annotation(i)["label_name"] for i in range(3)] == [
        "contradiction",
        "entailment",
        "neutral",
    ]
    assert [reader.annotation(i)["label"] for i in range(3)] == [0, 2, 1]


def test_missing_images_can_be_left_out(tmp_path, root):
    reader = official(tmp_path, [*ROWS, {**ROWS[0], "Flickr30K_ID": 5}], root, missing="drop")
    assert len(reader) == 3 and reader.dropped == {"a label without agreement": 1, "missing images": 1}
