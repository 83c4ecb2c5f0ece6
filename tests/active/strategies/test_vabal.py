"""VaB-AL: groups of answers, Bayes' rule by hand, and a score that no block or order changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from strategy_fakes import WORDS, C, J, Predict, labelled, pool

from jaxvl.active.strategies.vabal import VaBAL, accuracies, answer_groups, bayes, own_questions
from jaxvl.data.region_source import RegionImages, RegionQuestions

RNG = np.random.default_rng(0)


def known(n=3, questions=5):
    """Labelled images with 1 to `questions` questions each, in mixed order, of which one has no label."""
    out = labelled(n)
    asked = ["is there a cat", "how many dogs", "what is it", "is there a dog", "what is there"][:questions]
    records = [
        dict(image="x", image_id=i, question=q, question_id=0, answers=[a] * 10, answer_type="other")
        for k, i in enumerate(out.ids.tolist())
        for q, a in list(zip(asked, ["yes", "1", "a dog", "no", "a zebra"], strict=True))[
            : max(1, questions - 2 * k)
        ]
    ]
    records = [records[i] for i in np.random.default_rng(1).permutation(len(records))]
    out.questions = RegionQuestions(
        out.provider, records, WORDS, ["yes", "no", "1", "a dog", "a cat"], max_keys=8
    )
    return out


def test_frequent_answers_have_groups_of_their_own_and_types_share_the_rest():
    got = answer_groups(np.array([3, 9, 0, 3, 1]), kinds=2, groups=4)
    np.testing.assert_array_equal(got, [[1, 0, 2, 2, 2], [1, 0, 3, 3, 3]])  # of equals, the smaller class
    everything = answer_groups(np.array([1, 2]), kinds=3, groups=100)
    np.testing.assert_array_equal(everything, [[1, 0]] * 3)
    with pytest.raises(ValueError, match="groups=3: must be more than the 3 answer types"):
        answer_groups(np.ones(5), kinds=3, groups=3)


def test_accuracies_count_one_right_and_one_wrong_more():
    got = accuracies(np.array([0, 0, 0, 2]), np.array([0, 0, 1, 0]), groups=3)
    np.testing.assert_allclose(got, [3 / 5, 1 / 2, 1 / 3])


def test_the_bayes_score_by_hand_and_in_the_unit_interval():
    nll, prior, accuracy = np.array([[1.0, 3.0, 0.0]]), np.array([0.25, 0.75, 0.0]), np.array([0.9, 0.1, 0.5])
    weights = [0.25 * np.exp(-0.5), 0.75 * np.exp(-1.5)]
    want = 1 - (weights[0] * 0.9 + weights[1] * 0.1) / sum(weights)
    np.testing.assert_allclose(bayes(nll, prior=prior, accuracy=accuracy, scale=2.0), [want])
    rng = np.random.default_rng(0)
    far = bayes(
        1e4 * rng.random((500, 7)), prior=rng.dirichlet(np.ones(7)), accuracy=rng.random(7), scale=1.0
    )
    assert np.isfinite(far).all() and far.min() >= 0 and far.max() <= 1
    np.testing.assert_allclose(
        bayes(nll, prior=prior, accuracy=np.ones(3), scale=2.0), [0.0], atol=1e-12
    )  # q sums to 1


def test_every_labelled_question_is_asked_of_its_image_once():
    labels = known()
    found = []
    for images, rows in own_questions(labels):
        assert rows.shape == (len(images), J)
        for i in range(len(images)):
            row = images[i]
            for j, at in enumerate(rows[i].tolist()):
                record = labels.questions.annotation(at) if at >= 0 else None
                want = np.zeros(6, int) if record is None else WORDS.ids(record["question"])
                np.testing.assert_array_equal(row["asked"][j], want)
                assert record is None or row["image_id"] == record["image_id"]
                found += [at] if at >= 0 else []
    assert Counter(found) == Counter(range(len(labels.questions)))


def test_training_rows_are_an_images_pairs_with_the_group_of_the_predicted_answer():
    images, labels, predict = pool(7), known(), Predict()
    source = VaBAL(groups=6, block=3).data("vabal", predict, images, labels, RNG)
    states, probs = predict("task/states", images), predict("task/probs", images)
    counts = np.bincount(labels.questions.array("hard_label") + 1, minlength=C + 1)[1:]
    group_of = answer_groups(counts, kinds=3, groups=6)
    rng, seen = np.random.default_rng(0), set()
    assert len(source) == 7 and source[4]["group"].shape == (6,)
    for _ in range(40):
        row = source.augmented(4, rng)
        pairs = [np.stack([states[p][4, j] for p in ("image", "language", "fused")]) for j in range(J)]
        j = int(np.argmin([np.abs(row["states"] - pair).max() for pair in pairs]))
        np.testing.assert_allclose(row["states"], pairs[j], atol=2e-3)  # kept in 16 bits
        assert row["group"].argmax() == group_of[j, probs[4, j].argmax()] and row["group"].sum() == 1
        seen.add(j)
    assert seen == set(range(J)) and int(source[4]["image_id"]) == images.ids[4]


class Few(Predict):
    """Evidence about 6 groups only, so that several images have the same."""

    def __call__(self, name, source):
        out = super().__call__(name, source)
        return {k: v[:, :6] for k, v in out.items()} if name == "vabal/evidence" else out


def brute(strategy, predict, images, labels):
    """The score by loops over single images; the fake's evidence depends on the image alone."""
    one = lambda ids: predict("vabal/evidence", RegionImages(images.provider, [ids]))  # noqa: E731
    prior, right, said, all_nll = np.zeros(6), np.ones(6), np.full(6, 2.0), []
    for i in images.ids:
        prior[one(i)["norms"].argmin()] += 1 / len(images)
    truth, group_of = labels.questions.array("hard_label"), strategy._groups(labels.questions)
    for q, i in enumerate(labels.questions.image_ids):
        found = one(i)
        all_nll.append(found["nll"][0])
        if truth[q] >= 0:
            said[found["norms"].argmin()] += 1
            right[found["norms"].argmin()] += found["norms"].argmin() == group_of[2, truth[q]]
    scale, out = np.std(all_nll), []
    for i in images.ids:
        w = prior * np.exp(-one(i)["nll"][0] / scale)
        out.append(
            1 - (right / said) @ (w / w.sum()) if strategy.form == "bayes" else 1 - prior @ one(i)["nll"][0]
        )
    return np.array(out)


@pytest.mark.parametrize("form", ["bayes", "as_released"])
def test_the_score_is_that_of_a_double_loop_whatever_the_blocks(form):
    images, labels = pool(9), known(12, 5)
    for block in (2, 4096):
        strategy = VaBAL(form=form, groups=6, block=block)
        found = strategy(Few(), images, labels, 4, RNG)
        np.testing.assert_allclose(found.score, brute(strategy, Few(), images, labels), rtol=1e-5)
        assert found.rows.tolist() == np.lexsort((images.ids, -found.score))[:4].tolist()
    assert np.ptp(found.score) > 0.02  # images differ


def test_wrong_options_and_models_of_other_groups_are_named():
    with pytest.raises(ValueError, match=r"vabal.form='paper'.*as_released"):
        VaBAL(form="paper")
    with pytest.raises(ValueError, match="knows 100 groups of answers, the strategy has groups=20"):
        VaBAL(groups=20)(Predict(), pool(3), labelled(), 1, RNG)
