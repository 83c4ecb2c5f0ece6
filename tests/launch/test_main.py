"""`python launch/main.py` and `launch/predict.py` as users start them: what a run leaves, and how it refuses."""

from __future__ import annotations

import json
import math

import pytest
import tiny_run
from PIL import Image
from tiny_run import ROOT, STEPS, launch, rows, smallest

from jaxvl import config as cfg
from jaxvl.checkpoint import Checkpoints
from jaxvl.run import run

pytestmark = pytest.mark.slow
STAGES = {"pretrain": STEPS, "vqa": 4, "vqa_blind": 4}


def result(finished, stage):
    return json.loads((finished.workdir / stage / "result.json").read_text(encoding="utf-8"))


def fails(*flags):
    """The one line that launch/main.py says before it ends with exit code 2."""
    ended = launch("launch/main.py", *flags)
    assert (ended.code, ended.out) == (2, ""), ended
    assert "Traceback" not in ended.err
    (line,) = [x for x in ended.err.splitlines() if not x.startswith("(set JAXVL_TRACEBACK")]
    return line


# ---- what a run leaves ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "steps"), STAGES.items())
def test_each_stage_leaves_metrics_curves_events_parameters_and_a_result(finished, stage, steps):
    folder = finished.workdir / stage
    found = rows(folder)
    assert [row["step"] for row in found] == list(range(1, steps + 1))
    assert all(math.isfinite(v) for row in found for v in row.values())
    assert (folder / "metrics.csv").read_text().count("\n") == steps + 1
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "events").iterdir())
    assert Checkpoints(folder / "checkpoints").latest() == steps
    assert "text_encoder" in Checkpoints.last_params(folder / "checkpoints")
    assert result(finished, stage)["steps"] == steps
    assert result(finished, stage)["metrics"].items() <= found[-1].items()


def test_progress_is_plain_lines_when_there_is_no_terminal(finished):
    lines = [x for x in finished.err.splitlines() if x.startswith("pretrain  ")]
    assert "\x1b" not in finished.out + finished.err
    assert lines[-1].startswith(f"pretrain  {STEPS}/{STEPS} (100%)  ")
    assert " loss " in lines[-1] and " examples/s" in lines[-1]


def test_overrides_changed_the_run(finished):
    config = cfg.load(finished.workdir / "config.json")
    assert (config.model.width, config.stages.pretrain.epochs, config.scale) == (32, 3, "tiny")
    params = Checkpoints.last_params(finished.workdir / "pretrain/checkpoints")
    assert params["vision_proj"]["kernel"].shape == (32, 16)


def test_a_later_stage_starts_from_the_parameters_of_an_earlier_one(finished):
    assert "vqa: parameters from pretrain" in finished.out
    assert "vqa_blind: parameters from pretrain" in finished.out


@pytest.mark.parametrize("stage", ["vqa", "vqa_blind"])
def test_results_for_the_evaluation_server_have_one_row_per_question(finished, stage):
    found = json.loads((finished.workdir / stage / "vqa_results.json").read_text(encoding="utf-8"))
    questions = tiny_run.questions(finished.workdir)
    wanted = [questions.annotation(i)["question_id"] for i in range(len(questions))]
    assert [row["question_id"] for row in found] == wanted
    answers = json.loads((finished.workdir / stage / "answers.json").read_text(encoding="utf-8"))
    assert all(set(row) == {"question_id", "answer"} and row["answer"] in answers for row in found)


def test_report_has_the_tables_of_the_config_and_the_numbers_of_the_results(finished):
    text = (finished.workdir / "report.md").read_text(encoding="utf-8")
    config = cfg.load(finished.workdir / "config.json")
    for table in config.report:
        header = f"|  | {' | '.join(table['columns'])} |"
        assert f"## {table['title']}\n\n{header}\n" in text
        for label, stage, prefix in table["rows"]:
            metrics = result(finished, stage)["metrics"]
            cells = [metrics.get(prefix + column) for column in table["columns"]]
            row = " | ".join("-" if v is None else f"{v:.2f}" for v in cells)
            assert f"| {label} | {row} |" in text
            assert cells[0] is not None
        assert table["title"] in finished.out


# ---- starting again -------------------------------------------------------------------------------------


def test_same_command_again_only_reports(finished):
    files = [p for p in finished.workdir.rglob("*") if p.is_file() and p.name != "report.md"]
    before = {p: p.stat().st_mtime_ns for p in files}
    report = (finished.workdir / "report.md").read_text(encoding="utf-8")
    again = launch("launch/main.py", *tiny_run.flags(finished.workdir))
    assert again.code == 0, again.err
    assert "100%" not in again.err
    assert "VQA accuracy" in again.out
    assert {p: p.stat().st_mtime_ns for p in finished.workdir.rglob("*") if p in before} == before
    assert (finished.workdir / "report.md").read_text(encoding="utf-8") == report


def test_workdir_of_another_config_is_refused_with_the_key(finished):
    other = smallest(finished.workdir, "stages.pretrain.optim.weight_decay=0.5")
    with pytest.raises(cfg.ConfigError, match=r"stages.pretrain.optim.weight_decay: 0.02 there, 0.5 now"):
        run(other, finished.workdir)


def test_platform_settings_may_differ_between_two_runs_of_a_workdir(finished, capsys):
    other = smallest(finished.workdir, "loader.workers=3", "log.every_steps=7", "checkpoint.keep=1")
    assert set(run(other, finished.workdir)) == set(STAGES)


def test_stage_without_the_one_it_starts_from_is_refused_with_the_fix(tmp_path):
    with pytest.raises(cfg.ConfigError, match=r"'vqa' starts from stage 'pretrain'.*init_from") as refused:
        run(smallest(tmp_path, arg="vqa"), tmp_path)
    assert "--config=...:pretrain" in str(refused.value)
    assert not list(tmp_path.iterdir())


# ---- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "flag", "hint"),
    [
        ("scale=tiny", "--config.stages.vqa.batchsize=4", "batch_size"),
        ("scale=tny", "", "'tiny'"),
        ("pretran,scale=tiny", "", "'pretrain'"),
        ("ablation=no_hypr", "", "'no_hyper'"),
        ("scal=tiny", "", "'scale'"),
    ],
)
def test_mistyped_key_stage_or_choice_ends_with_one_line_and_a_suggestion(tmp_path, config, flag, hint):
    path = ROOT / "configs/hyper_albef.py"
    line = fails(f"--config={path}:{config}", f"--workdir={tmp_path / 'w'}", *filter(None, [flag]))
    assert "did you mean" in line.lower() and hint in line
    assert not (tmp_path / "w").exists()


def test_paper_scale_without_its_data_stops_at_once_and_lists_all_files(tmp_path):
    config = f"--config={ROOT / 'configs/hyper_albef.py'}:scale=paper"
    ended = launch("launch/main.py", config, f"--workdir={tmp_path / 'w'}")
    assert (ended.code, ended.out) == (2, ""), ended
    assert "Traceback" not in ended.err
    for name in ("bert-base-uncased/vocab.txt", "coco.json", "vqa_train.json", "answer_list.json"):
        assert f"data/{'' if 'vocab' in name else 'albef/'}{name}" in ended.err
    assert "config.stages.pretrain.train" in ended.err and "salesforce/ALBEF" in ended.err
    assert not (tmp_path / "w").exists()


def test_options_that_the_model_refuses_leave_no_workdir_behind(tmp_path):
    with pytest.raises(ValueError, match=r"hypergraph.layers=\(1, 3\): \[3\] not in 1..2"):
        run(
            tiny_run.config_file(ROOT / "configs/hyper_albef.py").get_config(
                "ablation=layers=1,3,scale=tiny"
            ),
            tmp_path / "w",
        )
    assert not (tmp_path / "w").exists()


# ---- answers --------------------------------------------------------------------------------------------


def predict(finished, folder, *, images, questions):
    """(how launch/predict.py ended, the images, the questions) for so many flags of each kind."""
    files = [folder / f"{i}.png" for i in range(images)]
    asked = [f"is there a {shape}?" for shape in ("circle", "square", "star")]
    for i, path in enumerate(files):
        Image.fromarray(tiny_run.questions(finished.workdir).image(i)).save(path)
    flags = [*(f"--image={path}" for path in files), *(f"--question={q}" for q in asked[:questions])]
    ended = launch("launch/predict.py", f"--workdir={finished.workdir}", *flags, "--top_k=3")
    return ended, [str(path) for path in files], asked[:questions]


@pytest.mark.parametrize(("images", "questions"), [(1, 2), (2, 1), (2, 2)])
def test_predict_answers_questions_about_image_files(finished, tmp_path, images, questions):
    ended, files, asked = predict(finished, tmp_path, images=images, questions=questions)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert [x.strip() for x in lines if x.endswith("?")] == asked * (2 // questions)
    assert [x for x in lines if x.endswith(".png")] == files * (2 // images)
    assert sum("%" in line for line in lines) == 6


def test_predict_refuses_images_and_questions_that_do_not_pair_up(finished, tmp_path):
    ended, _, _ = predict(finished, tmp_path, images=2, questions=3)
    assert (ended.code, ended.out) == (2, "")
    assert "ValueError: 2 images and 3 questions do not pair up: give as many --image as" in ended.err
    assert "Traceback" not in ended.err


def test_predict_refuses_what_is_no_workdir(tmp_path):
    ended = launch("launch/predict.py", f"--workdir={tmp_path}", "--image=x.png", "--question=why?")
    assert (ended.code, ended.out) == (2, "")
    assert f"{tmp_path} is not a workdir" in ended.err and "Traceback" not in ended.err
