"""Which questions are asked of images: shared, matched or true ones; models that these and other choices call for."""

from __future__ import annotations

import numpy as np
import pytest
from active_world import FakeStage, FakeTrainer, world

from jaxvl.active import proposers
from jaxvl.active.folder import PHASES, RunFolder
from jaxvl.active.oracle import Oracle, OracleError
from jaxvl.active.report.checks import cautions
from jaxvl.active.rounds import Run
from jaxvl.active.strategies.classics import Entropy, Random
from jaxvl.active.strategies.learning_loss import LearningLoss
from jaxvl.active.world import Options
from jaxvl.data.words import Words

RECORDS = [
    {"question": "is it red", "answer_type": "yes/no"}, {"question": "is it big", "answer_type": "yes/no"},
    {"question": "how many", "answer_type": "number"}, {"question": "how odd", "answer_type": "other"},
]  # fmt: skip


def drive(folder, method="entropy", *, until=None, **options):
    """A run to its end, or to a phase; matched patterns follow from image ids and the matcher."""
    one = world(folder, images=24, **options)
    for name in ("sampler", "vqme"):
        one.fitter.stages[name] = FakeStage(FakeTrainer(len(one.answers)))

    def matched(params, request):
        start = int(params["vqme"][:4], 16) + request.images.ids
        return (start[:, None] + np.arange(request.k_max)) % len(request.text)

    one.engines = {proposers.MATCHED: matched}
    with Run(one, method=method, repeat=0, folder=folder / method / "r0", say=lambda line: None) as run:
        outcome = run.advance(until=until)
        return outcome, run


def test_matched_questions_are_each_images_own_also_of_labelled_ones(tmp_path):
    _, run = drive(tmp_path, until="FITTED", proposer="bank_matched")
    pool, labelled = run.pool(0), run.labelled(0)
    start = int(run.keys["vqme"][:4], 16)
    for images in (pool, labelled):
        for i, image_id in enumerate(images.ids):
            at = (start + image_id + np.arange(4)) % len(pool.bank)
            np.testing.assert_array_equal(images[i]["asked"], pool.bank.text[at])
            np.testing.assert_array_equal(images[i]["asked_kind"], pool.bank.kinds[at])
    assert "asked_shared" not in pool[0] and run.pool(0) is pool


def test_visible_questions_are_the_images_true_ones_padded_and_cut():
    words = Words.build(["is it red", "how many", "what"])
    true = {7: ["is it red"], 9: ["how many", "what", "how", "is it"]}
    about = proposers.About(None, None, 3, RECORDS, None, lambda ids: [true[i] for i in ids], words)

    class Images:
        ids = np.array([7, 9])

        def __len__(self):
            return 2

    text, kinds = proposers.visible(Images(), about)
    assert text.shape == (2, 3, 14)
    assert [[words.text(q) for q in row] for row in text] == [
        ["is it red", "", ""],
        ["how many", "what", "how"],
    ]
    assert kinds.tolist() == [[0, 0, 0], [1, 0, 2]]


def test_the_kind_of_a_visible_question_is_that_of_questions_that_open_alike():
    guess = proposers.Guess(RECORDS)
    asked = ["Is it far?", "Is he?", "how many dogs", "how", "Who?", ""]
    assert [guess(q) for q in asked] == [0, 0, 1, 2, 0, 0]  # "how": a tie, the later kind; "who": as most


def test_the_oracle_shows_questions_but_no_answers_and_labels_nothing():
    oracle = Oracle([{"image_id": 1, "question": "a?", "answers": ["b"]}], pool=[1, 2])
    assert oracle.questions([2, 1]) == [[], ["a?"]]
    assert len(oracle.label([1], selected={1})) == 1
    with pytest.raises(OracleError, match="image 3 is not in the pool"):
        oracle.questions([3])


@pytest.mark.parametrize("proposer", ["bank_matched", "visible"])
def test_metrics_protocol_and_report_say_which_questions_were_asked(tmp_path, proposer):
    drive(tmp_path, proposer=proposer)
    one = RunFolder(tmp_path / "entropy" / "r0")
    said = one.rounds[-1]["proposer"]
    assert said["name"] == proposer and said["asked"] == 4 and said["transductive"] == (proposer == "visible")
    assert one.protocol["proposer"] == f"{proposer}/4"
    assert cautions([one, one]) == [f"Questions by {proposer}/4. {said['caution']}"]
    assert ("ransductive" in said["caution"]) == (proposer == "visible")


@pytest.mark.parametrize("phase", PHASES)
def test_matched_questions_and_own_models_are_the_same_after_any_stop(tmp_path, phase):
    options = dict(proposer="bank_matched", share_task_model="never", warm_start=True)
    drive(tmp_path / "a", **options)
    while drive(tmp_path / "b", until=phase, **options)[0].state != "finished":
        pass
    found = [RunFolder(tmp_path / x / "entropy" / "r0") for x in "ab"]
    assert found[0].selection(2) == found[1].selection(2) != []
    keys = [
        [m["key"] for e in f.ledger.events if e.kind == "FITTED" for m in e.data["models"].values()]
        for f in found
    ]
    assert len(set(keys[0])) == len(keys[0]) > 1 and keys[0] == keys[1]


def test_models_are_trained_only_for_strategies_that_ask_them():
    never = Options(share_task_model="never", proposer="bank_matched")
    assert never.needs(Entropy()) == ("sampler", "vqme")
    assert never.needs(Random()) == () and never.needs(LearningLoss()) == ("vqme", "ll")
    assert Options().needs(Entropy()) == ()


def test_a_model_that_is_not_shared_is_what_the_strategy_asks_and_each_method_has_its_own(tmp_path):
    shared, apart = drive(tmp_path / "a")[1], drive(tmp_path / "b", share_task_model="never")[1]
    source = shared.labelled(0)
    shared._load_all(0), apart._load_all(0)
    assert shared.keys["task"] == apart.keys["task"] != apart.keys["sampler"]
    own = apart.predict("sampler/entropy", source)
    np.testing.assert_array_equal(apart.ask("task/entropy", source), own)
    assert (apart.predict("task/entropy", source) != own).all()
    np.testing.assert_array_equal(shared.ask("task/entropy", source), shared.predict("task/entropy", source))
    apart.method = "another"
    assert apart._seed("sampler", 0) != drive(tmp_path / "b", share_task_model="never")[1]._seed("sampler", 0)


def test_a_warm_start_begins_at_the_model_of_the_round_before(tmp_path):
    run = drive(tmp_path, warm_start=True)[1]
    calls = run.world.fitter.starts
    events = [e for e in run.ledger.events if e.kind == "TRAINED"]
    keys = [e.data["model"]["key"] for e in events]
    assert calls == [None, *keys[:-1]]
