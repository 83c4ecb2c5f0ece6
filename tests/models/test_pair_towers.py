"""Towers give the states that are asked for, of any architecture, scanned or not, and have the published sizes."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import SIZES, draw, draw_ids, lengths_mask, seeded

from jaxvl.models.layers import stack_layers, unstack_layers
from jaxvl.models.pair_options import TEXT_ARCHES, VISION_ARCHES, tapped_layers
from jaxvl.models.towers import TextTower, VisionTower

EACH = tuple((i,) for i in (1, 2, 3))
TEXT, MASK, IMAGE = draw_ids(3, 7), lengths_mask(7, 7, 4, 1), draw(2, 8, 8, 3)


def text_tower(arch: str, **kwargs) -> TextTower:
    return TextTower(arch=arch, depth=3, eps=TEXT_ARCHES[arch][1], **SIZES | dict(taps=EACH) | kwargs)


def vision_tower(arch: str, **kwargs) -> VisionTower:
    sizes = dict(image_size=8, patch=4, width=16, depth=3, heads=2, mlp=32, taps=EACH)
    return VisionTower(arch=arch, eps=VISION_ARCHES[arch].eps, **sizes | kwargs)


TOWERS = {f"{arch} text": (text_tower(arch), (TEXT, MASK)) for arch in TEXT_ARCHES}
TOWERS |= {f"{arch} vision": (vision_tower(arch), (IMAGE,)) for arch in VISION_ARCHES}


@partial(jax.jit, static_argnums=0)
def run(module, params, *args):
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, *args)


def close(got, want, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), got, want)


@pytest.mark.parametrize(
    ("mapping", "scope", "count", "want"),
    [
        ("top", "block", 1, [(12,)]),
        ("top", "block", 2, [(11,), (12,)]),
        ("top", "block", 3, [(10,), (11,), (12,)]),
        ("top", "block", 4, [(9,), (10,), (11,), (12,)]),
        ("top", "block", 6, [(7,), (8,), (9,), (10,), (11,), (12,)]),
        ("cross", "block", 1, [(12,)]),
        ("cross", "block", 2, [(6,), (12,)]),
        ("cross", "block", 3, [(4,), (8,), (12,)]),
        ("cross", "block", 4, [(3,), (6,), (9,), (12,)]),
        ("cross", "block", 6, [(2,), (4,), (6,), (8,), (10,), (12,)]),
        ("cumulative", "block", 1, [tuple(range(1, 13))]),
        ("cumulative", "block", 2, [(1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12)]),
        ("cumulative", "block", 3, [(1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12)]),
        ("cumulative", "block", 4, [(1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)]),
        ("cumulative", "block", 6, [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12)]),
        ("cumulative", "prefix", 2, [tuple(range(1, 12)), tuple(range(1, 13))]),
    ],
)
def test_mapping_of_twelve_layers(mapping, scope, count, want):
    assert list(tapped_layers(12, count, mapping=mapping, scope=scope)) == want


def test_mapping_rounds_halves_up_and_needs_as_many_layers():
    assert tapped_layers(5, 2, mapping="cross") == ((3,), (5,))
    with pytest.raises(ValueError, match="3 cross-modal layers cannot read from 2 layers"):
        tapped_layers(2, 3, mapping="top")


@pytest.mark.parametrize("name", TOWERS)
def test_a_tap_is_the_mean_of_normed_states_and_scanned_layers_are_the_same(name):
    module, args = TOWERS[name]
    params = seeded(module, *args)
    want = run(module, params, *args)
    scanned = module.clone(scan=True, remat="full", taps=((1, 2), (3,), (1, 2, 3)))
    stacked = stack_layers(params, seeded(scanned, *args))
    assert any(key.endswith("_0_2") for key in stacked)
    got = run(scanned, stacked, *args)
    a, b, c = want.taps
    close(got.taps, ((a + b) / 2, c, (a + b + c) / 3), 2e-5)
    close((got.last, got.qkv), (want.last, want.qkv), 2e-5)
    np.testing.assert_array_equal(want.last, want.taps[-1])
    if name.split()[0] not in ("bert", "roberta"):
        scale, bias = params["norm"]["scale"], params["norm"]["bias"]
        states = [(np.asarray(x) - bias) / scale for x in want.taps]
        close([x.var(-1) for x in states], [np.ones(x.shape[:-1]) for x in states], 1e-3)


@pytest.mark.parametrize("name", ["bert text", "clip vision"])
def test_scan_and_remat_keep_gradients(name):
    module, args = TOWERS[name]

    def grad(module, params):
        return jax.grad(lambda p: sum(jnp.sin(x).sum() for x in jax.tree.leaves(run(module, p, *args))))(
            params
        )

    params = seeded(module, *args)
    scanned = module.clone(scan=True, remat="names")
    got = grad(scanned, stack_layers(params, seeded(scanned, *args)))
    close(unstack_layers(got), grad(module, params), 1e-3)


def test_queries_keys_and_values_are_projections_of_the_last_layers_input():
    module, args = TOWERS["bert text"]
    params = seeded(module, *args)
    out = run(module, params, *args)
    attention = params["layers_2"]["attention"]
    for part, got in zip(("query", "key", "value"), out.qkv, strict=True):
        want = out.taps[1] @ attention[part]["kernel"] + attention[part]["bias"]
        np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-5)


@pytest.mark.parametrize("arch", TEXT_ARCHES)
def test_padding_and_its_ids_change_nothing(arch):
    module = text_tower(arch)
    params = seeded(module, TEXT, MASK)
    longer = np.concatenate([np.where(MASK, TEXT, 5), draw_ids(3, 3, seed=9)], 1)
    mask = np.concatenate([MASK, np.zeros((3, 3), bool)], 1)
    want, got = run(module, params, TEXT, MASK), run(module, params, longer, mask)
    close([x[:, :7][MASK] for x in got.taps], [x[MASK] for x in want.taps], 1e-5)


@pytest.mark.parametrize(("arch", "longest"), [("bert", 12), ("vilt", 12), ("roberta", 10)])
def test_text_beyond_the_position_table_is_refused(arch, longest):
    module, text = text_tower(arch), draw_ids(1, longest + 1)
    jax.eval_shape(module.init, jax.random.key(0), text[:, 1:], text[:, 1:] > 0)
    with pytest.raises(ValueError, match=f"text of length {longest + 1} exceeds max_positions=12"):
        jax.eval_shape(module.init, jax.random.key(0), text, text > 0)


@pytest.mark.parametrize(
    ("arch", "words", "want"), [("bert", 30522, 108_891_648), ("roberta", 50265, 124_055_040)]
)
def test_parameters_of_text_towers(arch, words, want):
    rows, eps = TEXT_ARCHES[arch]
    sizes = dict(vocab_size=words, width=768, depth=12, heads=12, mlp=3072, max_positions=rows)
    module = TextTower(arch=arch, eps=eps, taps=((12,),), **sizes)
    shapes = jax.eval_shape(module.init, jax.random.key(0), TEXT, MASK)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == want


@pytest.mark.parametrize(("arch", "want"), [("vit", 87_455_232), ("clip", 87_456_000)])
def test_parameters_of_vision_towers(arch, want):
    sizes = dict(image_size=224, patch=32, width=768, depth=12, heads=12, mlp=3072)
    module = VisionTower(arch=arch, eps=1e-5, taps=((12,),), **sizes)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == want
