"""Every config of active learning builds at every scale, for every method and ablation; models have their shapes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from test_configs import EVERY

from jaxvl import build_active, run, run_active
from jaxvl.active.strategies import load_strategies
from jaxvl.config import ConfigError, override
from jaxvl.data import scenes
from jaxvl.data.words import Words
from jaxvl.sharding import Partition

ACTIVE = {name: module for name, module in EVERY.items() if "active" in module.get_config("")}
CASES = [(name, ablation) for name, module in ACTIVE.items() for ablation in (None, *module.ABLATIONS)]


class Provider:
    """Regions of the paper's sizes."""

    width, regions = 2048, 36


def config(name, *parts):
    return ACTIVE[name].get_config(",".join(p for p in parts if p))


@pytest.mark.parametrize(("name", "ablation"), CASES)
def test_every_ablation_builds_the_strategies_of_all_methods(name, ablation):
    c = config(name, "all", ablation and f"ablation={ablation}", "scale=tiny")
    assert set(build_active.chosen(c, c.run)) == set(c.run) == set(c.active.strategies)
    used = {stage for s in build_active.chosen(c, c.run).values() for stage in s.needs}
    assert used <= set(c.stages), used
    assert len(c.keys()) <= 13


@pytest.mark.parametrize("name", ACTIVE)
def test_every_ablation_changes_its_config_or_says_that_it_does_not(name, capsys):
    for ablation in ACTIVE[name].ABLATIONS:
        same = config(name, f"ablation={ablation}").to_json(sort_keys=True) == config(name).to_json(
            sort_keys=True
        )
        assert same == (f"ablation={ablation} changes nothing" in capsys.readouterr().err), ablation


def test_every_strategy_of_the_library_is_a_method_of_the_config():
    named = {s.name for s in config("ccrl").active.strategies.values()}
    assert named == set(load_strategies())


def test_the_papers_models_have_their_shapes():
    c = config("ccrl", "all", "scale=paper")
    words = Words(["word"], dim=300)
    words.vocab = [*words.vocab, *map(str, range(20_572 - len(words.vocab)))]
    answers, partition = (
        [f"a{i}" for i in range(3129)],
        Partition.create(mesh=dict(data=1, model=1), rules="dp"),
    )
    batch = dict(
        regions=jnp.zeros((4, 36, 2048)),
        region_mask=jnp.ones((4, 36), bool),
        text=jnp.ones((4, 14), jnp.int32),
    )
    batch["text_mask"] = batch["text"] != 0
    counts = {}
    for name in ("task", "vqme", "vaue", "ll"):
        stage = build_active.stage(c, name, words, answers, Provider(), partition, 443_757)
        params = jax.eval_shape(lambda b, t=stage.trainer.task: nn.unbox(t.init(jax.random.key(0), b)), batch)
        counts[name] = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
    assert counts["task"] == 57_812_491  # MCAN-small, specification 4.1
    assert counts["ll"] > counts["task"]
    large = config("ccrl", "random", "variant=large", "scale=paper")
    assert {large.stages[name].optim.schedule.lr for name in ("task", "ll", "ranker")} == {7e-5}
    stage = build_active.stage(large, "task", words, answers, Provider(), partition, 443_757)
    params = jax.eval_shape(lambda b: nn.unbox(stage.trainer.task.init(jax.random.key(0), b)), batch)
    parts = dict(lstm=5_431_296, image=2_098_176, encoder=6 * 12_596_224, decoder=6 * 16_796_672, flat=2 * 2_624_513,
                 norm=4_096, classifier=6_411_321, words=300 * 20_572)  # by hand, from the layers' sizes  # fmt: skip
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) == sum(parts.values())


@pytest.mark.parametrize("scale", ["tiny", "small"])
def test_the_embedded_world_builds_whole_without_writing(tmp_path, scale):
    c = config("ccrl", "random,ccrl,entropy", f"scale={scale}")
    world = build_active.world(c, tmp_path, methods=list(c.run))
    assert world.answers == scenes.answers() and len(world.val)
    assert set(world.fitter.stages) == {"task", "vqme", "vaue"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"active.init": 0.0}, "config.active: init"),
        ({"active.oracle.name": "simulated"}, "did you mean 'simulate'"),
        ({"active.oracle.name": "people", "active.full": True}, "nobody has labelled the whole pool"),
        ({"active.oracle.gold": 0.1}, "only people are tested by it"),
        ({"active.oracle.min_fraction": 0.0}, "oracle.min_fraction=0.0: a share of the batch above 0"),
        ({"active.oracle.min_fraction": 1.5}, "oracle.min_fraction=1.5"),
        ({"active.oracle.reserve": -0.5}, "oracle.reserve=-0.5: a share of the batch"),
        ({"active.bank.max": 0}, "active.bank.max=0: at least one pattern"),
        ({"active.bank.reduce": "mediod"}, "did you mean 'medoid'"),
        (
            {"active.oracle": dict(name="people", min_fraction=0.9, reserve=0.1, suggest=False, gold=0.1)},
            "suggest=True, or gold=0",
        ),
        ({"active.val.split": "train"}, "in the pool too"),
        ({"active.regions.objects": (2, 4)}, "objects"),
        (
            {"active.regions": dict(name="scenes", objects=(1, 3), regions=6, width=64, split="train")},
            "no regions of 12 images of config.active.pool and config.active.val",
        ),
        ({"active.strategies.random.name": "randm"}, "did you mean 'random'"),
        ({"stages.task.model.heads": 7}, "heads"),
        ({"active.words.scope": "some"}, "scope"),
        ({"active.strategies.random": dict(name="ccrl", k_max=16)}, r"random: k_max=16.*allow_approx=True"),
        ({"active.protocol": "tset"}, "did you mean 'test'"),
        ({"active.protocol": "test", "active.stop.accuracy": 60.0}, "active.stop.accuracy=60.0: under"),
        ({"active.protocol": "test", "active.stop.plateau": 0.1}, "active.stop.plateau=0.1: under"),
        ({"active.unit": "question"}, "unknown config.active.unit 'question'"),
        ({"active.answers.scope": "some"}, "config.active.answers.scope"),
        ({"active.answers.scope": "strict", "active.answers.grow": True}, "has no effect"),
        ({"active.words.scope": "strict", "active.warm_start": True}, "one shape"),
        ({"active.proposer": "bank"}, "config.active.proposer"),
        ({"active.proposer": "visible", "active.oracle.name": "people"}, "no questions yet"),
        ({"active.share_task_model": "always"}, "config.active.share_task_model"),
        ({"active.unit": "qa", "active.proposer": "visible"}, "each question is asked itself"),
        ({"active.pause.until": "SCORD"}, "did you mean 'SCORED'"),
        ({"active.pause.rounds": 0}, "active.pause.rounds=0: expected a number of rounds from 1"),
        (
            {"stages.task.plateau": dict(share=0.1)},
            "stages.task.plateau: RegionVQATask has no score on held-out",
        ),
        ({"active.full": True, "active.protocol": "test"}, "config.active.full: only EvalAI"),
        ({"active.full": True, "active.answers.grow": True}, "config.active.full: words and answers"),
        ({"active.full": True, "active.warm_start": True}, "config.active.full: with warm_start"),
    ],
)
def test_what_is_wrong_is_named_before_any_work(tmp_path, values, message):
    c = override(config("ccrl", "random,scale=tiny"), values)
    with pytest.raises((ConfigError, ValueError), match=message):
        build_active.world(c, tmp_path, methods=["random"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("allowed", [False, True])
def test_approximate_ways_are_named_and_allowed_or_refused(allowed):
    c = config("ccrl", "random,ccrl,ccrl_a,ablation=prefilter,scale=tiny")
    override(c, {"active.allow_approx": allowed, "active.scoring.compute": "bfloat16"})
    strategies = build_active.chosen(c, c.run)
    want = {"ccrl": ("k_max=16", "prefilter=prefilter", "compute=bfloat16"), "ccrl_a": ("compute=bfloat16",)}
    if allowed:
        assert build_active.approximations(c, strategies) == want
        return
    with pytest.raises(
        ConfigError, match="ccrl: k_max=16, prefilter=prefilter, compute=bfloat16; ccrl_a: comp"
    ):
        build_active.approximations(c, strategies)


def test_what_an_approximate_scorer_proposes_is_approximate():
    c = config("ccrl", "random,entropy,scale=tiny")
    override(c, {"active.scoring.compute": "bfloat16", "active.allow_approx": True})
    strategies = build_active.chosen(c, c.run)
    assert build_active.approximations(c, strategies) == {}
    override(c, {"active.proposer": "bank_matched"})
    assert build_active.approximations(c, strategies) == {"entropy": ("compute=bfloat16",)}


def test_a_pause_is_passed_on_and_may_differ_between_two_commands_of_a_workdir(tmp_path, monkeypatch):
    """What a pause does is tested with the rounds."""
    asked = []
    monkeypatch.setattr(run_active.loop, "run", lambda *args, **kwargs: asked.append(kwargs) or {})
    monkeypatch.setattr(run, "begun", lambda root: True)
    for pause in ({"rounds": None, "until": "EVALUATED"}, {"rounds": 1, "until": None}):
        c = override(config("ccrl", "random,scale=tiny"), {"active.pause": pause})
        run.run(c, tmp_path)
        assert {k: asked[-1][k] for k in pause} == pause


def test_two_sections_of_a_config_are_never_one():
    c = override(
        config("ccrl", "scale=small"), {"stages.joint.plateau.patience": 9, "stages.joint.optim.clip": 1.0}
    )
    assert c.stages.vqme.plateau.patience == 3 and c.stages.vqme.optim.clip == 5.0


@pytest.mark.parametrize("ablation, path", [
    ("critic=separable", "model.critic"), ("cl_form=printed", "task.cl_form"), ("neg=derangement", "task.neg"),
    ("qga=question", "model.qga"), ("label=soft", "task.label"),
])  # fmt: skip
def test_ablations_of_matcher_and_answer_model_reach_the_stage_that_is_both(ablation, path):
    section, key = path.split(".")
    assert config("ccrl", f"ablation={ablation}").stages.joint[section][key] == ablation.partition("=")[2]


def test_methods_that_need_dropout_are_refused_without_it_before_anything_is_read():
    c = override(config("ccrl", "random,bald,mocu,scale=tiny"), {"stages.task.model.dropout": 0.0})
    override(c, {"active.pool.name": "nowhere"})
    with pytest.raises(
        ConfigError, match=r"stages.task.model.dropout=0.*bald, mocu have nothing to choose by"
    ):
        build_active.world(c, None, methods=["random", "bald", "mocu"])


def test_people_need_images_only(tmp_path, monkeypatch):
    from jaxvl.data.scenes.pool import ScenePool

    bare = {"image", "image_id"}
    annotation = ScenePool.annotation
    monkeypatch.setattr(
        ScenePool,
        "annotation",
        lambda self, i: {k: v for k, v in annotation(self, i).items() if self.split == "val" or k in bare},
    )
    c = config("ccrl", "random,variant=people,scale=tiny")
    world = build_active.world(c, tmp_path, methods=["random"])
    assert not world.simulated and len(world.oracle.ids) == 60
    assert world.oracle.label(world.oracle.ids[:1], selected=set(world.oracle.ids)) == []
    simulated = config("ccrl", "random,scale=tiny")
    with pytest.raises(ValueError, match="has no 'question'"):
        build_active.world(simulated, tmp_path, methods=["random"])


def test_methods_that_cannot_choose_questions_are_all_named_before_anything_is_read(tmp_path):
    c = override(config("ccrl", "all,variant=qa,scale=tiny"), {"active.pool.name": "nowhere"})
    with pytest.raises(ConfigError) as error:
        build_active.world(c, tmp_path, methods=list(c.run))
    refused = {line.split(":")[0] for line in str(error.value).split("\n- ")[1:]}
    assert refused == {"sraal", "cdal", "vaal", "ccrl_b", "ccrl_ab", "count_only"}, error.value


def test_people_who_answer_need_questions_and_no_answers(tmp_path, monkeypatch):
    from jaxvl.data.scenes.pool import ScenePool

    shown, annotation = {"image", "image_id", "question", "question_id"}, ScenePool.annotation
    monkeypatch.setattr(
        ScenePool,
        "annotation",
        lambda self, i: {k: v for k, v in annotation(self, i).items() if self.split == "val" or k in shown},
    )
    c = config("ccrl", "ccrl,variant=people+qa,scale=tiny")
    world = build_active.world(c, tmp_path, methods=["ccrl"])
    assert len(world.oracle.ids) == 240 and world.counts == [72, 144]
    assert set(world.fitter.stages) == {"task", "vaue"}  # CCRL needs no matcher
    shown -= {"question"}
    with pytest.raises(ValueError, match="has no 'question'"):
        build_active.world(c, tmp_path, methods=["ccrl"])


def test_paper_scale_without_its_files_names_them_all_and_the_guide(tmp_path, monkeypatch):
    from jaxvl.run_active import run_active

    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        run_active(config("ccrl", "ccrl,scale=paper"), tmp_path / "run")
    text = str(error.value)
    for part in (
        "v2_OpenEnded_mscoco_train2014",
        "val2014",
        "train36",
        "val36",
        "glove.840B",
        "answer_dict.json",
    ):
        assert part in text, text
    assert "docs/howto/region_features.md" in text and not list(tmp_path.iterdir())


def test_the_protocol_test_hides_answers_and_has_a_key_of_its_own(tmp_path):
    c = config("ccrl", "random,scale=tiny")
    known = build_active.world(c, tmp_path, methods=["random"])
    hidden = build_active.world(override(c, {"active.protocol": "test"}), tmp_path, methods=["random"])
    assert len(hidden.val) == len(known.val) and "answers" in known.val.records[0]
    assert not {"answers", "targets"} & set(hidden.val.records[0])
    assert hidden.data_key["val"] != known.data_key["val"] and hidden.data_key["val"].endswith("-test")


@pytest.mark.parametrize("name", ["v2_OpenEnded_mscoco_test-dev2015_questions.json", "renamed.json"])
def test_the_protocol_test_refuses_the_questions_of_test_dev(tmp_path, name):
    c = config("ccrl", "random,scale=tiny")
    active = override(c, {"active.protocol": "test"}).active
    path = tmp_path / name
    path.write_text(json.dumps({"data_subtype": "test-dev2015", "questions": []}))
    with active.unlocked(), active.ignore_type():
        active.val = dict(questions=str(path))
    with pytest.raises(ValueError, match="whole test file"):
        build_active.evaluation_records(active, [])


def test_a_workdir_of_an_older_config_goes_on_and_other_choices_are_still_refused(tmp_path, monkeypatch):
    """Before there were pools of what is shown, shared encoders, and the stage that has them."""
    monkeypatch.setattr(run, "begun", lambda root: True)
    before = config("ccrl", "scale=tiny").to_dict()
    for part in ("pool", "val"):
        before["active"][part].pop("shown", None)
    for strategy in before["active"]["strategies"].values():
        strategy.pop("encoders", None)
    del before["stages"]["joint"], before["active"]["pause"]
    (tmp_path / "config.json").write_text(json.dumps(before))
    run.check_same_run(config("ccrl", "scale=tiny"), tmp_path)
    for other in ("variant=shown", "ablation=encoders=shared"):
        with pytest.raises(ConfigError, match="a run with another config"):
            run.check_same_run(config("ccrl", f"{other},scale=tiny"), tmp_path)


def test_a_config_of_an_older_workdir_is_of_the_protocol_val():
    c = config("ccrl", "random,scale=tiny").active
    with c.unlocked():
        del c.protocol
    assert build_active.protocol_of(c) == "val"


@pytest.mark.parametrize("field, value", [("answer_type", "other"), ("multiple_choice_answer", "blue")])
def test_annotations_that_models_read_are_part_of_what_the_data_are(field, value):
    """Answers can be the same and their types corrected: models and scores of before are not reused."""
    row = {"image_id": 1, "question_id": 10, "question": "is it red?", "answers": ["yes"] * 10,
           "answer_type": "yes/no", "multiple_choice_answer": "yes"}  # fmt: skip
    c, features = config("ccrl", "random,scale=tiny"), SimpleNamespace(digest="d")
    one = build_active.data_key(c, [row], [row], features)
    other = build_active.data_key(c, [row], [{**row, field: value}], features)
    assert {k for k in one if one[k] != other[k]} == {"annotations"}
