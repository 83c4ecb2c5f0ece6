"""The tasks with the model they are made for, at tiny size: everything traces, and diagnostics come per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
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
    return HyperALBEF(**sizes, **fields)


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
