"""Models: arrays in, arrays out. `MODELS` is what a config's `model.name` chooses from."""

from jaxvl.models.bridge_tower import BridgeTower
from jaxvl.models.hyper_albef import HyperALBEF
from jaxvl.models.joint import SharedEncoders
from jaxvl.models.linear_probe import LinearProbe
from jaxvl.models.mcan import MCAN
from jaxvl.models.sampler_nets import SRAAL, VAAL, VaBAL
from jaxvl.models.vaue import VAUE
from jaxvl.models.vilt import ViLT
from jaxvl.models.vqme import VQME

MODELS = {
    "hyper_albef": HyperALBEF,
    "bridge_tower": BridgeTower,
    "vilt": ViLT,
    "mcan": MCAN,
    "vqme": VQME,
    "vaue": VAUE,
    "shared_encoders": SharedEncoders,
    "sraal": SRAAL,
    "vaal": VAAL,
    "vabal": VaBAL,
    "linear_probe": LinearProbe,
}
