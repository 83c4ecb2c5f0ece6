"""configs/hyper_albef_own.py as its users start it: JSON Lines and images of their own, with any vocabulary."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny_run import ROOT, config_file, launch

from jaxvl.build import tokenizer
from jaxvl.config import ConfigError
from jaxvl.data.scenes import __main__ as scenes_command

CONFIG = ROOT / "configs/hyper_albef_own.py"
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 200)}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, *COLOURS, "a", "wall", "what", "colour", "is", "it", "no")
WITHOUT_MINILM = ("--config.stages.pretrain.weights.text=None",)
QUESTIONS_ONLY = tuple(f"--config.stages.{name}.init_from=None" for name in ("vqa", "vqa_blind"))


def write(folder, *, captions=True):
    """24 walls in three colours: `captions.jsonl`, `qa.jsonl`, `images.zip` and a vocabulary."""
    folder.mkdir()
    rows = []
    with zipfile.ZipFile(folder / "images.zip", "w") as images:
        for i in range(24):
            colour, data = list(COLOURS)[i % 3], io.BytesIO()
            Image.fromarray(np.full((40, 48, 3), COLOURS[colour], np.uint8)).save(data, "PNG")
            images.writestr(f"{i}.png", data.getvalue())
            rows.append((f"{i}.png", colour))
    asked = [dict(image=name, question="What colour is it?", answers=[c, c, "no"]) for name, c in rows]
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    if captions:
        told = [dict(image=name, captions=[f"a {c} wall", "a wall"]) for name, c in rows]
        (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def train(folder, monkeypatch, *flags, stages=""):
    """Run the config at its tiny scale on a folder, in `folder/run`."""
    monkeypatch.setenv("JAXVL_DATA", str(folder))
    where = [f"--config={CONFIG}:{stages}scale=tiny", f"--workdir={folder / 'run'}"]
    return launch("launch/main.py", *where, f"--config.text.vocab={folder / 'vocab.txt'}", *flags)


@pytest.mark.slow
def test_captions_and_questions_of_ones_own_train_and_are_scored_on_held_out_images(tmp_path, monkeypatch):
    folder = write(tmp_path / "mine")
    ended = train(folder, monkeypatch, *WITHOUT_MINILM, stages="ablation=no_hyper,")
    assert ended.code == 0, ended.err
    results = {p.parent.name: json.loads(p.read_text()) for p in (folder / "run").glob("*/result.json")}
    assert {name: found["steps"] for name, found in results.items()} == dict(pretrain=2, vqa=2, vqa_blind=2)
    assert {"vqa/accuracy", "majority/accuracy"} <= set(results["vqa"]["metrics"])
    assert "retrieval/tr_r1" in results["pretrain"]["metrics"]
    report = (folder / "run/report.md").read_text()
    for line in ("## Pre-training on held-out images", "| question only (blind) | ", "| majority answer | "):
        assert line in report
    assert "Questions about held-out images" in ended.out
    assert set(json.loads((folder / "run/vqa/answers.json").read_text())) == set(COLOURS)
    scored = json.loads((folder / "run/vqa/vqa_results.json").read_text())
    assert 0 < len(scored) < 24  # the held-out ones alone


@pytest.mark.slow
def test_questions_alone_are_enough(tmp_path, monkeypatch):
    folder = write(tmp_path / "mine", captions=False)
    ended = train(folder, monkeypatch, *QUESTIONS_ONLY, stages="vqa,vqa_blind,ablation=no_hyper,")
    assert ended.code == 0, ended.err
    assert "| question only (blind) | " in (folder / "run/report.md").read_text()


def test_missing_files_end_the_run_before_any_work_with_their_names_and_the_layout(tmp_path, monkeypatch):
    folder = write(tmp_path / "mine", captions=False)
    (folder / "images.zip").unlink()
    ended = train(folder, monkeypatch)
    assert (ended.code, ended.out) == (2, "") and "Traceback" not in ended.err
    assert f"config.stages.pretrain.train: no such file: {folder}/captions.jsonl" in ended.err
    assert f"config.stages.vqa.val: {folder}/images.zip: no such image folder or zip" in ended.err
    assert (
        f"JAXVL_DATA (now {folder}; if it is not set, data) names the folder with captions.jsonl, qa.jsonl"
        in ended.err
    )
    assert not (folder / "run").exists()


def test_a_folder_that_does_not_exist_ends_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVL_DATA", str(tmp_path / "mien"))
    with pytest.raises(
        ConfigError, match=r"JAXVL_DATA=.*/mien: no such folder.*holds captions.jsonl"
    ) as refused:
        config_file(CONFIG).get_config()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("made", [("images",), ("images.zip",), ("images", "images.zip"), ()])
def test_images_are_read_from_the_zip_or_the_folder_that_exists(tmp_path, monkeypatch, made):
    for name in made:
        (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    monkeypatch.setenv("JAXVL_DATA", str(tmp_path))
    stages = config_file(CONFIG).get_config().stages
    wanted = str(tmp_path / ("images" if made == ("images",) else "images.zip"))
    assert {stages[s][part].images for s in stages for part in ("train", "val")} == {wanted}
    assert {stages[s].train.holdout.part for s in stages} == {"train"}
    assert {stages[s].val.holdout.part for s in stages} == {"held"}


def test_tiny_scale_needs_no_vocabulary_and_no_weights(monkeypatch):
    monkeypatch.delenv("JAXVL_DATA", raising=False)
    config = config_file(CONFIG).get_config("scale=tiny")
    assert tokenizer(config).size > 5
    assert all(path is None for s in config.stages.values() for path in s.weights.values())


# ---- the commands that README and docs show -------------------------------------------------------------


def test_a_single_scene_is_written_and_its_questions_are_printed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "scene.png"
    command = ["scenes", str(path), "--one", "--split=val", "--seed=31", "--image-size=48"]
    monkeypatch.setattr("sys.argv", command)
    scenes_command.main()
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", (48, 48))
    first, *asked = capsys.readouterr().out.splitlines()
    assert first == f"a scene (val) -> {path}"
    assert len(asked) == 4 and all(line.rpartition("?  ")[0] and line.rpartition("?  ")[2] for line in asked)


def test_documentation_is_refused_whose_commands_set_keys_that_do_not_exist(tmp_path, monkeypatch):
    docs = config_file(ROOT / ".ci/check_docs.py")
    page = tmp_path / "page.md"
    start = "python launch/main.py --config=configs/hyper_albef"
    page.write_text(f"""```
{start}.py:scale=tiny --config.stages.vqa.train.size=3 \\
  --config.stages.vqa.train.fils=a  # --config.no.matter=1
{start}.py:scale=tny
{start}_own.py --config.stages.vqa.train.files=a
```""")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.delenv("JAXVL_DATA", raising=False)
    unknown, choice = [p for p in docs.problems(page) if "script" not in p]
    assert unknown.startswith("page.md: ") and "--config.stages.vqa.train.fils: unknown config key" in unknown
    assert "unknown scale 'tny': did you mean 'tiny'" in choice
