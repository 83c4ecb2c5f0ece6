"""Proves the NLVR2 reader: names of the images, sentence groups, labels, and images that have left the web."""

from __future__ import annotations

import numpy as np
import pytest
from data_fakes import VOCAB, encoded, picture, write_images, write_json, write_jsonl, write_zip

from jaxvl.data.check import detect
from jaxvl.data.records import DataError
from jaxvl.data.sentences import Nlvr2
from jaxvl.data.source import ClassifyFormat, Examples
from jaxvl.data.text import Tokenizer

TOK = Tokenizer.from_vocab(VOCAB)
TRAIN = {
    "identifier": "train-10171-0-3",
    "sentence": "A dog",
    "label": "True",
    "directory": 86,
    "left_url": "x",
}
DEV = {"identifier": "dev-850-1-0", "sentence": "A cat", "label": "False", "left_url": "x"}
NAMES = [
    "images/train/86/train-10171-0-img0.png", "images/train/86/train-10171-0-img1.png",
    "dev/dev-850-1-img0.png", "dev/dev-850-1-img1.png",
]  # fmt: skip


def nlvr2(tmp_path, rows, **options) -> Nlvr2:
    root = write_images(tmp_path / "nlvr2", NAMES)
    return Nlvr2(write_jsonl(tmp_path / "train.json", rows), images=root, **options)


def test_an_identifier_names_both_images(tmp_path):
    reader = nlvr2(tmp_path, [TRAIN, DEV])
    assert reader.annotation(0) == {
        "image": NAMES[0], "image2": NAMES[1], "image_id": 0, "image2_id": 1, "sentence": "A dog",
        "sentence_id": 0, "label": 1, "label_name": "True", "sentence_group": "train-10171--3",
    }  # fmt: skip
    assert reader.annotation(1)["label"] == 0 and reader.annotation(1)["image2"] == NAMES[3]
    assert np.array_equal(reader.image(1), picture(2)) and np.array_equal(reader.image2(1), picture(3))


def test_the_content_of_an_image_decides_not_its_name(tmp_path):
    reader = nlvr2(tmp_path, [DEV])
    (tmp_path / "nlvr2" / NAMES[2]).write_bytes(encoded(picture(9), ".jpg"))
    assert reader.image(0).shape == (40, 50, 3) and not np.array_equal(reader.image(0), picture(2))


def test_zips_of_a_part_are_found(tmp_path):
    archive = write_zip(tmp_path / "dev.zip", [name.split("/")[-1] for name in NAMES[2:]])
    reader = Nlvr2(write_jsonl(tmp_path / "dev.json", [DEV]), images=archive)
    assert np.array_equal(reader.image2(0), picture(1)) and reader.has_image2(0)


def test_the_form_of_albef_is_the_same_data(tmp_path):
    rows = [
        {"images": NAMES[:2], "sentence": "A dog", "label": "True"},
        {"images": NAMES[2:], "sentence": "A cat", "label": "False"},
    ]
    root = write_images(tmp_path / "nlvr2", NAMES)
    albef = Nlvr2(write_json(tmp_path / "a.json", rows), images=root)
    for i, official in enumerate(nlvr2(tmp_path, [TRAIN, DEV]).annotation(i) for i in range(2)):
        same = albef.annotation(i)
        assert {**same, "sentence_group": ""} == {**official, "sentence_group": ""}
    assert albef.annotation(0)["sentence_group"] == "train-10171 A dog"
    assert detect(tmp_path / "a.json") == detect(tmp_path / "train.json") == "nlvr2"


def test_rows_without_images_are_kept_or_counted(tmp_path, caplog):
    gone = {**DEV, "identifier": "dev-851-0-0"}
    assert len(nlvr2(tmp_path, [TRAIN, gone, DEV])) == 3
    reader = nlvr2(tmp_path, [TRAIN, gone, DEV], missing="drop")
    assert len(reader) == 2 and reader.dropped == {"missing images": 1}
    assert "train.json: rows left out: 1 for missing images" in caplog.text
    with pytest.raises(ValueError, match="missing='skip' must be 'keep' or 'drop'"):
        nlvr2(tmp_path, [DEV], missing="skip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identifier": "dev-1"}, r"row 1, field 'identifier': is 'dev-1'\. Write split-set-pair-sentence"),
        ({"identifier": None}, r"field 'identifier': is missing"),
        (
            {"directory": None},
            r"row 1, field 'directory': is missing\. Training images lie in numbered folders",
        ),
        ({"label": "yes"}, r"field 'label': is 'yes'\. Write \"True\" or \"False\""),
        ({"sentence": ""}, r"field 'sentence': is empty"),
        ({"images": ["a.png"]}, r"field 'images': has 1 images\. Write the paths of two"),
    ],
)
def test_malformed_rows_are_named(change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        nlvr2(tmp_path, [{**TRAIN, **change}])


def test_a_holdout_keeps_a_set_together(tmp_path):
    rows = [
        {**DEV, "identifier": f"dev-{of}-{pair}-{s}"} for of in range(30) for pair in range(4) for s in (0, 1)
    ]
    parts = [nlvr2(tmp_path, rows, holdout=dict(share=0.4, part=part)) for part in ("train", "held")]
    sets = [{r.annotation(i)["image"].split("-")[1] for i in range(len(r))} for r in parts]
    assert len(parts[0]) + len(parts[1]) == 240 and not sets[0] & sets[1] and all(sets)


def test_sentences_without_labels_are_predicted_not_trained_on(tmp_path):
    reader = nlvr2(tmp_path, [DEV, {**TRAIN, "label": None}])
    assert reader.annotation(1)["label"] is None
    with pytest.raises(
        DataError, match=r"(?s)sentences without labels can be predicted, .*row 2, field 'label'"
    ):
        Examples(reader, ClassifyFormat(TOK), 8).shapes()
    assert Examples(reader, ClassifyFormat(TOK), 8)[1]["label"] == -1
