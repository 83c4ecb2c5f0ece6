"""A workdir of the Bridge tower as a finished run leaves it, with parameters drawn at random: nothing is trained."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from tiny_run import ROOT, config_file

from jaxvl import build
from jaxvl import config as cfg
from jaxvl.atomic import write_json
from jaxvl.checkpoint import Checkpoints
from jaxvl.run import RESULT

SMALLER = {"model.width": 32, "model.heads": 2, "model.mlp": 64, "model.embed_dim": 16}


@functools.cache
def tiny() -> Any:
    """The module of the config."""
    return config_file(ROOT / "configs/bridge_tower.py")


def write(root: Path, *stages: str, seed: int = 0, **values: Any) -> Path:
    """Write `root` as if `stages` were finished; `values` are config keys with `__` for dots."""
    config = tiny().get_config("scale=tiny")
    config.run = stages
    given = {name.replace("__", "."): value for name, value in values.items()}
    alone = {f"stages.{name}.{key}": None for name in stages for key in ("task.distill", "teacher")}
    cfg.override(config, {**SMALLER, **alone, **given})
    root.mkdir(exist_ok=True)
    tokenizer = build.tokenizer(config)
    tokenizer.save(root / "tokenizer.json")
    cfg.save(config, root / "config.json")
    for name in stages:
        save(root / name, build.stage(config, name, tokenizer, root), seed)
    return root


def save(folder: Path, stage: build.Stage, seed: int) -> None:
    """A finished stage with random parameters of every leaf."""
    shapes = jax.eval_shape(stage.task.init, jax.random.key(0), build.first_batch(stage))
    rng = np.random.default_rng(seed)

    def draw(path, x):
        norm = getattr(path[-1], "key", "") == "scale"  # near 1, or no picture would matter
        return jax.numpy.asarray((norm + 0.15 * rng.normal(size=x.shape)).astype(x.dtype))

    params = jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, {"params": params}, wait=True)
    checkpoints.close()
    if stage.answers is not None:
        write_json(folder / "answers.json", stage.answers)
    write_json(folder / RESULT, {"steps": 1, "seconds": 0.0, "metrics": {}})
