"""A batch as files: what people and tools get, and what they must not see."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from jaxvl.active.human import export_batch, read_labels

REASON = {
    "pattern_id": "0123456789ab", "question": "Is <it> wet?", "type": "yes/no", "match": 0.9, "uncertainty": 0.5,
    "answer": "yes", "p_max": 0.6, "rate": 0.8,
}  # fmt: skip


def rows(n=4, reserve=1):
    out = [
        {"rank": i + 1, "image_id": 10 + i, "score": 5.0 - i, "n_match": 3, "contributors": [REASON]}
        for i in range(n)
    ]
    return [{**r, "reserve": True} if i >= n - reserve else r for i, r in enumerate(out)]


def picture(image_id):
    return np.full((30, 40, 3), image_id, np.uint8)


def export(tmp_path, selection=None, **kwargs):
    options = {"run": "ccrl/r0", "round": 2, "images": picture, "suggest": True, "folder": tmp_path, **kwargs}
    return export_batch(rows() if selection is None else selection, **options)


def lines(tmp_path):
    return [json.loads(x) for x in (tmp_path / "batch.jsonl").read_text().splitlines()]


def test_every_line_has_the_schema(tmp_path):
    assert export(tmp_path) == (4, 1, {}, [])
    first, *_, last = lines(tmp_path)
    assert first == {
        "schema": "ccrl.batch/1", "run": "ccrl/r0", "round": 2, "rank": 1, "image_id": 10, "file_name": "images/10.png",
        "url": None, "width": 40, "height": 30, "score": 5.0, "n_match": 3, "suggested": [REASON], "n_questions": 5,
    }  # fmt: skip
    assert last["reserve"] is True and last["image_id"] == 13


def test_pictures_are_written_as_they_are(tmp_path):
    export(tmp_path)
    with Image.open(tmp_path / "images/12.png") as image:
        assert image.size == (40, 30) and image.getpixel((0, 0)) == (12, 12, 12)


def test_encoded_pictures_keep_their_bytes_and_others_become_jpeg(tmp_path):
    def encoded(kind, colour):
        out = io.BytesIO()
        Image.new("RGB", (300, 200), colour).save(out, kind)
        return out.getvalue()

    (tmp_path / "source.jpg").write_bytes(encoded("JPEG", "red"))
    given = {10: tmp_path / "source.jpg", 11: encoded("PNG", "blue"), 12: encoded("BMP", "green"), 13: None}
    got = export(tmp_path / "batch", images=given.get)
    assert (tmp_path / "batch/images/10.jpg").read_bytes() == (tmp_path / "source.jpg").read_bytes()
    assert (tmp_path / "batch/images/11.png").read_bytes() == given[11]
    with Image.open(tmp_path / "batch/images/12.jpg") as image:
        assert image.format == "JPEG" and image.size == (300, 200)
    assert got.without_picture == [13]


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"image 10 \(.*x.jpg\): cannot be decoded"):
        export(tmp_path, images=lambda i: tmp_path / "x.jpg")


def test_equal_pictures_are_exported_once(tmp_path):
    got = export(tmp_path, images=lambda i: picture(max(i, 11)))
    assert got.duplicates == {11: 10} and got.images == 3
    assert [(e["rank"], e["image_id"]) for e in lines(tmp_path)] == [(1, 10), (2, 12), (3, 13)]


def test_equal_features_are_exported_once_and_a_chain_of_equals_is_one_group(tmp_path):
    got = export(tmp_path, digests={10: "a", 11: "b", 12: "a", 13: None})
    assert got.duplicates == {12: 10}
    chain = {10: "a", 11: "a", 12: "b", 13: None}  # 11 is 10 by features, 12 is 11 by its picture
    got = export(tmp_path, digests=chain, images=lambda i: picture(11 if i == 12 else i))
    assert got.duplicates == {11: 10, 12: 10}


def test_a_gold_image_stays_and_its_twin_goes_wherever_they_stand(tmp_path):
    """The answers of a gold image are known: asking about its twin would teach nothing, and leaving it out would."""
    for seed in range(4):
        got = export(
            tmp_path,
            gold=(40,),
            rng=np.random.default_rng(seed),
            digests={10: "a", 40: "a", 11: None, 12: None},
        )
        assert got.duplicates == {10: 40}
        assert sorted(e["image_id"] for e in lines(tmp_path)) == [11, 12, 13, 40]


def test_without_suggestions_nothing_for_annotators_tells_them(tmp_path):
    export(tmp_path, suggest=False)
    for name in ("batch.jsonl", "batch.csv", "images.json", "labelstudio.json", "labelstudio.xml"):
        assert "wet" not in (tmp_path / name).read_text(), name
    assert "wet" in (tmp_path / "gallery.html").read_text()


def test_the_table_has_a_line_for_each_image_and_no_formulas(tmp_path):
    evil = [{**r, "contributors": [{**REASON, "question": "=1+1"}]} for r in rows()]
    export(tmp_path, evil)
    with (tmp_path / "batch.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [r["image_id"] for r in table] == ["10", "11", "12", "13"] and table[3]["reserve"] == "True"
    assert table[0]["suggested_1"] == "'=1+1" and table[0]["suggested_5"] == ""


def test_coco_images(tmp_path):
    export(tmp_path, url="http://host/%06d.jpg")
    content = json.loads((tmp_path / "images.json").read_text())
    assert content["images"][0] == {
        "id": 10, "file_name": "images/10.png", "width": 40, "height": 30,
        "coco_url": "http://host/000010.jpg", "rank": 1,
    }  # fmt: skip
    assert (
        json.loads((tmp_path / "labelstudio.json").read_text())[0]["data"]["image"]
        == "http://host/000010.jpg"
    )


def test_the_gallery_says_why_and_needs_nothing_else(tmp_path):
    export(tmp_path)
    page = (tmp_path / "gallery.html").read_text()
    assert page.count("<article") == 4 and page.count("data:image/jpeg;base64,") == 4
    assert "Is &lt;it&gt; wet?" in page and "<it>" not in page
    assert "uncertainty 0.50 &times; balance 0.80" in page and "these 1 give 8% of the score" in page
    assert "3 images to label; 1 in reserve" in page and "http" not in page


def test_strategies_without_reasons_have_a_gallery_too(tmp_path):
    export(tmp_path, [{"rank": 1, "image_id": 1, "score": None}], images=None)
    page = (tmp_path / "gallery.html").read_text()
    assert "picked without a score" in page and "no picture" in page and "Each question below" not in page


def test_gold_images_are_mixed_in_and_cannot_be_told_apart(tmp_path):
    got = export(tmp_path, rows(20, 2), gold=[98, 99], rng=np.random.default_rng(3), suggest=False)
    found = lines(tmp_path)
    places = [e["rank"] for e in found if e["image_id"] in (98, 99)]
    assert got.images == 22 and max(places) <= 20 and places != [19, 20]
    gold, other = (
        next(e for e in found if (e["image_id"] in (98, 99)) == is_gold) for is_gold in (True, False)
    )
    differ = {k for k in gold if gold[k] != other[k]}
    assert differ == {"rank", "image_id", "file_name"}
    assert "al_score" not in (tmp_path / "labelstudio.json").read_text()


def test_an_image_twice_and_no_image_are_errors(tmp_path):
    with pytest.raises(ValueError, match="image 10 occurs twice"):
        export(tmp_path, gold=[10], rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="selection is empty"):
        export(tmp_path, [])


def test_the_batch_itself_is_no_file_of_labels(tmp_path):
    export(tmp_path)
    with pytest.raises(ValueError, match="was the batch itself given"):
        read_labels(tmp_path / "batch.jsonl", batch_ids=range(10, 14))
