"""Cells share a stage exactly if all that the stage depends on is equal; jobs come in the order of need."""

from __future__ import annotations

import dataclasses

import pytest
from fake_world import TABLE, repository

from jaxvl import config as cfg
from jaxvl.config import ConfigError
from jaxvl.reproduce.jobs import cells, in_order, job, key_of, load_config, row_config
from jaxvl.reproduce.tables import Row


@pytest.fixture
def root(tmp_path):
    return repository(tmp_path)


def plan(root, rows=TABLE.rows, seeds=(0,), scale="small"):
    return cells(TABLE, rows, seeds=seeds, root=root, data="scenes", scale=scale)


def keys(root, stage="vqa", arg="", seed=0, **overrides):
    config = cfg.override(
        load_config(root, "configs/fake.py", arg), {k.replace("__", "."): v for k, v in overrides.items()}
    )
    made = job(config, stage, seed=seed, file="configs/fake.py", arg=arg, overrides={})
    return {step.stage: step.key for step in (*made.before(), made)}


def changed(a, b):
    return {stage for stage in a if a[stage] != b[stage]}


def test_stages_come_after_what_they_start_from_and_their_teacher(root):
    assert list(keys(root)) == ["first", "pretrain", "teacher", "vqa"]
    assert list(keys(root, arg="ablation=plain")) == ["pretrain", "vqa"]


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        (dict(stages__vqa__rate=1.0), {"vqa"}),
        (dict(stages__teacher__rate=1.0), {"teacher", "vqa"}),
        (dict(stages__first__rate=1.0), {"first", "pretrain", "teacher", "vqa"}),
        (dict(model__order="post"), {"pretrain", "vqa"}),  # the teacher's model is its own
        (dict(precision__compute="bfloat16"), {"first", "pretrain", "teacher", "vqa"}),
        (dict(text__vocab="other"), {"first", "pretrain", "teacher", "vqa"}),
        (dict(log__every_steps=1, loader__workers=3, checkpoint__keep=9, hint="x"), set()),
    ],
)
def test_a_change_reaches_the_stages_that_depend_on_it_and_no_others(root, overrides, stages):
    assert changed(keys(root), keys(root, **overrides)) == stages


def test_an_int_where_the_config_has_a_float_is_the_same_stage(root):
    assert keys(root, stages__vqa__rate=1) == keys(root, stages__vqa__rate=1.0)


def test_every_stage_depends_on_the_seed(root):
    assert changed(keys(root), keys(root, seed=1)) == {"first", "pretrain", "teacher", "vqa"}


def test_rows_share_the_teacher_and_equal_pretraining(root):
    jobs = in_order(plan(root))
    assert [job.stage for job in jobs] == ["first", "pretrain", "teacher", "vqa", "vqa", "pretrain", "vqa"]


def test_all_rows_with_the_first_seed_come_before_the_second_seed(root):
    found = plan(root, seeds=(4, 2))
    assert [(c.seed, c.row) for c in found] == [(s, r.label) for s in (4, 2) for r in TABLE.rows]
    assert [job.seed for job in in_order(found)] == [4] * 7 + [2] * 7


def test_key_survives_the_config_file_of_a_run(root, tmp_path):
    config = load_config(root, "configs/fake.py", "")
    config.stages.vqa.init_from = "somewhere/params.safetensors"
    config.stages.vqa.teacher.params = "elsewhere/params.safetensors"
    cfg.save(config, tmp_path / "config.json")
    known = keys(root)
    needs = {"init_from": known["pretrain"], "teacher.params": known["teacher"]}
    assert key_of(cfg.load(tmp_path / "config.json"), "vqa", needs) == known["vqa"]


def test_rows_without_an_implementation_or_a_stage_have_a_reason(root):
    other = Row("lost", (1.0,), stages={"vqa": "gone"})
    reasons = {c.row: c.reason for c in plan(root, rows=(*TABLE.rows, other)) if c.job is None}
    assert reasons == {"other": "not implemented", "lost": "configs/fake.py:scale=small has no stage 'gone'"}


@pytest.mark.parametrize(
    ("change", "data", "scale", "message"),
    [
        ({}, "scnes", "small", "unknown data 'scnes': did you mean 'scenes'"),
        ({}, "photos", "small", "no config file configs/gone.py .*there are: configs/fake.py"),
        ({}, "scenes", "tny", "row 'pre' .*unknown scale 'tny': did you mean 'tiny'"),
        ({"ablation": "pots"}, "scenes", "small", "unknown ablation 'pots': did you mean 'post'"),
        ({"overrides": {"stages.vqa.rte": 1}}, "scenes", "small", "did you mean 'rate'"),
    ],
)
def test_unknown_choices_are_refused_with_the_closest(root, change, data, scale, message):
    row = dataclasses.replace(TABLE.rows[0], **change)
    with pytest.raises(ConfigError, match=message):
        row_config(TABLE, row, root=root, data=data, scale=scale)


def test_stages_that_start_from_each_other_are_refused(root):
    with pytest.raises(ConfigError, match="vqa <- pretrain <- vqa"):
        keys(root, stages__pretrain__init_from="vqa")
