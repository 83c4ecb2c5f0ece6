"""A stage starts from a source that holds its whole model, or says what is missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from pair_run import tiny
from tiny_run import ROOT, config_file

from jaxvl import build
from jaxvl.config import ConfigError
from jaxvl.data.answers import read_answers
from jaxvl.interop import WeightsError, save_params, save_safetensors
from jaxvl.models.hyper_albef import HyperALBEF
from jaxvl.models.layers import unstack_layers
from jaxvl.run import initial_params

TEXT = ("text_encoder", "fusion_encoder")


def layer(*parts: str) -> dict:
    return {part: {"kernel": np.ones((2, 2), np.float32)} for part in parts}


def model(*, fusion: int = 2) -> dict:
    """A model in miniature, filled with ones."""
    layers = {
        f"layers_{i}": layer("attention", "cross_attention", "ffn", "hypergraph") for i in range(fusion)
    }
    return {
        "visual_encoder": layer("patch_embed", "adapter"),
        "text_encoder": layer("embeddings", "layers_0"),
        "fusion_encoder": layers,
        "itm_head": {"kernel": np.ones((2, 2), np.float32)},
        "temp": np.ones((), np.float32),
    }


def load(fresh: dict, *, answers: list[str] | None = None, **config) -> dict:
    """`fresh` as the stage "vqa" would start with this config."""
    weights = dict(vision=None, text=None, albef=None) | config.pop("weights", {})
    stage = SimpleNamespace(
        name="vqa",
        config=ConfigDict(dict(init_from=None, weights=weights) | config),
        task=SimpleNamespace(renames=()),
        steps=1,
        answers=answers,
    )
    return initial_params(stage, Path("workdir"))(fresh)


def without(tree: dict, *names: str) -> dict:
    """`tree` without the branches of these names, at any depth."""
    return {k: without(v, *names) if isinstance(v, dict) else v for k, v in tree.items() if k not in names}


def test_hypergraph_heads_and_adapter_may_be_fresh(tmp_path, capsys):
    path = tmp_path / "p.safetensors"
    save_params(path, without(model(), "hypergraph", "itm_head", "temp", "adapter"))
    load(model(), init_from=str(path))
    assert "9 tensors taken" in capsys.readouterr().out


def test_a_model_of_fewer_layers_is_refused(tmp_path, capsys):
    path = tmp_path / "p.safetensors"
    save_params(path, model(fusion=1))
    with pytest.raises(
        ValueError, match=r"stages\.vqa\.init_from='.*p\.safetensors': only part .* 3 tensors"
    ):
        load(model(), init_from=str(path))
    assert "taken" not in capsys.readouterr().out


def test_a_source_with_no_tensor_of_the_model_is_refused(tmp_path):
    path = tmp_path / "p.safetensors"
    save_params(path, {"other": {"kernel": np.ones(2)}})
    with pytest.raises(ValueError, match="none of the model is in there, 1 tensors are missing"):
        load({"itm_head": {"kernel": np.ones((2, 2))}}, init_from=str(path))


def test_a_file_in_foreign_names_is_refused_with_the_command_that_converts_it(tmp_path):
    path = tmp_path / "bert.safetensors"
    save_safetensors(path, {"encoder.layer.0.output.dense.bias": np.ones(2)})
    with pytest.raises(WeightsError, match="bert.safetensors: .* convert the file first: python -m"):
        load(model(), init_from=str(path))


def test_what_the_weights_filled_the_other_source_need_not(tmp_path, monkeypatch):
    path = tmp_path / "p.safetensors"
    save_params(path, without(model(), "visual_encoder"))
    vision = {"visual_encoder": layer("patch_embed")}
    monkeypatch.setattr("jaxvl.run.foreign_params", lambda weights, like, take: vision)
    load(model(), init_from=str(path), weights=dict(vision="vit.pth"))
    with pytest.raises(ValueError, match=r"init_from=.*visual_encoder/patch_embed/kernel"):
        load(model(), init_from=str(path))


@pytest.mark.parametrize("kind", ["vision", "text", "albef"])
def test_foreign_weights_must_fill_their_towers(kind, monkeypatch):
    held = dict(vision=("visual_encoder",), text=TEXT, albef=tuple(model()))[kind]
    whole = {name: model()[name] for name in held}
    lacks = ("hypergraph", "adapter") + (("cross_attention",) if kind == "text" else ())
    monkeypatch.setattr("jaxvl.run.foreign_params", lambda weights, like, take: without(whole, *lacks))
    load(model(), weights={kind: "file"})
    part = {"vision": "patch_embed", "text": "ffn", "albef": "cross_attention"}[kind]
    monkeypatch.setattr("jaxvl.run.foreign_params", lambda weights, like, take: without(whole, part))
    with pytest.raises(ValueError, match=rf"stages\.vqa\.weights=.*{kind}.*only part of the model.*{part}"):
        load(model(), weights={kind: "file"})


def test_a_published_head_of_other_answers_is_refused(tmp_path, monkeypatch):
    fresh = {**model(), "class_head": {"fc2": {"kernel": np.zeros((2, 2), np.float32)}}}
    monkeypatch.setattr("jaxvl.run.foreign_params", lambda weights, like, take: fresh)
    (tmp_path / "config.json").write_text('{"id2label": {"0": "yes", "1": "no"}}')
    load(fresh, weights={"vilt": str(tmp_path)}, answers=["yes", "no"])
    assert read_answers(tmp_path / "config.json") == ["yes", "no"]
    with pytest.raises(
        ValueError, match=r"weights=.* list of answers differs .* position 0 \(2 and 3 answers\)"
    ):
        load(fresh, weights={"vilt": str(tmp_path)}, answers=["no", "yes", "two"])
    (tmp_path / "config.json").write_text('{"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}')  # no names at all
    load(fresh, weights={"vilt": str(tmp_path)}, answers=["no", "yes"])
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config\.json: not the JSON object"):
        load(fresh, weights={"vilt": str(tmp_path)}, answers=["no", "yes"])


def shapes(model_config: dict, **more) -> dict:
    """The parameters of a model, by shape: zeros."""
    import jax

    built = HyperALBEF(**{k: v for k, v in (dict(model_config) | more).items() if k != "name"})
    size = built.image_size
    inputs = np.zeros((1, size, size, 3), np.float32), np.ones((1, 4), np.int32), np.ones((1, 4), bool)
    answer = None if built.decoder_depth is None else np.ones((1, 1, 3), np.int32)
    found = jax.eval_shape(lambda: built.init(jax.random.key(0), *inputs, answer=answer))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), unstack_layers(nn.unbox(found)["params"]))


def test_the_photo_recipe_starts_from_minilm(monkeypatch, capsys):
    config = config_file(ROOT / "configs/hyper_albef_photos.py").get_config()
    fresh = shapes(config.model.to_dict(), vocab_size=50)
    bert = {name: without(fresh[name], "cross_attention", "hypergraph", "hg_fusion") for name in TEXT}
    monkeypatch.setattr("jaxvl.run.foreign_params", lambda weights, like, take: bert)
    load(fresh, weights=config.stages.pretrain.weights.to_dict())
    assert "visual_encoder/adapter" in capsys.readouterr().out


def test_vqa_starts_from_the_pretraining_of_its_recipe(tmp_path, capsys):
    config = config_file(ROOT / "configs/hyper_albef.py").get_config("scale=tiny")
    sizes = dict(config.model.to_dict(), vocab_size=50)
    path = tmp_path / "p.safetensors"
    save_params(path, shapes(sizes, image_size=32))
    load(shapes(sizes, image_size=32, decoder_depth=1), init_from=str(path))
    assert "fresh: text_decoder" in capsys.readouterr().out


def test_layers_are_chosen_only_in_a_bridgetower_file(tmp_path):
    config = tiny().get_config("scale=tiny")
    config.stages.pretrain.weights.take = (3, 4, 5)
    with pytest.raises(
        ConfigError, match=r"pretrain.weights.take chooses .* of weights.bridgetower, but .* \{\}"
    ):
        build.stage(config, "pretrain", build.tokenizer(config), tmp_path)
