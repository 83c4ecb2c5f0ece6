"""A look through a store finds every kind of damage; ids are read from the files that people have."""

from __future__ import annotations

import json

import numpy as np
import pytest
import region_files as files

from jaxvl.atomic import sha256
from jaxvl.data.records import DataError
from jaxvl.data.regions import RegionStore, StoreError, StoreWriter
from jaxvl.data.regions.files import MANIFEST
from jaxvl.data.regions.verify import image_ids, verify

HOW = dict(regions=6, width=files.WIDTH, made_by={})


@pytest.fixture
def folder(tmp_path):
    with StoreWriter(tmp_path / "s", **HOW, shard_bytes=400) as writer:
        for i in range(2, 7):
            image = files.made_up(i, n=i)
            writer.add(i, features=image.features, boxes=image.boxes, conf=image.conf if i < 5 else None)
    return tmp_path / "s"


def test_a_good_store_is_described(folder):
    found = verify(RegionStore(folder))
    assert (found.images, found.shards, found.regions, found.with_conf) == (5, 3, (2, 4.0, 6), 3)
    assert found.bytes == sum((folder / f"shard-0000{k}.npy").stat().st_size for k in range(3))


def test_changed_values_are_found_by_the_checksum(folder):
    records = np.load(folder / "shard-00001.npy", mmap_mode="r+")
    records["features"][0, 0, 0] += 1
    records.flush()
    with pytest.raises(StoreError, match=r"1 problems.*\n- .*shard-00001.npy: the checksum"):
        verify(RegionStore(folder))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("features", np.nan, "image_id 3: features that are not finite"),
        ("features", 0, "image_id 3: features of region 0 are all zero"),
        ("boxes", 2, "image_id 3: boxes outside"),
        ("conf", np.inf, "image_id 3: confidences that are infinite"),
    ],
)
def test_bad_values_are_found_also_if_the_checksum_is_right(folder, field, value, message):
    records = np.load(folder / "shard-00000.npy")
    records[field][1] = value
    rewrite(folder, records)
    with pytest.raises(StoreError, match=rf"1 problems.*\n- .*shard-00000.npy: {message}"):
        verify(RegionStore(folder))


def test_values_beyond_the_regions_are_found(folder):
    records = np.load(folder / "shard-00000.npy")
    records["features"][0, 2:] = 1
    rewrite(folder, records)
    with pytest.raises(StoreError, match="image_id 2: values beyond its 2 regions"):
        verify(RegionStore(folder))


def test_an_image_that_is_there_twice_is_found(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"].append(manifest["shards"][0])
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(
        StoreError, match=r"5 images, the shards have 7\n.*image_id 2 is there twice\n.*image_id 3"
    ):
        verify(RegionStore(folder))


def rewrite(folder, records) -> None:
    """Put other records into the first shard, with a right checksum."""
    path = folder / "shard-00000.npy"
    np.save(path, records)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"][0]["sha256"] = sha256(path)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.json", '{"questions": [{"image_id": 3}, {"image_id": 3}, {"image_id": 9}]}'),
        ("a.json", '{"annotations": [{"image_id": 3}, {"image_id": 9}]}'),
        ("l.json", '[{"image_id": 9}, {"image_id": "3"}]'),
        ("r.jsonl", '{"image_id": 9}\n{"image_id": 3, "question": "what?"}\n'),
        ("i.txt", "9\n\n3\n"),
    ],
)
def test_ids_are_read_from_the_usual_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert image_ids([tmp_path / name]) == {3, 9}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "r.jsonl",
            '{"image_id": 9}\n{"image": "3.jpg"}\n',
            "r.jsonl, row 2, field 'image_id': 'None' is no whole",
        ),
        ("r.jsonl", '{"image_id": 9}\n{', "r.jsonl, row 2: "),
        ("q.json", '{"images": []}', "neither a list nor an object with 'questions'"),
        ("i.txt", "9\nabc\n", "i.txt, row 2, field 'image_id': 'abc'"),
        ("i.txt", "\n", "names no images"),
    ],
)
def test_files_without_ids_are_refused_by_row(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        image_ids([tmp_path / name])
