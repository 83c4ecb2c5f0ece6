"""BridgeTower files of Hugging Face and of the release fill the dual encoder and come back bit for bit; layers are
taken only when asked for; what does not fit is refused by name."""

from __future__ import annotations

import re

import numpy as np
import pytest
from foreign_states import D, assert_same, bert, dense, norm
from hf_models import drawn
from pair_states import bridgetower_hf, bridgetower_original, class_head, renamed, vilt_hf

from jaxvl.interop import (
    WeightsError,
    export_bridgetower,
    foreign_params,
    import_bridgetower,
    save_safetensors,
)
from jaxvl.interop.files import flatten
from jaxvl.models.bridge_tower import BridgeTower
from jaxvl.models.layers import unstack_layers
from jaxvl.models.transfer import adapt

RNG = np.random.default_rng

FILES = {
    "hf": lambda: bridgetower_hf(RNG(0)),
    "hf mlm": lambda: bridgetower_hf(RNG(0), "mlm"),
    "hf itm": lambda: bridgetower_hf(RNG(0), "itm"),
    "scaled add": lambda: bridgetower_hf(RNG(0), bridge="scaled_factor"),
    "interpolate": lambda: bridgetower_hf(RNG(0), bridge="beta"),
    "own projections": lambda: bridgetower_hf(RNG(0), shared=False),
    "release with ViT": lambda: bridgetower_original(RNG(0), timm=True),
    "release with ViT, nlvr2": lambda: bridgetower_original(RNG(0), "nlvr2", timm=True),
    "release with ViT, vqa": lambda: bridgetower_original(RNG(0), "vqa", timm=True),
}


@pytest.mark.parametrize("name", FILES)
def test_round_trip_is_bit_exact(name):
    imported = import_bridgetower(FILES[name]())
    assert_same(export_bridgetower(imported.params), FILES[name]())
    again = import_bridgetower(export_bridgetower(imported.params))
    assert_same(flatten(again.params), flatten(imported.params))


def test_release_and_hugging_face_name_the_same_parameters():
    release = bridgetower_original(RNG(0))
    params = import_bridgetower(release).params
    assert_same(flatten(import_bridgetower(export_bridgetower(params)).params), flatten(params))
    kernel = params["cross"]["layers_2"]["image"]["cross_attention"]["key"]["kernel"]
    weight = release["cross_modal_image_layers.2.crossattention.self.key.weight"]
    np.testing.assert_array_equal(kernel, weight.T)
    scale = params["bridge"]["text_norm_2"]["scale"]
    np.testing.assert_array_equal(scale, release["cross_modal_text_link_tower.1.LayerNorm.weight"])
    np.testing.assert_array_equal(
        params["visual_encoder"]["cls_token"][0, 0], release["vit_model.visual.class_embedding"]
    )
    assert params["temp"] == release["temperature"]


def test_six_layers_do_not_become_three_by_themselves():
    state = bridgetower_hf(RNG(0), depth=6, bridge="beta", shared=False)
    with pytest.raises(WeightsError, match=r"has 6 cross-modal layers, the model 3: pass take=\(3, 4, 5\)"):
        import_bridgetower(state)
    got = import_bridgetower(state, take=(3, 4, 5))
    params = got.params
    assert sorted(params["cross"]) == ["layers_0", "layers_1", "layers_2"]
    up = state["cross_modal_text_layers.4.intermediate.dense.weight"].T
    np.testing.assert_array_equal(params["cross"]["layers_1"]["text"]["ffn"]["up"]["kernel"], up)
    for layer, link in ((0, 2), (1, 3), (2, 4)):  # the bridge in front of layer n of the file is link n - 1
        scale = state[f"cross_modal_image_link_tower.{link}.LayerNorm.weight"]
        np.testing.assert_array_equal(params["bridge"][f"image_norm_{layer}"]["scale"], scale)
    assert params["bridge"]["text_beta_1"] == state["cross_modal_text_link_tower.3.beta"]
    np.testing.assert_array_equal(
        params["bridge"]["text_proj_2"]["bias"], state["cross_modal_text_transform.5.bias"]
    )
    assert {why for _, why in got.report.unused} == {"not taken"}
    assert len(import_bridgetower(state, depth=6).params["cross"]) == 6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depth=2, take=(0, 1, 2)), "are 3 cross-modal layers, the model has 2"),
        (dict(take=(0, 1, 3)), r"expected different numbers of the file's layers, 0\.\.2"),
        (dict(take=(1, 1, 2)), "expected different numbers"),
        (dict(depth=4), r"has 3 cross-modal layers, the model 4: build the model with cross.depth=3"),
    ],
)
def test_impossible_choices_of_layers_are_refused(kwargs, message):
    with pytest.raises(WeightsError, match=message):
        import_bridgetower(bridgetower_hf(RNG(0)), **kwargs)


def test_a_contrastive_head_of_hugging_face_reads_the_projected_image_state():
    state = bridgetower_hf(RNG(0), "itc")
    imported = import_bridgetower(state)
    v = np.asarray(RNG(1).normal(size=(2, D)), np.float32)
    body = "bridgetower.cross_modal_image_transform"
    typed = v @ state[f"{body}.weight"].T + state[f"{body}.bias"]
    typed += state["bridgetower.token_type_embeddings.weight"][1]
    want = typed @ state["itc_image_head.fc.weight"].T + state["itc_image_head.fc.bias"]
    head = imported.params["vision_proj"]
    np.testing.assert_allclose(v @ head["kernel"] + head["bias"], want, atol=1e-5)
    np.testing.assert_allclose(imported.params["temp"], np.exp(-state["logit_scale"]), rtol=1e-6)
    assert [name for name, _ in imported.report.unused] == [
        "itc_cross_modal_head.fc.weight",
        "itc_cross_modal_head.fc.bias",
    ]
    again = import_bridgetower(
        export_bridgetower(imported.params)
    )  # under the release's names: not folded twice
    assert_same(flatten(again.params), flatten(imported.params))


def test_a_second_image_and_a_tied_decoder_are_those_of_the_model():
    state = bridgetower_hf(RNG(0), "mlm")
    rows = state["bridgetower.token_type_embeddings.weight"]
    params = import_bridgetower(state, images=2).params
    np.testing.assert_array_equal(params["bridge"]["token_type"]["embedding"], rows[[0, 1, 1]])
    with pytest.raises(WeightsError, match="mlm_tied=False"):
        import_bridgetower(state, tied=True)
    state["mlm_score.decoder.weight"] = state["bridgetower.text_model.embeddings.word_embeddings.weight"]
    tied = import_bridgetower(state, tied=True).params
    assert "decoder" not in tied["mlm_head"]
    assert_same(export_bridgetower(tied), state)


def test_what_the_model_never_reads_is_left_out():
    state = bridgetower_original(RNG(0)) | dense(RNG(0), "text_transformer.pooler.dense", D, D)
    state |= norm(RNG(0), "vit_model.ln_final") | {
        "vit_model.positional_embedding": np.ones((7, D), np.float32)
    }
    state |= dense(RNG(0), "rank_output", 1, 2 * D) | {
        "text_transformer.embeddings.position_ids": np.arange(7)
    }
    unused = dict(import_bridgetower(state).report.unused)
    assert len(unused) == 8
    assert set(unused.values()) == {"no counterpart in jaxvl"}


def without(state, name):
    assert name in state
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: bert(RNG(0)), "not a BridgeTower of Hugging Face"),
        (lambda s: vilt_hf(RNG(0)), "not a BridgeTower of Hugging Face"),
        (lambda s: without(s, "cross_modal_text_pooler.dense.bias"), "missing: text_pool/bias"),
        (
            lambda s: without(s, "cross_modal_image_link_tower.1.LayerNorm.bias"),
            "missing: bridge/image_norm_2/bias",
        ),
        (
            lambda s: without(s, "cross_modal_text_layers.1.crossattention.self.query.weight"),
            "missing: cross/layers_1/text/cross_attention/query/kernel",
        ),
        (lambda s: without(s, "vit_model.visual.ln_pre.bias"), "missing: visual_encoder/norm_pre/bias"),
        (lambda s: without(s, "text_transformer.embeddings.LayerNorm.weight"), "embeddings/norm/scale"),
        (lambda s: without(s, "itc_text_head.fc.bias"), "missing: text_proj/bias"),
        (
            lambda s: renamed(s, (r"link_tower\.\d", "link_tower")),  # one bridge for all layers
            "missing: bridge/image_norm_1/\n",
        ),
        (
            lambda s: s | norm(RNG(0), "vit_model.visual.ln_separate.0"),
            r"unknown: vit_model.visual.ln_separate.0",
        ),
        (
            lambda s: (
                s | class_head(RNG(0), "vqa_classifier", into=2 * D) | class_head(RNG(0), "snli_classifier")
            ),
            "class heads vqa_classifier, snli_classifier",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        import_bridgetower(change(bridgetower_original(RNG(0))))


@pytest.mark.parametrize(
    "name", [name for name in sorted(bridgetower_hf(RNG(0), "itm")) if not re.search(r"\.2\.|\.1\.", name)]
)
def test_every_misshaped_tensor_is_refused_by_its_name(name):
    state = bridgetower_hf(RNG(0), "itm")
    state[name] = np.ones((*state[name].shape[:-1], state[name].shape[-1] + 1), np.float32)
    with pytest.raises(WeightsError, match=f"'{name.removeprefix('bridgetower.')}'"):
        import_bridgetower(state)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"shallow": {"fc1": {"kernel": np.ones((2, 2))}}},
            "'shallow/fc1/kernel' has no name in BridgeTower",
        ),
        (
            {"text_encoder": {"blocks_0": {"norm1": {"scale": np.ones(2)}}}},
            "blocks_0/norm1/scale' has no name",
        ),
        ({"text_encoder": {"layers_0_2": {"ffn": {"up": {"bias": np.ones(2)}}}}}, "unstack the layers first"),
    ],
)
def test_export_names_a_parameter_it_cannot_write(extra, message):
    with pytest.raises(WeightsError, match=message):
        export_bridgetower(import_bridgetower(bridgetower_hf(RNG(0))).params | extra)


def test_a_config_names_its_bridgetower(tmp_path):
    path = tmp_path / "b.safetensors"
    save_safetensors(path, bridgetower_hf(RNG(0), "mlm"))
    cross = {f"layers_{i}": {} for i in range(3)}
    like = {
        "bridge": {"token_type": {"embedding": np.zeros((3, D))}},
        "cross": cross,
        "mlm_head": {"decoder": {}},
    }
    params = foreign_params({"bridgetower": str(path)}, like)
    assert params["bridge"]["token_type"]["embedding"].shape == (3, D)
    assert "decoder" in params["mlm_head"]
    with pytest.raises(
        WeightsError, match=r"weights.bridgetower=.*the file has 3 cross-modal layers, the model 2"
    ):
        foreign_params({"bridgetower": str(path)}, like | {"cross": {"layers_0": {}, "layers_1": {}}})
    with pytest.raises(WeightsError, match="'vision' and/or 'text', or 'bridgetower' alone"):
        foreign_params({"albef": "x"}, like)


CLIP_PAIR = dict(text=dict(arch="roberta", depth=3), vision=dict(arch="clip", depth=2, patch=2))
VARIANTS = {
    "default": dict(),
    "of Hugging Face": CLIP_PAIR,
    "bert beside clip": dict(vision=CLIP_PAIR["vision"]),
    "scaled add": CLIP_PAIR | dict(cross=dict(depth=2, bridge="scaled_add", share_projection=False)),
    "interpolate": dict(cross=dict(depth=2, bridge="interpolate", mapping="cumulative")),
    "no bridge": dict(cross=dict(depth=2, bridge="none")),
    "no bridge, own projections": dict(cross=dict(depth=2, bridge="none", share_projection=False)),
    "two images": dict(images=2, classes=2, mlm_tied=True),
    "three classes": CLIP_PAIR | dict(classes=3, head_scale=2),
    "other widths": dict(text=dict(depth=2, width=4), vision=dict(depth=2, patch=2, width=12, mlp=6)),
}


def tiny(**kwargs):
    sizes = dict(vocab_size=11, width=8, heads=2, mlp=12, image_size=4, embed_dim=3)
    towers = dict(text=dict(depth=2), vision=dict(depth=2, patch=2), cross=dict(depth=2))
    return BridgeTower(**(sizes | towers | kwargs))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_of_the_model_has_a_name(name):
    model = tiny(**VARIANTS[name])
    params = drawn(model, np.zeros((3, 4, 4, 3), np.float32))
    tied = model.mlm_tied
    again = import_bridgetower(export_bridgetower(params), depth=2, tied=tied).params
    assert_same(flatten(again), flatten(params))


@pytest.mark.parametrize(
    "kwargs", [dict(text=dict(arch="vilt", depth=2)), dict(interaction="shallow"), dict(interaction="virt")]
)
def test_models_that_bridgetower_is_not_are_refused(kwargs):
    with pytest.raises(WeightsError, match="has no name in BridgeTower's format"):
        export_bridgetower(drawn(tiny(**kwargs), np.zeros((3, 4, 4, 3), np.float32)))


def test_foreign_weights_fill_the_whole_model(tmp_path):
    model = tiny(**CLIP_PAIR, scan=True, images=2, classes=2)
    fresh = unstack_layers(drawn(model, np.zeros((3, 4, 4, 3), np.float32)))
    foreign = tiny(**CLIP_PAIR)
    save_safetensors(tmp_path / "b.safetensors", export_bridgetower(drawn(foreign, np.zeros((3, 4, 4, 3)))))
    params, report = adapt(foreign_params({"bridgetower": str(tmp_path / "b.safetensors")}, fresh), fresh)
    assert report.unused == report.resized == ()
    assert {path.split("/")[0] for path in report.fresh} == {"class_head"}
    rows = params["bridge"]["token_type"]["embedding"]
    np.testing.assert_array_equal(rows[1], rows[2])
