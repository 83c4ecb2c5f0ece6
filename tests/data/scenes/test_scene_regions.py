"""Proves that the world's region features say what its pictures show, and nothing else."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scene_oracle import words

from jaxvl.data.scenes import SceneCaptions, SceneQuestions, box
from jaxvl.data.scenes.regions import SceneRegions
from jaxvl.data.scenes.world import COLOURS, SHAPES, TEXTURES

WORLD = SceneRegions()
VAL = 500_000_000  # first image id of "val"


def things(images: int, world: SceneRegions = WORLD) -> tuple[np.ndarray, list]:
    """Features of all things of the first images, and the things."""
    rows = [(world.of(i).features[k], t) for i in range(images) for k, t in enumerate(world.scene(i).things)]
    return np.stack([f for f, _ in rows]), [t for _, t in rows]


def test_regions_are_a_function_of_arguments_and_id():
    one, two = SceneRegions(), SceneRegions()
    for i in (7, 3, VAL):
        for a, b in zip(one.of(i), two.of(i), strict=True):
            np.testing.assert_array_equal(a, b)
    assert one.digest == two.digest != SceneRegions(noise=0.2).digest
    assert not np.array_equal(one.of(7).features, SceneRegions(seed=1).of(7).features)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).of(3).features, one.of(3).features)


def test_rows_are_things_then_backdrop_then_empty():
    full = 0
    for i in range(40):
        found, number = WORLD.of(i), len(WORLD.scene(i).things)
        assert found.mask.sum() == min(number + 2, 8) and found.mask[: number + 2].all()
        assert not found.features[~found.mask].any() and not found.boxes[~found.mask].any()
        assert (found.features[found.mask] != 0).all() and found.boxes.min() >= 0 and found.boxes.max() <= 1
        assert (found.boxes[found.mask][:, :2] < found.boxes[found.mask][:, 2:]).all()
        full += number == 5
    assert full and SceneRegions(objects=(5, 5), regions=5).of(0).mask.tolist() == [True] * 5


def test_boxes_are_those_of_the_picture():
    for i in range(5):
        wanted = [np.array(box(t, image_size=64)) / 64 for t in WORLD.scene(i).things]
        np.testing.assert_allclose(WORLD.of(i).boxes[: len(wanted)], wanted, atol=1e-6)


@pytest.mark.parametrize(("name", "values"), [("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES)])
def test_attributes_can_be_read_off_a_region(name, values):
    x, found = things(300)
    y = np.array([values.index(getattr(t, name)) for t in found])
    x = np.c_[x, np.ones(len(x))]
    weights = np.linalg.lstsq(x[:600], np.eye(len(values))[y[:600]], rcond=None)[0]
    assert ((x[600:] @ weights).argmax(1) == y[600:]).mean() > 0.97


def test_position_can_be_read_off_a_region_and_noise_is_as_large_as_asked_for():
    x, found = things(300)
    place, x = np.array([(t.x, t.y) for t in found]), np.c_[x, np.ones(len(x))]
    weights = np.linalg.lstsq(x[:600], place[:600], rcond=None)[0]
    assert np.abs(x[600:] @ weights - place[600:]).mean() < 0.05
    noise = x[:, :-1] - things(300, SceneRegions(noise=0))[0]
    assert abs(noise.std() - 0.3) < 0.005 and abs(noise.mean()) < 0.01
    assert abs(noise - np.roll(noise, 7, axis=0)).min() > 0


def test_features_agree_with_the_readers_of_the_world():
    reader = SceneCaptions("val", size=3)
    for i in range(3):
        image_id = reader.annotation(i)["image_id"]
        np.testing.assert_array_equal(WORLD.picture(image_id), reader.image(i))
    WORLD.require_world(reader)
    WORLD.require_world(object())
    for other in (SceneCaptions("val", size=3, seed=1), SceneCaptions("val", size=3, objects=(1, 2))):
        with pytest.raises(ValueError, match="give both the same"):
            WORLD.require_world(other)


def test_a_question_applies_where_its_shapes_and_colours_occur():
    nouns = {*SHAPES, *COLOURS}
    reader = SceneQuestions("train", size=200)
    for i in range(200):
        question = reader.annotation(i)["question"]
        named = words(question.replace("?", "")) & nouns
        for image_id in (i, (i + 1) % 200):
            there = {v for t in WORLD.scene(image_id).things for v in t.pair}
            assert WORLD.applies(question, image_id) == (named <= there), (question, there)
    assert WORLD.applies("how many things are there?", 0)
    purple, discs = (
        next(i for i in range(99) if word in str(WORLD.scene(i).things)) for word in ("purple", "circle")
    )
    assert WORLD.applies("Violet, is it?", purple) and WORLD.applies("how many discs?", discs)
    assert not all(
        WORLD.applies("Violet, is it?", i) or WORLD.applies("how many discs?", i) for i in range(50)
    )


def test_ids_are_those_of_the_split():
    some = SceneRegions("val", images=3)
    assert some.ids().tolist() == [VAL, VAL + 1, VAL + 2]
    assert [some.has(i) for i in (VAL, VAL + 2, VAL + 3, 0, -1)] == [True, True, False, False, False]
    assert [WORLD.has(i) for i in (0, VAL, 3 * VAL, -1)] == [True, True, False, False]
    with pytest.raises(KeyError, match="no image 0"):
        some.of(0)
    with pytest.raises(TypeError, match="give split and images"):
        WORLD.ids()


def test_what_is_handed_out_again_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        WORLD.of(0).features[:] = 0


@pytest.mark.parametrize(
    "options",
    [
        {"regions": 4},
        {"split": "dev"},
        {"images": 3},
        {"width": 0},
        {"noise": -1},
        {"split": "val", "images": 0},
    ],
)
def test_impossible_worlds_are_refused(options):
    with pytest.raises(ValueError, match="=|unknown split"):
        SceneRegions(**options)


def test_what_regions_show_is_said_by_name():
    provider = SceneRegions("val", images=20, objects=(1, 3), regions=4, width=8)
    for image_id in provider.ids():
        names = [provider.classes[i] for i in provider.shown(image_id)]
        s = provider.scene(image_id)
        things = [thing.shape for thing in s.things]
        assert names[: len(things)] == things and set(names[len(things) :]) <= {s.backdrop.kind}
        assert len(names) == provider.of(image_id).mask.sum()
