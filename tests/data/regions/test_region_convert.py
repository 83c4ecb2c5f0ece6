"""Conversion: the store holds what the files hold, goes on where it stopped, and says what is missing or mixed."""

from __future__ import annotations

import numpy as np
import pytest
import region_files as files

from jaxvl.data.records import DataError
from jaxvl.data.regions import RegionStore, StoreError
from jaxvl.data.regions.convert import ConvertOptions, convert
from jaxvl.data.regions.layouts import ReadOptions
from jaxvl.data.regions.rerank import rerank

READ = ReadOptions(width=files.WIDTH)
SIX = ConvertOptions(regions=6, read=READ)
FOUR = ConvertOptions(regions=4, read=READ)
IMAGES = [files.made_up(i, n=5) for i in range(20, 40)]


def butd(path, images=IMAGES):
    return files.tsv(path, [files.butd_row(i) for i in images])


def lxmert(path, images=IMAGES):
    return files.tsv(path, [files.lxmert_row(i) for i in images])


def test_the_store_holds_what_the_files_hold(tmp_path):
    done = convert(
        [butd(tmp_path / "a.tsv", IMAGES[:12]), butd(tmp_path / "b.tsv", IMAGES[10:])],
        tmp_path / "s",
        options=SIX,
    )
    assert (done.written, done.present, done.failed, done.missing) == (20, 2, {}, [])
    store = RegionStore(tmp_path / "s")
    for image in IMAGES:
        got = store.of(image.image_id)
        np.testing.assert_array_equal(got.features[:5], image.features)
        np.testing.assert_allclose(got.boxes[:5], image.boxes, atol=1e-6)
        assert got.mask.sum() == 5 and np.isnan(store.conf(image.image_id)).all()
    assert store.made_by == dict(kind="converted", layout="butd_tsv", rerank="onepass", detector=None)
    assert [source["boxes"] for source in store.sources] == ["5 each", "5 each"]


def test_of_more_regions_than_fit_the_best_are_kept(tmp_path):
    convert([lxmert(tmp_path / "a.tsv")], tmp_path / "s", options=FOUR)
    store = RegionStore(tmp_path / "s")
    for image in IMAGES:
        kept = rerank(image.boxes, image.conf, keep=4)
        np.testing.assert_array_equal(store.of(image.image_id).features, image.features[kept])
        np.testing.assert_array_equal(store.conf(image.image_id), image.conf[kept].astype(np.float32))


def test_what_regions_show_is_kept_with_its_names_if_asked(tmp_path):
    names = tuple(f"thing {i}" for i in range(7))
    options = ConvertOptions(regions=4, read=READ, classes=names)
    convert([lxmert(tmp_path / "a.tsv")], tmp_path / "s", options=options)
    store = RegionStore(tmp_path / "s")
    assert store.classes == names
    for image in IMAGES:
        kept = rerank(image.boxes, image.conf, keep=4)
        np.testing.assert_array_equal(store.shown(image.image_id), files.objects_of(image)[kept])
        np.testing.assert_array_equal(store.of(image.image_id).features, image.features[kept])
    short = files.tsv(tmp_path / "b.tsv", [files.lxmert_row(files.made_up(3, n=2))])
    convert([short], tmp_path / "s", options=options)
    assert len(RegionStore(tmp_path / "s").shown(3)) == 2


def test_classes_that_a_file_lacks_or_has_too_many_of_are_refused(tmp_path):
    names = tuple(f"thing {i}" for i in range(7))
    with pytest.raises(DataError, match="does not say which class each region is of"):
        options = ConvertOptions(regions=6, read=READ, classes=names)
        convert([butd(tmp_path / "a.tsv")], tmp_path / "s", options=options)
    with pytest.raises(DataError, match="objects_id': 1 to 6, there are 5 classes"):
        options = ConvertOptions(regions=6, read=READ, classes=names[:5])
        convert([lxmert(tmp_path / "b.tsv")], tmp_path / "s", options=options)
    convert([lxmert(tmp_path / "b.tsv")], tmp_path / "plain", options=SIX)
    with pytest.raises(StoreError, match="does not say what regions show"):
        RegionStore(tmp_path / "plain").shown(20)
    options = ConvertOptions(regions=6, read=READ, classes=names)
    with pytest.raises(StoreError, match="begun with classes"):
        convert([lxmert(tmp_path / "b.tsv")], tmp_path / "plain", options=options)


def test_as_many_regions_as_fit_keep_the_order_of_the_file(tmp_path):
    convert([lxmert(tmp_path / "a.tsv")], tmp_path / "s", options=ConvertOptions(regions=5, read=READ))
    np.testing.assert_array_equal(RegionStore(tmp_path / "s").of(20).features, IMAGES[0].features)


def test_without_confidences_there_is_no_choice_unless_said(tmp_path):
    path = butd(tmp_path / "a.tsv")
    with pytest.raises(DataError, match=r"line 1: 5 boxes without confidences.*--regions 100.*--rerank none"):
        convert([path], tmp_path / "s", options=FOUR)
    assert not (tmp_path / "s").exists()  # before anything was written
    convert([path], tmp_path / "s", options=ConvertOptions(regions=4, read=READ, method="none"))
    np.testing.assert_array_equal(RegionStore(tmp_path / "s").of(20).features, IMAGES[0].features[:4])


def test_a_stopped_conversion_goes_on_without_decoding_again(tmp_path, monkeypatch):
    path = butd(tmp_path / "a.tsv")

    def stop(done, share):
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert([path], tmp_path / "s", options=SIX, progress=stop)
    assert len(RegionStore(tmp_path / "s")) == 13
    done = convert([path], tmp_path / "s", options=SIX)
    assert (done.written, done.present) == (7, 13)
    again = convert([path], tmp_path / "s", options=SIX)
    assert (again.written, again.present) == (0, 20)
    assert len(RegionStore(tmp_path / "s").sources) == 1


def test_bad_images_are_left_out_and_named(tmp_path):
    images = list(IMAGES)
    images[4] = images[4]._replace(features=np.where(np.eye(5, 8) > 0, np.nan, images[4].features))
    images[7] = images[7]._replace(features=images[7].features * 0)
    done = convert([butd(tmp_path / "a.tsv", images)], tmp_path / "s", options=SIX)
    assert done.written == 18 and len(done.failed) == 2
    first, second = done.failed.values()
    assert "a.tsv, line 5: image_id 24: features that are not finite" in first
    assert "a.tsv, line 8: image_id 27: features of region 0 are all zero" in second


def test_a_file_of_which_no_image_can_be_used_is_refused_at_once(tmp_path):
    with pytest.raises(DataError, match=r"line 1: features \[5, 8\] are not 2048 wide; say --width"):
        convert([butd(tmp_path / "a.tsv")], tmp_path / "s", options=ConvertOptions())
    assert not (tmp_path / "s").exists()


def test_only_wanted_images_are_taken_and_missing_ones_told(tmp_path):
    done = convert([butd(tmp_path / "a.tsv")], tmp_path / "s", options=SIX, wanted={25, 21, 999})
    assert (done.written, done.unwanted, done.missing) == (2, 18, [999])
    assert RegionStore(tmp_path / "s").ids().tolist() == [21, 25]


def test_fixed_and_varying_numbers_of_boxes_are_not_mixed(tmp_path):
    fixed = butd(tmp_path / "fixed.tsv")
    varying = butd(tmp_path / "varying.tsv", [files.made_up(i, n=2 + i % 5) for i in range(60, 80)])
    few = butd(tmp_path / "few.tsv", [files.made_up(i, n=2) for i in range(3)])  # too few to say
    with pytest.raises(StoreError, match=r"fixed.tsv has boxes 5 each, .*varying.tsv has boxes varying"):
        convert([fixed, varying], tmp_path / "s", options=SIX)
    convert([fixed, few], tmp_path / "s", options=SIX)
    with pytest.raises(StoreError, match="two detectors"):  # also when it comes later
        convert([varying], tmp_path / "s", options=SIX)


def test_files_of_two_layouts_or_other_options_are_not_mixed(tmp_path):
    a, b = butd(tmp_path / "a.tsv"), lxmert(tmp_path / "b.tsv")
    with pytest.raises(DataError, match="a.tsv looks like butd_tsv, .*b.tsv like lxmert_tsv"):
        convert([a, b], tmp_path / "s", options=SIX)
    convert([a], tmp_path / "s", options=SIX)
    with pytest.raises(StoreError, match=r"\{'layout': 'butd_tsv'\}, not \{'layout': 'lxmert_tsv'\}"):
        convert([b], tmp_path / "s", options=SIX)


@pytest.mark.parametrize("layout", ["openvqa_npz", "hdf5", "lmdb"])
def test_the_other_layouts_convert_too(tmp_path, layout):
    pytest.importorskip({"hdf5": "h5py", "lmdb": "lmdb"}.get(layout, "numpy"))
    source = tmp_path / "features.hdf5"
    if layout == "openvqa_npz":
        source = tmp_path / "npz"
        for image in IMAGES:
            files.npz(source, image)
    elif layout == "hdf5":
        files.hdf5(source, IMAGES)
    else:
        source = files.lmdb(tmp_path / "coco.lmdb", IMAGES)
    options = ConvertOptions(regions=6, read=ReadOptions(width=8, legacy_pickle=layout == "lmdb"))
    done = convert([source], tmp_path / "s", options=options)
    assert done.written == 20 and not done.failed
    store = RegionStore(tmp_path / "s")
    np.testing.assert_array_equal(store.of(33).features[:5], files.made_up(33).features)
    assert store.made_by["layout"] == layout


def test_unknown_options_are_refused():
    for wrong in (dict(method="nms"), dict(layout="csv")):
        with pytest.raises(DataError, match="expected one of"):
            ConvertOptions(**wrong)
