"""`python launch/reproduce.py` as users start it, and a real table of the smallest recipe."""

from __future__ import annotations

import csv
import dataclasses

import pytest
import tiny_run
from tiny_run import ROOT, launch

from jaxvl import config as cfg
from jaxvl.reproduce import Options, reproduce
from jaxvl.reproduce.tables import Column, Data, Row, Table, chain

VQA = "stages.vqa.optim.weight_decay"
SMALLEST = {
    **{k: cfg.literal(v) for k, v in (o.split("=", 1) for o in tiny_run.SMALLEST)
       if not any(part in k for part in ("hyper", "queue", "pretrain.val", "pretrain.evals"))},
    "checkpoint.every_steps": None, "stages.pretrain.epochs": 1, "stages.pretrain.val": None,
    "stages.pretrain.images.augment": None,
}  # fmt: skip
TABLE = Table(
    name="smallest/1",
    title="Two decays",
    source="this test",
    columns=(Column("vqa", "VQA accuracy", "vqa", "vqa/accuracy", ("none",)),),
    rows=tuple(
        Row(label, (None,), "no_hyper+no_momentum", overrides={**SMALLEST, VQA: decay})
        for label, decay in (("low", 0.01), ("high", 1))
    ),
    data={"scenes": Data("the embedded world", "configs/hyper_albef.py")},
    claims=chain("low", "high"),
)


def fails(*flags):
    ended = launch("launch/reproduce.py", *flags)
    assert (ended.code, ended.out) == (2, ""), ended
    assert "Traceback" not in ended.err
    return ended.err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--table=bridge_towr/4",), "unknown table 'bridge_towr/4': did you mean 'bridge_tower/4'"),
        (("--table=bridge_tower/4", "--seeds=0,x"), "--seeds=0,x: expected distinct whole numbers"),
        (("--table=bridge_tower/4", "--scale=tny"), "unknown scale 'tny': did you mean 'tiny'"),
        (("--table=bridge_tower/4", "--only=vrit"), "no row contains it; rows: shallow; VIRT"),
    ],
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(tmp_path, flags, said):
    assert said in fails(*flags, f"--workdir={tmp_path / 'w'}")
    assert not (tmp_path / "w").exists()


def test_report_of_an_empty_workdir_has_the_papers_numbers_and_no_zero(tmp_path):
    ended = launch("launch/reproduce.py", "--table=bridge_tower/4", "--report_only", f"--workdir={tmp_path}")
    assert ended.code == 0, ended.err
    assert "| PBTS (pre) | - | - | 63.78 |" in (tmp_path / "bridge_tower_4.md").read_text(encoding="utf-8")
    assert "PBTS (pre) > PBTS (post): no data" in ended.out


@pytest.mark.slow
def test_a_table_is_trained_with_one_pretraining_for_two_rows_and_not_again(tmp_path, monkeypatch):
    for name, value in tiny_run.environment().items():
        monkeypatch.setenv(name, value)
    options = Options(tmp_path / "w", ROOT, scale="tiny", seeds=(0,), mix_commits=True)
    path = reproduce(TABLE, options)
    with path.with_suffix(".csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [row["status"] for row in rows] == ["finished", "finished"], rows
    assert all(0 <= float(row["value"]) <= 100 for row in rows)
    folders = sorted(p.name.split("-")[0] for p in (tmp_path / "w/stages").iterdir())
    assert folders == ["pretrain", "vqa", "vqa"]
    log = next((tmp_path / "w/stages").glob("vqa-*/log.txt")).read_text(encoding="utf-8")
    assert "vqa: parameters from" in log and "params.safetensors" in log
    reproduce(TABLE, dataclasses.replace(options, only="low"), execute=lambda *_: pytest.fail("run again"))
