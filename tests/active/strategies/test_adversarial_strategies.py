"""SRAAL, VAAL and TA-VAAL: what their networks are trained on, and which end of the critic's scale is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from strategy_fakes import WORDS, Predict, labelled, pool

from jaxvl.active.strategies.sraal import SRAAL
from jaxvl.active.strategies.vaal import TAVAAL, VAAL
from jaxvl.active.strategies.vectors import states

RNG = np.random.default_rng(0)


def known(n=4):
    """Labelled images whose ids are not in order."""
    out = labelled(n)
    out.ids = out.ids[::-1].copy()
    return out


def test_sraal_puts_a_question_with_the_state_of_its_image_beside_an_image_with_its_uncertainty():
    images, labels, predict = pool(12), known(), Predict()
    source = SRAAL().data("sraal", predict, images, labels, RNG)
    found, want = states(predict, images, labels), predict("task/uncertainty", images)
    assert len(source) == 12
    for i in range(12):
        row, record = source[i], labels.questions.annotation(i % 8)
        at = labels.ids.tolist().index(record["image_id"])
        np.testing.assert_array_equal(row["state"], found.labelled[at])
        np.testing.assert_array_equal(row["pool_state"], found.pool[i])
        np.testing.assert_array_equal(row["text"], WORDS.ids(record["question"]))
        assert row["hard_label"] == labels.questions.truth(i % 8)[0] and row["text_mask"].sum() >= 3
        assert row["pool_uncertainty"] == np.float32(want[i])


def test_uncertainties_stay_in_the_unit_interval_and_diverged_models_are_refused():
    images = pool(3)
    odd = {int(i): v for i, v in zip(images.ids, (-1e-6, 0.5, 1 + 1e-6), strict=True)}
    source = SRAAL().data("sraal", Predict(task__uncertainty=odd), images, labelled(), RNG)
    assert [float(source[i]["pool_uncertainty"]) for i in range(3)] == [0.0, 0.5, 1.0]
    nan = Predict(sraal__critic=dict.fromkeys(map(int, images.ids), np.nan))
    with pytest.raises(ValueError, match="sraal/critic is not finite for 3 of 3 images"):
        SRAAL()(nan, images, labelled(), 1, RNG)


@pytest.mark.parametrize(("strategy", "name", "rows"), [
    (SRAAL(), "sraal__critic", [5, 4]), (VAAL(), "vaal__critic", [0, 1]), (TAVAAL(), "tavaal__critic", [0, 1]),
])  # fmt: skip
def test_sraal_takes_the_highest_and_vaal_the_lowest_of_its_critic(strategy, name, rows):
    images = pool(6)
    logits = {int(i): float(n) - 3 for n, i in enumerate(images.ids)}
    found = strategy(Predict(**{name: logits}), images, labelled(), 2, RNG)
    assert found.rows.tolist() == rows and found.score[rows[0]] == found.score.max()


def test_the_critic_is_asked_about_the_states_it_was_trained_on():
    seen = {}

    class Noting(Predict):
        def __call__(self, name, source):
            if name.endswith("/critic"):
                seen[name] = [source[i] for i in range(len(source))]
            return super().__call__(name, source)

    images, labels = pool(5), known()
    for strategy in (SRAAL(), VAAL(), TAVAAL()):
        source = strategy.data(strategy.stage, Noting(), images, labels, RNG)
        strategy(Noting(), images, labels, 2, RNG)
        for i, row in enumerate(seen[f"{strategy.stage}/critic"]):
            np.testing.assert_array_equal(row["state"], source[i]["pool_state"])
            assert ("rank" in row) == isinstance(strategy, TAVAAL)
            assert "rank" not in row or row["rank"] == source[i]["pool_rank"]


def test_ta_vaal_trains_a_ranker_first_whose_expected_losses_go_along():
    strategy, images, labels, predict = TAVAAL(), pool(5), known(), Predict()
    assert strategy.needs == ("ranker", "tavaal") and VAAL().needs == ("vaal",)
    assert strategy.data("ranker", predict, images, labels, RNG) is labels.questions
    source = strategy.data("tavaal", predict, images, labels, RNG)
    of_pool, of_labelled = predict("ranker/loss", images), predict("ranker/loss", labels)
    for i in range(5):
        assert source[i]["pool_rank"] == of_pool[i] and source[i]["rank"] == of_labelled[i % 4]
    found = strategy(predict, images, labels, 2, RNG)
    np.testing.assert_array_equal(found.notes["expected_loss"], of_pool)
    assert (
        not {name for name, _ in Predict().calls}
        and "rank" not in VAAL().data("vaal", predict, images, labels, RNG)[0]
    )
