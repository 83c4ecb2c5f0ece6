"""The report: what is there is shown with its interval and what is not as "-"; orderings are judged by pairs."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest
from fake_world import TABLE, FakeRuns, options

from jaxvl.reproduce import reproduce
from jaxvl.reproduce.command import list_tables
from jaxvl.reproduce.jobs import Cell
from jaxvl.reproduce.report import Found, lines, orderings, problems


def found(**scores):
    """Cells of rows with one value a seed."""
    cells = [(row, seed, value) for row, values in scores.items() for seed, value in enumerate(values)]
    return [
        Found(Cell(row, "vqa", seed, "m", None), value, "finished", 1.0, 2.0, "c", "x")
        for row, seed, value in cells
    ]


def test_rows_have_mean_interval_and_number_of_seeds_beside_the_papers_number():
    head, body = lines(TABLE, found(pre=[1.0, 2.0, 3.0], post=[5.0, None]))
    assert head == ["", "ours: VQA accuracy", "n", "paper: VQAv2"]
    assert body == [
        ["pre", "2.00 [-0.48, 4.48]", "3", "70.00"],
        ["fast", "-", "-", "65.00"],
        ["post", "5.00", "1", "60.00"],
        ["other", "-", "-", "50.00"],
    ]


def test_orderings_are_judged_by_the_paired_differences():
    better, share = orderings(TABLE, found(pre=[60.0, 70.0, 80.0], post=[59.0, 68.9, 78.8]))
    assert better == "pre > post: +1.10 [+0.85, +1.35], 3 seeds: shown"
    assert share == "post as a share of pre: 98.4 [98.2, 98.6] %, 3 seeds (paper 85.7 %)"


def test_orderings_without_pairs_have_no_verdict():
    none = found(pre=[60.0, None], post=[None, 59.0])
    assert orderings(TABLE, none) == ["pre > post: no data", "post as a share of pre: no data (paper 85.7 %)"]
    assert orderings(TABLE, found(pre=[60.0], post=[59.0]))[0].endswith(
        "+1.00, 1 seed: not shown (one seed has no interval)"
    )


def test_columns_name_their_orderings_and_take_their_own_numbers_of_the_paper():
    second = dataclasses.replace(TABLE.columns[0], name="other", title="o", paper=("dev", "test"))
    rows = tuple(dataclasses.replace(row, paper=(*row.paper, 1.0, None)) for row in TABLE.rows)
    spec = dataclasses.replace(TABLE, columns=(*TABLE.columns, second), rows=rows, kept=())
    head, body = lines(spec, found(pre=[1.0]))
    assert head[3:] == ["paper: VQAv2", "ours: o", "n", "paper: dev", "paper: test"]
    assert body[0] == ["pre", "1.00", "1", "70.00", "-", "-", "1.00", "-"]
    assert [x.split(":")[0] for x in orderings(spec, [])] == ["pre > post (vqa)", "pre > post (other)"]


def test_report_says_what_ours_is_and_what_it_is_not(tmp_path):
    path = reproduce(TABLE, options(tmp_path), execute=FakeRuns(tmp_path))
    text = path.read_text(encoding="utf-8")
    assert text.startswith("## test/1: Orders (ours: scale `small`, a fake world)")
    assert "not comparable" in text and "fake(size=8)" in text
    assert "- other: not implemented" in text
    assert "pre > post: +5.00 [+5.00, +5.00], 2 seeds: not shown (no spread over seeds)" in text
    assert "python launch/main.py --config=configs/fake.py:scale=small,ablation=post" in text


def test_csv_has_every_cell_with_its_commands(tmp_path):
    o = options(tmp_path, only="pre")
    path = reproduce(TABLE, o, execute=FakeRuns(tmp_path), clock=lambda: 0.0).with_suffix(".csv")
    with path.open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [(r["row"], r["seed"], r["status"]) for r in rows[:3]] == [
        ("pre", "0", "finished"), ("fast", "0", "not run"), ("post", "0", "not run")
    ]  # fmt: skip
    assert float(rows[0]["value"]) == 60.1 and rows[1]["value"] == ""
    assert (rows[0]["seconds"], rows[0]["seconds_of_all_stages"]) == ("2.5", "10.0")
    assert rows[0]["command"].count(" && python launch/main.py") == 3 and rows[0]["commit"] == "unknown"


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"vqa/accuracy": float("nan")}, "vqa/accuracy is nan"),
        ({"x": 1.0}, "no metric 'vqa/accuracy', there are: x"),
    ],
)
def test_values_that_are_no_scores_are_missing_with_the_reason(tmp_path, metrics, said):
    o = options(tmp_path, seeds=(0,), only="pre")
    reproduce(TABLE, o, execute=FakeRuns(tmp_path))
    path = next(o.workdir.glob("stages/vqa-*/vqa/result.json"))
    path.write_text(json.dumps({"steps": 5, "seconds": 1.0, "metrics": metrics}))
    text = reproduce(TABLE, dataclasses.replace(o, report_only=True)).read_text()
    assert f"failed: {said}" in text and "| pre | - | - | 70.00 |" in text


def test_cells_of_one_reason_share_a_line():
    job = object()
    cells = [Found(Cell("a", "vqa", s, "m", job), None, "not run", None, None, "", "") for s in (0, 1)]
    assert problems(cells) == ["not run: a vqa seed 0; a vqa seed 1"]


def test_list_names_tables_and_the_data_whose_config_is_there(tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/bridge_tower.py").touch()
    list_tables(tmp_path)
    out = capsys.readouterr().out
    assert "bridge_tower/4" in out and "scenes" in out and "nlvr1" not in out
