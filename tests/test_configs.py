"""Every config file at every scale with every ablation builds: sources, tasks, shapes of the model; nothing trains."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import linen as nn
from ml_collections import config_flags
from tiny_run import ROOT, config_file

from jaxvl import build
from jaxvl import config as cfg
from jaxvl.data import scenes
from jaxvl.data.text import Tokenizer

FILES = sorted((ROOT / "configs").glob("*.py"))
EVERY = {path.stem: config_file(path) for path in FILES}
MODULES = {name: module for name, module in EVERY.items() if "active" not in module.get_config("")}
SCALES = [(name, scale) for name, module in MODULES.items() for scale in module.SCALES]
CASES = [(*case, ablation) for case in SCALES for ablation in (None, *MODULES[case[0]].ABLATIONS)]


def load(name, scale, ablation=None):
    return MODULES[name].get_config(f"scale={scale}" + (f",ablation={ablation}" if ablation else ""))


@functools.cache
def tokenizer():
    return Tokenizer.from_vocab(scenes.vocabulary())


def key(*parts):
    return json.dumps([cfg.to_dict(p) for p in parts], sort_keys=True)


def example(config, stage):
    """Shapes of a batch of four of this stage."""
    section = config.stages[stage]
    model = build.merged(config, stage)
    size, text = model["image_size"], section.format.length

    def array(*shape, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((4, *shape), dtype)

    batch = dict(
        image=array(size, size, 3, dtype=jnp.float32), text=array(text), text_mask=array(text, dtype=bool),
        image_id=array(), id=array(), mask=array(dtype=bool),
    )  # fmt: skip
    if model.get("images") == 2:
        batch["image2"] = batch["image"]
    if (section.task.get("itm") or {}).get("negatives") == "dataset":
        batch |= dict(false_image=batch["image"], false_image_id=batch["image_id"])
    if section.format.name == "classify":
        lists = dict(label=array(10), label_score=array(10, dtype=jnp.float32))
        batch |= dict(label=array()) if section.answers is None else lists
    elif section.answers is not None:
        n, length = section.format.answers, section.format.answer_length
        batch |= dict(answer=array(n, length), answer_weight=array(n, dtype=jnp.float32))
    return batch


done: dict[str, object] = {}  # ablations share most of their programs: each is traced once


def shapes(config, stage, *, loss):
    """Trace the initialisation of a stage's task, and its loss; memoised by the sections that matter."""
    section = config.stages[stage]
    known = key(config.model, section.model, section.task, section.format, section.get("teacher"), loss)
    if known not in done:
        classes = section.model.get("classes") or 3  # as many as the model was made for
        answers = None if section.answers is None else [f"red {i}" for i in range(classes)]
        task = build.task(config, stage, tokenizer(), answers, steps_per_epoch=10)
        batch, rng = example(config, stage), jax.random.key(0)
        params = jax.eval_shape(lambda b: nn.unbox(task.init(rng, b)), batch)
        extra = jax.eval_shape(lambda p: nn.unbox(task.start(p, rng)), params)
        if loss:
            if section.get("teacher") is not None:
                extra = {
                    **extra,
                    "frozen": jax.eval_shape(lambda b: nn.unbox(task.init_frozen(rng, b)), batch),
                }
            value, _ = jax.eval_shape(task.loss, params, extra, batch, rng)
            assert (value.shape, value.dtype) == ((), jnp.float32)
        done[known] = params
    return done[known]


@pytest.mark.parametrize(("name", "scale", "ablation"), CASES)
def test_every_stage_of_every_config_scale_and_ablation_has_shapes(name, scale, ablation):
    config = load(name, scale, ablation)
    config.precision.layers = "scan" if scale == "paper" else "unroll"  # twelve layers are traced as one
    graph, depth = config.model.get("hypergraph"), config.model.get("fusion_depth")
    if graph is not None and max(graph.layers) > depth:
        with pytest.raises(ValueError, match=rf"hypergraph.layers=.* not in 1\.\.{depth}"):
            shapes(config, config.run[0], loss=False)
        return
    for stage in config.stages:
        params = shapes(config, stage, loss=scale == "tiny")
        if config.model.name == "hyper_albef":
            fusion = str(jax.tree.structure(params["fusion_encoder"]))
            assert ("hypergraph" in fusion) == (graph is not None)
            assert ("text_decoder" in params) == (config.stages[stage].answers is not None)
        else:
            assert ("class_head" in params) == (config.stages[stage].task.name == "classify")


def test_towers_that_start_from_the_teacher_load_no_other_files():
    stages = load("bridge_tower", "paper", "from_teacher").stages
    assert stages.pretrain.init_from == "teacher_pretrain" and stages.teacher_pretrain.weights.vilt
    assert not build.weights_files(stages.pretrain) and not build.weights_files(stages.plain_pretrain)
    assert len(build.weights_files(load("bridge_tower", "paper").stages.pretrain)) == 2


def test_a_model_of_a_known_number_of_classes_refuses_another_list_of_answers():
    config = load("bridge_tower", "paper")
    with pytest.raises(
        cfg.ConfigError, match=r"stage vqa: model.classes=3129, but config.stages.vqa.answers has 2"
    ):
        build.model(config, "vqa", 100, ["yes", "no"])


@pytest.mark.parametrize("name", MODULES)
def test_every_ablation_changes_its_config_or_says_that_it_does_not(name, capsys):
    # `small` has no queue and uniform negatives already: docs/decisions/0004-small-recipe.md
    already = {"no_queue", "uniform_negatives"} if name == "hyper_albef" else set()
    for ablation in MODULES[name].ABLATIONS:
        same = load(name, "small", ablation).to_json(sort_keys=True) == load(name, "small").to_json(
            sort_keys=True
        )
        said = f"ablation={ablation} changes nothing" in capsys.readouterr().err
        assert same == said == (ablation in already), ablation


@pytest.mark.parametrize("scale", ["tiny", "small"])
@pytest.mark.parametrize("system", ["hyper_albef", "bridge_tower"])
def test_stages_on_the_embedded_world_build_whole(tmp_path, system, scale):
    config = load(system, scale)
    tok = build.tokenizer(config)
    for name in config.stages:
        stage = build.stage(config, name, tok, tmp_path)
        shapes = {
            k: (v.shape, v.dtype) for k, v in stage.train.augmented(0, np.random.default_rng(0)).items()
        }
        wanted = {
            k: (v.shape[1:], v.dtype) for k, v in example(config, name).items() if k not in ("id", "mask")
        }
        assert shapes == wanted
        assert len(stage.val) and set(stage.evals) == set(config.stages[name].evals)
        assert stage.steps == config.stages[name].epochs * stage.steps_per_epoch > 10 * (scale == "small")
        rates = [
            float(build.schedule(stage)(step)) for step in range(0, stage.steps, max(stage.steps // 20, 1))
        ]
        assert 0 < rates[-1] <= max(rates)
    assert not list(tmp_path.iterdir())


def test_command_line_removes_parts_with_none_and_sets_those_that_are_none():
    cfg.allow_none()
    values = flags.FlagValues()
    argv = [
        "main.py",
        f"--config={ROOT / 'configs/hyper_albef.py'}:scale=tiny",
        "--config.model.hypergraph=None",
        "--config.stages.pretrain.task.queue_size=None",
        "--config.stages.vqa.init_from=None",
        "--config.stages.vqa.steps=7",
        "--config.precision.remat=names",
        "--config.stages.vqa.answers={'file': 'a.json', 'top': 3}",
    ]
    found = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    stages = found.value.stages
    assert (found.value.model.hypergraph, stages.pretrain.task.queue_size, stages.vqa.init_from) == (
        None,
    ) * 3
    assert (stages.vqa.steps, found.value.precision.remat, stages.vqa.answers.top) == (7, "names", 3)
    bad, argv = flags.FlagValues(), [*argv[:2], "--config.stages.vqa.optim=fast"]
    config_flags.DEFINE_config_file("config", flag_values=bad, sys_argv=argv)
    with pytest.raises(flags.IllegalFlagValueError, match="is not a section"):
        bad(argv)


@pytest.mark.parametrize(("name", "scale"), SCALES)
def test_report_asks_for_stages_that_exist(name, scale):
    config = load(name, scale)
    reported = {stage for table in config.report for _, stage, _ in table["rows"]}
    scored = {stage for stage in config.run if config.stages[stage].format.name != "caption"}
    assert scored <= reported <= set(config.stages)
    assert len(config.keys()) <= 13
    assert all(s.init_from is None or s.init_from in config.run for s in map(config.stages.get, config.run))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_config_files_fit_on_three_screens(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150
