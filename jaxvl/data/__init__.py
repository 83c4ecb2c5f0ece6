"""Data: readers of annotated images, sources of model-ready arrays, and the loader.

`SOURCES` names every reader: `SOURCES["jsonl_vqa"](files="train.jsonl", images="images.zip")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxvl.data.arrow import ViltArrow
from jaxvl.data.captions import AlbefCaptions, JsonlCaptions
from jaxvl.data.regions import RegionStore
from jaxvl.data.scenes import SceneCaptions, SceneEntailment, SceneQuestions, SceneReferring, SceneStatements
from jaxvl.data.scenes.pool import ScenePool
from jaxvl.data.scenes.regions import SceneRegions
from jaxvl.data.sentences import JsonlEntailment, JsonlStatements, Nlvr2, SnliVe
from jaxvl.data.vqa import AlbefVQA, JsonlVQA, VqaV2

SOURCES: dict[str, Callable[..., Any]] = {
    "scenes_captions": SceneCaptions,
    "scenes_vqa": SceneQuestions,
    "scenes_pool": ScenePool,
    "scenes_statements": SceneStatements,
    "scenes_entailment": SceneEntailment,
    "scenes_referring": SceneReferring,
    "albef_captions": AlbefCaptions,
    "albef_vqa": AlbefVQA,
    "vqa_v2": VqaV2,
    "jsonl_captions": JsonlCaptions,
    "jsonl_vqa": JsonlVQA,
    "nlvr2": Nlvr2,
    "snli_ve": SnliVe,
    "jsonl_entailment": JsonlEntailment,
    "jsonl_statements": JsonlStatements,
    "vilt_arrow": ViltArrow,
}

# Region features of images by their ids; see `jaxvl.data.region_source.Provider`.
PROVIDERS: dict[str, Callable[..., Any]] = {"scenes": SceneRegions, "store": RegionStore}
