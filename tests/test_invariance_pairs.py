"""Distilled pre-training has the same losses on any mesh and with scanned layers; its teacher is split too."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from jaxvl.models.bridge_tower import BridgeTower
from jaxvl.models.layers import stack_layers, unstack_layers
from jaxvl.models.vilt import ViLT
from jaxvl.optim import make_optimizer
from jaxvl.sharding import Partition
from jaxvl.tasks.pair_pretrain import PairPretrainTask
from jaxvl.train import Trainer

BATCH, STEPS = 8, 3
TOKENS = dict(pad=0, cls=1, sep=2, mask=3, size=64)
OFF = dict(dropout=0.0, attn_dropout=0.0)  # compiling dropout takes most of a minute
SIZES = dict(vocab_size=64, width=32, heads=4, mlp=64, image_size=16)


def rows(step):
    """A batch of random pictures and texts of 2 to 8 tokens."""
    rng = np.random.default_rng((7, step))
    mask = np.arange(8) < rng.integers(2, 9, BATCH)[:, None]
    text = np.where(mask, rng.integers(4, 64, (BATCH, 8)), 0).astype(np.int32)
    text[:, 0] = TOKENS["cls"]
    image = rng.normal(size=(BATCH, 16, 16, 3)).astype(np.float32)
    ids = np.arange(BATCH, dtype=np.int32) + step * BATCH
    return dict(image=image, text=text, text_mask=mask, image_id=ids, id=ids, mask=np.ones(BATCH, bool))


def drawn(tree):
    """Values that depend on the path of a parameter only, one layer or many."""

    def values(path, x):
        rng = np.random.default_rng(sum(map(ord, jax.tree_util.keystr(path))))
        norm = path[-1].key == "scale"
        return (norm + rng.normal(0, 0.1, x.shape)).astype(x.dtype)

    flat = unstack_layers(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree))
    return stack_layers(jax.tree_util.tree_map_with_path(values, flat), tree)


@functools.cache
def trained(rules, data, split, scan=False):
    """(trainer, state, losses `[steps, terms]`) after a few steps beside a teacher."""
    student = BridgeTower(
        **SIZES,
        text=dict(depth=2, **OFF),
        vision=dict(depth=2, patch=4),
        cross=dict(depth=1, **OFF),
        embed_dim=16,
        scan=scan,
    )
    teacher = ViLT(**SIZES, depth=2, patch=4, max_positions=8, scan=scan)
    task = PairPretrainTask(
        student, tokens=TOKENS, teacher=teacher, distill=dict(itm=("soft", "attn"), itc=("attn",))
    )
    partition = Partition.create(mesh=dict(data=data, model=split), rules=rules)
    trainer = Trainer(task, make_optimizer(schedule=1e-3), partition=partition, eval_batch_size=BATCH)

    state = trainer.init(rows(0), load=drawn, frozen=drawn)
    found = []
    for step in range(STEPS):
        host = {**rows(step), "signals": np.zeros((BATCH, 2), np.int32)}
        state, metrics, _ = trainer.step(state, trainer.partition.place_batch(host))
        found.append([float(total / weight) for _, (total, weight) in sorted(metrics.items())])
    return trainer, state, np.array(found)


@pytest.fixture(scope="module")
def one():
    """Losses on one device."""
    return trained("dp", 1, 1)[2]


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "data", "split", "scan"), [("fsdp_tp", 4, 2, False), ("dp", 1, 1, True)])
def test_losses_beside_a_teacher_are_those_of_one_device(one, rules, data, split, scan):
    trainer, _, found = trained(rules, data, split, scan)
    np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-6)
    assert trainer.traces == {"init": 1, "step": 1}


@pytest.mark.slow
def test_a_teacher_is_split_as_parameters_are_and_a_checkpoint_has_none():
    trainer, state, _ = trained("fsdp_tp", 4, 2)
    kernel = state.frozen["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (32 // 4, 64 // 2)
    assert trainer.abstract.frozen is None
