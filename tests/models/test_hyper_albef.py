"""Hyper-ALBEF has the paper's sizes, fuses as BERT's cross-attending layers do, is ALBEF without hypergraph, ignores
padding, and is one function whether scanned, rematerialised or given its images through an index."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from oracles import SIZES, bert_config, draw, draw_ids, fill_bert, lengths_mask, record_main, recorded, seeded

from jaxvl.models import MODELS
from jaxvl.models.fusion import FusionEncoder
from jaxvl.models.hyper_albef import HyperALBEF, adapt
from jaxvl.models.layers import stack_layers, unstack_layers

HYPER = HyperALBEF(
    **SIZES,
    text_depth=1,
    fusion_depth=2,
    embed_dim=8,
    image_size=16,
    vision=dict(patch=4, depth=1),
    hypergraph=dict(layers=(1,), grid=2, iters=1, k_v=4, k_t=2),
)
ALBEF = HYPER.clone(hypergraph=None)
MEAN = ALBEF.clone(pool="mean")
IMAGE = draw(3, 16, 16, 3)
TEXT = draw_ids(3, 7)
MASK = lengths_mask(7, 7, 4, 1)
PAIRS = (IMAGE, TEXT, MASK)
FUSION = FusionEncoder(depth=2, heads=2, mlp=32)
TEXT_STATES, IMAGE_STATES = draw(3, 7, 16), draw(3, 10, 16, seed=1)
VOCABULARY = {
    "batch",
    "length",
    "embed",
    "mlp",
    "heads",
    "kv",
    "vocab",
    "patch",
    "edge",
    "layers",
    "feat",
    None,
}


@partial(jax.jit, static_argnums=0, static_argnames=("train", "method"))
def run(module, params, *args, **kwargs):
    with jax.default_matmul_precision("highest"):
        return module.apply({"params": params}, *args, **kwargs)


def fuse(module, params, states=TEXT_STATES, mask=MASK, images=IMAGE_STATES, **kwargs):
    return run(module, params, states, mask, images, method="fuse", **kwargs)


def torch_fusion() -> np.ndarray:
    """BERT layers with cross attention; a 4-D mask, because a 2-D one is causal in this configuration."""
    import torch
    from transformers import BertModel

    bert = BertModel(bert_config(2, cross=True), add_pooling_layer=False).eval()
    fill_bert(bert, None, seeded(FUSION, TEXT_STATES, MASK, IMAGE_STATES))
    mask = np.where(MASK[:, None, None], 0.0, np.finfo(np.float32).min).astype(np.float32)
    with torch.no_grad():
        out = bert.encoder(
            torch.tensor(TEXT_STATES),
            attention_mask=torch.tensor(np.broadcast_to(mask, (3, 1, 7, 7)).copy()),
            encoder_hidden_states=torch.tensor(IMAGE_STATES),
            use_cache=False,
        )
    return out.last_hidden_state.numpy()


def record() -> dict[str, np.ndarray]:
    return {"fusion": torch_fusion()}


def shapes(module: HyperALBEF) -> dict:
    size, length, spec = module.image_size, min(25, module.max_positions), jax.ShapeDtypeStruct
    batch = (spec((2, size, size, 3), jnp.float32), spec((2, length), jnp.int32), spec((2, length), bool))
    return jax.eval_shape(module.init, jax.random.key(0), *batch)["params"]


@partial(jax.jit, static_argnums=(0, 1))
def initial(module: HyperALBEF, name: str) -> dict:
    """The initial values of one part; the others are never computed."""
    return nn.unbox(module.init(jax.random.key(0), *PAIRS))["params"][name]


def count(tree) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def close(got, want, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), got, want)


@pytest.mark.parametrize("source", ["recorded", pytest.param("live", marks=pytest.mark.torch)])
def test_fusion_without_hypergraph_equals_hugging_face(source):
    if source == "live":
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
    want = recorded("hyper_albef") if source == "recorded" else record()
    got = run(FUSION, seeded(FUSION, TEXT_STATES, MASK, IMAGE_STATES), TEXT_STATES, MASK, IMAGE_STATES)
    np.testing.assert_allclose(got[MASK], want["fusion"][MASK], atol=2e-5, rtol=0)


def test_parameters_of_albef_at_paper_size():
    params = shapes(HyperALBEF(hypergraph=None))
    assert count(params) == 209_937_725
    assert count({k: v for k, v in params.items() if k not in ("itm_head", "temp")}) == 209_936_186
    assert count(params["text_encoder"]) == 66_364_416
    assert count(params["visual_encoder"]) == 85_844_736


def test_parameters_of_hyper_albef_at_paper_size():
    params = shapes(HyperALBEF())
    assert count(params) == 234_756_413
    layer = params["fusion_encoder"]["layers_0"]
    assert (count(layer["hypergraph"]), count(layer["hg_fusion"])) == (1_772_544, 2_363_904)


def test_parameters_of_question_answering_at_paper_size():
    params = shapes(HyperALBEF(hypergraph=None, decoder_depth=6, image_size=384))
    used = ("visual_encoder", "text_encoder", "fusion_encoder", "text_decoder")
    assert sum(count(params[name]) for name in used) == 290_336_058


def test_only_selected_layers_own_a_hypergraph():
    layers = shapes(HYPER)["fusion_encoder"]
    assert [name for name in layers if "hypergraph" in layers[name]] == ["layers_0"]
    assert MODELS["hyper_albef"] is HyperALBEF


@pytest.mark.parametrize("scan", [False, True])
def test_logical_axes_name_every_dimension_once(scan):
    params = shapes(HYPER.clone(scan=scan, decoder_depth=1))
    boxes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    boxes = [x for x in boxes if isinstance(x, nn.LogicallyPartitioned)]
    for box in boxes:
        names = [name for name in box.names if name]
        assert len(box.names) == len(box.value.shape) and len(set(names)) == len(names), box
        assert set(box.names) <= VOCABULARY
    assert len(boxes) >= len(jax.tree.leaves(params)) - 3  # cls_token, pos_embed, temp are replicated


def test_initial_values():
    for name in ("vision_proj", "text_proj", "itm_head"):
        for leaf in initial(HYPER, name).values():
            assert 0.1 < np.abs(leaf).max() <= 16**-0.5  # a normal of 0.02 stays below 0.1
    gain = 0.02 * (768 / 16) ** 0.5  # that of BERT's width at this one
    assert abs(np.std(initial(HYPER, "mlm_head")["dense"]["kernel"]) / gain - 1) < 0.2
    temperature = initial(HYPER, "temp")
    assert temperature == np.float32(0.07) and temperature.shape == ()


def test_output_shapes_and_types():
    module = HYPER.clone(dtype=jnp.bfloat16, decoder_depth=1)
    answer = draw_ids(3, 2, 5)
    out = jax.eval_shape(module.apply, {"params": seeded(module, *PAIRS)}, *PAIRS, answer)
    assert (out.image_states.shape, out.image_states.dtype) == ((3, 17, 16), jnp.bfloat16)
    assert out.text_states.shape == out.fused.shape == (3, 7, 16) and out.fused.dtype == jnp.bfloat16
    heads = {
        "image_embed": (3, 8),
        "text_embed": (3, 8),
        "match_logits": (3, 2),
        "mlm_logits": (3, 7, 23),
        "temperature": (),
        "answer_logits": (3, 2, 5, 23),
    }
    assert {k: getattr(out, k).shape for k in heads} == heads
    assert all(getattr(out, k).dtype == jnp.float32 for k in heads)


def test_bfloat16_stays_near_float32():
    params = seeded(ALBEF, *PAIRS)
    want, got = run(ALBEF, params, *PAIRS), run(ALBEF.clone(dtype=jnp.bfloat16), params, *PAIRS)
    close(got.image_embed, want.image_embed, 0.05)
    close(got.match_logits, want.match_logits, 0.15)
    np.testing.assert_allclose(np.linalg.norm(got.text_embed, axis=-1), np.ones(3), rtol=1e-6)


def test_no_layers_is_albef():
    params = seeded(ALBEF, *PAIRS)
    none = HYPER.clone(hypergraph=dict(layers=()))
    assert jax.tree.structure(shapes(none)) == jax.tree.structure(shapes(ALBEF))
    programs = [str(jax.make_jaxpr(m.apply)({"params": params}, *PAIRS)) for m in (none, ALBEF)]
    assert programs[0] == programs[1]


def test_a_fresh_hypergraph_changes_nothing():
    params = seeded(ALBEF, *PAIRS)
    fresh = seeded(HYPER, *PAIRS) | {"fusion_encoder": initial(HYPER, "fusion_encoder")}
    loaded, report = adapt(params, fresh)
    assert report.unused == () and all("/layers_0/h" in path for path in report.fresh)
    close(fuse(HYPER, loaded)[MASK], fuse(ALBEF, params)[MASK], 2e-6)  # compilers round differently


@pytest.mark.parametrize("module", [ALBEF, HYPER], ids=["albef", "hyper"])
def test_image_index_equals_gathered_images(module):
    index = np.array([2, 0, 0])
    params = seeded(module, *PAIRS)
    got = fuse(module, params, image_index=index)
    close(got, fuse(module, params, images=IMAGE_STATES[index]), 1e-5)
    assert np.abs(got - fuse(module, params)).max() > 0.1


def test_more_texts_than_images_need_an_index():
    with pytest.raises(ValueError, match="image_index"):
        fuse(ALBEF, seeded(ALBEF, *PAIRS), images=IMAGE_STATES[:2])


@pytest.mark.parametrize("module", [ALBEF, HYPER, MEAN], ids=["albef", "hyper", "mean"])
def test_padding_changes_no_output(module):
    params = seeded(module, *PAIRS)
    text = np.concatenate([np.where(MASK, TEXT, 5), draw_ids(3, 3, seed=9)], axis=1)
    mask = np.concatenate([MASK, np.zeros((3, 3), bool)], axis=1)
    want, got = run(module, params, *PAIRS), run(module, params, IMAGE, text, mask)
    close((got.text_embed, got.match_logits), (want.text_embed, want.match_logits), 5e-6)
    close(got.mlm_logits[:, :7][MASK], want.mlm_logits[MASK], 5e-6)


@pytest.mark.parametrize("module", [ALBEF, MEAN], ids=["cls", "mean"])
def test_heads_read_the_first_state_or_the_mean_of_the_others(module):
    params = seeded(module, *PAIRS)
    got = run(module, params, *PAIRS)

    def pooled(states, mask):
        states, rest = np.asarray(states), mask & (np.arange(mask.shape[1]) > 0)
        rows = zip(states, rest, strict=True)
        return (
            states[:, 0]
            if module is ALBEF
            else np.stack([x[m].mean(0) if m.any() else x[0] for x, m in rows])
        )

    def head(name, states, mask):
        return pooled(states, mask) @ params[name]["kernel"] + params[name]["bias"]

    image = head("vision_proj", got.image_states, np.ones(got.image_states.shape[:2], bool))
    text = head("text_proj", got.text_states, MASK)
    close(got.image_embed, image / np.linalg.norm(image, axis=-1, keepdims=True), 1e-5)
    close(got.text_embed, text / np.linalg.norm(text, axis=-1, keepdims=True), 1e-5)
    close(got.match_logits, head("itm_head", got.fused, MASK), 1e-5)


def test_a_text_of_one_token_has_a_mean_too():
    alone = np.zeros_like(MASK) | (np.arange(MASK.shape[1]) == 0)
    params = seeded(MEAN, *PAIRS)
    got = run(MEAN, params, TEXT_STATES, alone, method="text_embed")
    close(got, run(ALBEF, params, TEXT_STATES, alone, method="text_embed"), 1e-6)


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="model.pool='max': expected 'cls' or 'mean'"):
        ALBEF.clone(pool="max")


def test_word_table_is_tied():
    params = flatten_dict(seeded(ALBEF, *PAIRS))
    path = ("text_encoder", "embeddings", "word", "embedding")
    want = run(ALBEF, unflatten_dict(params), TEXT_STATES, method="mlm_logits")
    params[path] = np.concatenate([params[path][:-1], -params[path][-1:]])
    got = run(ALBEF, unflatten_dict(params), TEXT_STATES, method="mlm_logits")
    bias = params[("mlm_head", "bias")]
    close(got[..., :-1], want[..., :-1], 0)
    close(got[..., -1] - bias[-1], -(want[..., -1] - bias[-1]), 1e-5)


@pytest.mark.slow
def test_scan_and_remat_keep_outputs_and_gradients():
    """Of fusion; text and image encoders and the decoder are tested on their own."""
    unrolled = HYPER.clone(fusion_depth=3)
    params = seeded(unrolled, *PAIRS)
    module = unrolled.clone(scan=True, remat="full")
    stacked = stack_layers(params, seeded(module, *PAIRS))
    assert {"layers_0_1", "layers_1_3"} == set(stacked["fusion_encoder"])

    def value_and_grad(module, params):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sin(fuse(module, p)).sum()))(params)

    want, got = value_and_grad(unrolled, params), value_and_grad(module, stacked)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    close(unstack_layers(got[1]), want[1], 3e-5)


def test_dropout_is_active_only_in_training():
    params = seeded(ALBEF, *PAIRS)
    a, b = (fuse(ALBEF, params, train=True, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert np.abs(a - b).max() > 0.1
    close(fuse(ALBEF, params, rngs={"dropout": jax.random.key(0)}), fuse(ALBEF, params), 0)


def test_a_decoder_is_initialised_and_used_only_where_there_is_one():
    module = ALBEF.clone(decoder_depth=1)
    params = seeded(module, *PAIRS)
    assert set(params["text_decoder"]) == {"embeddings", "layers_0", "mlm_head"}
    assert jax.eval_shape(module.apply, {"params": params}, *PAIRS).answer_logits is None
    with pytest.raises(ValueError, match=r"set model\.decoder_depth"):
        run(ALBEF, seeded(ALBEF, *PAIRS), draw_ids(3, 2, 5), TEXT_STATES, MASK, method="decode")


def test_embedding_queue_needs_no_parameters():
    queue = HYPER.embedding_queue(jax.random.key(0), 32)
    assert queue.unbox().shape == (8, 32) and queue.names == ("feat", "batch")


def test_a_mistyped_vision_option_is_refused():
    with pytest.raises(ValueError, match=r"model\.vision: unknown key 'pach'; did you mean 'patch'\?"):
        shapes(HYPER.clone(vision=dict(pach=8)))


def test_vision_may_be_narrower_than_text():
    params = shapes(HYPER.clone(vision=dict(patch=4, depth=1, width=8, mlp=16)))
    visual = nn.unbox(params)["visual_encoder"]
    assert visual["adapter"]["kernel"].shape == (8, 16)
    assert visual["blocks_0"]["mlp"]["fc1"]["kernel"].shape == (8, 16)


if __name__ == "__main__":
    record_main("hyper_albef", record)
