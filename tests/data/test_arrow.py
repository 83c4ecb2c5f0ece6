"""Proves the readers of ViLT's Arrow tables: every variant of columns, order, labels, and what is refused by name."""

from __future__ import annotations

import builtins
import json
import pickle

import numpy as np
import pytest
from data_fakes import VOCAB, encoded, picture, write_images, write_json, write_jsonl

from jaxvl.data import SOURCES
from jaxvl.data.arrow import ViltArrow
from jaxvl.data.images import ImageError, ImageTransform
from jaxvl.data.loader import Loader
from jaxvl.data.records import DataError
from jaxvl.data.source import CaptionFormat, ClassifyFormat, Examples
from jaxvl.data.text import Tokenizer

pa = pytest.importorskip("pyarrow", reason="pip install -e '.[arrow]' to read Arrow tables")
TOK = Tokenizer.from_vocab(VOCAB)


def table(path, **columns) -> str:
    data = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.RecordBatchFileWriter(sink, data.schema) as writer:
        writer.write_table(data, max_chunksize=2)
    return str(path)


def pictures(count: int, first: int = 0) -> list[bytes]:
    return [encoded(picture(first + i)) for i in range(count)]


def captions(path, texts, names=None):
    names = names or [f"{i}.jpg" for i in range(len(texts))]
    return table(
        path, image=pictures(len(texts)), caption=texts, image_id=names, split=["train"] * len(texts)
    )


def questions(path, **changes):
    columns = dict(
        image=pictures(2),
        questions=[["Is it a dog?", "what color?"], ["left?"]],
        answers=[[["yes", "no"], ["red"]], [[]]],
        answer_labels=[[[0, 1], [2]], [[]]],
        answer_scores=[[[1.0, 0.3], [0.9]], [[]]],
        image_id=[42, 7],
        question_id=[[420, 421], [70]],
        split=["val", "val"],
    )
    return table(path, **{**columns, **changes})


def test_repeated_captions_count_once_in_the_order_of_the_table(tmp_path):
    path = captions(tmp_path / "vg.arrow", [["b", "a", "b", " "], ["c"], ["d", "d"]])
    reader = ViltArrow(path)
    assert [reader.annotation(i)["captions"] for i in range(len(reader))] == [["b"], ["a"], ["c"], ["d"]]
    assert [reader.annotation(i)["image_id"] for i in range(4)] == [0, 0, 1, 2]
    assert reader.annotation(0)["image"] == "0.jpg" and np.array_equal(reader.image(3), picture(2))
    assert ViltArrow(path, rows="image").annotation(0)["captions"] == ["b", "a"]


def test_shards_are_expanded_and_missing_ones_are_an_error(tmp_path, caplog):
    for k in (0, 2):
        captions(tmp_path / f"sbu_{k}.arrow", [[f"a dog {k}"]])
    given = tmp_path / "sbu_{0..2}.arrow"
    with pytest.raises(FileNotFoundError, match=r"no such file: .*sbu_1\.arrow"):
        ViltArrow(given)
    reader = ViltArrow(given, allow_missing=True)
    assert [reader.annotation(i)["captions"] for i in range(2)] == [["a dog 0"], ["a dog 2"]]
    assert "1 of 3 tables are missing" in caplog.text and "sbu_1.arrow" in caplog.text


def test_the_same_name_in_two_collections_is_two_images(tmp_path):
    files = [captions(tmp_path / f"{name}.arrow", [["x"]]) for name in ("sbu_0", "sbu_1", "f30k_train")]
    assert [ViltArrow(files).annotation(i)["image_id"] for i in range(3)] == [0, 0, 1]


def test_questions_have_the_scores_of_their_strings(tmp_path):
    reader = ViltArrow(questions(tmp_path / "vqav2_val_fix.arrow"))
    row = reader.annotation(0)
    assert {k: row[k] for k in ("image", "question", "scores", "question_id", "answer_type", "image_id")} == {
        "image": "val2014/COCO_val2014_000000000042.jpg", "question": "Is it a dog?",
        "scores": {"yes": 1.0, "no": 0.3}, "question_id": 420, "answer_type": "yes/no", "image_id": 42,
    }  # fmt: skip
    assert len(reader) == 3 and reader.annotation(2)["scores"] == {} and reader.dropped == {}


def test_questions_without_a_scored_answer_can_be_left_out(tmp_path):
    reader = ViltArrow(questions(tmp_path / "vqav2_val.arrow"), unanswered="drop")
    assert len(reader) == 2 and reader.dropped == {"a question without a scored answer": 1}


def test_test_tables_are_predicted_not_trained_on(tmp_path):
    empty = {name: [[], []] for name in ("answers", "answer_labels", "answer_scores")}
    reader = ViltArrow(questions(tmp_path / "vqav2_test.arrow", split=["test"] * 2, **empty))
    assert reader.annotation(2)["image"] == "test2015/COCO_test2015_000000000007.jpg"
    source = Examples(reader, ClassifyFormat(TOK, field="question", answers=("yes",)), 8)
    assert source[0]["label"][0] == 1 and not source[0]["label_score"].any()
    with pytest.raises(DataError, match=r"vqav2_test\.arrow: no question has an answer: test tables"):
        source.shapes()


def test_nlvr2_has_two_images_and_labels_by_string(tmp_path):
    path = table(
        tmp_path / "nlvr2_dev.arrow",
        image_0=pictures(2), image_1=pictures(2, 5), questions=[["a dog", "a cat"], ["a dog"]],
        answers=[["True", "False"], ["False"]], identifier=["dev-8-0", "dev-8-1"],
    )  # fmt: skip
    reader = ViltArrow(path)
    rows = [reader.annotation(i) for i in range(3)]
    assert [(r["label"], r["image_id"], r["image2_id"]) for r in rows] == [(1, 0, 1), (0, 0, 1), (0, 2, 3)]
    assert rows[0]["sentence_group"] == rows[2]["sentence_group"] != rows[1]["sentence_group"]
    assert np.array_equal(reader.image(2), picture(1)) and np.array_equal(reader.image2(2), picture(6))


@pytest.mark.parametrize(
    ("labels", "order", "expected"),
    [
        ([0, 1, 2], None, [0, 1, 2]),
        ([0, 1, 2], ("contradiction", "entailment", "neutral"), [0, 2, 1]),
    ],
)
def test_integer_labels_of_entailment_follow_the_order_given(labels, order, expected, tmp_path):
    pairs = [[["premise", f"a dog {k}"] for k in range(4)]]
    path = table(tmp_path / "snli_dev.arrow", image=pictures(1), sentences=pairs, labels=[[*labels, -1]])
    reader = ViltArrow(path, label_order=order)
    assert [reader.annotation(i)["label"] for i in range(len(reader))] == expected
    assert reader.annotation(1)["sentence"] == "a dog 1" and reader.dropped == {
        "a label without agreement": 1
    }


def test_string_labels_of_entailment_have_canonical_ids(tmp_path):
    path = table(
        tmp_path / "snli_ve_dev.arrow", image=pictures(1), questions=[["x", "y", "z"]],
        answers=[["entailment", "neutral", "contradiction"]], identifier=["123"],
    )  # fmt: skip
    for order in (None, ("contradiction", "entailment", "neutral")):
        reader = ViltArrow(path, label_order=order)
        assert [reader.annotation(i)["label"] for i in range(3)] == [2, 1, 0]
    assert reader.annotation(0)["image"] == "flickr30k-images/123.jpg"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (dict(image=[b""], foo=["x"]), r"t\.arrow: columns image, foo are those of no table"),
        (dict(caption=[["x"]]), r"t\.arrow: no column image \(it has caption\)"),
        (
            dict(image=[b""], caption=["x"]),
            r"row 1, field 'caption': is not a list of strings\. Write the table again",
        ),
        (
            dict(image=[b""], questions=[["x", "y"]], question_id=[[1]]),
            r"row 1, field 'question_id': has 1 entries for 2 texts",
        ),
        (
            dict(image=[b""], questions=[["x"]], answers=[["maybe"]]),
            r"row 1, field 'labels': holds 'maybe'\. Write contradiction, neutral, entailment",
        ),
        (
            dict(image_0=[b""], image_1=[b""], questions=[["x"]], answers=[["true"]]),
            r"row 1, field 'answers': holds 'true'\. Write \"True\" or \"False\"",
        ),
    ],
)
def test_wrong_tables_are_named(columns, message, tmp_path):
    with pytest.raises(DataError, match=message):
        ViltArrow(table(tmp_path / "t.arrow", **columns))


def test_other_files_and_options_are_refused(tmp_path):
    (tmp_path / "t.arrow").write_bytes(b"PAR1 not arrow")
    with pytest.raises(DataError, match=r"t\.arrow: not an Arrow IPC file"):
        ViltArrow(tmp_path / "t.arrow")
    with pytest.raises(ValueError, match=r"kind='vqa2' is none of None, captions, vqa, nlvr2, snli"):
        ViltArrow(tmp_path / "t.arrow", kind="vqa2")
    with pytest.raises(ValueError, match=r"label_order=\('neutral',\) must name each of contradiction"):
        ViltArrow(tmp_path / "t.arrow", label_order=("neutral",))


def test_pyarrow_is_asked_for_by_name(tmp_path, monkeypatch):
    path = captions(tmp_path / "a.arrow", [["x"]])
    real = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *a: real("missing" if name == "pyarrow" else name, *a)
    )
    with pytest.raises(ImportError, match=r"pip install -e '\.\[arrow\]'"):
        ViltArrow(path)


def test_a_broken_image_names_table_row_and_column(tmp_path):
    path = table(tmp_path / "a.arrow", image=[b"junk", None], caption=[["x"], ["y"]], image_id=["1", "2"])
    for i in range(2):
        with pytest.raises(ImageError, match=rf"a\.arrow, row {i + 1}, column 'image': cannot decode"):
            ViltArrow(path).image(i)


def test_tables_are_reopened_in_other_processes(tmp_path):
    reader = ViltArrow(captions(tmp_path / "a.arrow", [[f"a dog {i}"] for i in range(8)]))
    assert np.array_equal(pickle.loads(pickle.dumps(reader)).image(5), picture(5))
    assert len(pickle.dumps(reader)) < 4000  # the images stay in the file
    source = Examples(reader, CaptionFormat(TOK), ImageTransform(16, augment=None))
    with Loader(source, batch_size=4, seed=0, workers=1).batches(0, 2) as batches:
        seen = {
            int(i): image for batch in batches for i, image in zip(batch["id"], batch["image"], strict=True)
        }
    assert all(np.array_equal(seen[i], source[i]["image"]) for i in range(8))


def test_a_holdout_keeps_the_questions_of_an_image_together(tmp_path):
    parts = [
        ViltArrow(
            captions(tmp_path / "a.arrow", [["x", "y"]] * 40),
            holdout=dict(share=0.3, part=part),
        )
        for part in ("train", "held")
    ]
    images = [{r.annotation(i)["image"] for i in range(len(r))} for r in parts]
    assert len(parts[0]) + len(parts[1]) == 80 and not images[0] & images[1] and all(images)


def test_a_holdout_of_nlvr2_keeps_a_set_together(tmp_path):
    names = [f"dev-{of}-{pair}" for of in range(20) for pair in range(3)]
    path = table(
        tmp_path / "nlvr2_dev.arrow", image_0=[b""] * 60, image_1=[b""] * 60, questions=[["a dog"]] * 60,
        answers=[["True"]] * 60, identifier=names,
    )  # fmt: skip
    parts = [ViltArrow(path, holdout=dict(share=0.4, part=part)) for part in ("train", "held")]
    sets = [{r.annotation(i)["sentence_group"] for i in range(len(r))} for r in parts]
    assert len(parts[0]) + len(parts[1]) == 60 and not sets[0] & sets[1] and all(sets)


def same(one: Examples, other: Examples) -> None:
    assert len(one) == len(other) > 0
    for i in range(len(one)):
        for a, b in (
            (one[i], other[i]),
            *((s.augmented(i, np.random.default_rng(i)) for s in (one, other)),),
        ):
            assert a.keys() == b.keys()
            for name in a:
                np.testing.assert_allclose(a[name], b[name], atol=1e-6, err_msg=name)


def test_tables_and_json_give_identical_questions(tmp_path):
    said = ["yes"] * 5 + ["Yes."] + ["no"] * 1 + ["maybe so"] * 3
    row = {"question_id": 420, "image_id": 42, "question": "Is it a dog?"}
    json_reader = SOURCES["vqa_v2"](
        write_json(tmp_path / "q.json", {"data_subtype": "val2014", "questions": [row]}),
        annotations=write_json(
            tmp_path / "a.json", {"annotations": [{**row, "answers": [{"answer": a} for a in said]}]}
        ),
        images=write_images(tmp_path / "coco", ["val2014/COCO_val2014_000000000042.png"]),
        image_template="{split}/COCO_{split}_%012d.png",
    )
    arrow = ViltArrow(
        questions(
            tmp_path / "vqav2_val_fix.arrow", image=pictures(1), questions=[["Is it a dog?"]],
            answers=[[["yes", "no"]]], answer_labels=[[[0, 1]]], answer_scores=[[[1.0, 0.3]]], image_id=[42],
            question_id=[[420]], split=["val"],
        )
    )  # fmt: skip
    format = ClassifyFormat(TOK, field="question", answers=("no", "yes"))
    same(*(Examples(reader, format, ImageTransform(16)) for reader in (json_reader, arrow)))


def test_tables_and_json_give_identical_sentences(tmp_path):
    names = [f"dev/dev-8-{pair}-img{k}.png" for pair in (0, 1) for k in (0, 1)]
    rows = [
        {"identifier": f"dev-8-{p}-{s}", "sentence": f"a dog {s}", "label": str(p == s), "left_url": ""}
        for p in (0, 1)
        for s in (0, 1)
    ]
    raw = SOURCES["nlvr2"](
        write_jsonl(tmp_path / "dev.json", rows), images=write_images(tmp_path / "nlvr2", names)
    )
    arrow = table(
        tmp_path / "nlvr2_dev.arrow", image_0=[encoded(picture(i)) for i in (0, 2)],
        image_1=[encoded(picture(i)) for i in (1, 3)], questions=[["a dog 0", "a dog 1"]] * 2,
        answers=[["True", "False"], ["False", "True"]], identifier=["dev-8-0", "dev-8-1"],
    )  # fmt: skip
    readers = raw, SOURCES["vilt_arrow"](arrow)
    same(*(Examples(reader, ClassifyFormat(TOK), ImageTransform(16)) for reader in readers))
    groups = [[r.annotation(i)["sentence_group"] for i in range(4)] for r in readers]
    assert [[g.index(x) for x in g] for g in groups] == [[0, 1, 0, 1]] * 2


def test_tables_and_json_give_identical_hypotheses(tmp_path):
    """BridgeTower's table numbers the labels, DiDE's names them, the release's JSON Lines name them, too (V3, V4)."""
    texts, labels = ["a dog", "a cat", "a bird"], ["entailment", "contradiction", "neutral"]
    names = [f"{i}.jpg" for i in (10, 11, 12)]
    root = write_images(tmp_path / "flickr30k-images", names)
    rows = [
        {"Flickr30K_ID": n[:-4], "gold_label": label, "sentence2": text, "sentence1": "a premise"}
        for n, text, label in zip(names, texts, labels, strict=True)
    ]
    raw = SOURCES["snli_ve"](write_jsonl(tmp_path / "snli_ve_dev.jsonl", rows), images=root)
    images = [(root / n).read_bytes() for n in names]
    ids = {"contradiction": 0, "neutral": 1, "entailment": 2}
    numbered = table(
        tmp_path / "snli_dev.arrow", image=images, sentences=[[["a premise", t]] for t in texts],
        labels=[[ids[label]] for label in labels],
    )  # fmt: skip
    named = table(
        tmp_path / "snli_ve_dev.arrow", image=images, questions=[[t] for t in texts], answers=[[x] for x in labels],
        identifier=[n[:-4] for n in names],
    )  # fmt: skip
    for file in (numbered, named):
        readers = (raw, ViltArrow(file))
        same(*(Examples(reader, ClassifyFormat(TOK), ImageTransform(16)) for reader in readers))


def test_tables_and_json_give_identical_captions(tmp_path):
    names, texts = ["0.jpg", "1.jpg"], [["a dog", "two dogs"], ["a cat"]]
    root = write_images(tmp_path / "coco", names)
    pairs = [{"image": n, "caption": t} for n, said in zip(names, texts, strict=True) for t in said]
    (tmp_path / "captions.json").write_text(json.dumps(pairs))
    raw = SOURCES["albef_captions"](str(tmp_path / "captions.json"), root=root)
    arrow = table(
        tmp_path / "coco_caption_karpathy_val.arrow", image=[(root / n).read_bytes() for n in names], caption=texts,
        image_id=names, split=["val"] * 2,
    )  # fmt: skip
    same(*(Examples(reader, CaptionFormat(TOK), ImageTransform(16)) for reader in (raw, ViltArrow(arrow))))
