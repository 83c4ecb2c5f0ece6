"""Answers from stored states are those of the uncached model, and every saving is exact."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxvl import cache
from jaxvl.cache import (
    CachedModel,
    FingerprintError,
    Layout,
    PrimedStates,
    States,
    Store,
    build_store,
    fingerprint,
    layout,
)
from jaxvl.cache.api import BUCKETS, buckets
from jaxvl.models.bridge_tower import BridgeTower
from jaxvl.models.layers import stack_layers
from jaxvl.models.vilt import ViLT
from jaxvl.types import Encoded

TASKS = {"vqa": dict(classes=11), "snli_ve": dict(classes=3), "nlvr2": dict(classes=2, images=2)}
SMALL = dict(vocab_size=30, width=32, heads=4, mlp=48, image_size=16)
LENGTH, ROWS = 16, 6
# Operation by operation, most of the time would go to compiling each of them.
encode_images = jax.jit(cache.encode_images, static_argnums=0)
encode_texts = jax.jit(cache.encode_texts, static_argnums=0)
prime_images = jax.jit(cache.prime_images, static_argnums=0, static_argnames="image_type")
prime_texts = jax.jit(cache.prime_texts, static_argnums=0)
answer = jax.jit(cache.answer, static_argnums=0, static_argnames="tokens")
fuse = jax.jit(cache.fuse, static_argnums=0, static_argnames=("image_type", "tokens"))


@functools.cache
def made(task: str = "vqa", **cross: str) -> tuple[BridgeTower, dict]:
    """A tiny model and parameters whose every leaf matters."""
    interaction = cross.pop("interaction", "bridge")
    model = BridgeTower(
        **SMALL, **TASKS[task], text=dict(depth=4, max_positions=40), vision=dict(depth=4, patch=8),
        cross=dict(depth=2, **cross), interaction=interaction, embed_dim=8,
    )  # fmt: skip
    return model, parameters(model)


def parameters(model) -> dict:
    """Fresh parameters, every one of them moved."""
    pixels, text, mask = batch()
    params = jax.jit(model.init)(jax.random.key(0), pixels[:2], text[:2], mask[:2])["params"]
    leaves, tree = jax.tree.flatten(nn.unbox(params))
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [x + 0.1 * rng.normal(size=x.shape).astype(np.float32) for x in leaves])


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, ids and masks of texts of 3 to 13 tokens, padded to 16."""
    rng = np.random.default_rng(seed)
    mask = np.arange(LENGTH) < np.array([3, 13, 8, 5, 9, 4])[:, None]
    text = np.where(mask, rng.integers(1, 30, (ROWS, LENGTH)), 0).astype(np.int32)
    return rng.normal(size=(ROWS, 16, 16, 3)).astype(np.float32), text, mask


@functools.cache
def of(task: str = "vqa", **cross: str) -> tuple[CachedModel, np.ndarray]:
    """The jitted model, compiled once for all tests, and the logits without a cache."""
    model, params = made(task, **cross)
    return CachedModel(model, params, LENGTH, batch_size=8), uncached(model, params)


def uncached(model, params) -> np.ndarray:
    """Class logits by the model's own methods, all tokens, each pair on its own."""
    _, text, mask = batch()

    def forward(params):
        call = functools.partial(model.apply, {"params": params})
        states = call(text, mask, method="encode_text")
        fused = []
        for kind in range(1, model.images + 1):
            image = call(batch(kind - 1)[0], method="encode_image")
            fused.append(call(states, mask, image, image_type=kind, method="fuse").pooled)
        return call(tuple(fused), method="class_logits")

    return np.asarray(jax.jit(forward)(params))


def stored(cached: CachedModel, dtype: str) -> tuple[Store, list[Store]]:
    """Stores of the texts and of the first and second images."""
    model, params = cached.model, cached.params
    _, text, mask = batch()
    made_by = fingerprint(model, params, "text", inputs={})
    texts = Store.create(None, layout(model, params, "text"), dtype=dtype, fingerprint=made_by)
    texts.put([f"t{i}" for i in range(ROWS)], cached.encode_texts(text, mask))
    images = []
    for n in range(model.images):
        store = Store.create(None, layout(model, params, "image"), dtype=dtype, fingerprint=made_by)
        store.put([f"i{i}" for i in range(ROWS)], cached.encode_images(batch(n)[0]))
        images.append(store)
    return texts, images


def from_stores(cached: CachedModel, dtype: str) -> np.ndarray:
    """Class logits from stores."""
    texts, images = stored(cached, dtype)
    text = texts.get([f"t{i}" for i in range(ROWS)])
    shown = [store.get([f"i{i}" for i in range(ROWS)]) for store in images]
    return cached.answer(text, shown)


CASES = [
    *(("nlvr2", dict(order=order, mapping=m)) for order in ("pre", "post") for m in ("top", "cross", "cumulative")),
    ("vqa", dict(order="pre")), ("snli_ve", dict(order="post", mapping="cumulative")),
    ("vqa", dict(order="post", bridge="none")), ("vqa", dict(order="pre", bridge="interpolate")),
    ("vqa", dict(interaction="shallow")), ("vqa", dict(interaction="virt")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "cross"), CASES, ids=lambda c: c if isinstance(c, str) else "-".join(c.values())
)
def test_logits_from_float32_stores_are_those_of_the_uncached_model(task, cross):
    cached, want = of(task, **cross)
    assert np.abs(want).max() > 0.1 and np.ptp(want, axis=0).min() > 1e-2
    np.testing.assert_allclose(from_stores(cached, "float32"), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 5e-3), ("bfloat16", 5e-2), ("int8", 5e-2)])
def test_logits_from_small_types_stay_close_and_keep_clear_answers(dtype, bound):
    for order in ("pre", "post"):
        cached, want = of("vqa", order=order)
        got = from_stores(cached, dtype)
        assert 0 < np.abs(got - want).max() < bound
        best = np.sort(want, axis=-1)
        clear = best[:, -1] - best[:, -2] > bound
        assert clear.any()
        assert (got.argmax(-1) == want.argmax(-1))[clear].all()


def test_a_vilt_is_cached_as_its_embeddings():
    model = ViLT(**SMALL, patch=8, depth=2, classes=3)
    params = parameters(model)
    got = from_stores(CachedModel(model, params, LENGTH, batch_size=8), "float32")
    np.testing.assert_allclose(got, uncached(model, params), rtol=0, atol=1e-5)
    assert layout(model, params, "image") == Layout("image", 1, 5, 32)


def test_ragged_text_equals_padded_text():
    """To 1e-6 of the largest value: products of one row and of several are summed in another order on some processors
    (an Intel Xeon: 1.1e-6, of values up to 3)."""
    model, params = made()
    _, text, mask = batch()
    padded = encode_texts(model, params, text, mask)
    for i in range(ROWS):
        size = mask[i].sum()
        short = encode_texts(model, params, text[i : i + 1, :size], mask[i : i + 1, :size])
        want = np.asarray(padded.x[i, :, :size])
        np.testing.assert_allclose(short.x[0], want, rtol=0, atol=1e-6 * np.abs(want).max())
    shown = encode_images(model, params, batch()[0])
    want = answer(model, params, padded, [shown])
    ragged = stored(of()[0], "float32")[0].get([f"t{i}" for i in range(ROWS)], pad_to=LENGTH)
    np.testing.assert_allclose(answer(model, params, ragged, [shown]), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_class_token_only_gives_the_pooled_states_of_all_tokens(order):
    model, params = made(order=order)
    pixels, text, mask = batch()
    states = encode_texts(model, params, text, mask), encode_images(model, params, pixels)
    whole, first = (fuse(model, params, *states, tokens=tokens) for tokens in ("all", "class"))
    np.testing.assert_allclose(first.pooled, whole.pooled, rtol=0, atol=1e-5)
    assert first.text is None and first.image is None and whole.text.shape == (ROWS, LENGTH, 32)
    flops = [
        jax.jit(lambda p, t=tokens: answer(model, p, states[0], [states[1]], tokens=t))
        .lower(params)
        .cost_analysis()
        for tokens in ("all", "class")
    ]
    assert flops[1]["flops"] < 0.9 * flops[0]["flops"]


@pytest.mark.parametrize("order", ["pre", "post"])
def test_one_image_with_many_texts_is_primed_once(order):
    model, params = made(order=order)
    pixels, text, mask = batch()
    texts, images = encode_texts(model, params, text, mask), encode_images(model, params, pixels)
    index = np.array([2, 2, 2, 0, 2, 0], np.int32)
    want = answer(model, params, texts, [States(images.x[index])])
    got = answer(model, params, texts, [images], image_index=[index])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    one = States(images.x[2:3])
    flops = [
        jax.jit(lambda p, i=i, r=r: answer(model, p, texts, [i], image_index=[r]))
        .lower(params)
        .cost_analysis()["flops"]
        for i, r in ((one, np.zeros(ROWS, np.int32)), (images, index))
    ]
    assert flops[0] < flops[1]


def test_two_images_share_one_text_and_differ_by_their_type():
    model, params = made("nlvr2")
    pixels, text, mask = batch()
    texts, images = encode_texts(model, params, text, mask), encode_images(model, params, pixels)
    called = []
    counting = jax.make_jaxpr(lambda p: answer(model, p, texts, [images, images]))(params)
    one = jax.make_jaxpr(lambda p: fuse(model, p, texts, images, tokens="class").pooled)(params)
    called = [str(j).count("dot_general") for j in (counting, one)]
    assert called[0] < 2 * called[1] + 2  # the head adds two; the text side of layer 1 is not repeated
    pooled = [fuse(model, params, texts, images, image_type=n).pooled for n in (1, 2)]
    assert np.abs(pooled[0] - pooled[1]).max() > 1e-2


@pytest.mark.parametrize(("task", "order"), [("nlvr2", "pre"), ("vqa", "post")])
def test_primed_records_give_the_same_answers_with_less_work(task, order):
    cached, want = of(task, order=order)
    model, params = cached.model, cached.params
    _, text, mask = batch()
    texts = Store.create(None, layout(model, params, "text", primed=True), fingerprint=fingerprint(
        model, params, "text", inputs={}, primed=True), dtype="float32")  # fmt: skip
    texts.put(KEYS, States(*prime_texts(model, params, encode_texts(model, params, text, mask))))
    images = [
        PrimedStates(
            *prime_images(model, params, encode_images(model, params, batch(n)[0]), image_type=n + 1)
        )
        for n in range(model.images)
    ]
    assert texts.layout == Layout("text", 6, None, 32) and images[0].x.shape[1:] == (6, 5, 32)
    ready = PrimedStates(*texts.get(KEYS))
    np.testing.assert_allclose(cached.answer(ready, images), want, rtol=0, atol=1e-5)
    plain = (
        encode_texts(model, params, text, mask),
        [encode_images(model, params, batch(n)[0]) for n in range(model.images)],
    )
    primed = PrimedStates(*texts.get(KEYS, pad_to=LENGTH)), images
    flops = [answer.lower(model, params, *given).cost_analysis()["flops"] for given in (primed, plain)]
    assert flops[0] < 0.95 * flops[1]
    other = fingerprint(
        model.clone(cross=dict(model.cross, order={"pre": "post", "post": "pre"}[order])),
        params,
        "text",
        inputs={},
        primed=True,
    )
    assert texts.fingerprint.differences(other)


def test_lengths_of_texts_are_at_most_five():
    assert buckets(40) == BUCKETS and buckets(20) == (8, 12, 16, 20) and buckets(5) == (5,)
    assert buckets(64) == (8, 12, 16, 24, 64)


def test_every_shape_is_compiled_once():
    model, params = made()
    cached = CachedModel(model, params, LENGTH, batch_size=8)
    pixels, text, mask = batch()
    for rows in (1, 3, 6):
        for i in range(ROWS):
            states = cached.encode_texts(text[i : i + rows], mask[i : i + rows])
        cached.encode_images(pixels[:rows])
    assert cached.buckets == (8, 12, 16)
    assert cached.traces == {"encode_texts": 3, "encode_images": 1}
    image = cached.encode_images(pixels)
    want = cached.answer(
        States(states.x[:1].repeat(3, 0), states.mask[:1].repeat(3, 0)), [States(image.x[[4, 4, 4]])]
    )
    for places in (1, 2, 6):
        got = cached.answer(
            States(states.x[:1], states.mask[:1]), [States(image.x[-places:])], [[places - 2]]
        )
        assert got.shape == (1, 11)
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)
    assert cached.traces["answer"] == 3
    with pytest.raises(ValueError, match="1 texts and 9 images in a batch of at most 8"):
        cached.answer(States(states.x[:1], states.mask[:1]), [States(image.x[np.zeros(9, int)])], [[0]])
    with pytest.raises(ValueError, match="17 tokens is longer than 16"):
        cached.encode_texts(np.ones((1, 17), np.int32), np.ones((1, 17), bool))


def test_the_fingerprint_covers_what_states_depend_on_and_nothing_else():
    model, params = made()
    base = fingerprint(model, params, "image", inputs={"size": 16})

    def changed(*path: str) -> list[str]:
        moved = jax.tree_util.tree_map_with_path(
            lambda p, x: (
                x + 1 if jax.tree_util.keystr(p, simple=True, separator="/").startswith("/".join(path)) else x
            ),
            params,
        )
        return base.differences(fingerprint(model, moved, "image", inputs={"size": 16}))

    assert "weights" in changed("visual_encoder/blocks_0")[0] and "weights" in changed("bridge/image_proj")[0]
    for name in (
        "text_encoder",
        "bridge/text_proj",
        "bridge/token_type",
        "cross",
        "class_head",
        "vision_proj",
    ):
        assert not changed(name), name
    other = fingerprint(
        model.clone(cross=dict(model.cross, mapping="cross")), params, "image", inputs={"size": 24}
    )
    assert [line.split()[0] for line in base.differences(other)] == [
        "mapping.taps.mapping",
        "preprocessing.size",
    ]
    post = fingerprint(
        model.clone(cross=dict(model.cross, order="post")), params, "image", inputs={"size": 16}
    )
    assert not base.differences(post)  # the same states serve both orders


def test_scanned_and_unrolled_parameters_have_one_fingerprint():
    model, params = made()
    scanned = model.clone(scan=True)
    like = jax.eval_shape(scanned.init, jax.random.key(0), *(x[:1] for x in batch()))["params"]
    stacked = stack_layers(params, nn.unbox(like))
    assert jax.tree.structure(stacked) != jax.tree.structure(params)
    assert fingerprint(scanned, stacked, "text", inputs={}) == fingerprint(model, params, "text", inputs={})


def building(model, params, path, **given):
    """(store, load, encode) of the images of `batch`, and the keys that were loaded."""
    pixels, seen = batch()[0], []
    cached = CachedModel(model, params, LENGTH, batch_size=4)
    made_by = fingerprint(model, params, "image", inputs={})
    if path is not None and path.exists():
        store = Store.open(path, fingerprint=made_by, write=True)
    else:
        store = Store.create(path, layout(model, params, "image"), fingerprint=made_by, **given)

    def load(key: str) -> dict[str, np.ndarray]:
        seen.append(key)
        if key == "i9":
            raise OSError("no such image")
        return {"image": pixels[int(key[1:])]}

    return store, load, lambda rows: cached.encode_images(rows["image"]), seen


KEYS = [f"i{i}" for i in range(ROWS)]


def test_a_build_goes_on_where_it_stopped_and_gives_the_same_bytes(tmp_path):
    model, params = made()
    size = 2 * 2 * 5 * 32
    store, load, encode, _ = building(model, params, tmp_path / "whole", shard_bytes=3 * size)
    told = []
    built = build_store(store, KEYS, load, encode, batch_size=4, progress=lambda *n: told.append(n))
    assert built == (6, 0, {}) and told == [(4, 6), (6, 6)]
    store, load, encode, _ = building(model, params, tmp_path / "cut", shard_bytes=3 * size)

    def stops(rows):
        if calls.append(1) or len(calls) == 2:
            raise KeyboardInterrupt
        return encode(rows)

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        build_store(store, KEYS, load, stops, batch_size=4)
    store._release()  # as the system does for a killed process; what is pending is lost
    store, load, encode, seen = building(model, params, tmp_path / "cut")
    assert build_store(store, KEYS + KEYS[:1], load, encode, batch_size=4) == (3, 3, {})
    assert sorted(seen) == KEYS[3:]
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "cut" / file.name).read_bytes() == file.read_bytes(), file.name
    store.close()
    assert build_store(Store.open(tmp_path / "cut", write=True), KEYS, load, encode) == (0, 6, {})
    other = fingerprint(model, jax.tree.map(lambda x: x + 1, params), "image", inputs={})
    with pytest.raises(FingerprintError, match=r"other weights \(sha256"):
        Store.open(tmp_path / "cut", fingerprint=other)


def test_unreadable_inputs_are_left_out_and_reported_if_that_is_wanted():
    model, params = made()
    store, load, encode, seen = building(model, params, None)
    built = build_store(store, ["i0", "i9", "i2"], load, encode, batch_size=4, failures=(OSError,))
    assert built == (2, 0, {"i9": "no such image"})
    seen.clear()
    assert build_store(store, ["i0", "i1", "i2", "i3"], load, encode, batch_size=4) == (2, 2, {})
    assert sorted(seen) == ["i1", "i3"]
    want = encode_images(model, params, batch()[0])
    np.testing.assert_allclose(store.get(["i2", "i0"]).x, want.x[jnp.array([2, 0])], atol=2e-3)
    with pytest.raises(OSError, match="no such image"):
        build_store(store, ["i9"], load, encode)


def test_records_alone_cannot_give_what_needs_the_towers():
    model, params = made()
    record = Encoded(encode_images(model, params, batch()[0]).x)
    with pytest.raises(ValueError, match="stored records lack"):
        model.apply({"params": params}, record, method="image_embed")
