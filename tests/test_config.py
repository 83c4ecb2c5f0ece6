"""The argument grammar, strict overrides, and errors that suggest what was meant."""

from __future__ import annotations

import sys

import pytest
from absl import flags
from ml_collections import config_flags

from jaxvl import config as C


def example() -> C.ConfigDict:
    return C.base(
        model=dict(width=8, hypergraph=dict(layers=(1, 2), grid=4)),
        stages=dict(pretrain=dict(epochs=3), vqa=dict(epochs=2)),
    )


def build(arg: str | None) -> C.ConfigDict:
    return C.build(
        example(),
        arg,
        order=("pretrain", "vqa"),
        variants={"long": {"stages.vqa.epochs": 9}},
        ablations={"no_hyper": {"model.hypergraph": None}, "layers=1,2": {"model.hypergraph.layers": (1, 2)}},
        scales={"tiny": {"model.hypergraph.grid": 2}, "small": {}},
    )


def test_no_argument_is_the_whole_recipe_at_small():
    config = build(None)
    assert (config.scale, config.run) == ("small", ("pretrain", "vqa"))


def test_stage_ablation_and_scale_combine_and_the_ablation_wins():
    config = build("vqa,ablation=no_hyper,scale=tiny")
    assert config.run == ("vqa",) and config.scale == "tiny" and config.model.hypergraph is None


def test_ablation_names_may_hold_commas_and_be_added():
    config = build("ablation=layers=1,2+no_hyper,variant=long")
    assert config.model.hypergraph is None and config.stages.vqa.epochs == 9


@pytest.mark.parametrize(
    ("arg", "said"),
    [
        ("vqaa", "unknown stage 'vqaa': did you mean 'vqa'"),
        ("ablation=no_hypr", "unknown ablation 'no_hypr': did you mean 'no_hyper'"),
        ("scal=tiny", "unknown config argument 'scal': did you mean 'scale'"),
        ("ablation=no_hyper,ablation=layers=1,2", r"given twice; .*: ablation=no_hyper\+layers=1,2"),
        ("scale=tiny+small", "one scale at a time; tiny, small"),
    ],
)
def test_mistyped_arguments_are_refused_with_a_suggestion(arg, said):
    with pytest.raises(C.ConfigError, match=said):
        build(arg)


@pytest.mark.parametrize("path", ["stages.vqa.epoch", "stages.vqas.epochs", "model.hypergraph.layers.x"])
def test_override_refuses_paths_that_do_not_exist(path):
    with pytest.raises(C.ConfigError, match="unknown config key"):
        C.override(example(), {path: 1})


def test_config_survives_json(tmp_path):
    config = build("scale=tiny")
    C.save(config, tmp_path / "config.json")
    assert C.to_dict(C.load(tmp_path / "config.json")) == C.to_dict(config)


def test_a_config_that_is_there_is_left_alone_and_a_kill_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    C.save(build("scale=tiny"), path)
    before = path.stat().st_mtime_ns, path.read_text()
    C.save(build("scale=tiny"), path)
    assert (path.stat().st_mtime_ns, path.read_text()) == before
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        C.save(build("scale=small"), path)
    assert path.read_text() == before[1]


def test_broken_config_file_names_file_and_line(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(C.ConfigError, match=r"config\.json, line 2"):
        C.load(tmp_path / "config.json")


def test_make_names_section_and_key():
    with pytest.raises(C.ConfigError, match="did you mean 'thing'"):
        C.make({"thing": dict}, "model", {"name": "thin"})
    with pytest.raises(C.ConfigError, match="model 'thing'.*widht"):
        C.make({"thing": lambda *, width: width}, "model", {"name": "thing", "widht": 3})


@pytest.mark.parametrize(
    ("text", "value"),
    [("['a', 'b']", ["a", "b"]), ("a.arrow", "a.arrow"), ("None", None), ("('a',)", ["a"])],
)
def test_a_list_can_be_given_by_a_flag_as_a_list_or_as_one_item(text, value, monkeypatch):
    C.allow_none()
    config = C.base(files=["x", "y"])
    monkeypatch.setattr(
        sys, "argv", ["program", f"--config.files={text}"]
    )  # which flags of a config there are
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    values(sys.argv)
    assert values.config.files == value


def test_a_part_of_a_path_may_stand_for_several():
    assert C.choices("stages.a|b.model.critic", ("x", "y")) == {
        "critic=x": {"stages.a.model.critic": "x", "stages.b.model.critic": "x"},
        "critic=y": {"stages.a.model.critic": "y", "stages.b.model.critic": "y"},
    }


def test_sections_that_a_file_writes_once_are_not_one_section():
    shared = dict(lr=1.0)
    config = C.base(stages=dict(a=dict(optim=shared), b=dict(optim=shared)))
    config.stages.a.optim.lr = 2.0
    assert config.stages.b.optim.lr == 1.0
