"""Proves the readers of one's own labelled sentences: entailment, and statements about one image or two."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from data_fakes import picture, write_images, write_jsonl, write_zip

from jaxvl.data import SOURCES
from jaxvl.data.records import DataError
from jaxvl.data.sentences import JsonlEntailment, JsonlStatements

DIDE = ("contradiction", "entailment", "neutral")


def entailment(tmp_path, rows, **options) -> JsonlEntailment:
    root = write_images(tmp_path / "images", ["a.png", "b.png"])
    return JsonlEntailment(write_jsonl(tmp_path / "e.jsonl", rows), images=root, **options)


def statements(tmp_path, rows, **options) -> JsonlStatements:
    root = write_images(tmp_path / "images", ["a.png", "b.png", "000000000042.png"])
    return JsonlStatements(write_jsonl(tmp_path / "s.jsonl", rows), images=root, **options)


def test_entailment_reads_hypotheses_and_sentences(tmp_path):
    rows = [
        {"image": "a.png", "hypothesis": "x", "label": "neutral", "premise_caption": "never read"},
        {"image": "b.png", "sentence": "y", "label": "entailment"},
        {"image": "b.png", "sentence": "z", "label": "-"},
    ]
    reader = entailment(tmp_path, rows)
    assert [(r["sentence"], r["label"]) for r in map(reader.annotation, range(2))] == [("x", 1), ("y", 2)]
    assert len(reader) == 2 and reader.dropped == {"a label without agreement": 1}
    assert np.array_equal(reader.image(1), picture(1)) and "image2" not in reader.annotation(0)


def test_numbers_as_labels_need_an_order(tmp_path):
    rows = [{"image": "a.png", "sentence": str(k), "label": k} for k in range(3)]
    with pytest.raises(DataError, match=r"field 'label': is 0\. Write contradiction, .*or pass label_order"):
        entailment(tmp_path, rows)
    reader = entailment(tmp_path, rows, label_order=DIDE)
    assert [reader.annotation(i)["label_name"] for i in range(3)] == list(DIDE)
    assert [reader.annotation(i)["label"] for i in range(3)] == [0, 2, 1]
    with pytest.raises(DataError, match=r"field 'label': is 3\. Write 0 to 2"):
        entailment(tmp_path, [{**rows[0], "label": 3}], label_order=DIDE)


@pytest.mark.parametrize("label", [True, 1, "true", "True", "TRUE"])
def test_true_is_true_however_it_is_written(label, tmp_path):
    rows = [
        {"image": "a.png", "statement": "x", "label": label},
        {"image": "a.png", "sentence": "y", "label": 0},
    ]
    reader = statements(tmp_path, rows)
    assert [reader.annotation(i)["label_name"] for i in range(2)] == ["True", "False"]
    assert [reader.annotation(i)["label"] for i in range(2)] == [1, 0]


def test_two_images_in_either_writing(tmp_path):
    rows = [
        {"image": "a.png", "image2": "b.png", "sentence": "x", "label": True},
        {"images": ["b.png", "a.png"], "sentence": "x", "label": False},
    ]
    reader = statements(tmp_path, rows)
    ids = [(r["image_id"], r["image2_id"]) for r in map(reader.annotation, range(2))]
    assert ids == [(0, 1), (1, 0)] and np.array_equal(reader.image2(0), reader.image(1))
    with pytest.raises(DataError, match=r"row 3, field 'image': has another number of images than"):
        statements(tmp_path, [*rows, {"image": "a.png", "sentence": "x", "label": True}])


def test_templates_name_images_by_id_or_by_any_field(tmp_path):
    row = {"image_id": 42, "sentence": "x", "label": 1}
    reader = statements(tmp_path, [row], image_template="%012d.png")
    assert reader.annotation(0)["image_id"] == 42 and np.array_equal(reader.image(0), picture(2))
    with pytest.raises(DataError, match=r"field 'image': is missing, and so is 'name' of the template"):
        statements(tmp_path, [row], image_template="{name}.png")


def test_permutations_are_examples_of_one_sentence(tmp_path):
    names = [f"{i}-{k}.png" for i in ("7-0", "7-1", "8-0") for k in range(3)]
    archive = write_zip(tmp_path / "images.zip", names)
    rows = [{"identifier": i, "sentence": "x", "label": "true"} for i in ("7-0", "7-1", "8-0")]
    path = write_jsonl(tmp_path / "s.jsonl", rows)
    options = dict(images=archive, image_template="{identifier}-{k}.png", permutations=3)
    reader = JsonlStatements(path, **options)
    found = [reader.annotation(i) for i in range(9)]
    assert [r["image"] for r in found] == names and np.array_equal(reader.image(4), picture(4))
    assert [r["sentence_group"] for r in found] == ["7"] * 6 + ["8"] * 3
    assert reader.check_command.endswith("--permutations 3 --decode all")
    held = [
        JsonlStatements(path, **options, holdout=dict(share=0.5, part=p, seed=2)) for p in ("train", "held")
    ]
    assert sorted(len(part) for part in held) == [3, 6]
    with pytest.raises(ValueError, match=r"permutations=3 needs \{k\} in image_template"):
        JsonlStatements(path, images=archive, permutations=3)


def test_other_identifiers_are_no_groups(tmp_path):
    rows = [{"image": "a.png", "identifier": f"my-set-{k}", "sentence": "x", "label": 1} for k in range(2)]
    assert "sentence_group" not in statements(tmp_path, rows).annotation(0)


def test_the_readers_can_be_pickled_and_named(tmp_path):
    reader = statements(tmp_path, [{"image": "a.png", "sentence": "x", "label": 1}])
    assert np.array_equal(pickle.loads(pickle.dumps(reader)).image(0), picture(0))
    names = {"nlvr2", "snli_ve", "jsonl_entailment", "jsonl_statements", "vilt_arrow"}
    assert names <= set(SOURCES)
