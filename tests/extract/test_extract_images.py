"""Images are found by the ids that questions use: ends of file names, or a reader's own numbers."""

from __future__ import annotations

import json
import zipfile

import cv2
import numpy as np
import pytest

from jaxvl.data import SOURCES
from jaxvl.data.records import DataError
from jaxvl.extract.images import find_images


def png(grey: int) -> bytes:
    return cv2.imencode(".png", np.full((4, 6, 3), grey, np.uint8))[1].tobytes()


@pytest.fixture
def folder(tmp_path):
    for name, grey in {"COCO_train2014_000000000009.png": 9, "sub/image3.png": 3, "12.png": 12}.items():
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(png(grey))
    (tmp_path / "pictures" / "notes_1.txt").write_text("no image")
    return tmp_path / "pictures"


def test_ids_are_the_ends_of_file_names_in_folders_and_zips(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, path.relative_to(folder))
    for place in (folder, tmp_path / "all.zip"):
        images = find_images(str(place), SOURCES)
        assert images.ids.tolist() == [3, 9, 12] and images.ids.dtype == np.int64
        assert list(images.names) == ["sub/image3.png", "COCO_train2014_000000000009.png", "12.png"]
        assert [images.read(int(i))[0, 0, 0] for i in images.ids] == [3, 9, 12]


def questions(tmp_path, folder, names) -> str:
    rows = [{"image": name, "question": "what?", "answers": ["that"]} for name in names]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return json.dumps({"name": "jsonl_vqa", "files": str(tmp_path / "qa.jsonl"), "images": str(folder)})


def test_ids_of_a_reader_are_those_of_its_questions(folder, tmp_path):
    given = questions(tmp_path, folder, ["12.png", "sub/image3.png", "12.png"])
    images = find_images(given, SOURCES)
    reader = SOURCES["jsonl_vqa"](files=tmp_path / "qa.jsonl", images=folder)
    assert [reader.annotation(i)["image_id"] for i in range(3)] == [0, 1, 0]  # no ids in the file: numbered
    assert images.ids.tolist() == [0, 1] and list(images.names) == ["12.png", "sub/image3.png"]
    assert [images.read(i)[0, 0, 0] for i in (0, 1)] == [12, 3]


def test_unusable_images_are_refused_before_work_starts(folder, tmp_path):
    absent = questions(tmp_path, folder, ["12.png", "13.png"])
    cases = {
        str(tmp_path / "absent"): "absent: no such folder or zip",
        str(tmp_path / "qa.jsonl"): "qa.jsonl: not a readable zip file",
        absent: "1 of 2 images have no file: 13.png; correct 'images'",
        absent.replace("jsonl_vqa", "jsonl"): "field 'name': 'jsonl' is no reader; known are",
        absent.replace('"images"', '"pictures"'): "reader 'jsonl_vqa': missing a required argument: 'images'",
        "{name": "--images {name: not valid JSON",
    }
    for given, message in cases.items():
        with pytest.raises(DataError, match=message):
            find_images(given, SOURCES)


def test_names_without_ids_or_with_the_same_are_refused(folder):
    (folder / "012.png").write_bytes(png(0))
    with pytest.raises(DataError, match="012.png and 12.png have the same image_id 12"):
        find_images(str(folder), SOURCES)
    (folder / "dog.png").write_bytes(png(0))
    (folder / "012.png").unlink()
    with pytest.raises(DataError, match="the name of dog.png does not end with an image_id"):
        find_images(str(folder), SOURCES)
    for path in folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"no image \(.jpg, .*\) in there"):
        find_images(str(folder), SOURCES)
