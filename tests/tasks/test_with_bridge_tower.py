"""The tasks with the models they are made for, at tiny size: who learns attention, and that the teacher stays."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny_model import TOKENS, batch
from tiny_pair import noisy, taught

from jaxvl.models.bridge_tower import BridgeTower
from jaxvl.models.vilt import ViLT
from jaxvl.optim import decays
from jaxvl.sharding import Partition
from jaxvl.tasks import ClassifyTask, PairPretrainTask
from jaxvl.train import Trainer

KEY = jax.random.key(0)
SIZES = dict(vocab_size=24, width=16, heads=2, mlp=16, image_size=8)
QK = ("query", "key")


def student(depth: int = 1, **fields) -> BridgeTower:
    off = dict(dropout=0.0, attn_dropout=0.0)
    parts = dict(
        text=dict(depth=depth, **off), vision=dict(depth=depth, patch=4), cross=dict(depth=depth, **off)
    )
    return BridgeTower(**{**SIZES, **parts, "embed_dim": 4, **fields})


def teacher(**fields) -> ViLT:
    return ViLT(**{**SIZES, "depth": 1, "patch": 4, "max_positions": 8, **fields})


def rows(size: int = 4) -> dict[str, jax.Array]:
    pixels = jax.random.normal(KEY, (2, size, 8, 8, 3))
    return batch(size) | {"image": pixels[0], "label": jnp.arange(size, dtype=jnp.int32) % 3}


def flat(tree) -> dict[str, np.ndarray]:
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(p.key for p in path): np.asarray(leaf) for path, leaf in found}


def attentive(depth: int = 1, **distill) -> ClassifyTask:
    """Nothing but attention is imitated."""
    options = dict(hard=0.0, soft=0.0, attn=1.0, **distill)
    return ClassifyTask(student(depth, classes=3), teacher=teacher(classes=3), loss="ce", distill=options)


@pytest.mark.parametrize("direction", ["student_teacher", "teacher_student"])
def test_attention_is_learned_by_heart_in_200_steps(direction):
    """That of the towers and that of the cross-modal encoder, each to a tenth."""
    task, data = attentive(direction=direction), rows(2)
    params, extra = taught(task, data)
    tx = optax.adam(1e-2)

    def step(carry, key):
        params, state = carry
        (_, (_, metrics)), grads = jax.value_and_grad(task.loss, has_aux=True)(params, extra, data, key)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), metrics

    keys = jax.random.split(KEY, 200)
    _, metrics = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), keys))(params)
    for part in ("attn_uni", "attn_cross"):
        loss = metrics[part][0] / metrics[part][1]
        assert loss[0] > 0.1
        assert loss[-1] < 0.1 * loss[0], loss[::20]


def test_each_part_of_attention_reaches_its_own_queries_and_keys_only():
    grads, data = {}, rows()
    for part in ("uni", "cross"):
        task = attentive(2, uni=part == "uni", cross=part == "cross")
        params, extra = taught(task, data)
        both = jax.jit(jax.grad(lambda p, e, t=task: t.loss(p, e, data, KEY)[0], argnums=(0, 1)))(
            params, extra
        )
        assert not any(x.any() for x in flat(both[1]).values())  # the teacher's are exactly 0
        grads[part] = flat(both[0])
    towers = ("text_encoder/layers_1/attention", "visual_encoder/blocks_1/attn")
    for name in QK:
        assert all(grads["uni"][f"{tower}/{name}/kernel"].any() for tower in towers)
        assert not any(grads["uni"][k].any() for k in grads["uni"] if k.startswith("cross/"))
        assert all(
            grads["cross"][f"cross/layers_1/{m}/cross_attention/{name}/kernel"].any()
            for m in ("text", "image")
        )
    for name in ("value", "out"):
        assert not any(grads["uni"][f"{tower}/{name}/kernel"].any() for tower in towers)
        assert not grads["cross"][f"cross/layers_1/text/cross_attention/{name}/kernel"].any()


def test_an_update_beside_a_teacher_changes_the_student_and_not_the_teacher():
    distill = dict(itm=("soft", "attn"), itc=("attn", "cross"), mlm=("soft", "attn"))
    task = PairPretrainTask(student(), tokens=TOKENS, teacher=teacher(), distill=distill)
    partition = Partition.create(devices=jax.devices()[:2])
    trainer = Trainer(task, optax.sgd(0.1), partition=partition, accumulate=2)
    fill = lambda tree: jax.tree.map(lambda x: np.full(x.shape, 0.03, x.dtype), tree)  # noqa: E731
    data = {k: np.asarray(v) for k, v in rows(8).items()}
    state = trainer.init(data, frozen=lambda tree: noisy(fill(tree), 3))
    before = jax.device_get((state.params, state.frozen))
    placed = trainer.partition.place_batch({**data, "signals": np.zeros((8, 2), np.int32)})
    state, metrics, _ = trainer.step(state, placed)
    means = {k: float(total / weight) for k, (total, weight) in metrics.items()}
    assert all(np.isfinite(list(means.values())))
    assert {
        "itm_attn_cross",
        "itc_attn_uni",
        "itc_attn_cross",
        "mlm_soft",
        "entropy_teacher_v2t",
    } <= means.keys()
    jax.tree.map(np.testing.assert_array_equal, before[1], jax.device_get(state.frozen))
    moved = [
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before[0], state.params)), strict=True)
    ]
    assert max(moved) > 0


@pytest.mark.parametrize("interaction", ["shallow", "virt"])
def test_interactions_without_cross_modal_layers_imitate_by_their_towers_only(interaction):
    fields = dict(tokens=TOKENS, teacher=teacher())
    with pytest.raises(ValueError, match=f"interaction='{interaction}' has no cross-modal encoder"):
        PairPretrainTask(student(interaction=interaction), distill={}, **fields)
    task = PairPretrainTask(student(interaction=interaction), distill=dict(cross=False), **fields)

    def found(key):
        params, extra = nn.unbox(task.init(key, rows())), {"frozen": nn.unbox(task.init_frozen(key, rows()))}
        return task.loss(params, extra, rows(), key)[1][1]

    metrics = jax.eval_shape(found, KEY)
    assert {"itm_attn_uni", "itc_attn_uni", "itm_soft"} <= metrics.keys()
    assert not any("attn_cross" in name or "entropy_cross" in name for name in metrics)


def test_two_images_and_their_teacher_trace_and_answer_from_stored_states():
    task = ClassifyTask(
        student(classes=3, images=2), teacher=teacher(classes=3, images=2), loss="ce", distill={}
    )
    data = rows() | {"image2": rows()["image"][::-1]}
    params, extra = jax.eval_shape(
        lambda k: tuple(map(nn.unbox, (task.init(k, data), task.init_frozen(k, data)))), KEY
    )
    _, (_, metrics) = jax.eval_shape(task.loss, params, {"frozen": extra}, data, KEY)
    assert {"soft", "attn_uni", "attn_cross", "teacher_accuracy"} <= metrics.keys()
    image, text = (
        jax.eval_shape(task.predictors[f"{n}_states"], params, data, KEY) for n in ("image", "text")
    )
    stored = {
        "image_states": image,
        "image2_states": image,
        "text_states": text,
        "text_mask": data["text_mask"],
    }
    assert jax.eval_shape(task.predictors["answer"], params, stored, KEY)["index"].shape == (4, 3)


def test_a_teacher_trains_alone_with_the_same_tasks():
    data = rows()
    for task in (
        PairPretrainTask(teacher(), tokens=TOKENS, itc=None),
        ClassifyTask(teacher(classes=3), loss="ce"),
    ):
        params = jax.eval_shape(lambda k, t=task: nn.unbox(t.init(k, data)), KEY)
        _, (_, metrics) = jax.eval_shape(task.loss, params, {}, data, KEY)
        assert {"itm", "mlm", "entropy_cross_t2v"} <= metrics.keys() or {"hard", "accuracy"} <= metrics.keys()


def test_no_norm_and_no_bias_of_the_models_decays():
    for model in (student(2, cross=dict(depth=2, bridge="scaled_add")), teacher(classes=3)):
        params = jax.eval_shape(
            lambda k, m=model: nn.unbox(
                m.init(k, rows()["image"], rows()["text"], rows()["text_mask"])["params"]
            ),
            KEY,
        )
        decayed = {name for name, on in flat(decays(params)).items() if on}
        names = set(flat(params))
        assert {n for n in names if "norm" in n or n.endswith("bias")}.isdisjoint(decayed)
        assert {n for n in names if n.endswith("kernel")} <= decayed
