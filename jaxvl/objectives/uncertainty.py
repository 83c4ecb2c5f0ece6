"""The uncertainty indicator of CCRL (and SRAAL): how far a distribution is from one clear peak.

`f = 1 - kappa m` with `m = max p` and `kappa = HC / Var`: the least variance that is possible with this maximum, over
the variance there is. In closed form, with `r = sum p^2` and C answers, `kappa = (C m - 1)^2 / ((C - 1)(C r - 1))`
(specification 6.3; Zhang et al., CCRL, equations 14 and 15; SRAAL, CVPR 2020).

Shape legend: `C` answers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxvl.types import Array

AT_UNIFORM = ("bound", "one")
EVEN = 1e-6  # below this `C r - 1`, a distribution counts as uniform


class Indicator(NamedTuple):
    """`f [...]` f32 in [1 - p_max, 1]; `p_max [...]` f32; `index [...]` i32, the answer that has it."""

    f: Array
    p_max: Array
    index: Array  # type: ignore[assignment]  # the name that predictors give it; nobody searches this tuple


def indicator(logits: Array, *, var_ddof: int = 0, at_uniform: str = "bound") -> Indicator:
    """The indicator of `softmax(logits)`; no probabilities are materialised.

    Where the distribution is nearly uniform, `C m - 1` and `C r - 1` are differences of nearly equal numbers. With
    `e = 1 - p/m`, which `expm1` gives without cancellation, they are `m sum e` and `C m^2 sum (e - mean e)^2`, so that
    `kappa = C (mean e)^2 / ((C - 1) sum (e - mean e)^2)`.

    A uniform distribution, where `kappa` is 0/0, has `kappa = 1`, so `f = 1 - 1/C` (limits there depend on the
    direction, and lie in [1 - 1/C, 1]); one answer only has `f = 0`.

    Args:
      logits: `[...,C]`; computed in float32 whatever their type.
      var_ddof: 0 = biased variance; 1 = PyTorch's default, as in SRAAL's released code (`kappa (C - 1) / C`).
      at_uniform: "bound" = `kappa = 1` for a uniform distribution; "one" = `f = 1` there.

    Raises:
      ValueError: another `var_ddof` or `at_uniform`.
    """
    if var_ddof not in (0, 1):
        raise ValueError(f"var_ddof={var_ddof}: expected 0 or 1")
    if at_uniform not in AT_UNIFORM:
        raise ValueError(f"at_uniform={at_uniform!r}: expected one of {', '.join(AT_UNIFORM)}")
    logits = logits.astype(jnp.float32)
    count = logits.shape[-1]
    below = logits - logits.max(-1, keepdims=True)
    p_max = 1 / jnp.exp(below).sum(-1)
    index = logits.argmax(-1).astype(jnp.int32)
    if count == 1:
        return Indicator(jnp.zeros_like(p_max), p_max, index)
    lack = -jnp.expm1(below)
    mean = lack.mean(-1, keepdims=True)
    spread = jnp.square(lack - mean).sum(-1)
    even = count * jnp.square(p_max) * spread < EVEN
    kappa = count * jnp.square(mean[..., 0]) / ((count - 1) * jnp.where(even, 1.0, spread))
    kappa = jnp.where(even, 1.0 if at_uniform == "bound" else 0.0, jnp.minimum(kappa, 1.0))
    if var_ddof == 1:
        kappa = kappa * (count - 1) / count
    return Indicator(1 - kappa * p_max, p_max, index)
