"""Table 3: ours beside the paper's with the caution below, rows that need a file, every cell as CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from jaxvl import run_probe
from jaxvl.config import ConfigError
from jaxvl.reproduce import ccrl, probes
from jaxvl.reproduce.active import Plan

ROOT = Path(__file__).resolve().parents[2]


def plan(folder, **kwargs):
    values = dict(workdir=folder, root=ROOT, scale="tiny", data="scenes", repeats=(0, 1)) | kwargs
    return Plan(**values)


def result(folder, row, seed, overall):
    path = run_probe.path_of(probes.folder(plan(folder)), row, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    one = dict(
        accuracy={"overall": overall, "yes/no": 60.0}, lr=0.01, tried={"0.01": 5.0, "0.001": 4.0}, width=7,
        words="no GloVe: x", seconds=2.0, commit="abc",
    )  # fmt: skip
    path.write_text(json.dumps(one))


def test_the_report_has_means_the_papers_numbers_the_caution_and_what_is_missing(tmp_path):
    for seed, overall in ((0, 50.0), (1, 52.0)):
        result(tmp_path, "ccrl", seed, overall)
    result(tmp_path, "language", 0, 30.0)
    path = probes.fill(ccrl.TABLE_3, plan(tmp_path), report_only=True)
    text = path.read_text()
    assert "| CCRL | 51.00 [" in text and "| 59.52 | 76.79 | 38.75 | 49.52 |" in text
    assert "| Language | 30.00 | 60.00 | - | - | 1 | 44.26 |" in text
    assert all(line in text for line in ccrl.CAUTION) and "G: no GloVe: x" in text
    assert "Bottom-up: not available: needs" in text and "CCRL > Language: +20.00, 1 seed" in text
    rows = list(csv.DictReader(path.with_suffix(".csv").open()))
    assert len(rows) == 10 and rows[0]["overall"] == "50.0" and rows[0]["status"] == "finished"
    assert {r["status"] for r in rows if r["row"] == "FR+G"} == {"not run"}


def test_what_cannot_be_run_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="unknown data 'moon'"):
        probes.fill(ccrl.TABLE_3, plan(tmp_path, data="moon"))
    with pytest.raises(ConfigError, match=r"no row contains it; rows: CCRL; FR\+G"):
        probes.fill(ccrl.TABLE_3, plan(tmp_path, only="x"))
    assert not list(tmp_path.iterdir())


def test_every_row_is_one_that_can_be_probed_with_a_number_for_each_column():
    assert {r.method for r in ccrl.TABLE_3.rows} == set(run_probe.ROWS)
    assert all(len(r.paper) == len(probes.COLUMNS) for r in ccrl.TABLE_3.rows)
