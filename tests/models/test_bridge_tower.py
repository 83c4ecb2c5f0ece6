"""The dual encoder with a bridge has the published sizes, and every saving and every way to run it is one function."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict
from oracles import draw, draw_ids, lengths_mask, seeded

from jaxvl.models import MODELS
from jaxvl.models.bridge_tower import BridgeTower
from jaxvl.models.cross import Primed
from jaxvl.models.layers import stack_layers, unstack_layers
from jaxvl.models.transfer import adapt, lacking
from jaxvl.models.vilt import ViLT
from jaxvl.types import Encoded

SIZES = dict(vocab_size=23, width=16, heads=2, mlp=32, image_size=16)
BRIDGE = BridgeTower(
    **SIZES, text=dict(depth=2), vision=dict(depth=2, patch=8), cross=dict(depth=2), embed_dim=8, classes=5
)
POST = BRIDGE.clone(cross=dict(depth=2, order="post", bridge="interpolate", mapping="cumulative"))
ONE = BRIDGE.clone(cross=dict(depth=1, order="post", bridge="none"))
ROBERTA = BRIDGE.clone(text=dict(arch="roberta", depth=2), vision=dict(arch="clip", depth=2, patch=8))
VILT = BRIDGE.clone(text=dict(arch="vilt", depth=2), vision=dict(arch="vilt", depth=2, patch=8))
SHALLOW, VIRT = BRIDGE.clone(interaction="shallow"), BRIDGE.clone(interaction="virt")
ALL = {"pre": BRIDGE, "post": POST, "one": ONE, "roberta": ROBERTA, "shallow": SHALLOW, "virt": VIRT}
IMAGE, TEXT, MASK = draw(3, 16, 16, 3), draw_ids(3, 7), lengths_mask(7, 7, 4, 1)
PAIRS = (IMAGE, TEXT, MASK)
STATIC = ("method", "train", "tokens", "image_type", "remat")


@partial(jax.jit, static_argnums=0, static_argnames=STATIC)
def run(module, params, *args, **kwargs):
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, *args, **kwargs)


@partial(jax.jit, static_argnums=0)
def encode(module, params, image=IMAGE, text=TEXT, mask=MASK):
    with jax.default_matmul_precision("highest"):
        apply = partial(module.apply, {"params": params})
        return apply(text, mask, method="encode_text"), apply(image, method="encode_image")


def fuse(module, params, text, image, mask=MASK, **kwargs):
    return run(module, params, text, mask, image, method="fuse", **kwargs)


@partial(jax.jit, static_argnums=(0, 2))
def everything(module, params, train=False):
    """All that a model says about the pairs."""
    with jax.default_matmul_precision("highest"):
        apply = partial(module.apply, {"params": params}, rngs={"dropout": jax.random.key(0)})
        text, image = (
            apply(TEXT, MASK, method="encode_text", train=train),
            apply(IMAGE, method="encode_image"),
        )
        fused = apply(text, MASK, image, method="fuse", train=train)
        return dict(
            fused=fused,
            match=apply(fused, method="match_logits"),
            words=apply(fused.text, method="mlm_logits"),
            classes=apply((fused.pooled,) * module.images, method="class_logits", train=train),
            uni=apply(text, image, method="uni_qk"),
            embeds=(apply(text, method="text_embed"), apply(image, method="image_embed")),
            temperature=apply(method="temperature"),
        )


def close(got, want, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), got, want)


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def shapes(module) -> dict:
    size, spec = module.image_size, jax.ShapeDtypeStruct
    batch = spec((2, size, size, 3), jnp.float32), spec((2, 9), jnp.int32), spec((2, 9), bool)
    return jax.eval_shape(module.init, jax.random.key(0), *batch)["params"]


def test_parameters_at_paper_size():
    params = shapes(BridgeTower())
    body = ("text_encoder", "visual_encoder", "bridge", "cross", "text_pool", "image_pool")
    assert sum(count(params[name]) for name in body) == 255_430_656
    assert count(params["cross"]) == 56_710_656
    assert sum(count(params[name]) for name in ("bridge", "text_pool", "image_pool")) == 2_373_120
    assert MODELS["bridge_tower"] is BridgeTower


def test_parameters_of_the_published_architecture():
    text, vision = dict(arch="roberta"), dict(arch="clip")
    params = shapes(BridgeTower(vocab_size=50265, text=text, vision=vision, cross=dict(order="post")))
    body = ("text_encoder", "visual_encoder", "bridge", "cross", "text_pool", "image_pool")
    pooler = 768 * 768 + 768  # of RoBERTa, which nothing reads
    assert sum(count(params[name]) for name in body) + pooler == 271_185_408


def test_heads_have_the_widths_of_their_tasks():
    for options, widths in (
        (dict(classes=3129), (1536, 1536, 3129)),
        (dict(classes=2, images=2), (3072, 1536, 2)),
        (dict(classes=3, interaction="shallow"), (768, 1536, 3)),
    ):
        head = nn.unbox(shapes(BridgeTower(**options)))["class_head"]
        assert (*head["fc1"]["kernel"].shape, head["fc2"]["kernel"].shape[1]) == widths
    assert "class_head" not in shapes(BridgeTower())


@pytest.mark.parametrize("name", ["pre", "shallow", "virt"])
def test_shapes_and_types(name):
    module = ALL[name].clone(dtype=jnp.bfloat16)
    out = jax.eval_shape(partial(everything, module), seeded(module, *PAIRS))
    logits = {key: out[key] for key in ("match", "words", "classes", "embeds", "temperature")}
    want = dict(match=(3, 2), words=(3, 7, 23), classes=(3, 5), embeds=((3, 8), (3, 8)), temperature=())
    assert jax.tree.map(lambda x: x.shape, logits) == want
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(logits))
    assert (out["fused"].text.shape, out["fused"].image.shape) == ((3, 7, 16), (3, 5, 16))
    assert out["fused"].pooled.shape == (3, 32 if name == "pre" else 16)
    assert {x.shape for x in out["uni"]} == {(3, 7, 2, 8), (3, 5, 2, 8)}
    assert (out["fused"].qk is None) == (name != "pre")


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", ["pre", "virt"])
def test_logical_axes_name_every_dimension_once(name, scan):
    leaves = jax.tree.leaves(
        shapes(ALL[name].clone(scan=scan)), is_leaf=lambda x: isinstance(x, nn.Partitioned)
    )
    boxes = [x for x in leaves if isinstance(x, nn.Partitioned)]
    assert all(len(box.names) == len(box.value.shape) for box in boxes)
    assert all(len(set(names)) == len(names) for names in ([n for n in box.names if n] for box in boxes))
    assert len(boxes) >= len(leaves) - 3  # cls_token, pos_embed, temp are replicated


@pytest.mark.parametrize("name", ["pre", "virt"])
def test_text_padding_changes_nothing(name):
    module = ALL[name]
    params = seeded(module, *PAIRS)
    text = np.concatenate([np.where(MASK, TEXT, 5), draw_ids(3, 3, seed=9)], 1)
    mask = np.concatenate([MASK, np.zeros((3, 3), bool)], 1)
    want, got = run(module, params, *PAIRS), run(module, params, IMAGE, text, mask)
    close(got.pooled, want.pooled, 1e-6)
    close((got.image, got.text[:, :7][MASK]), (want.image, want.text[MASK]), 1e-5)


@pytest.mark.parametrize("name", ALL)
def test_first_tokens_of_shared_images_from_records_give_the_same_pooled_states(name):
    module, index = ALL[name], np.array([1, 1, 0])
    params = seeded(module, *PAIRS)
    text, image = encode(module, params)
    want = fuse(module, params, text, jax.tree.map(lambda x: x[index], image))
    bare, two = Encoded(text.record), Encoded(image.record[:2])  # all that a store keeps
    got = fuse(module, params, bare, two, image_index=index, tokens="class")
    close(got.pooled, want.pooled, 1e-5)
    assert got.text is got.image is got.qk is None
    assert np.abs(want.pooled[1] - want.pooled[0]).max() > 0.05
    with pytest.raises(ValueError, match="3 rows of text and 2 of images: give image_index"):
        fuse(module, params, bare, two)


@pytest.mark.parametrize("name", ["pre", "post", "one"])
def test_first_tokens_alone_cost_less(name):
    module = ALL[name]
    params = seeded(module, *PAIRS)
    text, image = encode(module, params)

    def flops(tokens):
        work = partial(module.apply, {"params": params}, method="fuse", tokens=tokens)
        return (
            jax.jit(lambda t, i: work(t, MASK, i).pooled)
            .lower(text, image)
            .compile()
            .cost_analysis()["flops"]
        )

    assert flops("class") < 0.85 * flops("all")


@pytest.mark.parametrize("name", ["pre", "post"])
def test_priming_is_a_part_of_fusing(name):
    module = ALL[name]
    params = seeded(module, *PAIRS)
    text, image = encode(module, params)
    primed = run(module, params, text, MASK, method="prime_text")
    other = run(module, params, image, method="prime_image")
    want = fuse(module, params, text, image)
    close(run(module, params, primed, MASK, other, method="join"), want, 1e-5)


def test_a_second_image_has_its_own_type():
    module = BRIDGE.clone(images=2)
    params = seeded(module, *PAIRS)
    text, image = encode(module, params)
    first, second = (fuse(module, params, text, image, image_type=i).pooled for i in (1, 2))
    assert np.abs(first - second).max() > 0.05
    logits = run(module, params, (first, second), method="class_logits")
    assert logits.shape == (3, 5)
    dropped = run(
        module,
        params,
        (first, second),
        method="class_logits",
        train=True,
        rngs={"dropout": jax.random.key(0)},
    )
    assert np.abs(dropped - logits).max() > 1e-3
    with pytest.raises(ValueError, match="1 images, but the model has images=2"):
        run(module, params, (first,), method="class_logits")


@pytest.mark.parametrize("depth", [1, 2])
def test_only_the_last_layer_is_read_without_a_bridge(depth):
    """Also where cross-modal layers would tap an earlier one: it is in no record, so nothing flows to it (A3)."""
    module = BRIDGE.clone(cross=dict(depth=depth, order="post", bridge="none"))
    params = seeded(module, *PAIRS)
    text, image = encode(module, params)
    p = params["bridge"]
    for encoded, name in ((text, "text_proj"), (image, "image_proj")):
        want = encoded.last @ p[name]["kernel"] + p[name]["bias"]
        np.testing.assert_allclose(encoded.record, want[:, None], atol=1e-5)
    assert set(p) == {"text_proj", "image_proj", "token_type", "text_norm_0", "image_norm_0"}


def test_projections_of_their_own():
    shared = flatten_dict(shapes(BRIDGE)["bridge"])
    own = flatten_dict(shapes(BRIDGE.clone(cross=dict(depth=2, share_projection=False)))["bridge"])
    assert {path[0] for path in set(own) - set(shared)} == {
        f"{modality}_proj_{i}" for modality in ("text", "image") for i in (0, 1)
    }


def head(x: np.ndarray, p: dict) -> np.ndarray:
    x = x @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = jax.nn.gelu(x * p["norm"]["scale"] + p["norm"]["bias"], approximate=False)
    return x @ p["fc2"]["kernel"] + p["fc2"]["bias"]


def test_shallow_interaction():
    params = seeded(SHALLOW, *PAIRS)
    text, image = encode(SHALLOW, params)
    p = params["shallow"]
    pools = [
        np.tanh(x.last[:, 0] @ p[name]["kernel"] + p[name]["bias"])
        for x, name in ((text, "text_pool"), (image, "image_pool"))
    ]
    got = fuse(SHALLOW, params, text, image)
    np.testing.assert_allclose(got.pooled, head(np.concatenate(pools, -1), p), atol=1e-4)
    np.testing.assert_array_equal(got.text, text.last)


def test_virtual_interaction():
    params = seeded(VIRT, *PAIRS)
    text, image = encode(VIRT, params)
    (tq, tk, tv), (iq, ik, iv) = text.qkv, image.qkv
    to_image = jax.nn.softmax(np.einsum("blhk,bshk->bhls", tq, ik) / 8**0.5, -1)
    logits = np.einsum("blhk,bshk->bhls", iq, tk) / 8**0.5
    to_text = jax.nn.softmax(np.where(MASK[:, None, None], logits, -1e9), -1)
    t = text.last + np.einsum("bhls,bshk->blhk", to_image, iv).reshape(3, 7, 16)
    v = image.last + np.einsum("bhls,bshk->blhk", to_text, tv).reshape(3, 5, 16)
    a, b = (t * MASK[..., None]).sum(1) / MASK.sum(1)[:, None], v.mean(1)
    want = head(np.concatenate([a, b, np.abs(a - b), np.maximum(a, b)], -1), params["virt"])
    got = fuse(VIRT, params, text, image)
    np.testing.assert_allclose(got.pooled, want, atol=1e-4)
    np.testing.assert_allclose(got.text, t, atol=1e-5)


def test_matching_and_embeddings_read_the_first_states():
    params = seeded(BRIDGE, *PAIRS)
    text, image = encode(BRIDGE, params)
    got = everything(BRIDGE, params)
    for x, name, embed in zip((text, image), ("text_proj", "vision_proj"), got["embeds"], strict=True):
        want = x.last[:, 0] @ params[name]["kernel"] + params[name]["bias"]
        np.testing.assert_allclose(embed, want / np.linalg.norm(want, axis=-1, keepdims=True), atol=1e-5)
    want = got["fused"].pooled @ params["itm_head"]["kernel"] + params["itm_head"]["bias"]
    np.testing.assert_allclose(got["match"], want, atol=1e-5)
    assert (got["uni"].text_q == text.qkv[0]).all() and (got["uni"].image_k == image.qkv[1]).all()
    assert (got["uni"].image_q == image.qkv[0]).all() and (got["uni"].text_k == text.qkv[1]).all()


def test_the_vocabulary_head_may_use_the_word_table():
    tied, free = (shapes(BRIDGE.clone(mlm_tied=tied))["mlm_head"] for tied in (True, False))
    assert set(free) - set(tied) == {"decoder"}
    assert nn.unbox(free)["decoder"]["kernel"].shape == (16, 23)


def test_bfloat16_stays_near_float32():
    params = jax.tree.map(lambda x: x / 2, seeded(BRIDGE, *PAIRS))
    want, got = everything(BRIDGE, params), everything(BRIDGE.clone(dtype=jnp.bfloat16), params)
    for key in ("match", "classes", "words"):
        assert np.abs(got[key] - want[key]).max() < 2e-2 * np.abs(want[key]).max(), key


@pytest.mark.slow
def test_scan_and_remat_keep_outputs_and_gradients():
    module = BRIDGE
    other = module.clone(scan=True, remat="full")
    params = seeded(module, *PAIRS)
    stacked = stack_layers(params, seeded(other, *PAIRS))

    def value_and_grad(module, params):
        total = lambda p: sum(jnp.sin(x).mean() for x in jax.tree.leaves(everything(module, p)))  # noqa: E731
        return jax.value_and_grad(total)(params)

    want, got = value_and_grad(module, params), value_and_grad(other, stacked)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    close(unstack_layers(got[1]), want[1], 1e-4)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(want[1]))


def test_dropout_acts_in_training_only():
    params = seeded(ONE, *PAIRS)
    text, image = encode(ONE, params)
    draws = [
        fuse(ONE, params, text, image, train=True, rngs={"dropout": jax.random.key(i)}).pooled for i in (0, 1)
    ]
    assert np.abs(draws[0] - draws[1]).max() > 0.01
    np.testing.assert_array_equal(*(fuse(ONE, params, text, image).pooled for _ in range(2)))


def test_towers_start_from_a_vilt():
    vilt = ViLT(**SIZES, depth=2, patch=8, max_positions=12, classes=4)
    source = seeded(vilt, *PAIRS)
    module = VILT.clone(text=dict(arch="vilt", depth=2, max_positions=12))
    fresh = seeded(module.clone(embed_dim=8), *PAIRS)
    got, report = adapt(source, fresh, renames=module.renames)
    assert lacking(report, ("text", "vision")) == ()
    assert {path.split("/")[0] for path in report.unused} == {"pool", "itm_head", "class_head"}
    close(got["text_encoder"]["embeddings"]["modality"]["embedding"], source["modality"]["embedding"][:1], 0)
    close(got["visual_encoder"]["modality"]["embedding"], source["modality"]["embedding"][1:], 0)
    for part in ("cls_token", "norm", "blocks_1"):
        close(got["visual_encoder"][part], source[part], 0)
    assert BRIDGE.renames == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(text=dict(arhc="bert")), r"model\.text: unknown key 'arhc'; did you mean 'arch'\?"),
        (
            dict(vision=dict(arch="resnet")),
            r"model\.vision\.arch='resnet': expected one of 'vit', 'vilt', 'clip'",
        ),
        (dict(cross=dict(order="first")), r"model\.cross\.order='first': expected one of 'pre', 'post'"),
        (dict(interaction="deep"), r"model\.interaction='deep'"),
        (dict(images=3), r"model\.images=3"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BridgeTower(**options)


def test_what_a_model_cannot_do_is_refused():
    record, primed = Encoded(draw(3, 2, 7, 16)), Primed(*[draw(3, 2)] * 5)
    two_heads, four_heads = (Encoded(draw(1), None, (draw(3, 7, h, 16 // h),) * 3) for h in (2, 4))
    for model, method, args, message in (
        (BRIDGE, "uni_qk", (record, record), "stored records hold no queries"),
        (BRIDGE, "uni_qk", (two_heads, four_heads), r"other heads \(count, dim\): \(2, 8\) and \(4, 4\)"),
        (BRIDGE, "text_embed", (record,), "need the last state"),
        (BRIDGE, "join", (primed, MASK, primed), "tokens='some'"),
        (SHALLOW, "fuse", (record, MASK, record), "tokens='some'"),
        (BRIDGE.clone(classes=None), "class_logits", ((draw(3, 32),),), r"set model\.classes"),
    ):
        kwargs = dict(tokens="some") if "tokens" in message else {}
        with pytest.raises(ValueError, match=message):
            model.apply({"params": {}}, *args, method=method, **kwargs)
    with pytest.raises(ValueError, match="interaction='virt' needs towers of one width"):
        shapes(VIRT.clone(vision=dict(depth=2, patch=8, heads=4)))


def test_what_tasks_read_of_a_model():
    assert (BRIDGE.contrastive, BRIDGE.image_tokens, BRIDGE.head_count, BRIDGE.text_arch) == (
        True,
        5,
        2,
        "bert",
    )
    assert BRIDGE.pixel_mean == BRIDGE.pixel_std == (0.5, 0.5, 0.5)
    assert ROBERTA.pixel_mean[0] == 0.48145466 and ROBERTA.pixel_std[2] == 0.27577711
    assert hash(BRIDGE) == hash(BRIDGE.clone())
