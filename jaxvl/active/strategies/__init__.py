"""Query strategies by name; other packages add theirs by the entry-point group "jaxvl.strategies"."""

from jaxvl.active.strategies.badge import BADGE
from jaxvl.active.strategies.ccrl import CCRL
from jaxvl.active.strategies.cdal import CDAL
from jaxvl.active.strategies.classics import BALD, Entropy, LeastConfidence, Margin, MCEntropy, Random
from jaxvl.active.strategies.coreset import Coreset
from jaxvl.active.strategies.entry_points import load
from jaxvl.active.strategies.learning_loss import LearningLoss
from jaxvl.active.strategies.mocu import MOCU
from jaxvl.active.strategies.sraal import SRAAL
from jaxvl.active.strategies.vaal import TAVAAL, VAAL
from jaxvl.active.strategies.vabal import VaBAL

STRATEGIES: dict[str, type] = {
    "random": Random,
    "least_conf": LeastConfidence,
    "entropy": Entropy,
    "margin": Margin,
    "bald": BALD,
    "mc_entropy": MCEntropy,
    "coreset": Coreset,
    "badge": BADGE,
    "cdal": CDAL,
    "mocu": MOCU,
    "ll": LearningLoss,
    "sraal": SRAAL,
    "vaal": VAAL,
    "tavaal": TAVAAL,
    "vabal": VaBAL,
    "ccrl": CCRL,
}


def load_strategies() -> dict[str, type]:
    """`STRATEGIES` and those of installed packages."""
    return load(STRATEGIES)
