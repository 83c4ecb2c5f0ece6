"""Tables of learning curves: what is run, what is read off the runs, and what is said of the claimed orders."""

from __future__ import annotations

import csv
import dataclasses
import json
from types import SimpleNamespace

import pytest
from active_world import world
from tiny_run import ROOT, config_file

from jaxvl.active import loop
from jaxvl.config import ConfigError, override
from jaxvl.reproduce import active, ccrl
from jaxvl.reproduce.active import ActiveRow, ActiveTable, Plan, fill, fill_times
from jaxvl.reproduce.tables import Claim, Data

SPEC = ActiveTable(
    "ccrl/test", "A test", "nowhere",
    (ActiveRow("E", "entropy", (1.5,)), ActiveRow("R", "random", (None,))), (0.25, 0.5),
    paper=("printed",), claims=(Claim("E", "R"),), data={"scenes": Data("scenes", "configs/ccrl.py")},
)  # fmt: skip


def plan(folder, repeats=(0, 1), **kwargs):
    return Plan(folder, ROOT, "tiny", "scenes", repeats, **kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Both methods and repeats, run in the folder that the table reads."""
    folder = tmp_path_factory.mktemp("tables")
    where = active.folder(plan(folder))
    loop.run(
        world(where, images=48), where, methods=["random", "entropy"], repeats=[0, 1], say=lambda line: None
    )
    return folder


def test_the_command_names_methods_scale_repeats_and_what_the_table_overrides(tmp_path):
    spec = dataclasses.replace(SPEC, overrides={"active.budget": 0.4})
    command = active.argv(spec, plan(tmp_path), ["entropy", "random"])
    assert command[2].endswith("configs/ccrl.py:entropy,random,scale=tiny")
    assert command[-2:] == ["--config.active.budget=0.4", "--config.active.only=(0, 1)"]


def test_cells_are_means_over_repeats_at_the_labelled_share(finished):
    path = fill(SPEC, plan(finished), report_only=True)
    rows = list(csv.DictReader(path.with_suffix(".csv").open()))
    assert {(r["row"], r["column"]) for r in rows} == {(m, c) for m in "ER" for c in ("25 %", "50 %", "mean")}
    runs = {(one.method, one.repeat): one for one in active.runs_in(active.folder(plan(finished)))}
    at = {m["n_images"]: m["acc"]["overall"] for m in runs["entropy", 1].rounds}
    found = {(r["row"], r["column"], r["repeat"]): float(r["value"]) for r in rows}
    assert found["E", "25 %", "1"] == pytest.approx(at[12], abs=1e-4)
    assert found["E", "mean", "1"] == pytest.approx((at[12] + at[18] + at[24]) / 3, abs=1e-4)
    text = path.read_text()
    assert "E > R (25 %)" in text and "2 repeats" in text and "| 1.50 |" in text


def test_nothing_is_said_of_the_share_all_start_from_nor_twice_of_one_round(finished):
    spec = dataclasses.replace(SPEC, shares=(0.125, 0.25))
    lines = fill(spec, plan(finished), report_only=True).read_text().splitlines()
    assert [x.split(":")[0] for x in lines if x.startswith("- E > R")] == ["- E > R (25 %)", "- E > R (mean)"]
    one_round = [SimpleNamespace(rounds=run.rounds[:2], method=run.method, repeat=run.repeat, position=run.position)
                 for run in active.runs_in(active.folder(plan(finished)))]  # fmt: skip
    assert [x.split(":")[0] for x in active.orderings(spec, one_round)] == ["E > R (25 %)"]
    assert [x.split(":")[0] for x in active.orderings(spec, [])] == ["E > R (12.5 %)", "E > R (25 %)"]


def test_one_repeat_shows_nothing(finished):
    text = fill(SPEC, plan(finished, repeats=(0,)), report_only=True).read_text()
    assert "not shown (one seed has no interval)" in text


def test_a_command_that_fails_is_reported_and_what_is_there_stays(finished):
    with pytest.raises(ConfigError, match="ended with code 42"):
        fill(SPEC, plan(finished), call=lambda command: 42)
    with pytest.raises(ConfigError, match="no row contains it"):
        fill(SPEC, plan(finished, only="x"), report_only=True)
    with pytest.raises(ConfigError, match="can use scenes"):
        fill(SPEC, dataclasses.replace(plan(finished), data="moon"), report_only=True)


def test_times_are_read_from_the_benchs_file_and_missing_ones_are_dashes(tmp_path):
    assert "| CCRL | - |" in fill_times(ccrl.TABLE_2, tmp_path).read_text()
    row = dict(
        strategy="ccrl", mean=1.5, median=1.4, min=1.0, max=2.0, selected_per_second=20.0, fit_seconds=3.0
    )
    content = dict(
        schema="jaxvl.selection_times/1", pool=1500, selected=30, scale="small", repetitions=10, warmup=1,
        machine=dict(platform="cpu", threads=2, cpu="An Abacus"),
    )  # fmt: skip
    (tmp_path / "selection_times.json").write_text(json.dumps({**content, "rows": [row]}))
    text = fill_times(ccrl.TABLE_2, tmp_path).read_text()
    assert "| CCRL | 1.500 | 1.400 | 1.000 | 2.000 | 20.0 | 3.0 | 70.79 | 33.90 |" in text
    assert "cpu, 2 threads of An Abacus" in text
    (tmp_path / "selection_times.json").write_text("{}")
    with pytest.raises(ConfigError, match="no file of selection times"):
        fill_times(ccrl.TABLE_2, tmp_path)


TRAINED = [spec for spec in ccrl.ALL if isinstance(spec, ActiveTable)]


@pytest.mark.parametrize("spec", TRAINED, ids=lambda spec: spec.name)
def test_the_papers_tables_fit_their_config(spec):
    for choice in spec.data.values():
        module = config_file(ROOT / choice.config)
        arg = ",".join([*(row.method for row in spec.rows), *([choice.arg] if choice.arg else [])])
        config = override(module.get_config(arg), spec.overrides)
        assert set(config.run) == {row.method for row in spec.rows}
        assert all(len(row.paper) == len(spec.paper) for row in spec.rows)
