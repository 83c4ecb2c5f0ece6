"""The model of the whole pool: trained once a repeat, its epochs recorded, found by the runs beside it."""

from __future__ import annotations

import numpy as np
import pytest
from active_world import world

from jaxvl.active import full, loop
from jaxvl.active.folder import RESULT, RunError, runs_in
from jaxvl.active.report.dataset_map import MAP, DatasetMap
from jaxvl.active.report.full import full_accuracy
from jaxvl.active.vocabulary import Scope


def silent(line):
    return None


def test_it_is_trained_once_and_all_methods_of_the_repeat_find_it(tmp_path):
    shared = world(tmp_path, budget=0.25)
    loop.run(shared, tmp_path, methods=["random", "entropy"], repeats=[0, 1], say=silent)
    before = len(shared.fitter.fits)
    first = full.train(shared, tmp_path, 0, say=silent)
    said = []
    assert full.train(shared, tmp_path, 0, say=said.append) == first and len(shared.fitter.fits) == before + 1
    assert len(said) == 1 and "kept" in said[0]
    assert first["n_images"] == 50 and first["n_qas"] == 100 and first["epochs"] == 2
    runs = runs_in(tmp_path)  # the folder of the model is no run
    assert [(r.method, r.repeat, r.full is not None) for r in runs] == [
        ("entropy", 0, True), ("entropy", 1, False), ("random", 0, True), ("random", 1, False),
    ]  # fmt: skip
    assert full_accuracy(runs) == {0: first["acc"]["overall"]}


def test_the_map_is_over_the_epochs_that_were_recorded(tmp_path):
    shared = world(tmp_path, budget=0.25)
    result = full.train(shared, tmp_path, 0, say=silent)
    found = DatasetMap.load(tmp_path / "full" / "r0" / MAP)
    folder = shared.fitter.folder / f"task-{result['model']}" / full.EPOCHS
    p = np.stack([np.load(path) for path in sorted(folder.iterdir())])
    np.testing.assert_allclose(found.confidence, p.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.variability, np.abs(p[0] - p[1]) / 2, rtol=1e-4)
    assert set(found.image_id.tolist()) == set(shared.oracle.ids.tolist())


def test_one_of_another_model_is_trained_anew(tmp_path):
    first = full.train(world(tmp_path), tmp_path, 0, say=silent)
    other = world(tmp_path)
    other.fitter.section = "twice the width"
    assert full.train(other, tmp_path, 0, say=silent)["model"] != first["model"]


def test_one_of_another_pool_is_trained_anew(tmp_path):
    first = full.train(world(tmp_path), tmp_path, 0, say=silent)
    other = full.train(world(tmp_path, images=40), tmp_path, 0, say=silent)
    assert first["n_images"] == 50 and other["n_images"] == 40
    assert (tmp_path / "full" / "r0" / RESULT).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(simulated=False), "nobody has labelled the whole pool"),
        (dict(protocol="test"), "only EvalAI"),
        (dict(vocabulary=Scope(words="strict")), "follow the labels"),
        (dict(warm_start=True), "none before it"),
    ],
)
def test_what_no_round_could_train_is_no_model_of_the_whole_pool(tmp_path, options, message):
    with pytest.raises(RunError, match=message):
        full.train(world(tmp_path, **options), tmp_path, 0, say=silent)
    assert not list(tmp_path.iterdir())
