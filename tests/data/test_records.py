"""Proves what file readers share: every malformed row is named with its fix, ids are stable, splits are by image."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from data_fakes import picture, write_images, write_json, write_jsonl, write_zip

from jaxvl import build
from jaxvl.data import SOURCES
from jaxvl.data.captions import AlbefCaptions, JsonlCaptions
from jaxvl.data.images import ImageError
from jaxvl.data.records import DataError


def albef(tmp_path, rows, **options):
    return AlbefCaptions(write_json(tmp_path / "captions.json", rows), **options)


def test_albef_captions_read_one_or_many_captions(tmp_path):
    root = write_images(tmp_path / "images", ["coco/a.png", "b.png"])
    rows = [
        {"image": "coco/a.png", "caption": "one"},
        {"image": "b.png", "caption": ["two", "three"], "x": 1},
    ]
    reader = albef(tmp_path, rows, root=root)
    assert [reader.annotation(i) for i in range(2)] == [
        {"image": "coco/a.png", "captions": ["one"], "image_id": 0},
        {"image": "b.png", "captions": ["two", "three"], "image_id": 1},
    ]
    assert np.array_equal(reader.image(1), picture(1))


def test_without_root_paths_are_taken_as_they_are(tmp_path):
    path = write_images(tmp_path, ["a.png"]) / "a.png"
    assert albef(tmp_path, [{"image": str(path), "caption": "one"}]).image(0).shape == (40, 50, 3)


def test_several_files_are_one_reader_and_each_caption_can_be_a_row(tmp_path):
    one = write_json(tmp_path / "1.json", [{"image": "a", "caption": ["x", "y"]}])
    two = write_json(tmp_path / "2.json", [{"image": "b", "caption": "z"}, {"image": "a", "caption": "w"}])
    reader = AlbefCaptions([one, two], rows="caption")
    assert [reader.annotation(i)["captions"] for i in range(4)] == [["x"], ["y"], ["z"], ["w"]]
    assert [reader.annotation(i)["image_id"] for i in range(4)] == [0, 0, 1, 0]
    with pytest.raises(ValueError, match="rows='captions' must be 'image' or 'caption'"):
        AlbefCaptions(one, rows="captions")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([7, 7, 9], [7, 7, 9]),
        (["x", "x", "y"], [0, 0, 1]),
        ([7, None, 9], [0, 1, 2]),
        ([2**40, 1, 1], [0, 1, 1]),
    ],
)
def test_image_ids_are_kept_where_they_are_small_integers_else_numbered(ids, expected, tmp_path):
    rows = [{"image": f"{i}.jpg", "caption": "x", "image_id": value} for i, value in enumerate(ids)]
    reader = albef(tmp_path, rows)
    assert [reader.annotation(i)["image_id"] for i in range(3)] == expected


def test_jsonl_reads_other_names_templates_and_zips(tmp_path):
    archive = write_zip(tmp_path / "images.zip", ["images/000000000005.png", "images/b.png"])
    rows = [{"image_id": 5, "sentences": ["one"]}, {"image_id": 6, "image": "b.png", "sentences": "two"}]
    path = write_jsonl(tmp_path / "captions.jsonl", rows)
    reader = JsonlCaptions(path, images=archive, image_template="%012d.png", fields={"captions": "sentences"})
    assert reader.annotation(0) == {"image": "000000000005.png", "captions": ["one"], "image_id": 5}
    assert reader.annotation(1)["captions"] == ["two"] and np.array_equal(reader.image(1), picture(1))


def test_blank_lines_are_skipped_and_line_numbers_stay(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "a", "captions": ["x"]}\n\n{"image": "b", "captions": [}\n')
    with pytest.raises(
        DataError,
        match=r"captions\.jsonl, row 3, field '\(row\)': is not JSON: Expecting value \(line 3, column 29\)\. Write",
    ):
        JsonlCaptions(path, images=tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"caption": "x"},
            r"row 2, field 'image': is missing \(the row has caption\)\. Add 'image' or 'file'",
        ),
        (
            {"image": "a"},
            r"row 2, field 'captions': is missing \(the row has image\)\. Add 'captions' or 'caption'\.",
        ),
        (
            {"image": "a", "captoins": "x"},
            r"Did you mean 'captoins'\? Then pass fields=\{'captions': 'captoins'\}",
        ),
        ({"image": " ", "caption": "x"}, r"field 'image': is empty\. Fill it in or remove the row\."),
        ({"image": 5, "caption": "x"}, r"field 'image': is a int, not a string"),
        ({"image": "a", "caption": ""}, r"field 'captions': holds an empty string\. Remove the empty text"),
        ({"image": "a", "caption": []}, r"field 'captions': is an empty list"),
        ({"image": "a", "caption": [1]}, r"field 'captions': is not a string or a list of strings"),
        ({"image_id": 5, "caption": "x"}, r"only an image_id\. Pass image_template, e\.g\. '%012d\.jpg'"),
        (["a", "x"], r"row 2, field '\(row\)': is a list, not an object\. Write one \{\.\.\.\} object a row"),
    ],
)
def test_malformed_rows_are_named_with_their_fix(row, message, tmp_path):
    with pytest.raises(DataError, match=message):
        albef(tmp_path, [{"image": "a", "caption": "fine"}, row])


def test_a_template_needs_an_integer_id(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", [{"image_id": "x5", "captions": ["a"]}])
    with pytest.raises(DataError, match=r"field 'image_id': is 'x5', not an integer below 2\^31"):
        JsonlCaptions(path, images=tmp_path, image_template="%d.jpg")


def test_all_problems_are_summed_up(tmp_path):
    rows = [{"image": "a", "caption": "x"}] * 3 + [{"image": "a"}] * 40 + [{"caption": 5}] * 2
    with pytest.raises(DataError) as error:
        albef(tmp_path, rows)
    lines = str(error.value).splitlines()
    assert lines[0] == "42 of 45 rows cannot be used (42 in 'captions', 2 in 'image'):"
    assert "row 4, field 'captions'" in lines[1] and lines[1].endswith("(and 39 more such rows)")
    assert len(lines) == 4


def test_many_kinds_of_problems_are_cut_short(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", [{"image_id": f"x{i}", "captions": ["a"]} for i in range(30)])
    with pytest.raises(DataError, match=r"(?s)30 of 30 rows.*\.\.\. and 25 other problems$"):
        JsonlCaptions(path, images=tmp_path, image_template="%d.jpg")


def test_missing_files_are_all_named_with_a_suggestion(tmp_path):
    write_json(tmp_path / "captions.json", [])
    with pytest.raises(
        FileNotFoundError, match=r"no such file: .*caption\.json, .*2\.json\. Did you mean .*captions\.json\?"
    ):
        AlbefCaptions([tmp_path / "caption.json", tmp_path / "2.json"])
    with pytest.raises(DataError, match="no annotation file is given: name one or several"):
        AlbefCaptions(())


def test_files_without_rows_or_without_json_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"captions\.json: no rows"):
        albef(tmp_path, [])
    (tmp_path / "cut.json").write_text('[{"image": "a", "cap')
    with pytest.raises(DataError, match=r"cut\.json: not valid JSON \(Unterminated string.*Fetch or export"):
        AlbefCaptions(tmp_path / "cut.json")
    (tmp_path / "page.json").write_text("<html>")
    with pytest.raises(DataError, match=r"page\.json, row 1, field '\(row\)': is not JSON: Expecting value"):
        AlbefCaptions(tmp_path / "page.json")


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path):
    row = '{"image": "a", "captions": ["caf\u00e9"]}'
    (tmp_path / "c.jsonl").write_bytes(b'{"image": "a", "captions": ["x"]}\n' + row.encode("latin-1"))
    with pytest.raises(
        DataError, match=r"c\.jsonl, row 2, .*is not UTF-8: byte 0xe9 \(.*\)\. Save the file as UTF-8"
    ):
        JsonlCaptions(tmp_path / "c.jsonl", images=tmp_path)
    (tmp_path / "c.json").write_bytes(f"[\n{row}]".encode("latin-1"))
    with pytest.raises(DataError, match=r"c\.json, line 2: is not UTF-8: byte 0xe9"):
        AlbefCaptions(tmp_path / "c.json")
    (tmp_path / "c.jsonl").write_bytes(row.encode("utf-16"))
    section = dict(name="jsonl_captions", files=str(tmp_path / "c.jsonl"), images=str(tmp_path))
    with pytest.raises(DataError, match=r"(?s)^config\.train: .*c\.jsonl, row 1, .*is not UTF-8: byte 0xff"):
        build.reader(section, "config.train")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid start byte"), ValueError),
        (ImageError("x"), ImageError),
        (FileNotFoundError("x"), FileNotFoundError),
    ],
)
def test_any_error_of_a_reader_is_reported_with_its_config_key(error, kind, monkeypatch):
    def broken():
        raise error

    monkeypatch.setitem(SOURCES, "broken", broken)
    with pytest.raises(kind, match=r"^config\.train: ") as caught:
        build.reader({"name": "broken"}, "config.train")
    assert type(caught.value) is kind


def test_a_missing_image_root_or_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.zip: no such image folder or zip file"):
        albef(tmp_path, [{"image": "a.png", "caption": "x"}], root=tmp_path / "gone.zip")
    with pytest.raises(ImageError, match=r"a\.png: no such image in "):
        albef(tmp_path, [{"image": "a.png", "caption": "x"}], root=tmp_path).image(0)


def test_unknown_field_names_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "c.jsonl", [{}])
    with pytest.raises(
        ValueError, match=r"fields=\['caption'\] are not read here; known are image, image_id, captions"
    ):
        JsonlCaptions(path, images=tmp_path, fields={"caption": "text"})


def held(tmp_path, part: str, names: list[str], **options) -> set[str]:
    reader = albef(
        tmp_path, [{"image": n, "caption": "x"} for n in names], holdout=dict(share=0.2, part=part, **options)
    )
    return {reader.annotation(i)["image"] for i in range(len(reader))}


def test_a_holdout_splits_by_image_whatever_else_the_file_holds(tmp_path):
    names = [f"{i % 500}.jpg" for i in range(1000)]
    train, out = held(tmp_path, "train", names), held(tmp_path, "held", names)
    assert not train & out and len(train | out) == 500 and 75 < len(out) < 125
    assert held(tmp_path, "held", names[::-1]) == out
    assert held(tmp_path, "held", names[:300]) == out & set(names[:300])
    assert held(tmp_path, "held", names, seed=1) != out


def test_the_last_images_can_be_held_out_as_vqa_v2_is_validated(tmp_path):
    names = [f"{i // 2}.jpg" for i in range(20)]  # ten images, two rows each
    rows = [{"image": n, "caption": "x"} for n in names]
    found = {p: albef(tmp_path, rows, holdout=dict(last=3, part=p)) for p in ("train", "held")}
    images = {p: [r.annotation(i)["image"] for i in range(len(r))] for p, r in found.items()}
    assert images["held"] == names[14:] and images["train"] == names[:14]


def test_ids_do_not_depend_on_the_holdout(tmp_path):
    names = [f"{i}.jpg" for i in range(50)]
    for part in ("train", "held"):
        reader = albef(
            tmp_path, [{"image": n, "caption": "x"} for n in names], holdout=dict(share=0.5, part=part)
        )
        assert all(
            reader.annotation(i)["image"] == f"{reader.annotation(i)['image_id']}.jpg"
            for i in range(len(reader))
        )


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        (dict(share=0.2, part="test"), "part='test' must be 'train' or 'held'"),
        (dict(share=1.2, part="held"), r"share=1\.2 must lie between 0 and 1"),
        (
            dict(share=0.2, part="held", by="question"),
            "by='question' is not known; rows are split by 'image'",
        ),
        (dict(share=1e-9, part="held"), r"captions\.json: holdout=.* keeps no row"),
        (dict(share=0.5, last=1, part="held"), "share=0.5, last=1: give one of them"),
        (dict(part="held"), "share=None, last=None: give one of them"),
        (dict(last=1, part="held"), "last=1 must lie between 0 and the 1 images"),
    ],
)
def test_wrong_holdouts_are_explained(holdout, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        albef(tmp_path, [{"image": "a", "caption": "x"}], holdout=holdout)


def test_readers_can_be_pickled_and_know_their_check_command(tmp_path):
    root = write_images(tmp_path / "my images", ["a.png"])
    reader = albef(tmp_path, [{"image": "a.png", "caption": "x"}], root=root)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy.annotation(0) == reader.annotation(0) and np.array_equal(copy.image(0), picture(0))
    assert reader.check_command == (
        f"python -m jaxvl.data check {tmp_path}/captions.json --images '{root}' --format albef_captions --decode all"
    )


def test_rows_beyond_the_end_do_not_exist(tmp_path):
    with pytest.raises(IndexError):
        albef(tmp_path, [{"image": "a", "caption": "x"}]).annotation(1)


def test_every_reader_has_a_name():
    files = {"albef_captions", "albef_vqa", "vqa_v2", "jsonl_captions", "jsonl_vqa"}
    assert {"scenes_captions", "scenes_vqa"} | files <= set(SOURCES)
