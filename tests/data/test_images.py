"""Proves image reading: every kind of file becomes RGB or an error that names it, from folders and zips alike."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import cv2
import numpy as np
import pytest
from data_fakes import encoded, picture, write_images, write_zip
from PIL import Image

from jaxvl.data.images import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    AmbiguousImageError,
    ImageError,
    ImageStore,
    ImageTransform,
    decode,
    normalise,
    resize,
    to_rgb,
)

RGB = picture(1)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(RGB), "PNG"),
        (Image.fromarray(RGB), "JPEG"),
        (Image.fromarray(RGB).convert("L"), "JPEG"),
        (Image.fromarray(RGB).convert("CMYK"), "JPEG"),
        (Image.fromarray(RGB).convert("LA"), "PNG"),
        (Image.fromarray(RGB).convert("P"), "GIF"),
        (Image.fromarray(np.dstack([RGB, RGB[..., :1]])), "PNG"),
        (Image.fromarray(RGB), "WEBP"),
        (Image.fromarray(RGB).convert("1"), "PNG"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mode,
)
def test_every_mode_decodes_as_pillow_converts_it(image, kind):
    data = saved(image, kind)
    pixels = decode(data)
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert pixels.dtype == np.uint8 and pixels.shape == reference.shape
    # Two builds of the JPEG library may round differently.
    assert np.abs(pixels.astype(int) - reference).max() <= (2 if kind == "JPEG" else 0)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = (np.arange(2000, dtype=np.uint16) * 32).reshape(40, 50)
    pixels = decode(encoded(np.dstack([grey] * 3)[..., 0:1]))
    assert np.array_equal(pixels[..., 0], grey >> 8) and pixels.shape == (40, 50, 3)


def test_an_orientation_tag_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(saved(Image.fromarray(RGB), "JPEG", exif=exif)).shape == RGB.shape


@pytest.mark.parametrize("kind", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_name_themselves(kind, share):
    data = encoded(picture(1, 200, 300), kind)
    with pytest.raises(ImageError, match=r"dir/cut\.jpg: cannot decode the image \(.+\)"):
        decode(data[: int(len(data) * share)], name="dir/cut.jpg")


def test_a_truncated_jpeg_is_refused_by_versions_of_opencv_that_fill_it_with_grey(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: np.full((200, 300, 3), 128, np.uint8))
    with pytest.raises(ImageError, match=r"cut\.jpg"):
        decode(encoded(picture(1, 200, 300), ".jpg")[:-500], name="cut.jpg")


def test_garbage_is_an_image_error():
    with pytest.raises(ImageError, match=r"page\.jpg: cannot decode"):
        decode(b"<html>404</html>", name="page.jpg")


def test_to_rgb_takes_paths_bytes_pillow_and_arrays(tmp_path):
    path = write_images(tmp_path, ["a.png"]) / "a.png"
    reference = picture(0)
    inputs = [path, str(path), path.read_bytes(), Image.open(path), reference, reference / 255.0]
    for image in [*inputs, np.dstack([reference, reference[..., :1]])]:
        assert np.array_equal(to_rgb(image), reference)
    grey = reference[..., 0]
    assert np.array_equal(to_rgb(grey), to_rgb(grey[..., None])) and to_rgb(grey).shape == reference.shape


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 3, 4, 5), np.uint8), r"not \[2, 3, 4, 5\]"),
        (np.zeros((3, 8, 8), np.uint8), r"\[H,W,3\].*not \[3, 8, 8\]"),
        (np.full((4, 4, 3), 255.0), r"must lie in \[0, 1\]; give uint8"),
        (np.full((4, 4, 3), np.nan), r"must lie in \[0, 1\]"),
        (np.zeros((4, 4, 3), np.int64), "uint8 or floating point, not int64"),
        ("nowhere.jpg", r"nowhere\.jpg: cannot be read"),
    ],
)
def test_wrong_inputs_are_explained(image, message):
    with pytest.raises(ImageError, match=message):
        to_rgb(image)


def test_resize_is_pillows_antialiased_bicubic():
    big = picture(2, 300, 200)
    reference = np.asarray(Image.fromarray(big).resize((48, 48), Image.Resampling.BICUBIC))
    assert np.array_equal(resize(big, 48), reference)
    assert not np.array_equal(resize(big, 48), cv2.resize(big, (48, 48), interpolation=cv2.INTER_CUBIC))
    assert resize(big, (10, 20)).shape == (10, 20, 3)


def test_normalisation_is_exact():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    reference = (every.astype(np.float32) / 255 - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    out = normalise(every)
    assert out.dtype == np.float32 and np.array_equal(out, reference)


def test_the_evaluation_transform_resizes_and_normalises():
    assert np.array_equal(ImageTransform(32)(RGB), normalise(resize(RGB, 32)))


def test_folder_and_zip_hold_the_same_images(tmp_path):
    names = ["train2014/a.png", "train2014/b.png"]
    folder = ImageStore(write_images(tmp_path / "images", names))
    archive = ImageStore(write_zip(tmp_path / "images.zip", names))
    for i, name in enumerate(names):
        assert folder.exists(name) and archive.exists(name)
        assert np.array_equal(folder.image(name), picture(i)) and np.array_equal(
            archive.image(name), picture(i)
        )
    assert not folder.exists("c.png") and not archive.exists("c.png")


def test_keys_fall_back_to_a_path_that_does_not_contradict_them(tmp_path):
    archive, folder = write_zip(tmp_path / "a.zip", ["a.png"]), write_images(tmp_path / "flat", ["a.png"])
    for store in (ImageStore(archive), ImageStore(folder)):
        assert np.array_equal(store.image("val2014/a.png"), picture(0))
    names = ["train2014/a.png", "val2014/a.png"]
    archive, folder = write_zip(tmp_path / "b.zip", names), write_images(tmp_path / "coco", names)
    for store in (ImageStore(archive), ImageStore(folder)):
        for key in ("coco/images/val2014/a.png", "/data/coco/images/val2014/a.png"):
            assert np.array_equal(store.image(key), picture(1))


def test_a_zip_of_a_folder_takes_the_keys_below_the_folder(tmp_path):
    store = ImageStore(write_zip(tmp_path / "a.zip", ["images/cats/1.png", "images/dogs/1.png"]))
    assert store.exists("dogs/1.png") and np.array_equal(store.image("dogs/1.png"), picture(1))
    deep = ImageStore(write_zip(tmp_path / "b.zip", ["deep/down/a.png"]))
    assert np.array_equal(deep.image("a.png"), picture(0))


def test_an_image_of_another_folder_is_never_taken(tmp_path):
    store = ImageStore(write_zip(tmp_path / "a.zip", ["cats/2.png", "dogs/1.png", "all/dogs/3.png"]))
    assert not store.exists("cats/1.png") and not store.exists("my/dogs/3.png")
    with pytest.raises(
        ImageError, match=r"^cats/1\.png: no such image in .*a\.zip has dogs/1\.png, but in another"
    ):
        store.image("cats/1.png")


def test_the_exact_path_in_any_root_comes_first(tmp_path):
    train, val = (
        write_zip(tmp_path / "train.zip", ["1.png"]),
        write_zip(tmp_path / "val.zip", ["x", "val/1.png"][1:]),
    )
    write_images(tmp_path / "more", ["0.png", "val/1.png"])
    assert np.array_equal(ImageStore([train, tmp_path / "more"]).image("val/1.png"), picture(1))
    assert ImageStore([train, val])._find("val/1.png")[0].path == val
    splits = [write_images(tmp_path / "coco" / name, ["1.png"]) for name in ("train", "val")]
    assert ImageStore(splits)._find("val/1.png")[0].path == splits[1]  # the name of the root tells


def test_a_key_that_fits_several_images_is_an_error_that_names_them(tmp_path):
    roots = [
        write_zip(tmp_path / "1.zip", ["x/a.png", "y/a.png"]),
        write_zip(tmp_path / "2.zip", ["z/a.png"]),
    ]
    for use in (ImageStore(roots).read, ImageStore(roots).exists):
        with pytest.raises(
            AmbiguousImageError, match=r"1\.zip holds x/a.png and y/a.png, .*2\.zip holds z/a.png: use"
        ):
            use("a.png")


def test_a_file_name_that_is_twice_in_a_zip_needs_its_full_path(tmp_path):
    store = ImageStore(write_zip(tmp_path / "a.zip", ["x/a.png", "y/a.png"]))
    assert np.array_equal(store.image("y/a.png"), picture(1))
    with pytest.raises(ImageError, match=r"a\.png: .*a\.zip holds x/a\.png and y/a\.png: use the full path"):
        store.image("a.png")


def test_roots_are_tried_in_order(tmp_path):
    first, second = write_images(tmp_path / "1", ["a.png"]), write_zip(tmp_path / "2.zip", ["c.png", "b.png"])
    store = ImageStore([first, second])
    assert np.array_equal(store.image("a.png"), picture(0)) and np.array_equal(
        store.image("b.png"), picture(1)
    )
    with pytest.raises(ImageError, match=r"d\.png: no such image in .*1, .*2\.zip"):
        store.image("d.png")


def test_without_roots_keys_are_paths(tmp_path):
    path = write_images(tmp_path, ["a.png"]) / "a.png"
    assert ImageStore(None).exists(str(path)) and np.array_equal(
        ImageStore(None).image(str(path)), picture(0)
    )


def test_missing_or_odd_roots_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no such image folder or zip file"):
        ImageStore(tmp_path / "gone")
    (tmp_path / "a.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a\.tar: neither a folder nor a zip file"):
        ImageStore(tmp_path / "a.tar")


def test_a_damaged_zip_member_is_an_image_error(tmp_path):
    path = write_zip(tmp_path / "a.zip", ["a.png"])
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("a.png").header_offset + 60
    data = bytearray(path.read_bytes())
    data[start] ^= 255
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.png: cannot be read from .*a\.zip \(Bad CRC"):
        ImageStore(path).image("a.png")


def test_a_store_with_an_open_zip_can_be_pickled_and_forked(tmp_path):
    store = ImageStore(write_zip(tmp_path / "a.zip", ["a.png"]))
    store.image("a.png")
    assert np.array_equal(pickle.loads(pickle.dumps(store)).image("a.png"), picture(0))
    handle = store._places[0]._zip
    store._places[0]._pid = os.getpid() + 1  # as a forked child sees it
    store.image("a.png")
    assert store._places[0]._zip is not handle


def test_unknown_augmentation_and_scale_are_refused():
    with pytest.raises(
        ValueError, match=r"augment='albeff' is none of albef, flip, randaug, None: did you mean 'albef'\?"
    ):
        ImageTransform(8, augment="albeff")
    with pytest.raises(ValueError, match=r"scale=\(0\.9, 0\.5\) must be \(low, high\)"):
        ImageTransform(8, scale=(0.9, 0.5))


@pytest.mark.parametrize(("height", "width"), [(60, 91), (91, 60), (20, 25), (32, 32)])
def test_the_centre_is_the_middle_of_the_shorter_side_resized(height, width):
    image = picture(4, height, width)
    short = min(height, width)
    big = Image.fromarray(image).resize((32 * width // short, 32 * height // short), Image.Resampling.BICUBIC)
    left, top = round((big.width - 32) / 2), round((big.height - 32) / 2)
    reference = np.asarray(big.crop((left, top, left + 32, top + 32)))
    transform = ImageTransform(32, crop="centre", mean=HALF, std=HALF)
    assert np.array_equal(transform(image), normalise(reference, mean=HALF, std=HALF))
    assert transform(image).min() >= -1 and transform(image).max() <= 1


def test_unknown_crops_are_refused():
    with pytest.raises(ValueError, match=r"crop='center' is none of squash, centre, random_resized: did you"):
        ImageTransform(8, crop="center")
