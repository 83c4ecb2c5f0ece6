"""ALBEF's YAML configs become flags that configs/hyper_albef.py knows; nothing in them is passed over in silence."""

from __future__ import annotations

import pytest
from absl import flags
from ml_collections import config_flags
from tiny_run import ROOT, config_file

from jaxvl import config as cfg
from jaxvl.interop import WeightsError, albef_flags
from jaxvl.interop.__main__ import main

HYPER_ALBEF = ROOT / "configs/hyper_albef.py"
PRETRAIN = """
train_file: ['data/coco.json',
             'data/vg.json',
             ]
bert_config: 'configs/config_bert.json'
image_res: 256
vision_width: 768
embed_dim: 256
batch_size: 64
temp: 0.07
mlm_probability: 0.15
queue_size: 65536
momentum: 0.995
alpha: 0.4
optimizer: {opt: adamW, lr: 1e-4, weight_decay: 0.02}
schedular: {sched: cosine, lr: 1e-4, epochs: 30, min_lr: 1e-5, decay_rate: 1, warmup_lr: 1e-5, warmup_epochs: 20, cooldown_epochs: 0}
"""  # noqa: E501
VQA = """
train_file: ['data/vqa_train.json']
test_file: ['data/vqa_test.json']
answer_list: 'data/answer_list.json'
vqa_root: '/export/coco/'
vg_root: '/export/vg/'
image_res: 384
batch_size_train: 32
batch_size_test: 16
k_test: 128
alpha: 0.4
distill: True
warm_up: True
eos: '[SEP]'
optimizer: {opt: adamW, lr: 2e-5, weight_decay: 0.02}
schedular: {sched: cosine, lr: 2e-5, epochs: 8, min_lr: 1e-6, decay_rate: 1, warmup_lr: 1e-5, warmup_epochs: 4, cooldown_epochs: 0}
"""  # noqa: E501
PATHS = ("files", "file", "vqa_root", "vg_root")


@pytest.fixture
def write(tmp_path):
    def to_file(text: str):
        (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "a.yaml"

    return to_file


def paper():
    return config_file(HYPER_ALBEF).get_config("scale=paper")


def leaves(tree, prefix: str = "") -> dict:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for name, sub in tree.items() for k, v in leaves(sub, f"{prefix}.{name}").items()}


@pytest.mark.parametrize(
    ("text", "stage", "changed"),
    [
        (PRETRAIN, "pretrain", {".model.vision.width": 768, ".stages.pretrain.batch_size": 512}),
        (VQA, "vqa", {".stages.vqa.eval.batch_size": 128}),
        (VQA, "vqa_blind", {".stages.vqa_blind.eval.batch_size": 128}),
    ],
)
def test_albefs_own_files_say_what_the_paper_scale_is(write, capsys, text, stage, changed):
    """Every printed path exists; besides paths of data, sizes of batches are all that differs."""
    asked = () if stage != "vqa_blind" else ("--stage", stage)
    assert main(["config", str(write(text)), *asked]) == 0
    lines = capsys.readouterr().out.splitlines()
    given = dict(line.removeprefix("--config.").split("=", 1) for line in lines)
    found = cfg.override(paper(), {path: cfg.literal(value) for path, value in given.items()})
    before, after = (leaves(cfg.to_dict(config)) for config in (paper(), found))
    kept = {k: v for k, v in after.items() if before[k] != v and k.split(".")[-1] not in PATHS}
    assert kept == changed
    assert found.stages[stage].train.files[0].startswith("data/")


@pytest.mark.parametrize("text", [PRETRAIN, VQA, VQA.replace("distill: True", "distill: False")])
def test_the_command_line_takes_the_flags_as_they_are_printed(write, text):
    cfg.allow_none()
    told = albef_flags(write(text))
    values = flags.FlagValues()
    argv = ["main.py", f"--config={HYPER_ALBEF}:scale=paper", *told.lines()]
    found = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    want = cfg.override(paper(), told.values)
    assert cfg.to_dict(found.value) == cfg.to_dict(want)


def test_distillation_can_be_off_and_its_warm_up_too(write):
    task = "stages.vqa.task."
    off = albef_flags(write(VQA.replace("distill: True", "distill: False")))
    assert off.values[task + "distill"] is None and off.values[task + "momentum"] is None
    assert not any(path.startswith(task + "distill.") for path in off.values)
    assert "alpha: no flag, without distillation nothing reads it" in off.notes
    at_once = albef_flags(write(VQA.replace("warm_up: True", "warm_up: False")))
    assert at_once.values[task + "distill.warmup_epochs"] == 0


def test_every_key_becomes_a_flag_or_a_note(write, capsys):
    assert main(["config", str(write(PRETRAIN)), "--gpus", "4"]) == 0
    printed = capsys.readouterr()
    assert "--config.stages.pretrain.batch_size=256" in printed.out.splitlines()
    assert "note: batch_size=64 is per GPU: 64 x 4 GPUs (--gpus) = 256 in all" in printed.err
    noted = (
        "bert_config",
        "temp",
        "optimizer.opt",
        "schedular.sched",
        "schedular.lr",
        "schedular.decay_rate",
    )
    for key in (*noted, "schedular.cooldown_epochs"):
        assert f"note: {key}: no flag" in printed.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1,\nb: 2", r"a\.yaml, line 2: not YAML"),
        ("- a", "holds no 'key: value' lines"),
        ("", "holds no 'key: value' lines"),
        ("image_size: 3", "unknown key 'image_size' for stage 'pretrain'; write image_res, or remove"),
        ("queue_size: 3\nk_test: 4", "unknown key 'queue_size' for stage 'vqa'; pass --stage pretrain"),
        ("image_res: 2.5", r"a\.yaml: image_res=2.5: give a whole number"),
        ("alpha: [1]", r"alpha=\[1\]: give a number"),
        ("alpha: True", "alpha=True: give a number"),
        ("train_file: [a, 1]", "train_file=.*give a path or a list of paths"),
        ("warm_up: 3", "warm_up=3: give True or False"),
        ("temp: 0.05", "temp=0.05: jaxvl has only 0.07; set that, or remove the line"),
        ("optimizer: {opt: sgd}", "optimizer.opt='sgd': jaxvl has only 'adamW'"),
    ],
)
def test_what_cannot_be_followed_is_refused(write, text, message):
    with pytest.raises(WeightsError, match=message):
        albef_flags(write(text))


def test_the_command_ends_with_one_line_if_it_cannot(tmp_path, capsys):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert main(["config", str(tmp_path / "a.yaml")]) == 1
    assert main(["config", str(tmp_path / "b.yaml")]) == 1
    assert main(["config", str(tmp_path / "a.yaml"), "--gpus", "0"]) == 1
    printed = capsys.readouterr()
    for message in ("a.yaml: not a text file", "b.yaml: no such file", "--gpus 0: give the number"):
        assert message in printed.err
    assert printed.out == "" and printed.err.count("\n") == 3
