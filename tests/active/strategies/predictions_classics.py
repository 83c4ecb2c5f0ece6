"""One made-up row of each predictor that strategies of this package ask for; other packages have a file like this."""

from __future__ import annotations

import numpy as np

J, C, T, F, KINDS = 3, 5, 4, 6, 3


def answers(*shape):
    """A row of distributions over C answers."""
    return lambda rng: rng.dirichlet(np.ones(C), size=shape).astype(np.float32)


TABLE = {
    **{
        f"task/{name}": lambda rng: np.float32(rng.random())
        for name in ("least_conf", "entropy", "margin", "bald", "mc_entropy", "mocu", "uncertainty")
    },
    "task/embed": lambda rng: rng.standard_normal(F, np.float32),
    "task/vision": lambda rng: rng.standard_normal(F, np.float32),
    "task/badge": lambda rng: rng.standard_normal(16, np.float32),
    "task/kind_mixture": answers(KINDS),
    "task/kind_present": lambda rng: np.array([True, False, True]),
    "task/probs": answers(J),
    "task/members": answers(J, T),
    "task/states": lambda rng: {
        name: rng.standard_normal((J, F), np.float32) for name in ("image", "language", "fused")
    },
    "pool/score": lambda rng: {"score": np.float64(rng.random()), "n_match": np.int32(rng.integers(9))},
}
