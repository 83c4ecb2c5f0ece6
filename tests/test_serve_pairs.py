"""`jaxvl.load` of a run that classifies: questions, entailment and two images, with and without kept states."""

from __future__ import annotations

import numpy as np
import pair_run
import pytest
import tiny_run
from PIL import Image

import jaxvl
from jaxvl import config as cfg
from jaxvl.cache import FingerprintError, StoreError
from jaxvl.serve import Rows, answering_stage
from jaxvl.sharding import Partition
from jaxvl.train import Trainer

QUESTIONS = [
    "is there a circle?",
    "what colour is the large square in the middle?",
    "how many stars are there?",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return pair_run.write(tmp_path_factory.mktemp("pairs"), "vqa", "nlvr2", "snli_ve")


@pytest.fixture(scope="module")
def pictures(root):
    reader = tiny_run.build.reader(cfg.load(root / "config.json").stages.vqa.val, "vqa")
    return [reader.image(i) for i in range(4)]


@pytest.fixture(scope="module")
def opened(root):
    return jaxvl.load(root)


@pytest.fixture
def model(opened):
    opened.asker.stores.clear()
    yield opened
    opened.asker.stores.clear()


def numbers(found):
    """`[N,A]` probabilities in the order of the names."""
    return np.array([[p for _, p in sorted((a.text, a.probability) for a in row)] for row in found])


def every(model, images, texts, **more):
    return numbers(model.classify(images, texts, top_k=len(model.names), **more))


@pytest.mark.parametrize("stage, images", [("vqa", 1), ("nlvr2", 2)])
def test_attention_is_of_the_real_tokens_over_the_patches_of_each_image(root, pictures, stage, images):
    model = jaxvl.load(root, stage=stage)
    more = {"image2": pictures[1]} if images == 2 else {}
    found = model.attention(pictures[0], QUESTIONS[0], **more)
    side = model.asker.cached.model.image_size // model.asker.cached.model.vision["patch"]
    assert found.tokens[0] == "[CLS]" and found.tokens[-2:] == ["?", "[SEP]"] and "circle" in found.tokens
    assert found.maps.shape == (images, len(found.tokens), side, side)
    share = found.maps.sum((2, 3))  # the rest is what the class token of the image gets
    assert (share > 0).all() and (share < 1).all()
    assert found.pictures.shape[0] == images and 0 <= found.pictures.min() < found.pictures.max() <= 1
    if images == 2:
        again = model.attention(pictures[0], QUESTIONS[0], image2=pictures[2])
        np.testing.assert_allclose(again.maps[0], found.maps[0], atol=1e-5)  # the pairs do not see each other
        assert np.abs(again.maps[1] - found.maps[1]).max() > 1e-4
        np.testing.assert_array_equal(again.pictures[0], found.pictures[0])


def test_what_cannot_be_looked_at_is_refused(opened, pictures):
    with pytest.raises(ValueError, match="leave image2 out"):
        opened.attention(pictures[0], "is it?", image2=pictures[1])
    with pytest.raises(ValueError, match="the text is empty"):
        opened.attention(pictures[0], "  ")


def test_answers_are_those_of_the_task(model, root, pictures):
    """The predictor "answer" on whole examples, without buckets, states or priming, says the same."""
    asker = model.asker
    rows = []
    for image, question in zip(pictures, QUESTIONS, strict=False):
        ids, mask = asker.tokens(question)
        rows.append({"image": asker.pixels(image), "text": ids, "text_mask": mask})
    config = cfg.load(root / "config.json")
    task = tiny_run.build.task(config, "vqa", tiny_run.build.tokenizer(config), model.names, 1)
    trainer = Trainer(task, partition=Partition.create(mesh=dict(data=1), rules="dp"), eval_batch_size=4)
    want = trainer.predict(asker.cached.params, "answer", Rows(rows))
    got = model.answer(pictures[:3], QUESTIONS, top_k=3)
    for row, index, score in zip(got, want["index"], want["score"], strict=True):
        assert [a.text for a in row] == [model.names[i] for i in index[:3]]
        np.testing.assert_allclose([a.probability for a in row], score[:3], atol=1e-5)


def test_kept_images_and_texts_give_the_same_answers_without_encoders(model, pictures, monkeypatch):
    want = every(model, pictures, QUESTIONS[1])
    assert np.ptp(want, axis=0).max() > 1e-3
    assert model.cache([*pictures, pictures[0]], dtype="float32")[:2] == (4, 0)
    assert model.cache_texts(QUESTIONS, dtype="float32")[:2] == (3, 0)
    for name in ("encode_images", "encode_texts"):
        monkeypatch.setattr(model.asker.cached, name, lambda *a: pytest.fail("an encoder is called"))
    np.testing.assert_allclose(every(model, pictures, QUESTIONS[1]), want, atol=1e-5)
    assert model.asker.stores["image"].get(list(model.asker.stores["image"].keys())).x.shape[0] == 4


def test_texts_of_all_lengths_and_sources_keep_their_order(model, pictures):
    texts = [*QUESTIONS, "what?", *QUESTIONS[::-1]]
    images = [pictures[i % 4] for i in range(len(texts))]
    want = np.concatenate([every(model, [image], [text]) for image, text in zip(images, texts, strict=True)])
    model.cache(pictures[1:3], dtype="float32")
    model.cache_texts(QUESTIONS[:2], dtype="float32")
    np.testing.assert_allclose(every(model, images, texts), want, atol=1e-5)


def test_a_store_in_a_folder_is_made_extended_and_checked(model, root, pictures, tmp_path):
    paths = []
    for i, image in enumerate(pictures):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    want = every(model, pictures, QUESTIONS[0])
    assert model.cache(paths[:2], tmp_path / "s")[:2] == (2, 0)
    assert model.cache(paths, tmp_path / "s")[:2] == (2, 2)
    assert list(model.asker.stores["image"].keys()) == [str(p) for p in paths]
    for path in paths:
        path.unlink()  # what is kept is not read again
    np.testing.assert_allclose(every(model, paths, QUESTIONS[0]), want, atol=5e-3)
    with pytest.raises(ValueError, match="holds float16 records"):
        model.cache(pictures, tmp_path / "s", dtype="int8")
    with pytest.raises(FingerprintError, match="other weights"):
        jaxvl.load(root, stage="snli_ve").cache(pictures, tmp_path / "s")
    with pytest.raises(StoreError, match="is a store of images, not of texts"):
        model.cache_texts(QUESTIONS, tmp_path / "s")


def test_keys_can_be_given_and_unreadable_images_are_reported(model, pictures, tmp_path):
    built = model.cache({"a": pictures[0], "b": tmp_path / "nowhere.png", "c": b"no image"})
    assert built.written == 1 and set(built.failed) == {"b", "c"} and "nowhere.png" in built.failed["b"]
    assert model.answer("a", QUESTIONS[0]) == model.answer(["a"], QUESTIONS[0])[0]
    with pytest.raises(ValueError, match="cannot be read"):
        model.answer("b", QUESTIONS[0])


def test_many_texts_about_one_image_use_few_programs(model, pictures):
    cached = model.asker.cached
    before = dict(cached.traces)
    for n in (1, 5, 20):
        assert len(model.answer(pictures[0], [QUESTIONS[0]] * n)) == n
    assert cached.traces["encode_images"] == 1
    assert cached.traces["answer"] - before.get("answer", 0) <= 1


def test_two_images_and_entailment(root, pictures):
    pairs = jaxvl.load(root, stage="nlvr2")
    found = pairs.classify(pictures[0], QUESTIONS, image2=pictures[1])
    assert [sorted(a.text for a in row) for row in found] == [["False", "True"]] * 3
    assert sum(a.probability for a in found[0]) == pytest.approx(1)
    want = every(pairs, pictures[:2], QUESTIONS[0], image2=pictures[2:])
    assert np.abs(want - every(pairs, pictures[2:], QUESTIONS[0], image2=pictures[:2])).max() > 1e-4
    pairs.cache(pictures, dtype="float32")
    with pytest.raises(ValueError, match="in memory holds float32 records"):
        pairs.cache(pictures, dtype="int8")
    np.testing.assert_allclose(every(pairs, pictures[:2], QUESTIONS[0], image2=pictures[2:]), want, atol=1e-5)
    with pytest.raises(ValueError, match="give image2 too"):
        pairs.answer(pictures[0], QUESTIONS[0])
    entails = jaxvl.load(root, stage="snli_ve")
    assert sorted(a.text for a in entails.entail(pictures[0], "a star")) == [
        "contradiction",
        "entailment",
        "neutral",
    ]
    with pytest.raises(ValueError, match="has the classes"):
        pairs.entail(pictures[0], "a star")


def test_the_stage_is_the_first_of_the_run_that_is_no_teacher(tmp_path, model):
    assert len(model.names) > 3  # "vqa" comes first in this run, "nlvr2" in the alphabet
    root = pair_run.write(tmp_path / "r", "teacher_vqa")
    assert type(jaxvl.load(root).asker.cached.model).__name__ == "ViLT"
    config = pair_run.tiny().get_config("scale=tiny")  # "vqa" is taught by "teacher_vqa", which comes first
    (root / "vqa").mkdir()
    (root / "vqa/result.json").touch()
    assert answering_stage(config, root, None) == "vqa"
    config = pair_run.tiny().get_config("scale=tiny,ablation=distill=cmd")  # it taught in pre-training only
    assert answering_stage(config, root, None) == "vqa"
    config = pair_run.tiny().get_config("scale=tiny,ablation=distill=none")  # it taught nobody
    assert answering_stage(config, root, None) == "vqa"
    with pytest.raises(cfg.ConfigError, match="did you mean 'vqa"):
        jaxvl.load(root, stage="vqe")


@pytest.mark.parametrize(
    ("image", "text", "more", "said"),
    [
        (np.zeros((8, 8, 3), np.uint8), " ", {}, "question is empty"),
        (np.zeros((8, 8, 3), np.uint8), [], {}, "do not pair up"),
        ([np.zeros((8, 8, 3), np.uint8)] * 2, ["a?", "b?", "c?"], {}, "2 images and 3 questions"),
        (b"no image", "a?", {}, "cannot decode the image"),
        ("nowhere.jpg", "a?", {}, "nowhere.jpg"),
        (b"", "a?", {"image2": b""}, "leave image2 out"),
    ],
)
def test_bad_input_is_refused_with_its_reason(model, image, text, more, said):
    with pytest.raises(ValueError, match=said):
        model.classify(image, text, **more)
