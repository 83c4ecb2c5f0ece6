"""A stage that learns from a teacher: where its parameters come from, what is refused, and resuming."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pair_run
import pytest

from jaxvl import build
from jaxvl import config as cfg
from jaxvl.checkpoint import Checkpoints
from jaxvl.interop import load_params
from jaxvl.run import RESULT, chosen_params, run

STEPS = 4


def student(root, **values):
    """The config of a distilled stage "vqa" in a workdir where only its teacher is finished."""
    pair_run.write(root, "teacher_vqa")
    config = cfg.load(root / "config.json")
    distilled = pair_run.tiny().get_config("scale=tiny").stages.vqa
    chosen = {
        "stages.vqa.teacher": cfg.to_dict(distilled.teacher),
        "stages.vqa.task.distill": cfg.to_dict(distilled.task.distill), "sharding.mesh.data": 1,
        "stages.vqa.init_from": None, "stages.vqa.steps": STEPS, "stages.vqa.evals": {}, "stages.vqa.val": None,
        "checkpoint.every_steps": 2, "checkpoint.keep": 5,
    }  # fmt: skip
    cfg.override(config, chosen | {name.replace("__", "."): value for name, value in values.items()})
    cfg.save(config, root / "config.json")
    config.run = ("vqa",)
    return config


def test_a_resumed_student_equals_an_uninterrupted_one_and_saves_no_teacher(tmp_path):
    config = student(tmp_path)
    run(config, tmp_path)
    folder = tmp_path / "vqa"
    whole = Checkpoints.last_params(folder / "checkpoints")
    saved = load_params(folder / "checkpoints" / str(STEPS) / "params.safetensors")
    assert set(saved) == set(whole) and "text_encoder" in saved and "embeddings" not in saved  # no ViLT
    (folder / RESULT).unlink()
    shutil.rmtree(folder / "checkpoints" / str(STEPS))
    run(config, tmp_path)
    again = Checkpoints.last_params(folder / "checkpoints")
    jax.tree.map(np.testing.assert_array_equal, whole, again)


def test_a_teacher_of_other_answers_is_refused(tmp_path):
    config = student(tmp_path)
    path = tmp_path / "teacher_vqa/answers.json"
    answers = json.loads(path.read_text())
    path.write_text(json.dumps(answers[::-1]))
    with pytest.raises(ValueError, match="teacher='teacher_vqa': its list of answers differs .* position 0"):
        run(config, tmp_path)


def test_a_file_that_was_trained_on_other_words_is_refused_before_any_work(tmp_path):
    other = tmp_path / "other"
    pair_run.write(other, "teacher_vqa", "vqa")
    words = json.loads((other / "tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    vocab["red"], vocab["blue"] = vocab["blue"], vocab["red"]  # as many words, in another order
    (other / "tokenizer.json").write_text(json.dumps(words))
    for key, stage in (("teacher.params", "teacher_vqa"), ("init_from", "vqa")):
        params = str(other / stage / "checkpoints/1/params.safetensors")
        config = student(tmp_path / stage, **{f"stages__vqa__{key.replace('.', '__')}": params})
        with pytest.raises(
            cfg.ConfigError, match=rf"vqa\.{key}=.* other words: id \d+ is '(red|blue)' here and '"
        ):
            run(config, tmp_path / stage)
        assert not (tmp_path / stage / "vqa").exists()


def test_the_best_of_several_evaluations_is_the_result_and_what_others_start_from(tmp_path, monkeypatch):
    score = {1: 5.0, 2: 9.0, 3: 9.0, 4: 7.0}
    seen = []

    def evaluate(stage, trainer, params, *, share=1.0):
        seen.append(float(np.abs(params["class_head"]["fc2"]["bias"]).sum()))
        return {"vqa/accuracy": score.get(len(seen), 8.5)}

    monkeypatch.setattr("jaxvl.run.evaluate", evaluate)
    config = student(tmp_path, stages__vqa__eval__best="vqa/accuracy", stages__vqa__evals={"vqa": {"name": "vqa"}},
                     stages__vqa__eval__every_epochs=0.25, checkpoint__keep=1)  # fmt: skip
    run(config, tmp_path)
    result = json.loads((tmp_path / "vqa" / RESULT).read_text())
    assert result["chosen"] == 3 and result["metrics"] == {
        "vqa/accuracy": 8.5
    }  # the later of equals, scored again
    assert len(seen) == 5 and seen[4] == seen[2] != seen[3]
    best, last = (Checkpoints.last_params(tmp_path / "vqa/checkpoints", step=step) for step in (3, None))
    jax.tree.map(np.testing.assert_array_equal, chosen_params(tmp_path / "vqa"), best)
    assert np.abs(best["class_head"]["fc2"]["bias"] - last["class_head"]["fc2"]["bias"]).max() > 0
    config.stages.vqa.eval.best = "vqe/accuracy"
    with pytest.raises(cfg.ConfigError, match="eval.best: 'vqe': did you mean 'vqa'"):
        build.stage(config, "vqa", build.tokenizer(config), tmp_path)


def test_a_stage_without_updates_scores_given_parameters(tmp_path):
    pair_run.write(tmp_path / "other", "vqa")
    params = tmp_path / "other/vqa/checkpoints/1/params.safetensors"
    config = student(tmp_path / "r", stages__vqa__teacher=None, stages__vqa__task__distill=None, stages__vqa__steps=0,
                     stages__vqa__init_from=str(params))  # fmt: skip
    run(config, tmp_path / "r")
    assert json.loads((tmp_path / "r/vqa" / RESULT).read_text())["steps"] == 0
    scored, given = chosen_params(tmp_path / "r/vqa"), Checkpoints.params(params)
    jax.tree.map(np.testing.assert_array_equal, scored, given)
    assert not (tmp_path / "r/vqa/curves.png").exists()  # one evaluation is no curve


def test_a_stage_without_updates_has_no_head_that_nobody_trained(tmp_path):
    """A teacher that is only evaluated would teach noise: its file is named, and what it lacks."""
    pair_run.write(tmp_path / "other", "pretrain")
    params = tmp_path / "other/pretrain/checkpoints/1/params.safetensors"
    config = student(tmp_path / "r", stages__vqa__teacher=None, stages__vqa__task__distill=None, stages__vqa__steps=0,
                     stages__vqa__init_from=str(params))  # fmt: skip
    with pytest.raises(
        ValueError, match=r"stages.vqa.steps=0: nothing is trained, and 6 tensors .*class_head/fc1/bias"
    ):
        run(config, tmp_path / "r")


def test_a_teacher_of_another_task_is_refused(tmp_path):
    pair_run.write(tmp_path / "other", "teacher_pretrain")
    params = tmp_path / "other/teacher_pretrain/checkpoints/1/params.safetensors"
    config = student(tmp_path, stages__vqa__teacher__params=str(params))
    with pytest.raises(
        ValueError, match=r"teacher.params=.*: the teacher lacks 6 tensors \(class_head/fc1/bias"
    ):
        run(config, tmp_path)


def test_a_teacher_that_is_not_there_stops_the_run_before_it_starts(tmp_path):
    config = student(tmp_path)
    shutil.rmtree(tmp_path / "teacher_vqa")
    with pytest.raises(
        cfg.ConfigError, match="stage 'vqa' learns from stage 'teacher_vqa', which is not finished"
    ):
        run(config, tmp_path)
    config.stages.vqa.teacher.params = "nowhere.safetensors"
    with pytest.raises(
        FileNotFoundError, match=r"stages.vqa.teacher.params='nowhere.safetensors' is neither"
    ):
        run(config, tmp_path)
