"""The tasks with the model they are made for, at tiny size: everything traces, and diagnostics come per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny_model import TOKENS, batch

from jaxvl.models.hyper_albef import HyperALBEF
from jaxvl.tasks import GenerateTask, PretrainTask, predictors

KEY = jax.random.key(0)
ANSWERS = np.array([[1, 7, 2, 0], [1, 7, 8, 2]], np.int32)


def model(**fields) -> HyperALBEF:
    sizes = dict(
        vocab_size=24, width=8, heads=2, mlp=8, text_depth=1, fusion_depth=2, max_positions=8, embed_dim=4
    )
    graph = dict(grid=2, k_v=2, k_t=1)
    fields = {"image_size": 8, "vision": dict(patch=4, depth=1), "hypergraph": graph, **fields}
    return HyperALBEF(**{**sizes, **fields})


def rows(size: int = 2) -> dict[str, jax.Array]:
    image = jax.random.normal(KEY, (size, 8, 8, 3))
    answer = {"answer": jnp.asarray(ANSWERS)[None].repeat(size, 0), "answer_weight": jnp.full((size, 2), 0.5)}
    return batch(size) | {"image": image} | answer


@pytest.mark.parametrize("decoder_depth", [None, 2])
def test_an_update_traces_and_keeps_the_shapes_of_parameters_and_state(decoder_depth):
    if decoder_depth is None:
        task = PretrainTask(model(), tokens=TOKENS, queue_size=4)
    else:
        task = GenerateTask(model(decoder_depth=decoder_depth), tokens=TOKENS, answers=ANSWERS)

    def update(key):
        params = nn.unbox(task.init(key, rows()))
        before = nn.unbox(task.start(params, key))
        extra = task.prepare(params, before)
        (_, (aux, _)), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, extra, rows(), key)
        return (params, before), (gradient, task.finish(extra, aux))

    before, after = jax.eval_shape(update, KEY)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert jax.tree.leaves(before) == jax.tree.leaves(after)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain", "generate"])
def test_training_learns_eight_pairs_by_heart(name):
    """Each loss falls far below what guessing gives: a wrong sign or a cut gradient in a loss cannot pass."""
    sizes = dict(width=32, heads=2, mlp=64, embed_dim=16, dropout=0.0, attn_dropout=0.0)
    batch = rows(8)
    if name == "pretrain":
        task = PretrainTask(model(**sizes), tokens=TOKENS, queue_size=None, momentum=None, distill=None)
    else:
        kwargs = dict(tokens=TOKENS, answers=ANSWERS, momentum=None, distill=None)
        task = GenerateTask(model(decoder_depth=1, **sizes), **kwargs)
        own = jnp.asarray(ANSWERS)[jnp.arange(8) % 2][:, None]  # every other image has the other answer
        batch |= {"answer": own, "answer_weight": jnp.ones((8, 1)), "text": batch["text"][:1].repeat(8, 0)}
        batch["text_mask"] = batch["text_mask"][:1].repeat(8, 0)
    params, tx = nn.unbox(task.init(KEY, batch)), optax.adam(1e-3)
    extra, state = nn.unbox(task.start(params, KEY)), tx.init(params)

    @jax.jit
    def step(params, state, key):
        (_, (_, metrics)), grads = jax.value_and_grad(task.loss, has_aux=True)(params, extra, batch, key)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, metrics

    seen = []
    for i in range(150):
        params, state, metrics = step(params, state, jax.random.fold_in(KEY, i))
        seen.append({k: float(total / weight) for k, (total, weight) in metrics.items() if weight})
    first, last = ({k: np.mean([m[k] for m in part]) for k in part[0]} for part in (seen[:5], seen[-20:]))
    limits = {"itc": np.log(8) / 4, "itm": 0.3, "mlm": 2.3} if name == "pretrain" else {"loss": 0.4}
    for loss, limit in limits.items():
        assert last[loss] < limit < first[loss], (loss, first, last)


def test_the_boxes_of_the_queue_and_the_momentum_copy_carry_logical_axes():
    task = PretrainTask(model(), tokens=TOKENS, queue_size=4)
    extra = jax.eval_shape(lambda k: task.start(task.init(k, rows()), k), KEY)
    assert extra["queue"]["image"].names == ("feat", "batch")
    boxed = extra["momentum"]["text_encoder"]["layers_0"]["ffn"]["up"]["kernel"]
    assert boxed.names == ("embed", "mlp")


@pytest.mark.parametrize("scan", [False, True])
def test_diagnostics_are_named_by_layer_and_have_one_number_per_example(scan):
    task = PretrainTask(model(scan=scan), tokens=TOKENS, queue_size=4)
    params = jax.eval_shape(lambda k: nn.unbox(task.init(k, rows())), KEY)
    found = jax.eval_shape(task.predictors["hypergraph"], params, rows(), KEY)
    assert {"layers_0/node_degree_mean", "layers_1/update_ratio"} <= found.keys()
    assert {v.shape for v in found.values()} == {(2,)}


class Written:
    """A model whose scanned layers 1 and 2 have written the row sums that are named after them."""

    def apply(self, variables, *args, method, **kwargs):
        stack = {"layers_1_3": {"hypergraph": {"degree": np.array([[1, 10], [2, 20]])}}}
        return (None, {"diagnostics": {"fusion_encoder": stack}}) if method == "fuse" else None


def test_diagnostics_of_a_stack_are_told_apart():
    found = predictors.hypergraph(Written(), {}, rows())
    assert {k: v.tolist() for k, v in found.items()} == {
        "layers_1/degree": [1, 10],
        "layers_2/degree": [2, 20],
    }


def test_a_model_without_hypergraph_has_nothing_to_diagnose():
    task = PretrainTask(model(hypergraph=None), tokens=TOKENS, queue_size=4)
    params = jax.eval_shape(lambda k: nn.unbox(task.init(k, rows())), KEY)
    with pytest.raises(ValueError, match="no hypergraph layers"):
        jax.eval_shape(task.predictors["hypergraph"], params, rows(), KEY)
