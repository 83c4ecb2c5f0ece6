"""Shares of full-data accuracy, paired by repeat, and the cells of a dataset map that picks come from."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fake_runs import FakeRun, study
from PIL import Image

from jaxvl.active.report import dataset_map, full, report
from jaxvl.active.report.dataset_map import CELLS, MAP, DatasetMap
from jaxvl.active.report.statistics import curves
from jaxvl.atomic import write_file, write_json


def stored(run, accuracy, root, *, model="m", **protocol):
    """Give a run a model of the whole pool."""
    run.full = root / "full" / f"r{run.repeat}"
    content = {"acc": {"overall": accuracy}, "protocol": {"pool": "abc", **protocol}, "model": model}
    write_json(run.full / "result.json", content)
    return run


def a_map(images=500, each=3, seed=0):
    """Images below 100 are hard, the next 100 ambiguous, the others easy."""
    image = np.repeat(np.arange(images), each)
    rng = np.random.default_rng(seed)
    sure = np.where(image < 100, 0.05, np.where(image < 200, 0.5, 0.9)) + 0.04 * rng.random(len(image))
    moves = np.where((image >= 100) & (image < 200), 0.3, 0.02) + 0.01 * rng.random(len(image))
    return DatasetMap(np.arange(len(image)), image, sure.astype(np.float32), moves.astype(np.float32))


def test_confidence_and_variability_are_over_epochs():
    got = DatasetMap.of_epochs(np.arange(2), np.arange(2), np.array([[0.2, 0.9], [0.4, 0.9]]))
    np.testing.assert_allclose(got.confidence, [0.3, 0.9], rtol=1e-6)
    np.testing.assert_allclose(got.variability, [0.1, 0.0], atol=1e-7)


def test_a_third_of_the_pool_is_ambiguous_and_the_rest_is_easy_or_hard():
    got = DatasetMap(
        np.arange(6),
        np.arange(6),
        np.array([0.9, 0.1, 0.9, 0.1, 0.6, 0.4]),
        np.array([0.3, 0.4, 0.1, 0.1, 0.0, 0.0]),
    )
    assert [CELLS[c] for c in got.cells()] == ["ambiguous", "ambiguous", "easy", "hard", "easy", "hard"]


def test_shares_are_those_of_the_questions_of_the_picks():
    found = a_map()
    got = dataset_map.share(found, found.of([0, 1, 2, 400]))
    assert got.cells == pytest.approx((0.25, 0, 0.75)) and got.confidence == pytest.approx(0.28, abs=0.02)


def test_questions_are_found_by_their_own_ids_where_they_are_the_items():
    assert np.flatnonzero(a_map().of([0, 7], "question_id")).tolist() == [0, 7]
    assert np.flatnonzero(a_map().of([7])).tolist() == [21, 22, 23]


def test_runs_of_two_models_of_the_whole_pool_are_not_one_comparison(tmp_path):
    a, b = (stored(FakeRun(m, 0), 70.0, tmp_path / m, model=m) for m in ("random", "ccrl"))
    with pytest.raises(ValueError, match="another model of the whole pool"):
        full.full_accuracy([a, b])


def test_a_whole_pool_that_nobody_has_scored_has_no_accuracy():
    """Under the protocol "test", before EvalAI has answered."""
    run = FakeRun("random", 0)
    rounds = [dict(r) for r in run.rounds]
    rounds[-1] |= {"fraction": 1.0, "acc": {}}
    run.rounds = rounds
    assert full.full_accuracy([run]) == {}


def test_maps_are_kept_whole(tmp_path):
    write_file(tmp_path / MAP, a_map().save)
    for mine, kept in zip(a_map(), DatasetMap.load(tmp_path / MAP), strict=True):
        np.testing.assert_array_equal(mine, kept)


def test_ratios_are_paired_by_repeat_and_absent_ones_are_said(tmp_path):
    runs = study(methods={"random": 0.0}, repeats=2, rounds=3, noise=0.0)
    assert full.ratio(curves(runs), full.full_accuracy(runs), "random") == "n/a"
    assert "n/a: no model of the whole pool" in "".join(full.full_parts(curves(runs), {}))
    stored(runs[0], 80.0, tmp_path)
    last = runs[0].rounds[-1]["acc"]["overall"]
    known = full.full_accuracy(runs)
    assert known == {0: 80.0}
    assert full.ratio(curves(runs), known, "random") == f"{100 * last / 80:.1f} %, 1 of 2 repeats"
    stored(runs[1], 40.0, tmp_path)
    both = 100 * np.mean([last / 80, runs[1].rounds[-1]["acc"]["overall"] / 40])
    assert full.ratio(curves(runs), full.full_accuracy(runs), "random") == f"{both:.1f} %"


def test_images_needed_for_a_share_are_interpolated_and_never_extrapolated(tmp_path):
    run = stored(FakeRun("random", 0, rounds=2), 100.0, tmp_path)
    run.rounds[0]["acc"]["overall"], run.rounds[1]["acc"]["overall"] = 88.0, 92.0
    text = "".join(full.full_parts(curves([run]), full.full_accuracy([run])))
    assert "<td class=n>6.0 %</td>" in text  # half way from 4 to 8 % of the images
    assert "<td class=n>n/a</td>" in text  # 95 % is not reached


def test_a_run_that_labels_the_whole_pool_needs_no_other_model():
    run = FakeRun("random", 0, rounds=2, size=40)
    assert full.full_accuracy([run]) == {0: run.rounds[-1]["acc"]["overall"]}


def test_a_model_of_another_pool_is_refused(tmp_path):
    run = stored(FakeRun("random", 0), 70.0, tmp_path, seed=5)
    with pytest.raises(ValueError, match=r"of another protocol than random, repeat 0 \(seed differ\)"):
        full.full_accuracy([run])


def test_picks_are_compared_with_the_pool_on_the_page_and_in_a_figure(tmp_path):
    runs = study(methods={"random": 0, "ccrl": 1}, repeats=2, rounds=3, root=tmp_path)
    for run in runs:
        write_file(stored(run, 70.0, tmp_path).full / MAP, a_map().save)
    shares = full.picked_shares(runs)
    assert list(shares) == ["whole pool", "random", "ccrl"]
    assert shares["whole pool"].cells[1] == pytest.approx(1 / 3, abs=0.01)
    each = [
        dataset_map.share(a_map(), a_map().of(run._ids[20:])).cells for run in runs if run.method == "random"
    ]
    assert len(each) == 2 and shares["random"].cells == pytest.approx(np.mean(each, 0).tolist())
    text = report(runs, tmp_path / "report").read_text()
    assert "Dataset map of what was picked" in text and "whole pool" in text and "70.00 % in repeat 1" in text
    with Image.open(io.BytesIO(full.map_figure(a_map(), shares, repeat=0))) as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
