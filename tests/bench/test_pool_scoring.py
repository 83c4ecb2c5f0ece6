"""The bench of the pool scorer at its smallest sizes: same scores as pair by pair, and what its files hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxvl.config import override

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import cached_inference
import pool_acceptance
import pool_curve
import pool_scoring
import selection_times

TINY = ["--size", "tiny", "--rounds", "2", "--subset", "4", "--block", "32", "--pairs", "64"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    args = pool_scoring.parse(TINY)
    features = pool_scoring.mapped(tmp_path_factory.mktemp("pool") / "f.npy", pool_scoring.SIZES["tiny"])
    return args, pool_scoring.Bench(args, features, patterns=12)


def test_naive_scores_pair_by_pair_what_the_scorer_scores_in_blocks(bench):
    args, made = bench
    found = made.score(40)
    np.testing.assert_allclose(found["score"][:4], made.naive(4), rtol=1e-4)
    assert 0.05 < found["n_match"].mean() / 12 < 0.5
    row = pool_scoring.against_naive(args, made)
    assert row["score_error"] < 1e-4 and 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_pruned_selects_what_exact_selects(bench):
    from jaxvl.active.strategies.base import top

    exact, pruned = (bench[1].score(300, mode)["score"] for mode in ("exact", "pruned"))
    ids = np.arange(300)
    assert top(exact, ids, 6).tolist() == top(np.nan_to_num(pruned, nan=-1), ids, 6).tolist()


def test_images_share_the_rows_of_the_mapped_file(bench):
    pool = bench[1].request(10_000, "exact").images
    rows = len(pool.features)
    assert isinstance(pool.features, np.memmap) and rows < 10_000
    np.testing.assert_array_equal(pool[3]["regions"], pool[3 + rows]["regions"])
    assert pool.subset(np.array([5, 2])).ids.tolist() == [5, 2]


def test_a_case_in_a_process_of_its_own_and_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(cached_inference, "use_processors", lambda threads: None)  # other tests want theirs
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    out = tmp_path / "pool.json"
    flags = ["--images", "100", "--patterns", "12", "--mode", "pruned", "--threads", "1"]
    pool_scoring.main([*TINY, "--rounds", "0", *flags, "--out", str(out)])
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert found["schema"] == "jaxvl.pool_scoring/1" and (row["images"], row["mode"]) == (100, "pruned")
    assert row["peak_gib"] > row["mapped_gib"] > 0 and row["images_per_second"] > 0
    assert row["programs"] == {"image": 1, "bank": 1, "matches": 1, "pairs": 1}


def test_selections_are_timed_with_the_models_of_the_real_config(tmp_path, monkeypatch):
    monkeypatch.setattr(cached_inference, "use_processors", lambda threads: None)
    config = selection_times.configured("tiny", 2)
    override(config, {"sharding.mesh.data": 1})  # programs for eight devices compile slowly
    monkeypatch.setattr(selection_times, "configured", lambda scale, steps: config)
    out = tmp_path / "times.json"
    flags = "--strategies --scale tiny --steps 2 --repetitions 3 --method random --method least_conf"
    pool_scoring.main([*flags.split(), "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["schema"] == selection_times.SCHEMA and found["pool"] == 60 - 18 and found["selected"] == 1
    assert [row["strategy"] for row in found["rows"]] == ["random", "least_conf"]
    for row in found["rows"]:
        assert len(row["seconds"]) == 3 and row["min"] <= row["median"] <= row["max"]
        assert row["fit_seconds"] == 0  # neither trains more than the scored model
    assert found["rows"][0]["mean"] < found["rows"][1]["mean"]


def test_a_timed_selection_reads_no_scores_of_the_one_before():
    pool = type("Pool", (), {"ids": np.arange(50), "cache": "shards", "__len__": lambda self: 50})()
    asked = []

    def strategy(ask, pool, labelled, budget, rng):
        asked.append(pool.cache)
        return SimpleNamespace(rows=np.arange(budget))

    one = SimpleNamespace(
        pool=lambda round: pool, labelled=lambda round: None, strategy=strategy, ask=None, method="x"
    )
    select, images = selection_times.selecting(one, 0)
    assert len(select()) == len(select()) == 1 and images == 50 and asked == [None, None]


def test_ways_of_scoring_are_compared_with_the_oracle(tmp_path, monkeypatch):
    monkeypatch.setattr(cached_inference, "use_processors", lambda threads: None)
    monkeypatch.setattr(pool_acceptance, "CAPS", (2,))
    out = tmp_path / "acceptance.json"
    pool_scoring.main([*TINY, "--accept", "--images", "60", "--patterns", "12", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["schema"] == pool_acceptance.SCHEMA and (found["images"], found["taken"]) == (60, 1)
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == ["float32", "other blocks", "pruned", "bfloat16", "k_max=2"]
    assert all(row["failures"] == [] for row in rows.values() if row["exact"])
    assert rows["float32"]["critic"] < 1e-4 < rows["bfloat16"]["critic"] and rows["k_max=2"]["flips"] == 0


def test_a_line_of_the_table_has_rates_of_the_mean_and_fits_apart():
    fits = {"vqme": 2.0, "vaue": 1.5}
    row = selection_times.row("ccrl", np.array([1.0, 2.0, 6.0]), fits, images=300, selected=6)
    assert (row["mean"], row["median"], row["min"], row["max"]) == (3, 2, 1, 6)
    assert (row["selected_per_second"], row["images_per_second"], row["fit_seconds"]) == (2, 100, 3.5)
    assert row["fits"] == fits


def test_every_strategy_is_timed_unless_some_are_named():
    from jaxvl.active.strategies import STRATEGIES

    methods = selection_times.chosen(None, selection_times.configured("tiny", 2))
    assert set(STRATEGIES) <= set(methods) and {"ccrl_ab", "match_all", "count_only"} <= set(methods)
    assert selection_times.chosen(["badge"], None) == ["badge"]


@pytest.mark.parametrize("text", ["0", "10,-1"])
def test_sizes_are_positive(text, capsys):
    with pytest.raises(SystemExit):
        pool_scoring.parse(["--images", text])
    assert "expected positive numbers" in capsys.readouterr().err


def test_time_over_patterns_is_a_line_of_least_relative_error():
    line = pool_curve.linear([64, 256, 1024], [1e-3 + 2e-6 * q for q in (64, 256, 1024)])
    assert line["start"] == pytest.approx(1e-3) and line["slope"] == pytest.approx(2e-6)
    assert line["off"] < 1e-9
    assert pool_curve.linear([1, 2, 3], [1.0, 2.2, 3.0])["off"] > 0.03


def test_the_curve_has_every_bank_and_cap(capsys):
    args = pool_scoring.parse([*TINY[:2], "--curve", "--images", "40", "--patterns", "80", "--rounds", "1"])
    features = np.zeros((64, 4, 6), np.float16) + np.random.default_rng(0).normal(size=(64, 4, 6)).astype(
        np.float16
    )
    found = pool_curve.run(args, lambda q: pool_scoring.Bench(args, features, q))
    assert [(r["patterns"], r["k_max"]) for r in found["rows"]] == [
        (64, None),
        (80, None),
        (80, 4),
        (80, 16),
        (80, 64),
    ]
    assert all(r["images_per_second"] == pytest.approx(40 / r["seconds"]) for r in found["rows"])
    assert found["rows"][1]["ratio"] == 1 and found["rows"][2]["ratio_low"] > 0
    with pytest.raises(SystemExit, match="a line needs two banks"):
        pool_curve.run(pool_scoring.parse([*TINY[:2], "--patterns", "20"]), None)
    assert "120000 images: 64 patterns" in capsys.readouterr().out
