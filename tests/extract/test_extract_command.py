"""The command makes a store that a reader of regions opens, goes on with a begun one, and names what is wrong."""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import pytest
from efficientnet_states import SMALL, small_state
from extract_fakes import Quarters

from jaxvl.data.records import DataError
from jaxvl.data.regions import RegionStore, StoreError
from jaxvl.extract import EXTRACTORS
from jaxvl.extract.command import add_extract
from jaxvl.extract.grid import EfficientNetGrid, grid_boxes

FAKES = {
    "quarters": lambda weights=None: Quarters(),
    "others": lambda: Quarters(tone=1),
    "small": lambda weights, grid, size: EfficientNetGrid(
        weights, grid=grid, size=size, model=SMALL.clone(classes=None)
    ),
}


def run(*argv: object, extractors=FAKES) -> None:
    parser = argparse.ArgumentParser()
    add_extract(parser.add_subparsers(), extractors=extractors)
    args = parser.parse_args(["extract", *map(str, argv)])
    args.do(args)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in (3, 20, 40, 7, 90):
        cv2.imwrite(str(tmp_path / "pictures" / f"image{i}.png"), np.full((4, 6, 3), i, np.uint8))
    return tmp_path / "pictures"


def test_a_store_of_a_folder(folder, tmp_path, capsys):
    run(
        "--images",
        folder,
        "--out",
        tmp_path / "s",
        "--extractor",
        "quarters",
        "--batch-size",
        2,
        "--shard-bytes",
        200,
    )
    store = RegionStore(tmp_path / "s")
    assert len(store.shards()) == 3  # records of 104 bytes
    assert store.ids().tolist() == [3, 7, 20, 40, 90] and (store.regions, store.width) == (4, 3)
    features, boxes, mask = store.of(40)
    assert (features == 40).all() and mask.all() and np.isclose(store.conf(40)[3], 0.7)
    np.testing.assert_array_equal(boxes, grid_boxes(2))
    assert store.of(7).mask.tolist() == [True, True, False, False] and not store.of(7).features[2:].any()
    assert store.made_by == {"kind": "quarters", "tone": 0} and store.sources == [{"images": str(folder)}]
    assert "5 images written, 0 were there, 5 in all; 4 regions of 3 (float16)" in capsys.readouterr().out


def test_a_second_run_adds_what_is_new_and_other_features_are_refused(folder, tmp_path, capsys):
    command = ("--images", folder, "--out", tmp_path / "s", "--extractor")
    run(*command, "quarters")
    cv2.imwrite(str(folder / "image100.png"), np.full((4, 4, 3), 100, np.uint8))
    run(*command, "quarters")
    assert "1 images written, 5 were there, 6 in all" in capsys.readouterr().out
    store = RegionStore(tmp_path / "s")
    assert len(store) == 6 and (store.of(100).features == 100).all() and len(store.sources) == 1
    with pytest.raises(StoreError, match="was begun with made_by {'tone': 0}, not {'tone': 1}"):
        run(*command, "others")


def test_images_that_cannot_be_used_are_listed_when_the_others_are_done(folder, tmp_path):
    (folder / "image8.png").write_bytes(b"no picture")
    cv2.imwrite(str(folder / "image0.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(
        DataError, match="(?s)2 images could not.*image_id 0 .image0.png.: .*all zero.*image8.png: "
    ):
        run("--images", folder, "--out", tmp_path / "s", "--extractor", "quarters")
    assert RegionStore(tmp_path / "s").ids().tolist() == [3, 7, 20, 40, 90]


def test_an_efficientnet_of_a_weights_file(folder, tmp_path):
    np.savez(tmp_path / "w.npz", **small_state())
    run("--images", folder, "--out", tmp_path / "s", "--extractor", "small", "--weights", tmp_path / "w.npz",
        "--grid", 2, "--size", 32, "--dtype", "float32")  # fmt: skip
    store, extractor = RegionStore(tmp_path / "s"), FAKES["small"](tmp_path / "w.npz", 2, 32)
    image = extractor.prepare(np.full((4, 6, 3), 20, np.uint8))["image"]
    want = extractor({"image": np.stack([image] * 32)}).features[0]
    np.testing.assert_allclose(store.of(20).features, want, atol=1e-5)
    assert np.isnan(store.conf(20)).all() and store.made_by["grid"] == 2 and want.std() > 0.1


def test_bad_options_are_refused_before_anything_is_written(folder, tmp_path):
    command = ("--images", folder, "--out", tmp_path / "s")
    cases = {
        ("--extractor", "quarter"): (
            DataError,
            "--extractor 'quarter': expected one of quarters, others, small",
        ),
        ("--extractor", "others", "--grid", "3"): (DataError, "'grid'; its options are none"),
        ("--extractor", "small"): (
            DataError,
            "missing .* 'weights'; its options are --weights, --grid, --size",
        ),
        ("--weights", tmp_path / "w.npz"): (FileNotFoundError, "w.npz: no such file"),
        ("--extractor", "quarters", "--dtype", "int8"): (ValueError, "dtype='int8'"),
    }
    for options, (kind, message) in cases.items():
        with pytest.raises(kind, match=message):
            run(*command, *options, extractors=FAKES | EXTRACTORS if "--weights" in options else FAKES)
    with pytest.raises(SystemExit):
        run(*command, "--batch-size", 0)
    assert not (tmp_path / "s").exists()
