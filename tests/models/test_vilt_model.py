"""ViLT has the published size, ignores padding, and is one function scanned, rematerialised or for its first token."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import draw, draw_ids, lengths_mask, seeded

from jaxvl.models import MODELS
from jaxvl.models.layers import stack_layers, unstack_layers
from jaxvl.models.vilt import ViLT

VILT = ViLT(
    vocab_size=23, width=16, heads=2, mlp=32, depth=3, image_size=16, patch=8, max_positions=12, classes=5
)
IMAGE, TEXT, MASK = draw(3, 16, 16, 3), draw_ids(3, 7), lengths_mask(7, 7, 4, 1)
PAIRS = (IMAGE, TEXT, MASK)


@partial(jax.jit, static_argnums=0, static_argnames=("method", "tokens", "image_type", "train"))
def run(module, params, *args, **kwargs):
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, *args, **kwargs)


def encode(module, params):
    return run(module, params, TEXT, MASK, method="encode_text"), run(
        module, params, IMAGE, method="encode_image"
    )


def close(got, want, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), got, want)


def test_parameters_of_vilt_b_32():
    image, text = jax.ShapeDtypeStruct((1, 384, 384, 3), jnp.float32), jax.ShapeDtypeStruct((1, 9), jnp.int32)
    module = ViLT(image_size=384)
    params = jax.eval_shape(module.init, jax.random.key(0), image, text, text)["params"]
    sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()}
    assert sum(n for k, n in sizes.items() if k not in ("itm_head", "mlm_head")) == 111_595_008
    assert MODELS["vilt"] is ViLT and (VILT.contrastive, VILT.image_tokens, VILT.head_count) == (False, 5, 2)


def test_heads_have_the_widths_of_their_tasks():
    for options, widths in (({}, (768, 1536, 5)), (dict(images=2, head_scale=2), (1536, 1536, 5))):
        module = ViLT(classes=5, depth=1, **options)
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), image, TEXT[:1], MASK[:1])["params"])
        fc1, fc2 = (params["class_head"][name]["kernel"].shape for name in ("fc1", "fc2"))
        assert (*fc1, fc2[1]) == widths


def test_text_padding_changes_nothing_and_logits_are_float32():
    params = seeded(VILT, *PAIRS)
    text = np.concatenate([np.where(MASK, TEXT, 5), draw_ids(3, 3, seed=9)], 1)
    mask = np.concatenate([MASK, np.zeros((3, 3), bool)], 1)
    want, got = run(VILT, params, *PAIRS), run(VILT, params, IMAGE, text, mask)
    close(got.pooled, want.pooled, 1e-6)
    close((got.image, got.text[:, :7][MASK]), (want.image, want.text[MASK]), 1e-5)
    half = VILT.clone(dtype=jnp.bfloat16)
    for method, args in (
        ("match_logits", (want,)),
        ("mlm_logits", (want.text,)),
        ("class_logits", ((want.pooled,),)),
    ):
        assert run(half, params, *args, method=method).dtype == jnp.float32


def test_first_token_alone_and_shared_images_give_the_same_pooled_state():
    params, index = seeded(VILT, *PAIRS), np.array([1, 1, 0])
    text, image = encode(VILT, params)
    fuse = partial(run, VILT, params, method="fuse")
    want = fuse(text, MASK, jax.tree.map(lambda x: x[index], image))
    two = jax.tree.map(lambda x: x[:2], image)
    close(fuse(text, MASK, two, image_index=index), want, 1e-5)
    short = fuse(text, MASK, two, image_index=index, tokens="class")
    close(short.pooled, want.pooled, 1e-5)
    assert short.text is short.image is short.qk is None
    with pytest.raises(ValueError, match="give image_index"):
        fuse(text, MASK, two)


def test_queries_and_keys_are_cut_between_text_and_image():
    params = seeded(VILT, *PAIRS)
    qk = run(VILT, params, *PAIRS).qk
    assert qk.text_q.shape == qk.text_k.shape == (3, 7, 2, 8) and qk.image_q.shape == qk.image_k.shape == (
        3,
        5,
        2,
        8,
    )
    changed = run(VILT, params, *PAIRS[:1], np.where(MASK, TEXT, 5), MASK).qk  # padding is text, not image
    close(changed.image_k, qk.image_k, 1e-5)
    assert np.abs(changed.text_k - qk.text_k).max() > 0.1


def test_scan_and_remat_keep_outputs_and_gradients():
    params, other = seeded(VILT, *PAIRS), VILT.clone(scan=True, remat="names")

    def value_and_grad(module, params):
        out = lambda p: jax.tree.leaves(run(module, p, *PAIRS))  # noqa: E731
        return jax.value_and_grad(lambda p: sum(jnp.sin(x).mean() for x in out(p)))(params)

    stacked = stack_layers(params, seeded(other, *PAIRS))
    assert "blocks_0_2" in stacked
    want, got = value_and_grad(VILT, params), value_and_grad(other, stacked)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    close(unstack_layers(got[1]), want[1], 1e-4)


def test_dropout_is_active_only_in_training():
    params = seeded(VILT, *PAIRS)
    a, b, c = (
        run(VILT, params, *PAIRS, train=train, rngs={"dropout": jax.random.key(i)}).pooled
        for i, train in ((0, True), (1, True), (0, False))
    )
    assert np.abs(a - b).max() > 0.01
    close(c, run(VILT, params, *PAIRS).pooled, 0)


def test_a_second_image_needs_its_row():
    params = seeded(VILT.clone(images=2), *PAIRS)
    text, image = encode(VILT.clone(images=2), params)
    a, b = (
        run(VILT.clone(images=2), params, text, MASK, image, method="fuse", image_type=i).pooled
        for i in (1, 2)
    )
    assert np.abs(a - b).max() > 0.01
    with pytest.raises(ValueError, match="image_type=2: expected one of 1"):
        run(VILT, seeded(VILT, *PAIRS), text, MASK, image, method="fuse", image_type=2)


def test_long_text_is_refused():
    with pytest.raises(ValueError, match="text of length 13 exceeds max_positions=12"):
        jax.eval_shape(VILT.init, jax.random.key(0), IMAGE, draw_ids(3, 13), np.ones((3, 13), bool))
