"""The same losses on any mesh, under any rules, stacked or not; a state that is split wherever it can be.

Pre-training with the real model at its smallest, dropout on, on the eight CPU devices of the test process.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvl import losses
from jaxvl.checkpoint import Checkpoints
from jaxvl.models.hyper_albef import HyperALBEF
from jaxvl.models.layers import stack_layers, unstack_layers
from jaxvl.optim import make_optimizer
from jaxvl.sharding import Partition
from jaxvl.tasks.pretrain import PretrainTask
from jaxvl.train import Trainer

BATCH, QUEUE, STEPS = 8, 32, 20
TOKENS = dict(pad=0, cls=1, sep=2, mask=3, size=64)
GRAPH = dict(layers=(1,), grid=2, k_v=3, k_t=2, fusion_init="normal")
MODEL = HyperALBEF(
    vocab_size=64, width=32, heads=4, mlp=64, text_depth=1, fusion_depth=1, max_positions=8, embed_dim=16,
    image_size=16, vision=dict(patch=4, depth=1), hypergraph=GRAPH,
)  # fmt: skip
MESHES = [
    ("dp", 8, 1), ("fsdp", 4, 2), ("tp", 1, 8), ("fsdp_tp", 4, 2), ("fsdp_tp", 2, 4),  # each compiles for half a minute
]  # fmt: skip


def rows(step):
    """A batch of random pictures and texts of 2 to 8 tokens."""
    rng = np.random.default_rng((7, step))
    mask = np.arange(8) < rng.integers(2, 9, BATCH)[:, None]
    text = np.where(mask, rng.integers(4, 64, (BATCH, 8)), 0).astype(np.int32)
    text[:, 0] = TOKENS["cls"]
    image = rng.normal(size=(BATCH, 16, 16, 3)).astype(np.float32)
    ids = np.arange(BATCH, dtype=np.int32) + step * BATCH
    return dict(image=image, text=text, text_mask=mask, image_id=ids, id=ids, mask=np.ones(BATCH, bool))


def make(model=MODEL, *, rules="dp", data=1, split=1, accumulate=1):
    """A trainer and its fresh state."""
    task = PretrainTask(
        model,
        tokens=TOKENS,
        queue_size=QUEUE,
        distill=dict(alpha=0.4, warmup_updates=4),
        momentum=dict(decay=0.9),
    )
    partition = Partition.create(mesh=dict(data=data, model=split), rules=rules)
    tx = make_optimizer(schedule=1e-3)
    trainer = Trainer(task, tx, partition=partition, accumulate=accumulate, eval_batch_size=BATCH)
    return trainer, trainer.init({k: v[: BATCH // accumulate] for k, v in rows(0).items()})


def train(trainer, state, *, first=0, steps=STEPS):
    """(state, losses `[steps, terms]`)."""
    found = []
    for step in range(first, first + steps):
        host = {**rows(step), "signals": np.zeros((BATCH, 2), np.int32)}
        state, metrics, _ = trainer.step(state, trainer.partition.place_batch(host))
        found.append(
            [float(metrics[k][0] / metrics[k][1]) for k in ("loss", "itc", "itm", "mlm", "grad_norm")]
        )
    return state, np.array(found)


@functools.cache
def trained(rules, data, split):
    """(trainer, state, losses) after `STEPS` steps; programs are compiled once for all tests of a mesh."""
    trainer, state = make(rules=rules, data=data, split=split)
    return trainer, *train(trainer, state)


@pytest.fixture(scope="module")
def one():
    """Losses on one device."""
    return trained("dp", 1, 1)[2]


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "data", "split"), MESHES)
def test_losses_on_every_mesh_are_those_of_one_device(one, rules, data, split):
    trainer, _, found = trained(rules, data, split)
    np.testing.assert_allclose(found, one, rtol=1e-5)
    assert trainer.traces == {"init": 1, "step": 1}


def part(x):
    """Shape of what one device holds."""
    return x.addressable_shards[0].data.shape


@pytest.mark.slow
def test_parameters_moments_momentum_copy_and_queue_are_split_over_both_axes():
    _, state, _ = trained("fsdp_tp", 4, 2)
    moments = [
        s for s in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(s, "mu")
    ]
    (adam,) = moments
    for tree in (state.params, adam.mu, adam.nu, state.extra["momentum"]):
        assert part(tree["visual_encoder"]["blocks_0"]["mlp"]["fc1"]["kernel"]) == (32 // 4, 64 // 2)
        assert part(tree["visual_encoder"]["blocks_0"]["mlp"]["fc2"]["kernel"]) == (64 // 2, 32 // 4)
        assert part(tree["text_encoder"]["embeddings"]["word"]["embedding"])[0] == 64 // 2
        attention = tree["fusion_encoder"]["layers_0"]["cross_attention"]
        assert np.prod(part(attention["query"]["kernel"])) == 32 * 32 // 8
    assert part(state.extra["queue"]["image"]) == (16, QUEUE // 4)
    held = sum(np.prod(part(x)) for x in jax.tree.leaves((state.params, state.opt_state)))
    assert held < 0.3 * sum(x.size for x in jax.tree.leaves((state.params, state.opt_state)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint written on the 4 x 2 mesh after all steps."""
    _, state, _ = trained("fsdp_tp", 4, 2)
    folder = tmp_path_factory.mktemp("saved")
    checkpoints = Checkpoints(folder)
    checkpoints.save(STEPS, state, wait=True)
    checkpoints.close()
    return folder


@pytest.mark.slow
def test_checkpoint_of_one_mesh_continues_on_another(saved):
    def more(*mesh):
        trainer = trained(*mesh)[0]
        return train(trainer, Checkpoints(saved).restore(STEPS, trainer.abstract), first=STEPS, steps=3)

    (_, want), (state, found) = more("fsdp_tp", 4, 2), more("tp", 1, 8)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert part(state.params["visual_encoder"]["blocks_0"]["mlp"]["fc1"]["kernel"]) == (32, 64 // 8)


@pytest.mark.slow
@pytest.mark.parametrize("wrote", ["scan", "unroll"])
def test_checkpoint_of_scanned_layers_opens_unrolled_and_the_reverse(tmp_path, wrote):
    deep = MODEL.clone(
        text_depth=2, vision=dict(patch=4, depth=2), fusion_depth=2, hypergraph=dict(GRAPH, layers=(1, 2))
    )
    (source, state), (target, fresh) = (
        make(deep.clone(scan=scan), rules="fsdp", data=2) for scan in (wrote == "scan", wrote != "scan")
    )
    checkpoints = Checkpoints(tmp_path, unstack=unstack_layers, stack=stack_layers)
    checkpoints.save(0, state, wait=True)
    opened = checkpoints.restore(0, target.abstract)
    assert jax.tree.structure(opened) == jax.tree.structure(fresh) != jax.tree.structure(state)
    want, found = unstack_layers(jax.device_get(state)), unstack_layers(jax.device_get(opened))
    jax.tree.map(np.testing.assert_array_equal, found, want)

    images = Rows(0)
    np.testing.assert_allclose(
        target.predict(opened.params, "match", images),
        source.predict(state.params, "match", images),
        rtol=1e-5,
    )


class Rows:
    """A batch as a source."""

    def __init__(self, step):
        self.batch = rows(step)

    def __len__(self):
        return BATCH

    def __getitem__(self, i):
        return {k: v[i] for k, v in self.batch.items() if k not in ("id", "mask")}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["names", "full"])
def test_recomputing_activations_changes_no_loss(one, remat):
    _, found = train(*make(MODEL.clone(remat=remat)), steps=4)
    np.testing.assert_allclose(found, one[:4], rtol=1e-5)


@pytest.mark.slow
def test_bfloat16_trains_close_to_float32_with_float32_parameters(one):
    state, found = train(*make(MODEL.clone(dtype=jnp.bfloat16)), steps=4)
    np.testing.assert_allclose(found[:, 0], one[:4, 0], rtol=0.03)
    assert not np.array_equal(found, one[:4])
    assert {str(x.dtype) for x in jax.tree.leaves(state.params)} == {"float32"}


@pytest.mark.slow
def test_accumulation_moves_the_momentum_copy_and_the_queue_once_per_update():
    trainer, state = make(accumulate=2)
    copies = []
    for step in range(2):
        params = jax.device_get(state.params)
        copies.append((params, jax.device_get(state.extra)))
        state, _ = train(trainer, state, first=step, steps=1)
    (_, before), (second, between) = copies
    after = jax.device_get(state.extra)

    # The first update finds copy and parameters equal; the second moves the copy a tenth of the way, once.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, between["momentum"], before["momentum"])
    current = {k: second[k] for k in after["momentum"]}
    moved = losses.ema(between["momentum"], current=current, decay=0.9)
    jax.tree.map(close, after["momentum"], jax.device_get(moved))

    assert (int(after["updates"]), int(after["queue"]["ptr"])) == (2, 2 * BATCH)
    np.testing.assert_array_equal(after["queue"]["ids"][: 2 * BATCH], np.arange(2 * BATCH))
    np.testing.assert_array_equal(
        after["queue"]["image"][:, 2 * BATCH :], before["queue"]["image"][:, 2 * BATCH :]
    )
    for step in range(2):  # images have no dropout: the keys are those of the copy at that update
        copy = {**second, **(before, after)[step]["momentum"]}
        keys = trainer.predict(trainer.place(copy), "image_embed", Rows(step))
        entries = after["queue"]["image"][:, step * BATCH : (step + 1) * BATCH]
        np.testing.assert_allclose(entries, keys.T, atol=1e-5)
