"""Vision Transformers of DeiT, timm and Hugging Face fill the vision encoder; distilled ones are refused."""

from __future__ import annotations

import numpy as np
import pytest
from foreign_states import D, albef_towers, assert_same, dense, hf_vit, vit

from jaxvl.interop import WeightsError, export_albef, import_vit, read
from jaxvl.interop.files import flatten

RNG = np.random.default_rng


def test_round_trip_of_timm_names_is_bit_exact():
    state = vit(RNG(0))
    exported = export_albef(import_vit(state).params)
    assert_same({k.removeprefix("visual_encoder."): v for k, v in exported.items()}, state)


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_names_on_disk_and_in_memory_give_the_same_parameters(prefix):
    disk, memory = import_vit(hf_vit(RNG(0), prefix)), import_vit(hf_vit(RNG(0), prefix, memory=True))
    assert_same(flatten(disk.params), flatten(memory.params))
    kernel = disk.params["visual_encoder"]["blocks_1"]["attn"]["value"]["kernel"]
    weight = hf_vit(RNG(0))["encoder.layer.1.attention.attention.value.weight"]
    np.testing.assert_array_equal(kernel, weight.T)


def test_all_dialects_fill_the_same_paths():
    shapes = [
        {path: a.shape for path, a in flatten(import_vit(state).params).items()}
        for state in (vit(RNG(0)), hf_vit(RNG(0)), hf_vit(RNG(0), memory=True))
    ]
    assert shapes[0] == shapes[1] == shapes[2]


def test_classification_heads_are_left_out():
    state = vit(RNG(0)) | dense(RNG(0), "head", 3, D)
    assert [name for name, _ in import_vit(state).report.unused] == ["head.weight", "head.bias"]
    state = (
        hf_vit(RNG(0), "vit.") | dense(RNG(0), "vit.pooler.dense", D, D) | dense(RNG(0), "classifier", 3, D)
    )
    assert len(import_vit(state).report.unused) == 4


@pytest.mark.parametrize("name", ["dist_token", "deit.embeddings.distillation_token", "head_dist.weight"])
def test_distilled_models_are_refused(name):
    with pytest.raises(WeightsError, match=f"'{name}': a distilled DeiT"):
        import_vit(vit(RNG(0)) | {name: np.zeros((1, 1, D), np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"model": s}, r"pass state\['model'\]"),
        (lambda s: {f"model.{k}": v for k, v in s.items()}, "not a ViT"),
        (lambda s: albef_towers(RNG(0)), "not a ViT"),
        (lambda s: {}, "no tensor to import"),
        (lambda s: {k: v for k, v in s.items() if k != "pos_embed"}, "missing: visual_encoder/pos_embed"),
        (
            lambda s: {k: v for k, v in s.items() if not k.startswith("norm.")},
            "missing: visual_encoder/norm/",
        ),
        (lambda s: s | {"blocks.1.ls1.gamma": np.ones(D, np.float32)}, "unknown: blocks.1.ls1.gamma"),
        (lambda s: s | {"patch_embed.proj.weight": np.ones((D, 3), np.float32)}, "cannot be OIHW to HWIO"),
        (lambda s: s | {"blocks.0.attn.qkv.weight": np.ones((7, D), np.float32)}, "cannot be split"),
    ],
)
def test_what_cannot_be_imported_is_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        import_vit(change(vit(RNG(0))))


def test_files_and_names_of_transformers(tmp_path):
    pytest.importorskip("torch")  # transformers makes its models with it
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=8
    )
    model = transformers.ViTForImageClassification(transformers.ViTConfig(patch_size=4, **sizes))
    model.save_pretrained(tmp_path)
    memory = import_vit({name: t.numpy() for name, t in model.state_dict().items()})
    assert_same(flatten(import_vit(read(tmp_path)).params), flatten(memory.params))
