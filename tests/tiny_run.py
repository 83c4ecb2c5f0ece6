"""The whole Hyper-ALBEF recipe as small as it gets, and how tests start launch/main.py as users do."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from jaxvl import build
from jaxvl import config as cfg
from jaxvl.data.loader import Loader

ROOT = Path(__file__).resolve().parents[1]
WATCHED = ROOT / "tests/launch/watched.py"
TIMEOUT = 600  # a machine may be busy; a run that hangs must still end

# Dropout, augmentation, momentum copy, queue and three epochs: all that a resumed run has to get right.
SMALLEST = (
    "model.width=32", "model.heads=2", "model.mlp=64", "model.embed_dim=16", "model.fusion_depth=1",
    "model.hypergraph.layers=(1,)", "model.dropout=0.1", "model.attn_dropout=0.1",
    "stages.pretrain.train.size=32", "stages.pretrain.val.size=8", "stages.pretrain.epochs=3",
    "stages.pretrain.batch_size=8", "stages.pretrain.task.queue_size=32",
    "stages.pretrain.evals.retrieval.k_test=4", "stages.pretrain.images.augment=albef",
    *(
        f"stages.{stage}.{value}"
        for stage in ("vqa", "vqa_blind")
        for value in ("train.size=32", "val.size=12", "batch_size=8")
    ),
    *(f"stages.{stage}.eval.batch_size=16" for stage in ("pretrain", "vqa", "vqa_blind")),
    "log.every_steps=1", "checkpoint.every_steps=1",
)  # fmt: skip
STEPS = 12  # of the stage "pretrain"; 4 in the others
TIMING = {"examples_per_s", "data_wait_share"}


def environment(*, devices: int = 1) -> dict[str, str]:
    """A CPU process with so many devices and the test suite's compilation cache."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }


def flags(workdir: Path, *overrides: str, arg: str = "") -> list[str]:
    """Flags of the smallest recipe in `workdir`; later overrides win."""
    config = f"--config={ROOT / 'configs/hyper_albef.py'}:{arg}{',' if arg else ''}scale=tiny"
    return [config, f"--workdir={workdir}", *(f"--config.{o}" for o in (*SMALLEST, *overrides))]


def start(script: Path | str, *args: str, devices: int = 1) -> subprocess.Popen[str]:
    """A process that runs `script` (relative to the repository) away from the repository."""
    command = [sys.executable, str(ROOT / script), *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment(devices=devices), cwd="/", stdout=pipe, stderr=pipe, text=True
    )


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a process left: its exit code and its output."""

    code: int
    out: str
    err: str


def finish(*processes: subprocess.Popen[str]) -> list[Ended]:
    """Wait for processes that may wait for each other; none survives."""
    try:
        outputs = [p.communicate(timeout=TIMEOUT) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [Ended(p.returncode, out, err) for p, (out, err) in zip(processes, outputs, strict=True)]


def launch(script: Path | str, *args: str, devices: int = 1) -> Ended:
    """Start a process and wait for its end."""
    return finish(start(script, *args, devices=devices))[0]


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run of the smallest recipe."""

    workdir: Path
    out: str
    err: str


def recipe(workdir: Path) -> Finished:
    """Run the whole smallest recipe in `workdir`."""
    ended = launch("launch/main.py", *flags(workdir))
    assert ended.code == 0, ended.err
    return Finished(workdir, ended.out, ended.err)


def rows(stage_folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    lines = (stage_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def expected_ids(workdir: Path) -> dict[int, list[int]]:
    """Example ids of each step of "pretrain", from its config alone."""
    config = cfg.load(workdir / "config.json")
    records = build.annotated(config, "pretrain", "train")
    source = build.examples(config, "pretrain", records, build.tokenizer(config, workdir))
    batch = config.stages.pretrain.batch_size
    with Loader(source, batch_size=batch, seed=config.seed).batches(0, STEPS) as batches:
        return {step: b["id"].tolist() for step, b in enumerate(batches, start=1)}


def questions(workdir: Path) -> Any:
    """The reader of the held-out questions that a run was scored on."""
    return build.reader(cfg.load(workdir / "config.json").stages.vqa.val, "stages.vqa.val")


def config_file(path: Path) -> Any:
    """The module of a config file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def smallest(workdir: Path, *overrides: str, arg: str = "") -> Any:
    """The config that `flags` describe, as the command line would build it."""
    config = config_file(ROOT / "configs/hyper_albef.py").get_config(f"{arg}{',' if arg else ''}scale=tiny")
    values = dict(o.split("=", 1) for o in (*SMALLEST, *overrides))
    return cfg.override(config, {k: cfg.literal(v) for k, v in values.items()})
