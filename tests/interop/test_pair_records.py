"""ViLT and BridgeTower compute what transformers computed once from their exported weights: the check of machines
without PyTorch. `python test_pair_records.py --record` rewrites tests/data/pairs.npz."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hf_models import (
    BRIDGE_TOWER,
    IDS,
    IMAGE,
    LARGE,
    MASK,
    VILT,
    close,
    drawn,
    fuse,
    hf_bridgetower,
    hf_vilt,
    run,
    run_hf,
)

from jaxvl.interop import export_bridgetower, export_vilt

RECORD = Path(__file__).resolve().parents[1] / "data" / "pairs.npz"
HEADS = (
    "text_proj",
    "vision_proj",
    "temp",
)  # of which transformers' class for vocabulary and states has none


def outputs(model, image):
    """Our states, pooled state and vocabulary logits."""

    def everything(m, *batch):
        fused = fuse(m, *batch)
        return fused.text, fused.image, fused.pooled, m.mlm_logits(fused.text[:, :2])

    found = run(model, drawn(model, image), everything, image, IDS, MASK)
    return dict(zip(("text", "image", "pooled", "mlm"), found, strict=True))


def filled(hf, tensors):
    """The transformers model `hf` with all of our tensors in it; it may have poolers besides."""
    import torch

    missing, unexpected = hf.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=False)
    assert not unexpected
    assert all("text_model.pooler" in name for name in missing)
    return hf


def record():
    """transformers' outputs, by name of the model and of the output."""
    params = {k: v for k, v in drawn(BRIDGE_TOWER, IMAGE).items() if k not in (*HEADS, "itm_head")}
    hf = filled(hf_bridgetower("BridgeTowerForMaskedLM"), export_bridgetower(params))
    out, logits = run_hf(hf.bridgetower), run_hf(hf).logits[:, :2]
    found = {
        "text": out.text_features,
        "image": out.image_features,
        "pooled": out.pooler_output,
        "mlm": logits,
    }
    record = {f"bridge/{name}": array.float().numpy() for name, array in found.items()}

    import torch

    shuffled, torch.multinomial = torch.multinomial, lambda weights, count, **_: torch.arange(count)
    try:
        params = {k: v for k, v in drawn(VILT, LARGE[0]).items() if k != "itm_head"}
        hf = filled(hf_vilt("ViltForMaskedLM", image_size=224), export_vilt(params))
        out, logits = run_hf(hf.vilt, LARGE[0]), run_hf(hf, LARGE[0]).logits[:, :2]
    finally:
        torch.multinomial = shuffled
    text, image = np.split(out.last_hidden_state.numpy(), [IDS.shape[1]], axis=1)
    found = {"text": text, "image": image, "pooled": out.pooler_output.numpy(), "mlm": logits.numpy()}
    return record | {f"vilt/{name}": array.astype(np.float32) for name, array in found.items()}


@pytest.mark.parametrize(
    ("name", "model", "image"), [("bridge", BRIDGE_TOWER, IMAGE), ("vilt", VILT, LARGE[0])]
)
def test_equals_recorded_transformers(name, model, image):
    with np.load(RECORD) as recorded:
        for part, got in outputs(model, image).items():
            close(got, recorded[f"{name}/{part}"], 2e-5)


@pytest.mark.torch
def test_exported_weights_give_the_record_in_transformers():
    pytest.importorskip("torch", reason="compares with PyTorch")
    pytest.importorskip("transformers", reason="compares with transformers")
    live = record()
    with np.load(RECORD) as recorded:
        assert sorted(recorded) == sorted(live)
        for name, array in live.items():
            close(array, recorded[name], 1e-5)


if __name__ == "__main__":
    if sys.argv[1:] != ["--record"]:
        raise SystemExit(f"usage: {sys.argv[0]} --record")
    np.savez_compressed(RECORD, **record())
