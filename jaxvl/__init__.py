"""jaxvl: vision-language pre-training, distillation and active learning in JAX/Flax.

`jaxvl.load(workdir)` opens a trained run and answers; `launch/main.py` trains one.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(workdir: Any, stage: str | None = None) -> Any:
    """The trained model of a workdir, ready to answer; see `jaxvl.serve.load`."""
    from jaxvl.serve import load as open_model

    return open_model(workdir, stage=stage)
