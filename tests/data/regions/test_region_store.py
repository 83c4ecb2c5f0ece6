"""The store: what is put in comes out, a killed writer goes on, and what must not be in it is refused."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import region_files as files

from jaxvl.data.records import DataError
from jaxvl.data.region_source import RegionImages, require_regions
from jaxvl.data.regions import RecordError, RegionStore, StoreError, StoreWriter
from jaxvl.data.regions.files import MANIFEST

HOW = dict(regions=6, width=files.WIDTH, made_by={"detector": "a"})
IDS = (40, 7, 2**40, 12, 9)  # in no order


def image(i: int) -> files.Image:
    return files.made_up(i, n=1 + i % 6)


def put(writer: StoreWriter, *ids: int) -> None:
    for i in ids:
        one = image(i)
        writer.add(i, features=one.features, boxes=one.boxes, conf=one.conf)


def made(path, ids=IDS, **other) -> RegionStore:
    with StoreWriter(path, **HOW | other) as writer:
        put(writer, *ids)
    return RegionStore(path)


def test_regions_come_back_padded_and_masked(tmp_path):
    store = made(tmp_path / "s", shard_bytes=400)  # several shards
    assert len(store.shards()) > 1 and (store.regions, store.width) == (6, 8)
    np.testing.assert_array_equal(store.ids(), sorted(IDS))
    for i in IDS:
        want, got = image(i), store.of(i)
        n = len(want.boxes)
        np.testing.assert_array_equal(got.mask, np.arange(6) < n)
        for name in ("features", "boxes"):
            found = getattr(got, name)
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found[:n], getattr(want, name))
            assert not found[n:].any()
        np.testing.assert_array_equal(store.conf(i), np.r_[want.conf, [np.nan] * (6 - n)].astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_features_have_the_precision_of_the_dtype(tmp_path, dtype):
    one = image(5)
    with StoreWriter(tmp_path, **HOW, dtype=dtype) as writer:
        writer.add(5, features=one.features / 3, boxes=one.boxes)
    got = RegionStore(tmp_path).of(5).features[: len(one.boxes)]
    np.testing.assert_array_equal(got, (one.features / 3).astype(dtype).astype(np.float32))


def test_numpy_alone_reads_a_shard(tmp_path):
    made(tmp_path)
    records = np.load(tmp_path / "shard-00000.npy", mmap_mode="r")
    table = np.load(tmp_path / "shard-00000.ids.npy")
    np.testing.assert_array_equal(table[:, 0], IDS)
    np.testing.assert_array_equal(records["features"][0, : table[0, 1]], image(40).features)


def test_a_killed_writer_goes_on_and_loses_one_shard_at_most(tmp_path):
    writer = StoreWriter(tmp_path, **HOW, shard_bytes=400)  # two records
    put(writer, *IDS[:3])  # the third is not written yet
    writer._lock.release()  # killed: no close
    (tmp_path / "shard-00001.npy.tmp").write_bytes(b"half")
    np.testing.assert_array_equal(RegionStore(tmp_path).ids(), sorted(IDS[:2]))
    with StoreWriter(tmp_path, **HOW, shard_bytes=400) as writer:
        assert not list(tmp_path.glob("*.tmp"))
        assert [i in writer for i in IDS] == [True, True, False, False, False]
        put(writer, *IDS[2:])
    np.testing.assert_array_equal(RegionStore(tmp_path).ids(), sorted(IDS))
    whole = made(tmp_path / "whole", shard_bytes=400)
    assert RegionStore(tmp_path).digest == whole.digest


def test_images_put_before_an_error_are_kept(tmp_path):
    with pytest.raises(ZeroDivisionError), StoreWriter(tmp_path, **HOW) as writer:
        put(writer, 7)
        1 / 0  # noqa: B018
    assert RegionStore(tmp_path).ids().tolist() == [7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict(features=np.full((2, 8), np.nan)),
            r"image_id 3: features that are not finite in float16 \(region 0",
        ),
        (dict(features=np.full((2, 8), 7e4)), "not finite in float16"),
        (dict(features=np.eye(2, 8) * [[1], [0]]), "features of region 1 are all zero"),
        (dict(features=np.ones((2, 7))), r"features \[2, 7\].*takes \[n,8\] with \[n,4\], n from 1 to 6"),
        (dict(boxes=np.array([[0, 0, 1, 1], [0, 0, 1, 1.1]])), r"boxes outside \[0, 1\]"),
        (dict(boxes=np.array([[0, 0, 1, 1], [0.5, 0, 0.2, 1]])), "x2 < x1"),
        (dict(conf=np.ones(3)), r"conf \[3\] for 2 regions"),
        (dict(conf=np.array([1, np.inf])), "confidences that are infinite"),
        (dict(image_id=-1), "image_id -1 is negative"),
        (dict(image_id=7), "image_id 7 is in .* already"),
    ],
)
def test_a_bad_image_is_refused_and_named(tmp_path, change, message):
    good = dict(image_id=3, features=np.ones((2, 8)), boxes=np.tile([0, 0, 1, 1], (2, 1)), conf=np.ones(2))
    row = good | change
    with StoreWriter(tmp_path, **HOW) as writer:
        put(writer, 7)
        with pytest.raises(RecordError, match=message):
            writer.add(row.pop("image_id"), **row)
        put(writer, 12)  # into the place of the refused one, of which nothing is left
    store = RegionStore(tmp_path)
    assert store.ids().tolist() == [7, 12] and not store.of(12).features[1:].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(regions=5), "begun with regions 6, not 5"),
        (dict(width=9), "begun with width 8, not 9"),
        (dict(dtype="float32"), "begun with dtype 'float16', not 'float32'"),
        (
            dict(made_by={"detector": "b"}),
            r"made_by \{'detector': 'a'\}, not \{'detector': 'b'\}.*must not be mixed",
        ),
    ],
)
def test_other_features_are_not_added_to_a_store(tmp_path, change, message):
    made(tmp_path)
    with pytest.raises(StoreError, match=message):
        StoreWriter(tmp_path, **HOW | change)
    StoreWriter(tmp_path, **HOW).close()  # the lock is free again


def test_a_second_writer_waits(tmp_path):
    with StoreWriter(tmp_path, **HOW), pytest.raises(StoreError, match="another process writes"):
        StoreWriter(tmp_path, **HOW)


def test_several_stores_are_one_and_the_first_wins(tmp_path):
    a, b = made(tmp_path / "a", (1, 2)), made(tmp_path / "b", (2, 3))
    both = RegionStore([tmp_path / "a", tmp_path / "b"])
    assert both.ids().tolist() == [1, 2, 3] and len(both) == 3
    np.testing.assert_array_equal(both.of(3).features, b.of(3).features)
    assert both.has(1) and not both.has(4) and len({a.digest, b.digest, both.digest}) == 3


def test_stores_of_two_detectors_are_not_mixed(tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", made_by={"detector": "b", "at": 1})
    with pytest.raises(StoreError, match=r"differ in made_by: .*'a'.*must not be mixed"):
        RegionStore([tmp_path / "a", tmp_path / "b"])
    for name, boxes in (("c", "36 each"), ("d", "varying")):
        with StoreWriter(tmp_path / name, **HOW) as writer:
            writer.sources.append({"file": f"{name}.tsv", "boxes": boxes})
    with pytest.raises(StoreError, match=r"c.tsv has boxes 36 each, d.tsv has boxes varying.*two detectors"):
        RegionStore([tmp_path / "c", tmp_path / "d"])


def test_missing_images_are_listed(tmp_path):
    store = made(tmp_path)
    with pytest.raises(StoreError, match="no regions of 2 of 3 images of the pool: image_id 1, 5"):
        store.require([5, 7, 1], wanted_by="the pool")
    with pytest.raises(StoreError, match="no regions of image_id 5"):
        store.of(5)
    with pytest.raises(DataError, match="no regions of 1 images.*image_id 5"):
        require_regions(store, [5, 7])


def test_a_store_serves_rows_of_images(tmp_path):
    source = RegionImages(made(tmp_path), [12, 7])
    assert source[0]["regions"].shape == (6, 8) and source[1]["image_id"] == 7
    np.testing.assert_array_equal(source[1]["regions"], source.provider.of(7).features)


def test_a_store_is_sent_to_other_processes_without_its_bytes(tmp_path):
    store = made(tmp_path)
    store.of(7)  # mapped
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    np.testing.assert_array_equal(pickle.loads(sent).of(7).features, store.of(7).features)


def test_damaged_stores_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="no region store"):
        RegionStore(tmp_path / "none")
    store = made(tmp_path)
    shard, ids, manifest = (tmp_path / n for n in ("shard-00000.npy", "shard-00000.ids.npy", MANIFEST))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"shard-00000.npy has \d+ bytes, not \d+"):
        store.of(7)
    ids.write_bytes(ids.read_bytes()[:-8] + b"\1" * 8)
    with pytest.raises(StoreError, match=r"ids.npy: the checksum"):
        RegionStore(tmp_path)
    good = json.loads(manifest.read_text())
    for broken, message in (
        ({"kind": "x"}, "not the manifest of a region store"),
        ({**good, "version": 9}, "version 9"),
        ({**good, "shards": None}, "field 'shards'"),
    ):
        manifest.write_text(json.dumps(broken))
        with pytest.raises(StoreError, match=message):
            RegionStore(tmp_path)


def test_an_empty_store_opens(tmp_path):
    store = made(tmp_path, ())
    assert len(store) == 0 and not store.has(0) and store.ids().dtype == np.int64
