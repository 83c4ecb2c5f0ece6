"""Proves that the readers take real collections as they come: COCO questions, DAQUAR, Flickr8k, NLVR, VSR.

The collections are not part of the project: set JAXVL_DATA to the folder that holds them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from data_fakes import VOCAB

from jaxvl.data import SOURCES
from jaxvl.data.__main__ import main
from jaxvl.data.answers import build_answers, read_answers
from jaxvl.data.images import ImageTransform
from jaxvl.data.loader import Loader
from jaxvl.data.source import CaptionFormat, Captions, ClassifyFormat, Examples, Images, QuestionFormat
from jaxvl.data.text import Tokenizer

ROOT = Path(os.environ.get("JAXVL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TOK = Tokenizer.from_vocab(VOCAB)


def folder(name: str) -> Path:
    if not (ROOT / name).is_dir():
        pytest.skip(f"{ROOT / name} is absent: set JAXVL_DATA to the folder with the real collections")
    return ROOT / name


def first_batch(reader, format) -> dict[str, np.ndarray]:
    source = Examples(reader, format, ImageTransform(64))
    with Loader(source, batch_size=16, seed=0).batches() as batches:
        return next(batches)


def test_coco_yes_no_questions():
    path = folder("coco_vqa")
    readers = {
        split: SOURCES["jsonl_vqa"](
            files=path / split / "vqa_yesno.jsonl",
            images=path / split / "images.zip",
            image_template="%012d.jpg",
        )
        for split in ("train", "val")
    }
    assert (len(readers["train"]), len(readers["val"])) == (8479, 1272)
    assert sorted(build_answers(readers["train"])) == ["no", "yes"]
    assert readers["train"].annotation(0)["image"] == "000000393225.jpg"
    batch = first_batch(readers["train"], QuestionFormat(TOK, answers=2))
    assert batch["image"].std() > 0.5 and np.array_equal(batch["answer_weight"], [[1, 0]] * 16)


def test_coco_questions_with_ten_answers():
    path = folder("coco_vqa") / "val"
    reader = SOURCES["jsonl_vqa"](
        files=[path / "vqax.jsonl", path / "vqav2_mini.jsonl"],
        images=path / "images.zip",
        image_template="%012d.jpg",
    )
    rows = [reader.annotation(i) for i in range(len(reader))]
    assert len(rows) == 439 and all(len(row["answers"]) == 10 for row in rows)
    assert {row["answer_type"] for row in rows} == {"yes/no", "number", "other"}
    assert all(0.99 < sum(row["targets"].values()) <= 1.001 for row in rows)


def test_daquar_is_split_by_image_and_its_words_are_separated():
    path = folder("daquar") / "train"
    train, held = (
        SOURCES["jsonl_vqa"](
            files=path / "qa.jsonl",
            images=path / "images.zip",
            answer_separator="_",
            holdout=dict(share=0.2, part=part),
        )
        for part in ("train", "held")
    )
    images = [{r.annotation(i)["image"] for i in range(len(r))} for r in (train, held)]
    assert len(train) + len(held) == 6795 and not images[0] & images[1] and 120 < len(images[1]) < 220
    answers = build_answers(train, count="all")
    assert "garbage bin" in answers and not any("_" in answer for answer in answers)
    assert {train.annotation(i)["answer_type"] for i in range(len(train))} == {"object", "number", "color"}


def test_flickr8k_captions():
    path = folder("flickr8k") / "val"
    reader = SOURCES["jsonl_captions"](files=path / "captions.jsonl", images=path / "images.zip")
    source = Examples(reader, CaptionFormat(TOK), ImageTransform(64))
    assert (len(source), len(Images(source)), len(Captions(source))) == (1000, 1000, 5000)
    batch = first_batch(reader, CaptionFormat(TOK))
    assert batch["image"].shape == (16, 64, 64, 3) and batch["image"].std() > 0.5
    assert (batch["text"][:, 0] == TOK.cls_id).all() and (batch["text"] != TOK.sep_id).all()


def test_the_check_passes_on_each(capsys):
    coco, daquar = folder("coco_vqa"), folder("daquar") / "train"
    other = coco / "val" / "vqa_yesno.jsonl"
    command = [
        "check",
        str(coco / "train" / "vqa_yesno.jsonl"),
        "--images",
        str(coco / "train" / "images.zip"),
    ]
    assert main([*command, "--image-template", "%012d.jpg", "--against", str(other)]) == 0
    assert main(["check", str(daquar / "qa.jsonl"), "--images", str(daquar / "images.zip")]) == 0
    assert "all 794 images exist" in capsys.readouterr().out


def test_the_answer_vocabulary_of_vqa_v2():
    answers = read_answers(folder("vqa_v2") / "answer_dict.json")
    assert len(answers) == 3129 and answers[:4] == ["net", "pitcher", "orange", "yes"]


def test_flickr8k_entailment():
    path = folder("flickr8k")
    sizes = {}
    for split in ("train", "val"):
        reader = SOURCES["jsonl_entailment"](
            files=path / split / "entailment.jsonl", images=path / split / "images.zip"
        )
        rows = [reader.annotation(i) for i in range(len(reader))]
        sizes[split] = np.bincount([row["label"] for row in rows]).tolist()
        assert all(row["label_name"][0] == "cne"[row["label"]] for row in rows)
    assert sizes == {"train": [1097, 1091, 1132], "val": [171, 182, 174]}
    batch = first_batch(reader, ClassifyFormat(TOK))
    assert batch["image"].std() > 0.5 and batch["label"].shape == (16,)
    assert (batch["text"] == TOK.sep_id).sum(axis=1).tolist() == [1] * 16


def test_nlvr_statements_with_six_permutations():
    path = folder("nlvr1")
    given = dict(image_template="{identifier}-{k}.png", permutations=6)
    reader = SOURCES["jsonl_statements"](
        files=path / "train" / "examples.jsonl", images=path / "train" / "images.zip", **given
    )
    rows = [reader.annotation(i) for i in range(len(reader))]
    assert len(rows) == 6000 and sum(row["label"] for row in rows) == 6 * 587
    assert len({row["image"] for row in rows}) == 6000 and reader.image(7).shape == (100, 400, 3)
    assert first_batch(reader, ClassifyFormat(TOK))["image"].std() > 0.3


def test_spatial_statements_about_coco():
    path = folder("coco_vqa") / "val"
    reader = SOURCES["jsonl_statements"](
        files=path / "vsr.jsonl", images=path / "images.zip", image_template="%012d.jpg"
    )
    labels = [reader.annotation(i)["label"] for i in range(len(reader))]
    assert (len(labels), sum(labels)) == (214, 108) and reader.has_image(0)


def test_published_classes_cover_the_human_answers():
    coco, classes = folder("coco_vqa") / "val", read_answers(folder("vqa_v2") / "answer_dict.json")
    reader = SOURCES["jsonl_vqa"](
        files=[coco / "vqax.jsonl", coco / "vqav2_mini.jsonl"], images=coco / "images.zip",
        image_template="%012d.jpg",
    )  # fmt: skip
    format = ClassifyFormat(TOK, field="question", answers=tuple(classes))
    batch = first_batch(reader, format)
    assert batch["label"].shape == (16, 10) and batch["label_score"].max(axis=1).min() > 0
    assert format.losses(reader)["unlabelled"] < 0.05 * len(reader)
