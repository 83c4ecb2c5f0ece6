"""Models: arrays in, arrays out. `MODELS` is what a config's `model.name` chooses from."""

from jaxvl.models.bridge_tower import BridgeTower
from jaxvl.models.hyper_albef import HyperALBEF
from jaxvl.models.vilt import ViLT

MODELS = {"hyper_albef": HyperALBEF, "bridge_tower": BridgeTower, "vilt": ViLT}
