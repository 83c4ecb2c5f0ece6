"""Every layout gives the images that were written, and says where a damaged one is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import region_files as files

from jaxvl.data.records import DataError
from jaxvl.data.regions import REGION_LAYOUTS, RecordError
from jaxvl.data.regions.convert import guess
from jaxvl.data.regions.layouts import ReadOptions

READ = ReadOptions(width=files.WIDTH)
TRUSTED = ReadOptions(width=files.WIDTH, legacy_pickle=True)
IMAGES = [files.made_up(i) for i in (9, 3, 25)]


def read(path: Path, name: str, options: ReadOptions = READ) -> dict:
    return {item.image_id: item.load() for item in REGION_LAYOUTS[name](path, options)}


def require_same(found: dict, images=IMAGES, *, conf: bool) -> None:
    assert sorted(found) == sorted(i.image_id for i in images)
    for image in images:
        got = found[image.image_id]
        np.testing.assert_array_equal(got.features, image.features)
        np.testing.assert_allclose(got.boxes, image.boxes, atol=1e-6)
        assert got.features.dtype == got.boxes.dtype == np.float32
        if conf:
            np.testing.assert_array_equal(got.conf, image.conf)
        else:
            assert got.conf is None


def test_butd_table(tmp_path):
    path = files.tsv(tmp_path / "a.tsv", [files.butd_row(i) for i in IMAGES])
    assert guess(path) == "butd_tsv"
    require_same(read(path, "butd_tsv"), conf=False)


def test_lxmert_table_has_confidences_and_ids_in_names(tmp_path):
    path = files.tsv(tmp_path / "a.tsv", [files.lxmert_row(i) for i in IMAGES])
    assert guess(path) == "lxmert_tsv"
    require_same(read(path, "lxmert_tsv"), conf=True)


def test_a_line_with_the_names_of_the_fields_is_no_image(tmp_path):
    names = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
    path = files.tsv(tmp_path / "a.tsv", [names, files.butd_row(IMAGES[0])])
    require_same(read(path, "butd_tsv"), IMAGES[:1], conf=False)


@pytest.mark.parametrize("transposed", [True, False])
def test_openvqa_files_in_both_orientations(tmp_path, transposed):
    for image in IMAGES:
        files.npz(tmp_path / "train2014", image, transposed=transposed)
    assert guess(tmp_path) == "openvqa_npz"
    require_same(read(tmp_path, "openvqa_npz"), conf=False)


@pytest.mark.parametrize(("options", "conf"), [(READ, False), (TRUSTED, True)])
def test_pickled_info_of_the_torch_extractor_is_read_only_on_request(tmp_path, options, conf):
    for image in IMAGES:
        info = {"image_id": str(image.image_id), "objects_id": np.arange(5), "objects_conf": image.conf}
        files.npz(tmp_path / "x", image, transposed=False, info=info)
    require_same(read(tmp_path / "x", "openvqa_npz", options), conf=conf)


def test_as_many_regions_as_features_leave_the_orientation_open(tmp_path):
    files.npz(tmp_path / "x", files.made_up(1, n=files.WIDTH))
    with pytest.raises(RecordError, match=r"000000000001.jpg.npz, field 'x': \[8, 8\].*--width"):
        read(tmp_path / "x", "openvqa_npz")


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("index", ["json", "pkl"])
def test_hdf5(tmp_path, adaptive, index):
    pytest.importorskip("h5py")
    images = [files.made_up(i, n=4 + k * adaptive) for k, i in enumerate((9, 3, 25))]
    path = files.hdf5(tmp_path / "train36.hdf5", images, adaptive=adaptive, index=index)
    assert guess(path) == "hdf5"
    require_same(read(path, "hdf5", TRUSTED if index == "pkl" else READ), images, conf=False)


def test_hdf5_index_that_is_a_pickle_is_refused_by_default(tmp_path):
    pytest.importorskip("h5py")
    path = files.hdf5(tmp_path / "val36.hdf5", IMAGES, index="pkl")
    with pytest.raises(DataError, match=r"val36_imgid2idx.pkl: a pickle.*--allow-legacy-pickle.*JSON"):
        read(path, "hdf5")
    (tmp_path / "val36_imgid2idx.pkl").unlink()
    with pytest.raises(DataError, match=r"no index.*val36_imgid2idx.json or val36_imgid2idx.pkl"):
        read(path, "hdf5")


def test_hdf5_index_of_another_file(tmp_path):
    pytest.importorskip("h5py")
    path = files.hdf5(tmp_path / "val36.hdf5", IMAGES)
    (tmp_path / "other.json").write_text('{"9": 7}')
    with pytest.raises(DataError, match="image_id 9 at 7, but there are 3 images"):
        read(path, "hdf5", ReadOptions(width=files.WIDTH, index=tmp_path / "other.json"))


@pytest.mark.parametrize("conf", [True, False])
def test_lmdb(tmp_path, conf):
    pytest.importorskip("lmdb")
    path = files.lmdb(tmp_path / "coco.lmdb", IMAGES, conf=conf)
    assert guess(path) == "lmdb"
    require_same(read(path, "lmdb", TRUSTED), conf=conf)
    with pytest.raises(DataError, match="only with --allow-legacy-pickle"):
        read(path, "lmdb")


@pytest.mark.parametrize(("name", "suffix", "module"), [("hdf5", ".hdf5", "h5py"), ("lmdb", ".lmdb", "lmdb")])
def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch, name, suffix, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)  # import raises ImportError
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"a\{suffix}.*package {module}: pip install"):
        REGION_LAYOUTS[name](path, TRUSTED)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (1, "0", r"a.tsv, line 2, field 'image_w': '0' is no whole number"),
        (3, "6", r"line 2, field 'boxes': 80 bytes, which are no float32 \[6, 4\]"),
        (4, "!!!!", "line 2, field 'boxes': not base64"),
        (5, files.b64(np.zeros((5, 6))), r"line 2: features \[5, 6\] are not 8 wide; say --width"),
        (1, "200", "line 2, boxes: reach x=.* of an image of 200 x 480; look whether width and height"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named_and_the_others_are_read(tmp_path, column, value, message):
    rows = [files.butd_row(i) for i in IMAGES]
    rows[1][column] = value
    items = list(REGION_LAYOUTS["butd_tsv"](files.tsv(tmp_path / "a.tsv", rows), READ))
    with pytest.raises(RecordError, match=message):
        items[1].load()
    np.testing.assert_array_equal(items[2].load().features, IMAGES[2].features)


def test_a_table_that_was_cut_off_is_refused_where_it_ends(tmp_path):
    path = files.tsv(tmp_path / "a.tsv", [files.butd_row(i) for i in IMAGES])
    path.write_bytes(path.read_bytes()[:-240])
    with pytest.raises(DataError, match="line 3: 5 fields, expected 6; the file is cut off"):
        read(path, "butd_tsv")


def test_boxes_a_little_outside_are_cut_to_the_image(tmp_path):
    image = IMAGES[0]._replace(boxes=IMAGES[0].boxes.copy())
    image.boxes[0] = [-0.01, 0.5, 0.25, 1.01]
    found = read(files.tsv(tmp_path / "a.tsv", [files.butd_row(image)]), "butd_tsv")[9]
    np.testing.assert_allclose(found.boxes[0], [0, 0.5, 0.25, 1], atol=1e-6)


def test_damaged_npz_files_are_named(tmp_path):
    path = files.npz(tmp_path / "x", IMAGES[0])
    path.write_bytes(path.read_bytes()[:-200])
    files.npz(tmp_path / "x", IMAGES[2], x=np.array({"a": 1}))
    for item, message in zip(
        REGION_LAYOUTS["openvqa_npz"](tmp_path / "x", TRUSTED),
        ("cannot be read", "allow_pickle=False"),
        strict=True,
    ):
        with pytest.raises(RecordError, match=message):
            item.load()


def test_files_of_no_layout_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    (tmp_path / "b.tsv").write_text("1\t2\n")
    with pytest.raises(DataError, match=r"a.csv: a folder of .npz files"):
        guess(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"b.tsv, line 1: 2 tab-separated fields.* have 6 .*or 10 "):
        guess(tmp_path / "b.tsv")
    with pytest.raises(DataError, match="no .npz file"):
        REGION_LAYOUTS["openvqa_npz"](tmp_path, READ)


def test_sizes_are_limited_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxvl.data.regions.openvqa_npz.LARGEST", 1000)
    monkeypatch.setattr("jaxvl.data.regions.lmdb_layout.LARGEST", 100)
    files.npz(tmp_path / "x", files.made_up(1, n=100))
    with pytest.raises(RecordError, match=r"bytes of arrays; no file of an image has more than 1,000"):
        read(tmp_path / "x", "openvqa_npz")
    path = files.tsv(tmp_path / "a.tsv", [files.butd_row(IMAGES[0])])
    monkeypatch.setattr("jaxvl.data.regions.tsv.LONGEST", len(path.read_bytes()) - 1)
    with pytest.raises(DataError, match="line 1: longer than"):
        read(path, "butd_tsv")
    pytest.importorskip("lmdb")
    with pytest.raises(RecordError, match=r"entry '9': .* no image has more than 100"):
        read(files.lmdb(tmp_path / "coco.lmdb", IMAGES[:1]), "lmdb", TRUSTED)
