"""Linear probes: a linear problem is solved, features stay as they are, the rate is chosen on training images alone."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from jaxvl import optim
from jaxvl.active.fitting import Fitter, Stage
from jaxvl.active.probe import Features, ProbeOptions, ProbeRows, Scale, probe, stage_name
from jaxvl.active.probe_features import from_file, mean_words
from jaxvl.data.words import Words
from jaxvl.models.linear_probe import LinearProbe
from jaxvl.sharding import Partition
from jaxvl.tasks.linear_probe import LinearProbeTask
from jaxvl.train import Trainer

ANSWERS = ["a", "b", "c", "d"]
OPTIONS = ProbeOptions(lrs=(0.03, 1e-9), batch_size=16, epochs=20, share=0.2)
DIRECTIONS = np.random.default_rng(9).normal(size=(5, 4))


class Questions:
    """Three questions an image; the answer is the direction on which its features lie furthest."""

    def __init__(self, images, seed=0, wrong=False):
        rng = np.random.default_rng(seed)
        self.row = np.repeat(np.arange(images), 3)
        self.image_ids = self.row + 1000 * seed
        self.image = 3 + 5 * rng.normal(size=(images, 3)).astype(np.float32)
        self.text = rng.normal(size=(3 * images, 2)).astype(np.float32)
        x = np.concatenate([(self.image[self.row] - 3) / 5, self.text], 1)
        self.label = (x @ DIRECTIONS).argmax(1)[:, None].astype(np.int32)
        if wrong:
            self.label = (self.label + 1) % 4

    def __len__(self):
        return len(self.row)

    def array(self, name):
        return {"label": self.label, "label_score": np.ones_like(self.label, np.float32)}[name]

    def annotation(self, i):
        kind = "yes/no" if i % 2 else "other"
        return dict(
            answers=[ANSWERS[self.label[i, 0]]] * 10,
            answer_type=kind,
            question_id=i,
            image_id=int(self.image_ids[i]),
        )

    def features(self):
        return Features(self.text, self.image, self.row)


@functools.cache
def trainer():
    partition = Partition.create(mesh=dict(data=1, model=1), rules="dp")
    tx = optim.make_optimizer(schedule=optim.Table(400), weight_decay=0.0, bounds={})
    return Trainer(LinearProbeTask(LinearProbe(classes=4)), tx, partition=partition, eval_batch_size=16)


def probed(folder, train, held, options=OPTIONS):
    stages = {
        stage_name(lr): Stage(
            stage_name(lr), trainer(), section=dict(lr=lr), schedule=dict(name="constant", lr=lr), batch_size=16,
            epochs=options.epochs, most_steps=400,
        )
        for lr in options.lrs
    }  # fmt: skip
    scale = Scale.of(train.features())
    rows = [ProbeRows(q, q.features(), scale) for q in (train, held)]
    return probe(*rows, fitter=Fitter(folder, stages), answers=ANSWERS, options=options, seed=0, data="x")


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    train, held = Questions(100), Questions(30, seed=1)
    before = train.image.tobytes() + train.text.tobytes()
    found = probed(tmp_path_factory.mktemp("probe"), train, held)
    assert train.image.tobytes() + train.text.tobytes() == before  # probing never changes the features
    return found


def test_a_linear_problem_is_solved_with_the_rate_that_learns_and_one_compiled_step(solved):
    assert solved.lr == 0.03 and solved.accuracy["overall"] > 90
    assert set(solved.accuracy) == {"overall", "yes/no", "other"}
    assert trainer().traces["step"] == 1


def test_the_rate_is_chosen_on_training_images_whatever_the_evaluation_says(solved, tmp_path):
    other = probed(tmp_path, Questions(100), Questions(30, seed=1, wrong=True))
    assert (other.lr, other.tried, other.key) == (solved.lr, solved.tried, solved.key)
    assert other.accuracy["overall"] < 10 and solved.tried[0.03] > solved.tried[1e-9]


def test_a_second_call_trains_nothing(solved, tmp_path, monkeypatch):
    probed(tmp_path, Questions(20), Questions(5, seed=1))
    monkeypatch.setattr(Trainer, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
    probed(tmp_path, Questions(20), Questions(5, seed=1))


def test_features_are_read_only_and_a_product_needs_equal_widths():
    features = Questions(2).features()
    with pytest.raises(ValueError, match="read-only"):
        features.text[0] = 0
    same = np.full((2, 2), 3.0)
    both = Features(same, same[:1], np.zeros(2), fusion="concat+hadamard")
    np.testing.assert_array_equal(both.rows(np.array([1]))[0], [3, 3, 3, 3, 9, 9])
    with pytest.raises(ValueError, match="width 3 and question features of width 2"):
        Features(same, np.zeros((1, 3)), np.zeros(2), fusion="concat+hadamard")


def test_the_scale_is_mean_and_deviation_and_a_constant_feature_stays_finite():
    text = np.random.default_rng(0).normal(2, 3, size=(9000, 2)).astype(np.float32)  # more than one chunk
    text[:, 1] = 7.1
    scale = Scale.of(Features(text))
    np.testing.assert_allclose(scale.mean, text.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(scale.std, [text[:, 0].std(dtype=np.float64), 1.0], rtol=1e-6)


def test_the_mean_word_leaves_out_padding_and_unknown_words():
    words = Words(["red", "dog"], dim=4, length=4)
    found = mean_words(words, np.stack([words.ids("red dog"), words.ids("what")]))
    np.testing.assert_allclose(found[0], words.vectors[3:5].mean(0), rtol=1e-6)
    assert not found[1].any()


def test_a_users_features_are_found_by_id_and_missing_ones_named(tmp_path):
    path = tmp_path / "resnet.npz"
    with pytest.raises(FileNotFoundError, match="resnet.npz"):
        from_file(path, np.array([1]))
    np.savez(path, image_id=[7, 3], features=np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(from_file(path, np.array([3, 7])), [[3, 4], [1, 2]])
    with pytest.raises(ValueError, match="1 of 2 images, e.g. image_id 5"):
        from_file(path, np.array([3, 5]))
    np.savez(path, ids=[1])
    with pytest.raises(ValueError, match="no .npz of 'image_id'"):
        from_file(path, np.array([3]))


@pytest.mark.parametrize("values", [dict(lrs=()), dict(lrs=(0.1, 0.1)), dict(share=1.0), dict(fusion="sum")])
def test_bad_options_are_named(values):
    with pytest.raises(ValueError, match=f"probe.{next(iter(values))}"):
        ProbeOptions(**values)
