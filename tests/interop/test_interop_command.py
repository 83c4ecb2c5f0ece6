"""`python -m jaxvl.interop` converts both ways without loss, lists files, and fails with one clear line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from foreign_states import albef_pretrained, albef_vqa, assert_same, bert
from pair_states import SIDE, bridgetower_hf, hf_clip, vilt_hf, vilt_original

from jaxvl.interop import import_albef, load_params, load_safetensors, save_params, save_safetensors
from jaxvl.interop.__main__ import main


@pytest.fixture
def albef(tmp_path):
    state = albef_pretrained(np.random.default_rng(0))
    save_safetensors(tmp_path / "albef.safetensors", state)
    return tmp_path / "albef.safetensors"


def run(*args) -> int:
    return main([str(arg) for arg in args])


def test_albef_to_jaxvl_and_back_loses_nothing(tmp_path, albef):
    params, extra, back = (tmp_path / f"{name}.safetensors" for name in ("params", "extra", "back"))
    assert run("convert", albef, params, "--from", "albef", "--to", "jaxvl", "--extra", extra) == 0
    assert run("convert", params, back, "--from", "jaxvl", "--to", "albef", "--extra", extra) == 0
    assert_same(load_safetensors(back), load_safetensors(albef))


def test_what_is_left_out_is_said(tmp_path, albef, capsys):
    out = tmp_path / "p.safetensors"
    run("convert", albef, out, "--from", "albef", "--to", "jaxvl", "--report")
    printed = capsys.readouterr().out
    assert "left out: momentum, queue" in printed
    assert "itm_head.weight" in printed
    assert "itm_head" in load_params(out)


def test_heads_that_albefs_vqa_files_lack_are_said_to_be_left_out(tmp_path, capsys):
    params = import_albef(albef_vqa(np.random.default_rng(0))).params
    save_params(tmp_path / "p.safetensors", params | {"temp": np.ones((), np.float32)})
    back = tmp_path / "back.safetensors"
    assert run("convert", tmp_path / "p.safetensors", back, "--from", "jaxvl", "--to", "albef") == 0
    assert "left out: temp (ALBEF's VQA model has no heads" in capsys.readouterr().out
    assert "temp" not in load_safetensors(back)


def test_bert_is_divided_as_asked(tmp_path):
    save_safetensors(tmp_path / "b.safetensors", bert(np.random.default_rng(0)))
    out = tmp_path / "p.safetensors"
    counts = ("--text-layers", 1, "--fusion-layers", 3)
    assert run("convert", tmp_path / "b.safetensors", out, "--from", "bert", "--to", "jaxvl", *counts) == 0
    assert len(load_params(out)["fusion_encoder"]) == 3


def test_vilt_and_bridgetower_there_and_back_lose_nothing(tmp_path):
    grid = ("--grid", SIDE)
    for name, state, more in (("vilt", vilt_hf, grid), ("bridgetower", bridgetower_hf, ("--depth", 3))):
        file, params, back = (tmp_path / f"{name}{i}.safetensors" for i in range(3))
        save_safetensors(file, state(np.random.default_rng(0), "mlm"))
        assert run("convert", file, params, "--from", name, "--to", "jaxvl", *more) == 0
        assert run("convert", params, back, "--from", "jaxvl", "--to", name) == 0
        assert_same(load_safetensors(back), load_safetensors(file))


def test_vilt_is_written_in_the_names_of_its_release(tmp_path, capsys):
    file, params, back = (tmp_path / f"{i}.safetensors" for i in range(3))
    save_safetensors(file, vilt_original(np.random.default_rng(0)))
    assert run("convert", file, params, "--from", "vilt", "--to", "jaxvl", "--grid", SIDE) == 0
    assert run("convert", params, back, "--from", "jaxvl", "--to", "vilt", "--names", "original") == 0
    assert_same(load_safetensors(back), load_safetensors(file))
    assert run("convert", params, back, "--from", "jaxvl", "--to", "albef", "--names", "original") == 1
    assert "--names=original: only vilt and vision_tower" in capsys.readouterr().err


def test_layers_of_a_bridgetower_are_taken_as_asked(tmp_path, capsys):
    file, out = tmp_path / "b.safetensors", tmp_path / "p.safetensors"
    save_safetensors(file, bridgetower_hf(np.random.default_rng(0), depth=6))
    assert run("convert", file, out, "--from", "bridgetower", "--to", "jaxvl") == 1
    assert "pass take=(3, 4, 5)" in capsys.readouterr().err
    assert run("convert", file, out, "--from", "bridgetower", "--to", "jaxvl", "--take", 3, 4, 5) == 0
    assert len(load_params(out)["cross"]) == 3


def test_single_towers(tmp_path):
    file, out = tmp_path / "f.safetensors", tmp_path / "p.safetensors"
    save_safetensors(file, bert(np.random.default_rng(0)))
    assert run("convert", file, out, "--from", "text_tower", "--to", "jaxvl", "--text-layers", 3) == 0
    assert sorted(load_params(out)["text_encoder"]) == ["embeddings", "layers_0", "layers_1", "layers_2"]
    save_safetensors(file, hf_clip(np.random.default_rng(0)))
    assert run("convert", file, out, "--from", "vision_tower", "--to", "jaxvl") == 0
    assert list(load_params(out)) == ["visual_encoder"]


def test_show_lists_names_shapes_and_types(albef, capsys):
    assert run("show", albef) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "itm_head.weight [2, 4] float32" in [" ".join(line.split()) for line in lines]
    assert lines[-1].startswith(f"{len(lines) - 1} tensors")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("show", "nothing.pth"), "nothing.pth: no such file"),
        (
            ("convert", "{albef}", "p.pth", "--from", "albef", "--to", "jaxvl"),
            "name the output *.safetensors",
        ),
        (
            ("convert", "{albef}", "p.safetensors", "--from", "vit", "--to", "jaxvl"),
            "albef.safetensors: not a ViT",
        ),
    ],
)
def test_failures_are_one_line_and_write_nothing(tmp_path, monkeypatch, albef, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert run(*(part.format(albef=albef) for part in command)) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert printed.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["albef.safetensors"]


def test_the_module_runs(albef):
    done = subprocess.run(
        [sys.executable, "-m", "jaxvl.interop", "show", str(albef)], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "temp" in done.stdout
