"""Scenes are functions of (seed, split, index); their things can be seen; readers and sheets fail clearly."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest

from jaxvl.data import scenes
from jaxvl.data.scenes.referring import OVERLAP, iou
from jaxvl.data.scenes.render import RGB, outline
from jaxvl.data.scenes.sheet import TASKS
from jaxvl.data.scenes.world import COLOURS, SHAPES

READERS = list(TASKS.values())


def fingerprint() -> str:
    """Digest of the records and scenes of all readers."""
    data = [
        repr((reader("val", size=40).annotation(i), reader("val", size=40).scene(i)))
        for reader in READERS
        for i in range(40)
    ]
    return hashlib.sha256("".join(data).encode()).hexdigest()


@pytest.mark.parametrize("reader", READERS)
def test_an_example_depends_on_its_index_alone(reader):
    one, two = reader("train", size=30), reader("train", size=1000)
    backwards = {i: (two.annotation(i), two.image(i)) for i in reversed(range(30))}
    for i in range(30):
        assert one.annotation(i) == backwards[i][0]
        np.testing.assert_array_equal(one.image(i), backwards[i][1])
    other = reader("train", size=30, seed=1)
    assert not any(other.scene(i).things == one.scene(i).things for i in range(30))


def test_another_process_sees_the_same_world():
    code = "import test_scene_world as t; print(t.fingerprint())"
    env_path = [*sys.path]
    run = [sys.executable, "-c", f"import sys; sys.path[:] = {env_path!r}; {code}"]
    out = subprocess.run(run, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == fingerprint()


def test_splits_never_share_a_scene_or_an_image_id():
    sets = [[scenes.scene(split, i) for i in range(1500)] for split in ("train", "val", "test")]
    assert len({s.things for group in sets for s in group}) == 4500
    assert len({s.image_id for group in sets for s in group}) == 4500
    assert max(s.image_id for group in sets for s in group) < 2**31


def test_held_out_pairs_are_absent_from_train_and_ordinary_elsewhere():
    for split, expected in (("train", 0.0), ("val", 6 / 48), ("test", 6 / 48)):
        pairs = [t.pair for i in range(2000) for t in scenes.scene(split, i).things]
        assert np.mean([p in scenes.HELD_OUT for p in pairs]) == pytest.approx(
            expected, abs=0.02 * (expected > 0)
        )
    assert len({c for c, _ in scenes.HELD_OUT}) == len({s for _, s in scenes.HELD_OUT}) == len(SHAPES)


def test_every_colour_shape_and_number_is_equally_frequent_in_train():
    drawn = [scenes.scene("train", i) for i in range(4000)]
    for values, found in (
        (COLOURS, Counter(t.colour for s in drawn for t in s.things)),
        (SHAPES, Counter(t.shape for s in drawn for t in s.things)),
        (range(2, 6), Counter(len(s.things) for s in drawn)),
    ):
        shares = np.array([found[v] for v in values]) / sum(found.values())
        np.testing.assert_allclose(shares, 1 / len(values), atol=0.02)


def test_pictures_of_at_most_two_things_show_them_larger_inside_the_frame():
    few = [t for i in range(400) for t in scenes.scene("val", i, objects=(1, 2)).things]
    many = [t for i in range(400) for t in scenes.scene("val", i, objects=(2, 3)).things]
    for size in ("small", "large"):
        one, other = (np.mean([t.radius for t in group if t.size == size]) for group in (few, many))
        assert one / other == pytest.approx(1.45, rel=0.02)
    assert all(t.radius < min(t.x, t.y, 1 - t.x, 1 - t.y) for t in few)
    assert max(t.radius for t in few if t.size == "small") < min(t.radius for t in few if t.size == "large")


def visible_share(scene, thing, size=96) -> float:
    """Share of the pixels of `thing` that no later thing covers."""
    masks = []
    for t in scene.things[scene.things.index(thing) :]:
        mask = np.zeros((size, size), np.uint8)
        masks.append(cv2.fillPoly(mask, [np.rint(outline(t) * size).astype(np.int32)], 1))
    return float((masks[0] * (np.sum(masks[1:], axis=0) == 0)).sum() / masks[0].sum())


def test_overlapping_things_stay_identifiable():
    shares = [visible_share(s, t) for s in (scenes.scene("test", i) for i in range(400)) for t in s.things]
    assert min(shares) > 0.7
    assert any(share < 0.97 for share in shares)  # some do overlap


def test_boxes_are_tight_and_inside_the_picture():
    for i in range(200):
        s = scenes.scene("test", i)
        plain = scenes.render(s._replace(things=()), image_size=64).astype(int)
        for t in s.things:
            x1, y1, x2, y2 = scenes.box(t, image_size=64)
            assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 64
            changed = np.abs(scenes.render(s._replace(things=(t,)), image_size=64) - plain).sum(-1) > 0
            ys, xs = np.nonzero(changed)
            np.testing.assert_allclose(
                (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), (x1, y1, x2, y2), atol=2
            )


def test_exactly_one_proposal_is_right():
    reader = scenes.SceneReferring("val", size=300, image_size=48)
    for i in range(300):
        record = reader.annotation(i)
        boxes = np.array(record["proposals"])
        assert (
            (boxes >= 0).all()
            and (boxes <= 48).all()
            and (boxes[:, :2] < boxes[:, 2:]).all()
            and len(boxes) >= 2
        )
        assert [j for j, b in enumerate(boxes) if iou(tuple(b), record["box"]) >= OVERLAP] == [
            record["target"]
        ]


@pytest.mark.parametrize("size", [32, 48, 64, 97])
def test_pictures_have_the_asked_size_and_their_colours(size):
    s = scenes.scene("test", 3)
    image = scenes.render(s, image_size=size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    top = s.things[-1]._replace(texture="plain")
    pixel = scenes.render(s._replace(things=(top,)), image_size=size)[int(top.y * size), int(top.x * size)]
    assert np.abs(pixel - np.array(RGB[top.colour])).max() <= 12


@pytest.mark.parametrize("n", [1, 5])
def test_the_number_of_objects_can_be_chosen(n):
    for reader in READERS:
        data = reader("train", size=20, objects=(n, n))
        assert all(data.annotation(i) and len(data.scene(i).things) <= n for i in range(20))


@pytest.mark.parametrize(
    ("split", "kwargs", "message"),
    [
        ("tset", {"size": 3}, "did you mean 'test'"),
        ("train", {"size": 0}, "at least 1 example, got 0"),
        ("train", {"size": 3, "image_size": 8}, "at least 32 pixels, got 8"),
        ("train", {"size": 3, "objects": (0, 9)}, "1 <= fewest <= most <= 5"),
    ],
)
@pytest.mark.parametrize("reader", READERS)
def test_wrong_arguments_are_named(reader, split, kwargs, message):
    with pytest.raises(ValueError, match=message):
        reader(split, **kwargs)


def test_positions_outside_a_reader_are_refused():
    reader = scenes.SceneQuestions("val", size=5)
    for i in (-1, 5):
        with pytest.raises(IndexError, match="SceneQuestions with 5 examples"):
            reader.annotation(i)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_contact_sheets_can_be_looked_at(tmp_path, task):
    scenes.save_sheet(tmp_path / "sheet.png", task, count=3, split="val")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[1] >= 400 and sheet.std() > 20
    assert "things on a" in scenes.describe(scenes.scene("val", 0))


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="unknown task 'qa'"):
        scenes.contact_sheet("qa", split="val")
