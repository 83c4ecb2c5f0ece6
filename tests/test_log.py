"""Logs of a resumed run equal those of an uninterrupted one; curves, displays and tables are what they say."""

from __future__ import annotations

import csv
import io
import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxvl import display
from jaxvl.display import duration, number
from jaxvl.log import Alarm, Log, Progress, read_rows, table
from jaxvl.plots import attention, curves, grouped
from jaxvl.tasks.pair_pretrain import PairPretrainTask

FILES = ("metrics.jsonl", "metrics.csv")


def write(log, steps):
    for step in steps:
        log.write_scalars(step, {"loss": 10 / step, "itc": 1.0})
        if step % 40 == 0:
            log.write_scalars(step, {"vqa/accuracy": step / 100})
    return log


def contents(folder):
    return [(folder / name).read_text() for name in FILES]


def test_a_resumed_run_ends_with_the_files_of_an_uninterrupted_one(tmp_path):
    write(Log(tmp_path / "whole"), range(20, 161, 20)).close()
    write(Log(tmp_path / "cut"), range(20, 121, 20)).close()  # killed at 130; the checkpoint is of step 60
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as f:
        f.write('{"step": 130, "lo')
    write(Log(tmp_path / "cut", append_from_step=60), range(80, 161, 20)).close()
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_columns_of_dropped_rows_are_dropped(tmp_path):
    write(Log(tmp_path), range(20, 61, 20)).close()
    log = Log(tmp_path, append_from_step=20)
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,itc\n20,0.5,1.0\n"
    log.close()


def test_a_new_run_starts_with_empty_files(tmp_path):
    write(Log(tmp_path), [20]).close()
    Log(tmp_path).close()
    assert contents(tmp_path) == ["", "step\n"]


def test_csv_columns_grow_and_one_step_is_one_row(tmp_path):
    log = write(Log(tmp_path), [20, 40, 60])
    log.write_scalars(80, {"itm": 2.0})
    rows = list(csv.reader(io.StringIO((tmp_path / "metrics.csv").read_text())))
    assert rows == [
        ["step", "loss", "itc", "vqa/accuracy", "itm"],
        ["20", "0.5", "1.0", "", ""],
        ["40", "0.25", "1.0", "0.4", ""],
        ["60", str(10 / 60), "1.0", "", ""],
        ["80", "", "", "", "2.0"],
    ]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["vqa/accuracy"] == 0.4
    log.close()


def test_values_that_are_not_finite_stay_json_and_come_back(tmp_path):
    log = Log(tmp_path)
    log.write_scalars(1, {"a": float("nan"), "b": np.float32(2)})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "a": null, "b": 2.0}\n'
    (row,) = read_rows(tmp_path / "metrics.jsonl")
    assert math.isnan(row["a"])
    log.close()


def test_device_arrays_and_steps_that_go_back_are_refused(tmp_path):
    log = write(Log(tmp_path), [20])
    with pytest.raises(TypeError, match="scalar 'loss' is .*give a Python number"):
        log.write_scalars(40, {"loss": jnp.ones(())})
    with pytest.raises(ValueError, match="step 19 comes after step 20"):
        log.write_scalars(19, {"loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is not JSON"):
        read_rows(tmp_path / "metrics.jsonl")
    log.close()


def test_tensorboard_gets_every_scalar_and_forgets_what_a_resume_repeats(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    write(Log(tmp_path), [20, 40]).close()
    write(Log(tmp_path, append_from_step=20), [40]).close()
    seen = []
    for file in sorted((tmp_path / "events").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):  # length, its checksum, event, its checksum
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            seen += [(event.step, v.tag) for v in event.summary.value] or [
                (event.step, event.session_log.status)
            ]
            at += 12 + size + 4
    assert (40, "vqa/accuracy") in seen and (20, "loss") in seen
    assert (21, 1) in seen  # SessionLog.START at 21: TensorBoard drops earlier events from there on


def test_only_process_zero_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    log = write(Log(tmp_path / "x"), [20])
    log.plot()
    log.close()
    assert not (tmp_path / "x").exists()


def test_metrics_are_drawn_in_panels_of_their_kind(tmp_path):
    names = {
        "mlm",
        "loss",
        "itm_accuracy",
        "retrieval/tr_r1",
        "learning_rate",
        "examples_per_s",
        "alpha",
        "grad_norm",
    }
    assert grouped(names) == {
        "losses": ["loss", "mlm"],
        "accuracy": ["itm_accuracy"],
        "evaluation": ["retrieval/tr_r1"],
        "learning rate": ["learning_rate"],
        "examples per second": ["examples_per_s"],
        "gradient norm": ["grad_norm"],
        "temperature, distillation weight": ["alpha"],
    }
    curves([dict.fromkeys(names, 0.5) | {"step": s} for s in (1, 2)] + [{"step": 3}], path=tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]
    with pytest.raises(ValueError, match="no metrics to draw"):
        curves([{"step": 1}], path=tmp_path / "d.png")


def test_attention_is_drawn_clear_where_a_token_looks_and_dark_elsewhere(tmp_path):
    looks = np.zeros((2, 9, 2, 2))
    looks[:, :, 0, 1] = 0.5  # the corner at the top right
    attention([f"t{i}" for i in range(9)], looks, np.ones((2, 8, 8, 3)), path=tmp_path / "look.png")
    drawn = np.asarray(Image.open(tmp_path / "look.png").convert("L"), float)
    width, height = 8 * 1.6 * 120, 2 * 2 * 2.1 * 120
    assert drawn.shape == (round(height), round(width))
    panel = drawn[
        60 : int(height / 4), int(width / 8) : int(width / 4)
    ]  # the first token of the first picture
    middle = panel.shape[1] // 2
    veiled = panel < 60
    upper, lower = np.split(veiled[: 2 * (len(veiled) // 2), middle:], 2)
    assert lower.mean() > 1.5 * upper.mean()
    assert veiled[:, :middle].mean() > 1.5 * veiled[:, middle:].mean() > 0
    assert not (drawn[60 : int(height / 4), : int(width / 8) - 10] < 60).any()  # the picture itself


def test_an_alarm_is_raised_once_and_only_after_its_share_of_the_updates(tmp_path, capsys):
    """As matching does that stays at chance: specification of the Bridge tower, 15.10."""
    task = PairPretrainTask.__new__(PairPretrainTask)
    log = Log(tmp_path, watch=Alarm(task, name="pretrain", steps=100))
    for step, accuracy in ((10, 0.5), (20, 0.56), (30, 0.541), (40, 0.5)):
        log.write_scalars(step, {"loss": 1.0, "itm_accuracy": accuracy})
    log.write_scalars(50, {"loss": 1.0})
    log.close()
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith(
        "pretrain: warning: matching of training batches is at 54.1 % after 30 % of the updates"
    )
    Alarm(object(), name="vqa", steps=1)(1, {"loss": 1.0})  # a task that has none


def test_log_plots_its_rows(tmp_path):
    log = write(Log(tmp_path), [20, 40])
    log.plot()
    assert (tmp_path / "curves.png").stat().st_size > 5000
    log.close()


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


def lines_of(monkeypatch, terminal=False, every_seconds=10.0):
    """Stage of 100 steps, two seconds each, reported every ten steps."""
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr(display, "time", clock)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress("vqa", total=100, every_seconds=every_seconds, file=out) as progress:
        for step in range(10, 101, 10):
            clock.now += 20
            scalars = {"loss": 5 / step, "examples_per_s": 12.3456, "data_wait_share": 0.031}
            progress.update(step, scalars)
    return out.getvalue()


def test_plain_progress_is_a_line_now_and_then(monkeypatch):
    lines = lines_of(monkeypatch, every_seconds=30).splitlines()
    assert lines[0] == "vqa   10/100 ( 10%)  loss 0.5  12.35 examples/s  3% waiting for data"
    assert (
        lines[1] == "vqa   30/100 ( 30%)  loss 0.1667  12.35 examples/s  3% waiting for data  2 min 20 s left"
    )
    assert lines[-1] == "vqa  100/100 (100%)  loss 0.05  12.35 examples/s  3% waiting for data"
    assert len(lines) == 6


def test_live_progress_shows_everything_and_leaves_one_line(monkeypatch):
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", lines_of(monkeypatch, terminal=True))
    for part in ("vqa", "100/100", "loss", "0.05", "12.35 examples/s", "3% waiting for data"):
        assert part in shown
    assert shown.splitlines()[-1].startswith("vqa  100/100 (100%)")


def test_progress_refuses_device_arrays_and_prints_nothing_without_steps():
    out = io.StringIO()
    with Progress("x", total=10, file=out) as progress:
        assert progress.seconds_left() is None
        with pytest.raises(TypeError, match="scalar 'loss'"):
            progress.update(0, {"loss": jnp.ones(())})
    assert out.getvalue() == ""


def test_tables_are_aligned_text_and_markdown_that_adds_up_in_a_file(tmp_path):
    out, path = io.StringIO(), tmp_path / "report.md"
    rows = [["full | model", 71.23456, "-"], ["blind", 9, None]]
    for title in ("One", "Two"):
        text = table(title, ["", "accuracy", "n"], rows, path=path, file=out)
    assert text.splitlines() == [
        "## Two",
        "",
        "|  | accuracy | n |",
        "| --- | ---: | ---: |",
        "| full \\| model | 71.23 | - |",
        "| blind | 9 | - |",
    ]
    assert path.read_text().count("## ") == 2
    assert out.getvalue().splitlines()[1:6] == [
        "One",
        "              accuracy  n",
        "------------  --------  -",
        "full | model     71.23  -",
        "blind                9  -",
    ]


def test_tables_with_uneven_rows_are_refused():
    with pytest.raises(ValueError, match="table 'T', row 1 has 1 cells for 2 columns"):
        table("T", ["a", "b"], [["x", 1], ["y"]])


def test_numbers_and_durations_read_well():
    assert [number(x) for x in (1, 0.123456, 1e-5, "s", None, np.float32(0.5))] == [
        "1",
        "0.1235",
        "1e-05",
        "s",
        "-",
        "0.5",
    ]
    assert [duration(s) for s in (5, 200, 7500, 100000)] == ["5 s", "3 min 20 s", "2 h 05 min", "1 d 3 h"]
