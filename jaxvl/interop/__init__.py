"""Weights of other libraries in jaxvl's names and back, with numpy alone: no PyTorch, no JAX."""

from jaxvl.interop.albef import export_albef, import_albef
from jaxvl.interop.albef_yaml import albef_flags
from jaxvl.interop.bert import import_bert
from jaxvl.interop.bridgetower import export_bridgetower, import_bridgetower
from jaxvl.interop.files import (
    WeightsError,
    load_params,
    load_safetensors,
    safetensors_metadata,
    save_params,
    save_safetensors,
)
from jaxvl.interop.mcan import export_mcan, import_mcan
from jaxvl.interop.report import Imported, Report
from jaxvl.interop.sources import class_labels, foreign_params, minilm_dir
from jaxvl.interop.torch_weights import read
from jaxvl.interop.torch_zip import UnsafeWeightsError
from jaxvl.interop.tower_export import export_text_tower, export_vision_tower
from jaxvl.interop.towers import import_text_tower, import_vision_tower
from jaxvl.interop.vilt import export_vilt, import_vilt
from jaxvl.interop.vit import import_vit

__all__ = [
    "Imported",
    "Report",
    "UnsafeWeightsError",
    "WeightsError",
    "albef_flags",
    "class_labels",
    "export_albef",
    "export_bridgetower",
    "export_mcan",
    "export_text_tower",
    "export_vilt",
    "export_vision_tower",
    "foreign_params",
    "import_albef",
    "import_bert",
    "import_bridgetower",
    "import_mcan",
    "import_text_tower",
    "import_vilt",
    "import_vision_tower",
    "import_vit",
    "load_params",
    "load_safetensors",
    "minilm_dir",
    "read",
    "safetensors_metadata",
    "save_params",
    "save_safetensors",
]
