"""MCAN has the published size, does not depend on the order of regions or on padding, and is one function in parts."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import draw, draw_ids, lengths_mask, seeded

from jaxvl.models.mcan import MCAN
from jaxvl.models.mcan_layers import LSTM, SA, SGA, AttFlat, UnbiasedNorm

SIZES = dict(feat_dim=12, width=16, heads=2, mlp=32, depth=2, flat=24, flat_mlp=8, word_dim=6)
SMALL = MCAN(words=23, classes=5, dropout=0.2, **SIZES)
R_MASK, T_MASK = lengths_mask(6, 6, 4, 1), lengths_mask(7, 7, 3, 1)
REGIONS = draw(3, 6, 12) * R_MASK[..., None]
TEXT = np.where(T_MASK, draw_ids(3, 7), 0)
PAIRS = (REGIONS, R_MASK, TEXT, T_MASK)


@pytest.fixture(scope="module")
def params():
    return seeded(SMALL, *PAIRS)


@partial(jax.jit, static_argnums=0, static_argnames=("method", "train"))
def run(module, params, *args, **kwargs):
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, *args, **kwargs)


def close(got, want, atol: float = 1e-5) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), got, want)


@pytest.mark.parametrize(("words", "total"), [(1, 51_640_891 + 300), (20_572, 57_812_491)])
def test_parameters_of_mcan_small(words, total):
    shapes = (((1, 36, 2048), jnp.float32), ((1, 36), bool), ((1, 14), jnp.int32), ((1, 14), bool))
    inputs = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    params = jax.eval_shape(MCAN(words=words, classes=3129).init, jax.random.key(0), *inputs)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == total
    assert nn.unbox(params)["word_embedding"]["embedding"].shape == (words, 300)


def test_the_order_of_regions_does_not_matter(params):
    order = np.random.default_rng(0).permutation(6)
    got = run(SMALL, params, REGIONS[:, order], R_MASK[:, order], TEXT, T_MASK)
    close(got, run(SMALL, params, *PAIRS))


def test_padding_of_either_side_changes_nothing(params):
    want = run(SMALL, params, *PAIRS)
    more = np.concatenate([REGIONS, np.zeros((3, 2, 12), np.float32)], 1)
    close(run(SMALL, params, more, np.pad(R_MASK, ((0, 0), (0, 2))), TEXT, T_MASK), want)
    close(
        run(SMALL, params, *PAIRS[:2], np.pad(TEXT, ((0, 0), (0, 3))), np.pad(T_MASK, ((0, 0), (0, 3)))), want
    )
    other = np.where(T_MASK, TEXT, 9)  # other pad tokens
    close(run(SMALL, params, *PAIRS[:2], other, T_MASK), want)
    noisy = np.where(R_MASK[..., None], REGIONS, 3.0)
    close(run(SMALL, params, noisy, *PAIRS[1:]), want)


def test_both_sides_reach_the_answer(params):
    want = run(SMALL, params, *PAIRS).logits
    for other in ((2 * REGIONS, R_MASK, TEXT, T_MASK), (REGIONS, R_MASK, TEXT % 7 + T_MASK, T_MASK)):
        assert np.abs(run(SMALL, params, *other).logits - want).min(1).max() > 1e-3


def test_it_is_its_blocks_one_after_the_other(params):
    sizes = (16, 2, 32)
    x = REGIONS @ params["image_proj"]["kernel"] + params["image_proj"]["bias"]
    y = run(LSTM(6, 16), params["lstm"], params["word_embedding"]["embedding"][TEXT])
    for i in range(2):
        y = run(SA(*sizes), params[f"encoder_{i}"], y, T_MASK)
    for i in range(2):
        x = run(SGA(*sizes), params[f"decoder_{i}"], x, R_MASK, y, T_MASK)
    image = run(AttFlat(16, 8, 24), params["flat_image"], x, R_MASK)
    text = run(AttFlat(16, 8, 24), params["flat_text"], y, T_MASK)
    got, fused = run(SMALL, params, *PAIRS), run(UnbiasedNorm(), params["norm"], text + image)
    close((got.image, got.language, got.fused), (image, text, fused))
    close(got.logits, fused @ params["class_head"]["kernel"] + params["class_head"]["bias"])


def test_pairs_by_index_are_the_pairs_written_out(params):
    images, texts = np.array([0, 0, 2, 1, 2]), np.array([2, 1, 0, 0, 1])
    states = run(SMALL, params, TEXT, T_MASK, method="encode_text")
    got = run(
        SMALL, params, REGIONS, R_MASK, states, T_MASK, image_index=images, text_index=texts, method="answer"
    )
    close(got, run(SMALL, params, REGIONS[images], R_MASK[images], TEXT[texts], T_MASK[texts]))


def test_shared_masks_are_one_network_for_all_pairs_of_any_batch(params):
    shared, rngs = SMALL.clone(masks="shared"), {"dropout": jax.random.key(3)}
    same = [np.repeat(x[:1], 3, 0) for x in PAIRS]
    got = run(shared, params, *same, train=True, rngs=rngs).logits
    close(got[1:], got[:-1])
    close(run(shared, params, *(x[:1] for x in PAIRS), train=True, rngs=rngs).logits, got[:1])
    own = run(SMALL, params, *same, train=True, rngs=rngs).logits
    other = run(shared, params, *same, train=True, rngs={"dropout": jax.random.key(4)}).logits
    assert np.abs(own[0] - own[1]).max() > 1e-2 and np.abs(got - other).max() > 1e-2
    close(run(shared, params, *PAIRS), run(SMALL, params, *PAIRS), 0)


@pytest.mark.parametrize(
    ("depth", "layers"), [(1, (1, 1, 1)), (2, (1, 2, 2)), (4, (2, 3, 4)), (6, (2, 4, 6))]
)
def test_taps_are_taken_after_each_third_of_the_decoder(depth, layers):
    model = SMALL.clone(depth=depth, dropout=0.0, width=4, flat=4)
    tree = seeded(model, *PAIRS)

    def stop(layer):  # the same network without the layers behind: its last tap
        return run(model.clone(depth=layer), tree, REGIONS, R_MASK, states, T_MASK, method="answer").taps[2]

    states = run(model, tree, TEXT, T_MASK, method="encode_text")
    taps = run(model, tree, REGIONS, R_MASK, states, T_MASK, method="answer").taps
    close(taps, tuple(stop(layer) for layer in layers))


def test_logits_are_float32_in_half_precision_and_near(params):
    got, want = run(SMALL.clone(dtype=jnp.bfloat16), params, *PAIRS), run(SMALL, params, *PAIRS)
    assert got.logits.dtype == jnp.float32
    assert got.fused.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.logits, want.logits, atol=0.1)


def test_the_loss_network_reads_taps_and_fused_vector(params):
    out, net = run(SMALL, params, *PAIRS), SMALL.loss_net()
    tree = seeded(net, out.taps, out.fused)
    inputs = [(x, tree[f"tap_{i}"]) for i, x in enumerate((*out.taps, out.fused))]
    parts = [np.maximum(x @ layer["kernel"] + layer["bias"], 0) for x, layer in inputs]
    want = np.concatenate(parts, 1) @ tree["out"]["kernel"] + tree["out"]["bias"]
    np.testing.assert_allclose(run(net, tree, out.taps, out.fused), want[:, 0], atol=1e-4)
    assert tree["tap_3"]["kernel"].shape == (24, 128) and tree["out"]["kernel"].shape == (512, 1)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="model.depth=0"):
        SMALL.clone(depth=0).init(jax.random.key(0), *PAIRS)
