"""One made-up row of each predictor of the stages that samplers train."""

from __future__ import annotations

import numpy as np

GROUPS = 100

TABLE = {
    **{
        name: lambda rng: np.float32(rng.standard_normal())
        for name in ("ll/loss", "ranker/loss", "sraal/critic", "vaal/critic", "tavaal/critic")
    },
    "vabal/evidence": lambda rng: {
        "nll": rng.random(GROUPS, np.float32),
        "norms": rng.random(GROUPS, np.float32),
    },
}
TABLE["vaue/uncertainty"] = lambda rng: {
    "f": np.float32(rng.random()), "p_max": np.float32(rng.random()), "index": np.int32(rng.integers(5)),
}  # fmt: skip
