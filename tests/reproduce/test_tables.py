"""Tables that contradict themselves are refused; those of the papers build from the configs there are."""

from __future__ import annotations

import dataclasses

import pytest
from fake_world import TABLE
from tiny_run import ROOT

from jaxvl.config import ConfigError
from jaxvl.reproduce import TABLES
from jaxvl.reproduce.jobs import cells, in_order
from jaxvl.reproduce.tables import Claim, Row, Table, chain, select

TRAINED = [name for name, table in TABLES.items() if isinstance(table, Table)]


def plan(name, scale, seeds=(0,)):
    return cells(TABLES[name], TABLES[name].rows, seeds=seeds, root=ROOT, data="scenes", scale=scale)


def test_chain_claims_each_row_above_the_next():
    assert chain("a", "b", "c") == (Claim("a", "b"), Claim("b", "c"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(claims=(Claim("pre", "pots"),)), "'pots': did you mean 'post'"),
        (dict(rows=(Row("a", (1.0,)), Row("a", (2.0,)))), "two rows have one label"),
        (dict(rows=(Row("a", (1.0, 2.0)),)), "2 printed numbers for 1 columns"),
    ],
)
def test_table_that_does_not_fit_together_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TABLE, **change)


def test_only_selects_rows_by_part_of_the_label_and_lists_them_if_there_is_none():
    assert [row.label for row in select(TABLE.rows, "P")] == ["pre", "post"]
    assert select(TABLE.rows, None) == TABLE.rows
    assert [row.label for row in select((Row("VIRT"), Row("top")), "vi")] == ["VIRT"]
    with pytest.raises(ConfigError, match="no row contains it; rows: pre; fast; post; other"):
        select(TABLE.rows, "virt")


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
@pytest.mark.parametrize("name", TRAINED)
def test_every_row_of_the_papers_tables_is_a_config_and_differs_from_the_others(name, scale):
    jobs = [(cell.column, cell.job.key) for cell in plan(name, scale) if cell.job is not None]
    assert len(set(jobs)) == len(jobs) > 0


def test_tables_share_their_common_rows_and_one_teacher():
    jobs = {job.name: job.stage for name in TRAINED for job in in_order(plan(name, "small"))}
    stages = list(jobs.values())
    assert [stages.count(x) for x in ("teacher_pretrain", "teacher_vqa")] == [1, 1]
    top, bare = {}, {}
    for name in TRAINED:
        for cell in plan(name, "small"):
            where = top if cell.row in ("PBTS (pre)", "top", "+PBTS") else bare
            if cell.row in ("PBTS (pre)", "top", "+PBTS", "baseline", "none"):
                where[cell.row] = cell.job.key
    assert len(top) == 3 and len(set(top.values())) == 1
    assert len(bare) == 2 and len(set(bare.values())) == 1


def test_ablations_pretrain_ten_epochs_at_paper_scale_and_the_main_table_25():
    epochs = {}
    for name in ("bridge_tower/3", "bridge_tower/8"):
        job = next(c.job for c in plan(name, "paper") if c.row in ("Ours", "+both") and c.column == "vqa")
        epochs[name] = job.overrides.get("stages.pretrain.epochs")
    assert epochs == {"bridge_tower/3": None, "bridge_tower/8": 10}
