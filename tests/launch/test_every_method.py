"""launch/main.py with every method that is more than a function of the task model: a real round, smallest models.

What its samplers train, what they read and what is written down must fit together. Whether it chooses well is not
looked at.
"""

from __future__ import annotations

import json

import pytest
from tiny_run import ROOT, launch

from jaxvl.active.folder import RunFolder

pytestmark = pytest.mark.slow
# Method -> the models that it trains beside the task model.
TRAINED = {
    "bald": (), "coreset": (), "badge": (), "mocu": (), "cdal": (), "ll": ("ll",), "sraal": ("sraal",),
    "vabal": ("vabal",), "vaal": ("vaal",), "tavaal": ("ranker", "tavaal"), "ccrl": ("joint",),
}  # fmt: skip
UNSCORED = ("coreset", "badge", "cdal")  # what they take depends on what they have taken
SMALLEST = (
    "active.pool.images=24", "active.val.images=4", "active.scoring.block=16", "active.scoring.pairs=64",
    "active.asked=2", "stages.task.task.passes=2", "stages.task.batch_size=16", "stages.joint.batch_size=16",
    *(f"stages.{name}.model.depth=1" for name in ("task", "ll", "ranker")),
    *(f"stages.{name}.epochs=1" for name in ("sraal", "vaal", "tavaal", "vabal", "joint")),
)  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A workdir of all of them; CCRL with one network as matcher and answer model, calibrated."""
    workdir = tmp_path_factory.mktemp("active") / "run"
    arg = ",".join([*TRAINED, "ablation=encoders=shared+calibrate", "scale=tiny"])
    config = f"--config={ROOT / 'configs/ccrl.py'}:{arg}"
    ended = launch("launch/main.py", config, f"--workdir={workdir}", *(f"--config.{o}" for o in SMALLEST))
    assert ended.code == 0, ended.err
    return workdir


@pytest.mark.parametrize("method", TRAINED)
def test_a_real_round(ran, method):
    one = RunFolder(ran / method / "r0")
    assert [m["n_images"] for m in one.rounds] == [7, 14] and one.problems() == []
    assert tuple(one.events(0)["FITTED"].data["models"]) == TRAINED[method]
    rows = one.selection(0)
    assert len(rows) == 7 and all((row["score"] is None) == (method in UNSCORED) for row in rows)
    assert all(abs(row["score"] or 0.0) < 1e9 for row in rows)


def test_the_network_that_is_both_is_scored_and_calibrated_as_a_matcher(ran):
    (found,) = [json.loads(p.read_text()) for p in (ran / "models").glob("joint-*/result.json")]
    assert {"balanced_accuracy", "ece", "platt_scale", "ece_calibrated"} <= set(found["held_out"])
    one = RunFolder(ran / "ccrl" / "r0")
    assert all(row["n_match"] >= 1 and row["contributors"][0]["answer"] for row in one.selection(0))
