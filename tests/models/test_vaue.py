"""VAUE: sides that were encoded once make the same pairs, which side looks at which, and sizes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import linen as nn
from oracles import draw, lengths_mask, seeded

from jaxvl.models.vaue import GUIDES, VAUE

SIZES = dict(words=11, classes=6, feat_dim=5, width=8, heads=2, word_dim=4)
R_MASK, L_MASK = lengths_mask(4, 4, 2, 1), lengths_mask(5, 2, 5, 3)
REGIONS = draw(3, 4, 5) * R_MASK[..., None]
TEXT = np.where(L_MASK, np.random.default_rng(0).integers(3, 11, (3, 5)), 0).astype(np.int32)


def made(**kwargs):
    model = VAUE(**{**SIZES, **kwargs})
    return model, seeded(model, REGIONS, R_MASK, TEXT, L_MASK)


def run(model, params, *args, **kwargs):
    with jax.default_matmul_precision("highest"):
        return jax.jit(lambda p, *a: model.apply({"params": p}, *a, **kwargs))(params, *args)


@pytest.mark.parametrize("qga", GUIDES)
def test_sides_encoded_once_make_the_pairs_that_their_inputs_make(qga):
    model, params = made(qga=qga)
    image = run(model, params, REGIONS, R_MASK, method="image_ready")
    text = run(model, params, TEXT, L_MASK, method="text_ready")
    i, q = np.array([0, 0, 2, 1, 2]), np.array([1, 0, 1, 2, 2])
    take = lambda side, at: jax.tree.map(lambda x: x[at], side)  # noqa: E731
    got = run(model, params, take(image, i), R_MASK[i], take(text, q), L_MASK[q], method="pair_ready")
    want = run(model, params, REGIONS[i], R_MASK[i], TEXT[q], L_MASK[q])
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(np.diff(got.logits, axis=0)).max() > 1e-2  # pairs differ


@pytest.mark.parametrize("qga", GUIDES)
def test_logits_are_linear_in_both_pooled_sides_and_padding_changes_nothing(qga):
    model, params = made(qga=qga)
    out = run(model, params, REGIONS, R_MASK, TEXT, L_MASK)
    weight = np.concatenate([params["image_half"]["kernel"], params["text_half"]["kernel"]])
    want = np.concatenate([out.v, out.s], 1) @ weight + params["text_half"]["bias"]
    np.testing.assert_allclose(out.logits, want, atol=1e-5)
    loud = np.where(R_MASK[..., None], REGIONS, 9.0), R_MASK, np.where(L_MASK, TEXT, 7), L_MASK
    np.testing.assert_allclose(run(model, params, *loud).logits, out.logits, atol=1e-5)


@pytest.mark.parametrize("qga", GUIDES)
def test_the_side_that_looks_keeps_its_own_states(qga):
    """With nothing found (values and output 0), what is pooled is the norm of the looking side's states alone."""
    model, params = made(qga=qga)
    silent = {**params, "guided": {k: jax.tree.map(np.zeros_like, v) for k, v in params["guided"].items()}}
    out = run(model, silent, REGIONS, R_MASK, TEXT, L_MASK)
    other = run(model, silent, REGIONS[::-1], R_MASK[::-1], TEXT, L_MASK)  # other images, same questions
    same = np.abs(out.v - other.v).max() < 1e-6
    assert same == (qga == "question")
    np.testing.assert_allclose(out.s, other.s, atol=1e-6)
    found = run(model, params, REGIONS, R_MASK, TEXT, L_MASK).v  # with attention, v depends on both sides
    turned = run(model, params, REGIONS, R_MASK, TEXT[::-1], L_MASK[::-1]).v
    assert np.abs(found - turned).max() > 1e-3
    assert np.abs(found - run(model, params, REGIONS[::-1], R_MASK[::-1], TEXT, L_MASK).v).max() > 1e-3


def test_the_order_of_regions_is_none():
    model, params = made()
    order = np.array([2, 0, 3, 1])
    out = run(model, params, REGIONS, R_MASK, TEXT, L_MASK).logits
    turned = run(model, params, REGIONS[:, order], R_MASK[:, order], TEXT, L_MASK).logits
    np.testing.assert_allclose(turned, out, atol=1e-5)


def test_parameters_at_paper_size():
    ids, mask = np.zeros((1, 14), np.int32), np.ones((1, 14), bool)
    args = np.zeros((1, 36, 2048), np.float32), np.ones((1, 36), bool), ids, mask
    shapes = jax.eval_shape(VAUE(words=1000, classes=3129).init, jax.random.key(0), *args)
    count = sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)))
    linear = lambda i, o: i * o + o  # noqa: E731
    block, flat = 4 * linear(512, 512) + 2 * 512, 2 * linear(512, 512) + linear(512, 1)
    assert count == 300_000 + 1_667_072 + linear(2048, 512) + 3 * block + 2 * flat + linear(1024, 3129)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="model.qga='both': expected one of image, question"):
        jax.eval_shape(VAUE(**SIZES, qga="both").init, jax.random.key(0), REGIONS, R_MASK, TEXT, L_MASK)
