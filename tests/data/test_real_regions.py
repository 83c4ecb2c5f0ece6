"""Proves that DAQUAR and COCO's questions serve as pools of region questions, with GloVe and VQA v2's answers.

The collections are not part of the project: set JAXVL_DATA to the folder that holds them.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jaxvl.data import SOURCES
from jaxvl.data.answers import build_answers, read_answers
from jaxvl.data.region_source import RegionQuestions, Regions
from jaxvl.data.words import Words

ROOT = Path(os.environ.get("JAXVL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


class Grey:
    """One empty region of any image."""

    regions, width, digest = 1, 2, "grey"

    def has(self, image_id: int) -> bool:
        return True

    def of(self, image_id: int) -> Regions:
        return Regions(np.zeros((1, 2), np.float32), np.zeros((1, 4), np.float32), np.zeros(1, bool))


def records(name: str, **options) -> list[dict]:
    if not (ROOT / name).is_dir():
        pytest.skip(f"{ROOT / name} is absent: set JAXVL_DATA to the folder with the real collections")
    files = [ROOT / name / file for file in options.pop("files")]
    reader = SOURCES["jsonl_vqa"](files=files, images=files[0].parent / "images.zip", **options)
    return [reader.annotation(i) for i in range(len(reader))]


class Listed:
    """Records as the reader that `build_answers` takes."""

    def __init__(self, rows: list[dict]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def annotation(self, i: int) -> dict:
        return self.rows[i]


def test_daquar_is_a_pool_once_its_answer_types_are_told_from_its_answers():
    rows = records("daquar", files=["train/qa.jsonl"], answer_separator="_", fields={"answer_type": "none"})
    assert Counter(r["answer_type"] for r in rows) == {"other": 5885, "number": 910}
    words = Words.build((r["question"] for r in rows), glove=ROOT / "glove_100d", dim=100)
    source = RegionQuestions(
        Grey(), rows, words, build_answers(Listed(rows), min_count=2, order="appearance")
    )
    assert words.known[3:].mean() > 0.95 and source.keys_dropped == 0
    assert (source.array("hard_label") >= 0).mean() > 0.97
    assert source.array("question_key").max() + 1 == 3660


def test_coco_questions_get_vqa_v2_classes():
    rows = records("coco_vqa", files=["val/vqax.jsonl", "val/vqav2_mini.jsonl"], image_template="%012d.jpg")
    answers = read_answers(ROOT / "vqa_v2" / "answer_dict.json")
    source = RegionQuestions(Grey(), rows, Words.build([r["question"] for r in rows], dim=2), answers)
    for i in range(len(source)):
        most = Counter(rows[i]["answers"]).most_common(1)[0]
        if most[1] > 5 and most[0] in answers:
            row = source[i]
            assert (
                answers[source.truth(i)[0]] == most[0] == answers[row["label"][0]]
                and row["label_score"][0] == 1
            )
    assert (source.array("hard_label") >= 0).mean() > 0.99
