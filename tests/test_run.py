"""What is refused before any work starts, and what a workdir in which nothing was computed yet may still change."""

from __future__ import annotations

import re

import pytest
from tiny_run import ROOT, config_file

from jaxvl import build, run
from jaxvl import config as cfg

HYPER_ALBEF = config_file(ROOT / "configs/hyper_albef.py")


def config(**values):
    found = HYPER_ALBEF.get_config("scale=tiny")
    return cfg.override(found, {k.replace("__", "."): v for k, v in values.items()})


def test_another_config_is_refused_once_something_was_computed(tmp_path):
    cfg.save(config(), tmp_path / "config.json")
    run.check_same_run(config(seed=1), tmp_path)  # a first attempt that failed leaves its config.json alone
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / run.RESULT).write_text("{}")
    run.check_same_run(config(), tmp_path)
    with pytest.raises(cfg.ConfigError, match="seed: 0 there, 1 now"):
        run.check_same_run(config(seed=1), tmp_path)


def test_weights_that_do_not_exist_are_named_before_any_work(tmp_path):
    wrong = config(stages__pretrain__weights__vision=str(tmp_path / "deit.pth"))
    with pytest.raises(FileNotFoundError, match=r"config.stages.pretrain.weights.vision: no file .*deit.pth"):
        build.stage(wrong, "pretrain", build.tokenizer(wrong), tmp_path)
    assert "deit.pth" in run.all_missing(wrong, ["pretrain"], tmp_path)


@pytest.mark.parametrize("name", ["folder", "weights.pth"])
def test_a_stage_starts_from_a_stage_or_a_safetensors_file(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"init_from=.* is neither a stage .* nor a .safetensors file"
    ):
        run.check_order(config(stages__vqa__init_from=str(path)), ["vqa"], tmp_path)


@pytest.mark.parametrize("hypergraph", [None, {"layers": ()}])
def test_a_model_without_hypergraph_is_not_asked_for_its_diagnostics(tmp_path, hypergraph):
    for value, has in ((hypergraph, False), (config().model.hypergraph, True)):
        found = build.evaluators(config(model__hypergraph=value), "pretrain", None, None, tmp_path)
        assert ("hg" in found) is has


def test_paper_asks_for_all_its_files_at_once(tmp_path):
    paper = HYPER_ALBEF.get_config("scale=paper")
    said = run.all_missing(paper, list(paper.run), tmp_path)
    for name in (
        "deit_base",
        "bert-base-uncased",
        "coco.json",
        "coco_val.json",
        "vqa_train",
        "vqa_test",
        "answer_list",
    ):
        assert name in said, name


def test_what_fixed_lengths_cut_is_said(tmp_path):
    short = config(stages__pretrain__format__length=6, stages__pretrain__train__size=16)
    stage = build.stage(short, "pretrain", build.tokenizer(short), tmp_path)
    assert re.fullmatch(
        r"pretrain: note: .* of the first 16 training examples: \d+ texts cut", build.lost(stage)
    )
    roomy = config(stages__pretrain__train__size=16)
    assert build.lost(build.stage(roomy, "pretrain", build.tokenizer(roomy), tmp_path)) is None
