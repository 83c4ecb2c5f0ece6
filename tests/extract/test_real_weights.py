"""The published weights see what PyTorch computes with them, and a zebra in a photo of one.

Neither weights nor photos are part of the project: set JAXVL_DATA to the folder that holds them.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from efficientnet_states import record_main, recorded, torch_efficientnet

from jaxvl.data.images import HALF, ImageStore, ImageTransform
from jaxvl.extract.grid import EfficientNetGrid
from jaxvl.interop.efficientnet import load_efficientnet, read_weights
from jaxvl.models.efficientnet import LITE0

ROOT = Path(os.environ.get("JAXVL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
WEIGHTS, PHOTOS = ROOT / "weights" / "efficientnet_lite0_f16.npz", ROOT / "coco_vqa" / "val" / "images.zip"
ZEBRA = 340  # of ImageNet's classes


def photo() -> np.ndarray:
    picture = ImageStore(PHOTOS).image("000000244592.jpg")
    return ImageTransform(224, augment=None, mean=HALF, std=HALF)(picture)[None]


def sample(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "map": np.asarray(found["map"])[0, ::3, ::2, :24],
        "logits": np.asarray(found["logits"])[0, 320:360],
    }


@pytest.mark.skipif(not WEIGHTS.is_file() or not PHOTOS.is_file(), reason=f"{ROOT} is absent: set JAXVL_DATA")
def test_a_photo_of_a_zebra():
    extractor = EfficientNetGrid(WEIGHTS, grid=7)
    with jax.default_matmul_precision("highest"):
        maps = extractor({"image": photo()}).features.reshape(1, 7, 7, 1280)
    head = load_efficientnet(WEIGHTS, classes="keep").params["class_head"]
    found = {"map": maps, "logits": maps.mean((1, 2)) @ head["kernel"] + head["bias"]}
    assert int(found["logits"].argmax()) == ZEBRA
    for name, want in recorded("efficientnet_photo").items():
        np.testing.assert_allclose(sample(found)[name], want, atol=2e-3)


if __name__ == "__main__":
    state = read_weights(WEIGHTS)
    record_main("efficientnet_photo", lambda: sample(torch_efficientnet(state, photo(), LITE0)))
