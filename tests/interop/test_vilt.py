"""ViLT files of Hugging Face and of the original release fill ViLT and come back bit for bit; what does not fit is
refused by name; positions are resized as ViLT resizes them."""

from __future__ import annotations

import numpy as np
import pytest
from foreign_states import VOCAB, D, assert_same, dense, norm, vit
from hf_models import drawn
from pair_states import SIDE, bridgetower_hf, class_head, renamed, vilt_hf, vilt_original

from jaxvl.interop import WeightsError, export_vilt, foreign_params, import_vilt, save_safetensors
from jaxvl.interop.files import flatten
from jaxvl.interop.positions import resize_bilinear
from jaxvl.models.layers import unstack_layers
from jaxvl.models.transfer import adapt
from jaxvl.models.vilt import ViLT

RNG = np.random.default_rng
FILES = {
    "hf": (lambda: vilt_hf(RNG(0)), "hf"),
    "hf mlm": (lambda: vilt_hf(RNG(0), "mlm"), "hf"),
    "hf vqa": (lambda: vilt_hf(RNG(0), "class"), "hf"),
    "hf nlvr2": (lambda: vilt_hf(RNG(0), "class", images=2), "hf"),
    "original": (lambda: vilt_original(RNG(0)), "original"),
    "original vqa": (lambda: vilt_original(RNG(0), "vqa"), "original"),
    "original nlvr2": (lambda: vilt_original(RNG(0), "nlvr2"), "original"),
}


@pytest.mark.parametrize("name", FILES)
def test_round_trip_is_bit_exact(name):
    make, names = FILES[name]
    imported = import_vilt(make(), grid=SIDE)
    assert_same(export_vilt(imported.params, names=names), make())
    again = import_vilt(export_vilt(imported.params), grid=SIDE)  # by way of Hugging Face's names
    assert_same(flatten(again.params), flatten(imported.params))


def test_both_releases_fill_the_same_paths_and_split_fused_tensors():
    state = vilt_original(RNG(0))
    params = flatten(import_vilt(state, grid=None).params)
    assert set(flatten(import_vilt(vilt_hf(RNG(0)), grid=None).params)) < set(params)
    fused = state["transformer.blocks.1.attn.qkv.weight"]
    np.testing.assert_array_equal(params["blocks_1/attn/value/kernel"], fused[2 * D :].T)
    assert params["itm_head/kernel"].shape == (D, 2)
    assert params["mlm_head/decoder/kernel"].shape == (D, VOCAB)


def test_a_decoder_that_is_the_word_table_is_left_out_unless_the_model_has_its_own():
    state = vilt_hf(RNG(0), "mlm")
    table = state["vilt.embeddings.text_embeddings.word_embeddings.weight"]
    assert "decoder" not in import_vilt(state).params["mlm_head"]
    decoder = import_vilt(state, tied=False).params["mlm_head"]["decoder"]["kernel"]
    np.testing.assert_array_equal(decoder, table.T)
    saved = {
        k: v for k, v in state.items() if k != "mlm_score.decoder.weight"
    }  # files hold a tied tensor once
    np.testing.assert_array_equal(
        import_vilt(saved, tied=False).params["mlm_head"]["decoder"]["kernel"], table.T
    )
    with pytest.raises(WeightsError, match="'mlm_score.decoder.weight' differs .* mlm_tied=False"):
        import_vilt(vilt_original(RNG(0)), tied=True)


def test_a_second_image_gets_the_row_of_the_first():
    state = vilt_hf(RNG(0))
    rows = state["embeddings.token_type_embeddings.weight"]
    got = import_vilt(state, images=2)
    np.testing.assert_array_equal(got.params["modality"]["embedding"], rows[[0, 1, 1]])
    assert dict(got.report.adapted)["embeddings.token_type_embeddings.weight"] == "2 rows to 3"
    two = import_vilt(vilt_hf(RNG(0), "class", images=2), images=1)
    assert two.params["modality"]["embedding"].shape == (2, D)


def test_positions_are_resized_with_corners_on_corners():
    state = vilt_hf(RNG(0))
    table = state["embeddings.position_embeddings"]
    got = import_vilt(state, grid=5).params["pos_embed"]
    np.testing.assert_array_equal(got[:, 0], table[:, 0])
    old, new = table[0, 1:].reshape(SIDE, SIDE, D), got[0, 1:].reshape(5, 5, D)
    np.testing.assert_allclose(new[::2, ::2], old, atol=1e-7)
    np.testing.assert_allclose(new[1, 0], (old[0, 0] + old[1, 0]) / 2, atol=1e-7)
    exported = export_vilt(import_vilt(state, grid=5).params)  # keeps the grid of the model
    assert exported["embeddings.position_embeddings"].shape == (1, 26, D)


@pytest.mark.torch
@pytest.mark.parametrize(("source", "size"), [(12, 7), (3, 1), (1, 4), (7, 12)])
def test_positions_are_resized_as_pytorch_does(source, size):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's interpolation")
    table = np.asarray(RNG(0).normal(size=(1, 1 + source**2, D)), np.float32)
    maps = torch.tensor(table[:, 1:]).transpose(1, 2).reshape(1, D, source, source)
    want = torch.nn.functional.interpolate(maps, size=(size, size), mode="bilinear", align_corners=True)
    got = resize_bilinear(table, size)[0, 1:].T.reshape(1, D, size, size)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-6)


def without(state, name):
    assert name in state
    return {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: vit(RNG(0)), "not a ViLT of Hugging Face"),
        (lambda s: bridgetower_hf(RNG(0)), "not a ViLT of Hugging Face"),
        (lambda s: {"state_dict": s}, r"pass state\['state_dict'\]"),
        (lambda s: without(s, "pooler.dense.bias"), "missing: pool/bias"),
        (lambda s: without(s, "token_type_embeddings.weight"), "missing: modality/"),
        (lambda s: without(s, "transformer.blocks.0.attn.qkv.bias"), "missing: blocks_0/attn/query/bias"),
        (lambda s: without(s, "itm_score.fc.bias"), "missing: itm_head/bias"),
        (lambda s: without(s, "mlm_score.bias"), "missing: mlm_head/bias"),
        (lambda s: s | dense(RNG(0), "adapter", D, D), "unknown: adapter.weight"),
        (lambda s: s | norm(RNG(0), "transformer.blocks.7.norm1"), "missing: blocks_2/"),
        (
            lambda s: s | class_head(RNG(0), "vqa_classifier") | class_head(RNG(0), "nlvr2_classifier"),
            "class heads vqa_classifier, nlvr2_classifier",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        import_vilt(change(vilt_original(RNG(0))))


@pytest.mark.parametrize("name", sorted(vilt_original(RNG(0), "vqa")))
def test_every_misshaped_tensor_is_refused_by_its_name(name):
    state = vilt_original(RNG(0), "vqa")
    state[name] = np.ones((*state[name].shape[:-1], state[name].shape[-1] + 1), np.float32)
    with pytest.raises(WeightsError, match=f"'{name}'"):
        import_vilt(state)


def test_what_has_no_place_in_vilt_is_left_out_and_said():
    state = renamed(vilt_hf(RNG(0), "class"), (r"^classifier.*", "")) | dense(RNG(0), "rank_output", 1, D)
    state = {k: v for k, v in state.items() if k} | {
        "vilt.embeddings.text_embeddings.position_ids": np.arange(7)
    }
    assert {why for _, why in import_vilt(state).report.unused} == {"no counterpart in jaxvl"}


def test_export_names_a_parameter_it_cannot_write():
    params = import_vilt(vilt_hf(RNG(0))).params
    with pytest.raises(WeightsError, match="'temp' has no name in ViLT's format"):
        export_vilt(params | {"temp": np.zeros(())})
    with pytest.raises(WeightsError, match="names='HF'"):
        export_vilt(params, names="HF")


def test_a_config_names_its_vilt(tmp_path):
    save_safetensors(tmp_path / "v.safetensors", vilt_original(RNG(0)))
    like = {
        "blocks_0_1": {},
        "blocks_1": {},
        "pos_embed": np.zeros((1, 26, D)),
        "modality": {"embedding": np.zeros((3, D))},
        "mlm_head": {"decoder": {}},
    }
    params = foreign_params({"vilt": str(tmp_path / "v.safetensors")}, like)
    assert params["pos_embed"].shape == (1, 26, D)
    assert params["modality"]["embedding"].shape == (3, D)
    with pytest.raises(WeightsError, match="expected 'vilt'$"):
        foreign_params({"text": "x"}, like)
    with pytest.raises(WeightsError, match=r"weights.vilt=.*differs from"):
        foreign_params({"vilt": str(tmp_path / "v.safetensors")}, like | {"mlm_head": {}})


@pytest.mark.parametrize("kwargs", [dict(), dict(classes=5), dict(classes=2, images=2, mlm_tied=False)])
@pytest.mark.parametrize("names", ["hf", "original"])
def test_every_parameter_of_the_model_has_a_name(kwargs, names):
    model = ViLT(vocab_size=11, width=8, depth=2, heads=2, mlp=12, image_size=4, patch=2, **kwargs)
    params = drawn(model, np.zeros((3, 4, 4, 3), np.float32))
    again = import_vilt(export_vilt(params, names=names), grid=2).params
    assert_same(flatten(again), flatten(params))


def test_a_foreign_file_fills_the_whole_model(tmp_path):
    model = ViLT(
        vocab_size=VOCAB, width=D, depth=2, heads=2, mlp=6, image_size=4, patch=2, mlm_tied=False, scan=True
    )
    fresh = unstack_layers(drawn(model.clone(classes=3, images=2), np.zeros((3, 4, 4, 3), np.float32)))
    save_safetensors(tmp_path / "v.safetensors", vilt_original(RNG(0)))
    _, report = adapt(foreign_params({"vilt": str(tmp_path / "v.safetensors")}, fresh), fresh)
    assert report.unused == ()
    assert report.resized == ("embeddings/position/embedding",)  # the file has 7 words
    assert {path.split("/")[0] for path in report.fresh} == {"class_head"}
