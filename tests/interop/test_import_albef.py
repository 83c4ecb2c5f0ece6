"""ALBEF's files become jaxvl's trees and come back bit for bit; nothing is lost or guessed on the way."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from foreign_states import VOCAB, D, albef_pretrained, albef_retrieval, albef_vqa, assert_same, dense, norm

from jaxvl.interop import WeightsError, export_albef, import_albef, load_params, save_params
from jaxvl.interop.albef import left_out
from jaxvl.interop.files import flatten

HEADS = ("mlm_head", "vision_proj", "text_proj", "itm_head", "temp")
FILES = {"pretrained": albef_pretrained, "retrieval": albef_retrieval, "vqa": albef_vqa}


@pytest.fixture
def state():
    return albef_pretrained(np.random.default_rng(0))


@pytest.mark.parametrize("name", FILES)
def test_round_trip_of_every_kind_of_file_is_bit_exact(tmp_path, name):
    state = FILES[name](np.random.default_rng(0))
    got = import_albef(state)
    assert_same(export_albef(got.params, got.momentum, got.queue), state)
    save_params(tmp_path / "p.safetensors", got.params)
    again = import_albef(export_albef(load_params(tmp_path / "p.safetensors")))
    assert_same(flatten(again.params), flatten(got.params))
    assert again.momentum is again.queue is None


def test_tensors_arrive_at_their_paths_in_their_layout(state):
    got = import_albef(state)
    vision, text, fusion = (got.params[k] for k in ("visual_encoder", "text_encoder", "fusion_encoder"))
    qkv = state["visual_encoder.blocks.1.attn.qkv.weight"]
    np.testing.assert_array_equal(vision["blocks_1"]["attn"]["key"]["kernel"], qkv[D : 2 * D].T)
    patch = state["visual_encoder.patch_embed.proj.weight"]
    np.testing.assert_array_equal(vision["patch_embed"]["kernel"][1, 0, 2, 3], patch[3, 2, 1, 0])
    layer = "text_encoder.bert.encoder.layer.{}."
    np.testing.assert_array_equal(
        text["layers_1"]["ffn"]["up"]["kernel"], state[layer.format(1) + "intermediate.dense.weight"].T
    )
    np.testing.assert_array_equal(
        fusion["layers_1"]["cross_attention"]["value"]["bias"],
        state[layer.format(3) + "crossattention.self.value.bias"],
    )
    np.testing.assert_array_equal(got.params["mlm_head"]["bias"], state["text_encoder.cls.predictions.bias"])
    assert set(got.momentum) == set(got.params) - {"itm_head", "temp"}
    np.testing.assert_array_equal(
        got.momentum["visual_encoder"]["norm"]["scale"], state["visual_encoder_m.norm.weight"]
    )


def test_splitting_qkv_keeps_what_the_fused_layer_computes(state):
    qkv = {k: state[f"visual_encoder.blocks.0.attn.qkv.{k}"] for k in ("weight", "bias")}
    x = np.random.default_rng(1).normal(size=(3, D)).astype(np.float32)
    fused = np.split(x @ qkv["weight"].T + qkv["bias"], 3, axis=-1)
    attn = import_albef(state).params["visual_encoder"]["blocks_0"]["attn"]
    for name, expected in zip(("query", "key", "value"), fused, strict=True):
        np.testing.assert_allclose(x @ attn[name]["kernel"] + attn[name]["bias"], expected, atol=1e-6)


def test_queue_and_ids():
    state = albef_retrieval(np.random.default_rng(0))
    queue = import_albef(state).queue
    assert queue["image"].shape == (3, 8)
    assert queue["ptr"] == 4
    assert queue["ptr"].shape == ()
    assert queue["ids"].dtype == queue["ptr"].dtype == np.int32
    np.testing.assert_array_equal(queue["ids"], np.arange(8) - 100)
    assert "ids" not in import_albef(albef_pretrained(np.random.default_rng(0))).queue


def test_hypergraph_tensors_travel_under_the_text_encoder(state):
    params = import_albef(state).params
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    params["fusion_encoder"]["layers_1"] |= {
        "hypergraph": {"theta": {"kernel": draw(D, D)}, "norm": {"scale": draw(D)}, "slot_weight": draw(4)},
        "hg_fusion": {"gate": {"kernel": draw(2 * D, D), "bias": draw(D)}},
        "visual_update": {"kernel": draw(D, D)},
    }
    params["visual_encoder"]["adapter"] = {"kernel": draw(D, D), "bias": draw(D)}
    tensors = export_albef(params)
    theta = tensors["text_encoder.bert.encoder.layer.3.hypergraph.theta.weight"]
    np.testing.assert_array_equal(
        theta, params["fusion_encoder"]["layers_1"]["hypergraph"]["theta"]["kernel"].T
    )
    got = import_albef(tensors)
    assert_same(flatten(got.params), flatten(params))
    assert "fusion_encoder/layers_0/hypergraph/" in got.report.missing
    del tensors["text_encoder.bert.encoder.layer.3.hypergraph.norm.weight"]
    tensors["text_encoder.bert.encoder.layer.2.hypergraph.norm.weight"] = draw(D)
    with pytest.raises(WeightsError, match="missing: fusion_encoder/layers_1/hypergraph/norm/"):
        import_albef(tensors)


OPTIONS = {
    "albef": None,
    "default": {},
    "gate": dict(fusion="gate", weights="slot"),
    "in branch": dict(ffn_placement="in_branch", theta_bias="zeros", weights="content"),
    "visual update": dict(visual_update="residual", layers=(1, 2)),
    "one layer": dict(layers=(2,)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_parameter_of_the_model_has_a_name(name):
    params = model_params(OPTIONS[name])
    got = import_albef(export_albef(params), text_layers=1)
    assert_same(flatten(got.params), flatten(params))


def test_a_model_with_an_answer_decoder_gets_the_names_of_albefs_vqa_files():
    state = albef_vqa(np.random.default_rng(0))
    imported = import_albef(state)
    heads = {name: albef_params()[name] for name in HEADS}  # a model of jaxvl has them, ALBEF's VQA does not
    tensors = export_albef(imported.params | heads, imported.momentum | {"mlm_head": heads["mlm_head"]})
    assert_same(tensors, state)
    assert left_out(imported.params | heads) == HEADS and left_out(heads) == ()


def test_a_decoder_and_a_hypergraph_come_back_without_the_heads_of_pretraining():
    params = model_params({}, decoder_depth=1)
    tensors = export_albef(params)
    assert "text_encoder.encoder.layer.1.hypergraph.theta.weight" in tensors
    assert "text_decoder.bert.encoder.layer.0.output.dense.weight" in tensors
    got = flatten(import_albef(tensors, text_layers=1).params)
    assert_same(got, {k: v for k, v in flatten(params).items() if k.split("/")[0] not in HEADS})


def albef_params() -> dict:
    return import_albef(albef_pretrained(np.random.default_rng(0))).params


def model_params(hypergraph, decoder_depth=None) -> dict:
    """A tiny `HyperALBEF` with vision adapter, filled with random numbers."""
    import jax

    from jaxvl.models.hyper_albef import HyperALBEF

    sizes = dict(
        vocab_size=VOCAB, width=8, heads=2, mlp=12, text_depth=1, fusion_depth=2, max_positions=7, embed_dim=3
    )
    vision = dict(patch=8, depth=1, width=4, heads=1, mlp=6)
    if hypergraph is not None:
        hypergraph = dict(layers=(1, 2), grid=2, k_v=2, k_t=2) | hypergraph
    model = HyperALBEF(
        **sizes, image_size=16, vision=vision, decoder_depth=decoder_depth, hypergraph=hypergraph
    )
    inputs = np.zeros((1, 16, 16, 3), np.float32), np.ones((1, 4), np.int32), np.ones((1, 4), bool)
    answer = None if decoder_depth is None else np.ones((1, 1, 3), np.int32)
    shapes = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, answer=answer)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def test_parameters_do_not_depend_on_the_file_afterwards(state):
    params = flatten(import_albef(state).params)
    assert all(a.flags.owndata and a.flags.c_contiguous and a.flags.writeable for a in params.values())


@pytest.mark.parametrize(
    ("dropped", "missing"),
    [
        (
            r"text_encoder\.cls.*|itm_head.*|temp|text_proj\..*",
            ["itm_head/", "mlm_head/", "temp", "text_proj/"],
        ),
        (r".*_queue|queue_ptr|.*_m\..*", []),
    ],
)
def test_task_heads_and_training_state_may_be_missing(state, dropped, missing):
    report = import_albef({k: v for k, v in state.items() if not re.fullmatch(dropped, k)}).report
    assert sorted(report.missing) == missing


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("visual_encoder.norm.weight", "visual_encoder/norm/scale"),
        ("visual_encoder.blocks.0.attn.qkv.bias", "visual_encoder/blocks_0/attn/value/bias"),
        (
            "text_encoder.bert.encoder.layer.3.crossattention.self.key.weight",
            "layers_1/cross_attention/key/kernel",
        ),
        ("itm_head.bias", "itm_head/bias"),
        ("visual_encoder_m.pos_embed", "momentum/visual_encoder/pos_embed"),
        ("queue_ptr", "queue/ptr"),
    ],
)
def test_strict_import_fails_for_a_single_tensor(state, name, missing):
    del state[name]
    with pytest.raises(WeightsError, match=rf"missing: .*{missing}"):
        import_albef(state)
    assert any(path.endswith(missing) for path in import_albef(state, strict=False).report.missing)


def test_strict_import_names_a_misspelt_tensor(state):
    state["visual_encoder.nrom.bias"] = state.pop("visual_encoder.norm.bias")
    with pytest.raises(
        WeightsError, match=r"unknown: visual_encoder.nrom.bias \(expected visual_encoder.norm.bias\?"
    ):
        import_albef(state)


def test_heads_of_other_tasks_are_left_out_with_a_reason(state):
    state |= dense(np.random.default_rng(0), "cls_head.0", D, D)
    assert ("cls_head.0.bias", "head of another task") in import_albef(state).report.unused


def test_an_untied_decoder_is_refused(state):
    state["text_encoder_m.cls.predictions.decoder.weight"] = (
        state["text_encoder_m.cls.predictions.decoder.weight"] + 1
    )
    with pytest.raises(WeightsError, match="'text_encoder_m.cls.predictions.decoder.weight' must equal"):
        import_albef(state)


def test_the_wrong_level_of_a_file_is_refused(state):
    with pytest.raises(WeightsError, match=r"'model' is a dictionary.*pass state\['model'\]"):
        import_albef({"model": state, "epoch": 3})
    with pytest.raises(WeightsError, match="not ALBEF.*pass the inner dictionary"):
        import_albef({f"model.{k}": v for k, v in state.items()})
    with pytest.raises(WeightsError, match="'epoch' is a str"):
        import_albef(state | {"epoch": "three"})


def test_a_parallel_wrapper_is_looked_through(state):
    got = import_albef({f"module.{k}": v for k, v in state.items()})
    assert_same(export_albef(got.params, got.momentum, got.queue), state)


def test_where_fusion_starts_is_never_guessed(state):
    assert "layers_1" in import_albef(state, text_layers=2).params["fusion_encoder"]
    with pytest.raises(WeightsError, match="text_layers=3, but cross attention starts at layer 2"):
        import_albef(state, text_layers=3)
    crossless = {k: v for k, v in state.items() if ".crossattention." not in k}
    with pytest.raises(WeightsError, match="pass text_layers"):
        import_albef(crossless)
    assert "fusion_encoder/layers_0/cross_attention/" in import_albef(crossless, text_layers=2).report.missing


def test_half_precision_becomes_float32_and_integers_are_refused(state):
    half = {k: v.astype(ml_dtypes.bfloat16) if v.dtype == np.float32 else v for k, v in state.items()}
    got = import_albef(half)
    assert {a.dtype for a in flatten(got.params).values()} == {np.dtype(np.float32)}
    assert dict(got.report.adapted)["temp"] == "bfloat16 to float32"
    with pytest.raises(WeightsError, match="'temp' is int8, expected floating-point"):
        import_albef(state | {"temp": np.int8(1)})


def test_export_refuses_what_it_cannot_name(state):
    params = import_albef(state).params
    del params["visual_encoder"]["blocks_0"]["attn"]["key"]["bias"]
    with pytest.raises(WeightsError, match="needs visual_encoder/blocks_0/attn/key/bias too"):
        export_albef(params)
    with pytest.raises(WeightsError, match="'new_head/kernel' has no name"):
        export_albef({"new_head": {"kernel": np.zeros((2, 2))}})
    with pytest.raises(WeightsError, match="unstack the layers first"):
        export_albef({"text_encoder": {"layers_0_6": {"ffn": {"up": {"bias": np.zeros((6, 2))}}}}})


def test_the_report_is_a_table_of_every_name(state):
    state |= norm(np.random.default_rng(0), "extra")
    report = import_albef(state, strict=False).report
    lines = str(report).splitlines()
    assert lines[0] == f"{len(report.mapped)} mapped, {len(report.unused)} unused, 0 missing"
    assert all(any(name in line for line in lines) for name in state)
    assert re.search(r"itm_head.weight +-> itm_head/kernel  \(transposed\)", str(report))
    assert re.search(r"extra.bias +unused: unknown name", report.summary())
    assert "itm_head" not in report.summary()
