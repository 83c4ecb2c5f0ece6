"""Scores of a matcher on held-out pairs: values known of Gaussians, and shuffles that make no true pair."""

from __future__ import annotations

import numpy as np
import pytest

from jaxvl.active import matching
from jaxvl.data.region_source import RegionQuestions, Regions
from jaxvl.data.words import Words


class Provider:
    """Two regions an image that say its id."""

    regions, width, digest = 2, 1, "two"

    def has(self, image_id):
        return True

    def ids(self):
        return np.arange(1000)

    def of(self, image_id):
        return Regions(np.full((2, 1), image_id, np.float32), np.zeros((2, 4), np.float32), np.ones(2, bool))


def held(images=12, each=3, questions=9, seed=0, **kwargs):
    """`each` questions of each image, of `questions` in all: many recur."""
    rng = np.random.default_rng(seed)
    rows = [
        dict(image_id=i, question=f"what {'abcdefghijkl'[q]}", answers=["x"], answer_type=("number", "other")[q % 2])
        for i in range(images)
        for q in rng.choice(questions, each, replace=False)
    ]  # fmt: skip
    words = Words.build([r["question"] for r in rows], length=3, dim=2)
    return RegionQuestions(Provider(), rows, words, ["x"], **kwargs)


def letters(source):
    """The word of each row that tells questions apart."""
    return np.array([source[i]["text"][1] for i in range(len(source))])


def asked(source):
    """Pairs of image and question that the records have."""
    return set(zip(source.image_ids.tolist(), letters(source).tolist(), strict=True))


def gaussian_critic(size, d, rho, seed=0):
    """The best critic's values of true and of independent pairs."""
    x, e, y = np.random.default_rng(seed).standard_normal((3, size, d))

    def critic(x, y):
        z = (rho**2 * (x**2 + y**2) - 2 * rho * x * y) / (2 * (1 - rho**2))
        return (-0.5 * np.log(1 - rho**2) - z).sum(1)

    return critic(x, rho * x + np.sqrt(1 - rho**2) * e), critic(x, y)


@pytest.mark.parametrize(
    ("d", "rho", "accuracy", "rate", "information"),
    [(1, 0.5, 0.592, 0.534, 0.0736), (1, 0.9, 0.758, 0.370, 0.4294), (4, 0.7, 0.809, 0.238, 0.5734)],
)
def test_the_best_critic_of_gaussians_has_the_known_scores_and_is_calibrated(
    d, rho, accuracy, rate, information
):
    true, false = gaussian_critic(400_000, d, rho)
    kinds = np.zeros(400_000, int)
    got = matching.summary(true, false, kinds, kinds, names=("yes/no",))
    np.testing.assert_allclose(got["balanced_accuracy"], accuracy, atol=0.003)
    np.testing.assert_allclose(got["match_rate"], rate, atol=0.004)
    np.testing.assert_allclose(got["information"], information, atol=0.005)
    assert got["ece"] < 0.01 and got["balanced_accuracy/yes_no"] == got["balanced_accuracy"]
    # Twice as sure as it may be: the accuracy is the same, the calibration is gone.
    assert matching.summary(2 * true, 2 * false, kinds, kinds, names=())["ece"] > 0.03 or rho == 0.5


def test_scores_by_hand():
    true, false = np.array([2.0, -1.0, 3.0, 0.0]), np.array([-2.0, 1.0, 0.0, -3.0, -4.0, -5.0])
    got = matching.summary(
        true, false, np.array([0, 0, 2, 2]), np.array([0, 0, 0, 1, 2, 2]), names=("a", "b", "c")
    )
    assert got["balanced_accuracy"] == pytest.approx(0.5 * (2 / 4 + 5 / 6))
    assert got["balanced_accuracy/a"] == pytest.approx(0.5 * (1 / 2 + 2 / 3))
    assert got["balanced_accuracy/c"] == pytest.approx(0.5 * (1 / 2 + 1)) and "balanced_accuracy/b" not in got
    assert got["match_rate"] == pytest.approx(1 / 6)
    loss = np.log1p(np.exp(-true)).mean() + np.log1p(np.exp(false)).mean()
    assert got["information"] == pytest.approx(2 * np.log(2) - loss)


def test_calibration_error_of_certain_values():
    sure = np.full(5, 1e3)
    assert matching.calibration_error(sure, -sure) == pytest.approx(0.0)
    assert matching.calibration_error(-sure, sure) == pytest.approx(1.0)
    assert matching.calibration_error(0 * sure, 0 * sure) == pytest.approx(0.0)


def test_a_shuffle_passes_on_questions_to_images_of_which_they_were_not_asked():
    source = held()
    pairs, seen = asked(source), 0
    for seed in range(6):
        got = matching.shuffled(source, np.random.default_rng(seed))
        for i, letter in enumerate(letters(got)):
            assert (int(got[i]["image_id"]), int(letter)) not in pairs
            assert got[i]["regions"][0, 0] == got[i]["image_id"]
        np.testing.assert_array_equal(got.array("text")[:, 1], letters(got))
        assert len(set(got.questions.tolist())) == len(got)  # each question once at most
        seen += len(got)
    assert seen > len(source)
    with pytest.raises(IndexError):
        got[len(got)]


def test_where_every_question_was_asked_of_every_image_the_way_out_is_named():
    source = held()
    alike = source.subset(np.flatnonzero(source.image_ids == source.image_ids[0]))
    with pytest.raises(ValueError, match="label more images, with questions that are about what each shows"):
        matching.shuffles(alike, np.random.default_rng(0))


def test_a_critic_that_knows_the_pairs_is_perfect_and_four_fixed_shuffles_are_asked():
    source, calls = held(), []
    pairs = asked(source)

    def predict(name, rows):
        calls.append(name)
        known = [(int(rows[i]["image_id"]), int(rows[i]["text"][1])) in pairs for i in range(len(rows))]
        return np.where(known, 4.0, -4.0).astype(np.float32)

    got = matching.held_out_scores(predict, source, np.random.default_rng(0))
    assert got["balanced_accuracy"] == 1.0 and got["match_rate"] == 0.0 and calls == ["match"] * 5
    assert {"balanced_accuracy/number", "balanced_accuracy/other"} <= set(got)
    constant = matching.held_out_scores(lambda n, rows: np.ones(len(rows)), source, np.random.default_rng(0))
    assert constant["balanced_accuracy"] == 0.5 and constant["match_rate"] == 1.0
    again = matching.held_out_scores(lambda n, rows: letters(rows) - 6.0, source, np.random.default_rng(3))
    assert again == matching.held_out_scores(
        lambda n, rows: letters(rows) - 6.0, source, np.random.default_rng(3)
    )


def test_a_fit_that_ends_with_calibration_is_stopped_by_scaled_values(monkeypatch):
    """A cosine never falls below 0 here: its sign says nothing, its size does."""
    both = [matching.Asked(np.array(v), np.zeros(4), np.arange(4)) for v in ([0.8] * 4, [0.1, 0.2, 0.1, 0.2])]
    monkeypatch.setattr(matching, "asked", lambda predict, true, false: both)
    source = held()
    plain = matching.held_out_scores(None, source, np.random.default_rng(0))
    scaled = matching.held_out_scores(None, source, np.random.default_rng(0), calibrate=True)
    assert plain["balanced_accuracy"] == 0.5 and "balanced_accuracy_scaled" not in plain
    assert scaled == plain | {"balanced_accuracy_scaled": 1.0}


def test_one_image_alone_cannot_be_scored():
    with pytest.raises(ValueError, match="label more images"):
        matching.held_out_scores(lambda n, rows: np.ones(len(rows)), held(images=1), np.random.default_rng(0))


def test_what_speaks_against_a_matcher_is_said():
    assert matching.warnings({"match_rate": 0.3, "visual_gap": 0.1}) == [] == matching.warnings({})
    (high,), (low,) = (matching.warnings({"match_rate": rate}) for rate in (0.7, 0.0))
    assert "not calibrated" in high and "collapsed" in low
    assert matching.warnings({"match_rate": 0.7, "match_rate_calibrated": 0.2}) == []
    (blind,) = matching.warnings({"match_rate": 0.3, "visual_gap": 0.015})
    assert "no visual evidence" in blind and "+0.015" in blind
    (turned,) = matching.warnings({"platt_scale": -0.1})
    assert "fall where they should rise" in turned


@pytest.mark.parametrize(("scale", "shift"), [(2.5, 1.0), (0.4, -2.0)])
def test_platt_scaling_undoes_what_was_done_to_the_best_critic(scale, shift):
    true, false = gaussian_critic(400_000, 1, 0.9)
    a, b = matching.platt(scale * true + shift, scale * false + shift)
    np.testing.assert_allclose([a * scale, b + a * shift], [1, 0], atol=0.02)
    before, after = (
        matching.calibration_error(x * true + y, x * false + y)
        for x, y in ((scale, shift), (a * scale, b + a * shift))
    )
    assert before > 0.05 > 0.01 > after


def test_platt_scaling_is_the_least_loss_and_finite_where_the_classes_are_apart():
    true, false = gaussian_critic(60, 1, 0.9, seed=3)

    def loss(a, b):
        up, down = 61 / 62, 1 / 62
        z, y = a * true + b, a * false + b
        return (np.logaddexp(0, z) - up * z).mean() + (np.logaddexp(0, y) - down * y).mean()

    a, b = matching.platt(true, false)
    around = [loss(a + x, b + y) for x in (-0.01, 0, 0.01) for y in (-0.01, 0, 0.01)]
    assert min(around) == around[4]
    a, b = matching.platt(np.full(9, 5e3), np.full(8, -1e3))
    p = 1 / (1 + np.exp(-np.array([5e3, -1e3]) * a - b))
    np.testing.assert_allclose(p, [10 / 11, 1 / 10], atol=1e-6)


class Knows:
    """A trainer whose critic says, noisily, whether the shown image and the question belong together."""

    def __init__(self, pairs, blind=False):
        self.pairs, self.blind, self.task = pairs, blind, self

    def predict(self, params, name, rows):
        given = [rows[i] for i in range(len(rows))]
        shown = [int(r["image_id"] if self.blind else r["regions"][0, 0]) for r in given]
        known = [(i, int(r["text"][1])) in self.pairs for i, r in zip(shown, given, strict=True)]
        jitter = np.random.default_rng(len(rows)).normal(size=len(rows))
        return params * (np.where(known, 1.0, -1.0) + jitter)

    def rescaled(self, params, *, scale, shift):
        return params * scale


def test_a_critic_that_sees_loses_all_with_other_images_and_a_blind_one_nothing():
    source = held(images=40)
    scores = {}
    for blind in (False, True):
        trainer = Knows(asked(source), blind)
        params, scores[blind] = matching.finished(trainer, 1.0, source, np.random.default_rng(0))
        assert params == 1.0 and "ece_calibrated" not in scores[blind]
    assert abs(scores[False]["balanced_accuracy_text"] - 0.5) < 0.1 and scores[False]["visual_gap"] > 0.2
    assert scores[True]["visual_gap"] == 0.0


def test_what_is_kept_of_a_fit_is_calibrated_if_asked():
    source = held(images=60)
    params, scores = matching.finished(
        Knows(asked(source)), 30.0, source, np.random.default_rng(0), calibrate=True
    )
    assert params == pytest.approx(30 * scores["platt_scale"]) and 0.5 < params < 4
    before = matching.held_out_scores(lambda n, s: Knows(asked(source)).predict(30.0, n, s), source,
                                      np.random.default_rng(0))  # fmt: skip
    assert scores["ece_calibrated"] < before["ece"] - 0.05
    turned, scores = matching.finished(
        Knows(asked(source)), -1.0, source, np.random.default_rng(0), calibrate=True
    )
    assert turned == -1.0 and scores["platt_scale"] < 0 and "ece_calibrated" not in scores


def test_other_images_features_are_the_same_for_all_questions_of_an_image():
    source = held()
    passed = matching.shuffled(source, np.random.default_rng(1))
    for rows in (source, passed):
        blind = matching.Unseen(source, rows, np.random.default_rng(0))
        shown = {}
        for i in range(len(blind)):
            row = blind[i]
            assert row["regions"][0, 0] != row["image_id"] == rows[i]["image_id"]
            np.testing.assert_array_equal(row["text"], rows[i]["text"])
            shown.setdefault(int(row["image_id"]), set()).add(float(row["regions"][0, 0]))
        assert all(len(s) == 1 for s in shown.values())


def test_a_shuffle_leaves_an_image_s_own_questions_out_though_its_list_of_keys_is_cut_short():
    source = held(images=3, each=4, questions=12, max_keys=1)
    for seed in range(6):
        got = matching.shuffled(source, np.random.default_rng(seed))
        assert (source.image_ids[got.rows] != source.image_ids[got.questions]).all()
