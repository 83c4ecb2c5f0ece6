"""Models: arrays in, arrays out. `MODELS` is what a config's `model.name` chooses from."""

from jaxvl.models.hyper_albef import HyperALBEF

MODELS = {"hyper_albef": HyperALBEF}
