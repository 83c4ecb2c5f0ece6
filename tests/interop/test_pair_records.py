"""ViLT and BridgeTower, in every variant that transformers has, compute what it computed once from their exported
weights: the check of machines without PyTorch. `python test_pair_records.py --record` rewrites tests/data/pairs.npz."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
    cross_first,
    drawn,
    fuse,
    hf_bridgetower,
    hf_vilt,
    run,
    run_hf,
)

from jaxvl.interop import export_bridgetower, export_vilt

RECORD = Path(__file__).resolve().parents[1] / "data" / "pairs.npz"
TOKENS = 2  # of the states that are kept of the variants


class Case(NamedTuple):
    """A model of ours, the class of transformers that it is, and the heads that this class has.

    Attributes:
      heads: the heads that the class has; all others are left out of the parameters.
      ours: outputs by name, of `(module, images, ids, mask)`.
      theirs: the same of the filled class.
    """

    model: Any
    image: np.ndarray
    name: str
    options: Mapping[str, Any]
    heads: tuple[str, ...]
    ours: Callable[..., dict[str, Any]]
    theirs: Callable[[Any, np.ndarray], dict[str, Any]]


def states(m, image, text, mask):
    fused = fuse(m, image, text, mask)
    return {"text": fused.text[:, :TOKENS], "image": fused.image[:, :TOKENS], "pooled": fused.pooled}


def bridge_states(hf, image):
    out = run_hf(hf, image)
    return {
        "text": out.text_features[:, :TOKENS],
        "image": out.image_features[:, :TOKENS],
        "pooled": out.pooler_output,
    }


def all_states(m, image, text, mask):
    fused = fuse(m, image, text, mask)
    return {
        "text": fused.text,
        "image": fused.image,
        "pooled": fused.pooled,
        "mlm": m.mlm_logits(fused.text[:, :TOKENS]),
    }


def bridge_words(hf, image):
    out = run_hf(hf.bridgetower, image)
    logits = run_hf(hf, image).logits[:, :TOKENS]
    return {
        "text": out.text_features,
        "image": out.image_features,
        "pooled": out.pooler_output,
        "mlm": logits,
    }


def vilt_words(hf, image):
    out = run_hf(hf.vilt, image)
    text, image_states = np.split(out.last_hidden_state.numpy(), [IDS.shape[1]], axis=1)
    logits = run_hf(hf, image).logits[:, :TOKENS]
    return {"text": text, "image": image_states, "pooled": out.pooler_output, "mlm": logits}


def logits(hf, image):
    return {"logits": run_hf(hf, image).logits}


def two_images(m, images, text, mask):
    pooled = tuple(fuse(m, image, text, mask, image_type=1 + i).pooled for i, image in enumerate(images))
    return {"logits": m.class_logits(pooled)}


def crossed(**options):
    return BRIDGE_TOWER.clone(cross=dict(BRIDGE_TOWER.cross) | options)


PLAIN = (IMAGE, "BridgeTowerModel")
CASES = {
    "bridge": Case(BRIDGE_TOWER, IMAGE, "BridgeTowerForMaskedLM", {}, ("mlm_head",), all_states, bridge_words),
    "pre": Case(crossed(order="pre"), *PLAIN, {}, (), states, bridge_states),
    "scaled_add": Case(
        crossed(bridge="scaled_add"), *PLAIN, dict(link_tower_type="scaled_add"), (), states, bridge_states
    ),
    "interpolate": Case(
        crossed(bridge="interpolate"), *PLAIN, dict(link_tower_type="interpolate"), (), states, bridge_states
    ),
    "own_projections": Case(
        crossed(share_projection=False), *PLAIN, dict(share_cross_modal_transformer_layers=False), (), states,
        bridge_states,
    ),
    "matching": Case(
        BRIDGE_TOWER, IMAGE, "BridgeTowerForImageAndTextRetrieval", {}, ("itm_head",),
        lambda m, *batch: {"logits": m.match_logits(fuse(m, *batch))}, logits,
    ),
    "vilt": Case(VILT, LARGE[0], "ViltForMaskedLM", {}, ("mlm_head",), all_states, vilt_words),
    "vilt_vqa": Case(
        VILT.clone(classes=11), LARGE[0], "ViltForQuestionAnswering", dict(num_labels=11), ("class_head",),
        lambda m, *batch: {"logits": m.class_logits((fuse(m, *batch).pooled,))}, logits,
    ),
    "vilt_two_images": Case(
        VILT.clone(classes=2, images=2), LARGE, "ViltForImagesAndTextClassification",
        dict(num_labels=2, num_images=2, modality_type_vocab_size=3), ("class_head",), two_images,
        lambda hf, images: logits(hf, images.swapaxes(0, 1)),
    ),
}  # fmt: skip
HEADS = ("text_proj", "vision_proj", "temp", "itm_head", "mlm_head", "class_head")


def params(case):
    """Parameters of our model, without the heads that the class of transformers lacks."""
    image = case.image if case.image.ndim == 4 else case.image[0]
    return {k: v for k, v in drawn(case.model, image).items() if k not in HEADS or k in case.heads}


def filled(hf, tensors):
    """The transformers model `hf` with all of our tensors in it; it may have poolers besides."""
    import torch

    missing, unexpected = hf.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=False)
    assert not unexpected
    assert all("text_model.pooler" in name for name in missing), missing
    return hf


@contextlib.contextmanager
def patched(name: str) -> Iterator[None]:
    """transformers with patches in raster order, and for "pre" with cross-attention before self-attention."""
    import torch
    from transformers.models.bridgetower import modeling_bridgetower as source

    layer = source.BridgeTowerBertCrossLayer
    shuffled, forward = torch.multinomial, layer.forward

    torch.multinomial = lambda weights, count, **_: torch.arange(count)
    layer.forward = cross_first if name == "pre" else forward
    try:
        yield
    finally:
        torch.multinomial, layer.forward = shuffled, forward


def record():
    """transformers' outputs, by name of the case and of the output."""
    out = {}
    for name, case in CASES.items():
        vilt = name.startswith("vilt")
        with patched(name):
            hf = (
                hf_vilt(case.name, image_size=224, **case.options)
                if vilt
                else hf_bridgetower(case.name, **case.options)
            )
            hf = filled(hf, (export_vilt if vilt else export_bridgetower)(params(case)))
            found = case.theirs(hf, case.image)
        out |= {f"{name}/{part}": np.asarray(x).astype(np.float32) for part, x in found.items()}
    return out


@pytest.mark.parametrize("name", CASES)
def test_equals_recorded_transformers(name):
    case = CASES[name]
    with np.load(RECORD) as recorded:
        for part, got in run(case.model, params(case), case.ours, case.image, IDS, MASK).items():
            close(got, recorded[f"{name}/{part}"], 5e-6 if name.startswith("vilt") else 1e-5)
        if name == "pre":  # the order matters
            post = run(BRIDGE_TOWER, params(case), states, case.image, IDS, MASK)["pooled"]
            assert np.abs(recorded["pre/pooled"] - post).max() > 0.1


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
