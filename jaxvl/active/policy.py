"""An engine that learns which images of a pool to take, by trying: CDAL's form with reinforcement learning.

The pool comes as sequences. In each epoch every sequence is read by the policy, some choices are drawn, and those that
are worth more than the sequence's choices so far become likelier.

Shape legend: `S` sequences, `T` images of a sequence, `F` feature width, `B` sequences of an update, `E` episodes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvl.models.selection_policy import SelectionPolicy
from jaxvl.objectives.policy import policy_loss, reward
from jaxvl.types import Array, Key, PyTree

KEEP = 0.9  # of a sequence's baseline, from one epoch to the next
CLIP = 5.0  # of the global norm of gradients


def learn(params: Mapping[str, PyTree], request: Any) -> np.ndarray:
    """Train a policy on a pool, and have it say how likely it takes each image.

    Args:
      params: the models of a round; none is used.
      request: `strategies.cdal.Sequences`.

    Returns:
      `[S,T]` f32 probabilities.

    Raises:
      ValueError: the policy diverged.
    """
    options, lengths = request.options, request.there.sum(1)
    rng, key = np.random.default_rng(request.seed), jax.random.key(request.seed)
    count, size = len(request.there), min(options.batch, len(request.there))
    model, tx, update, run = programs(options.width, options.lr, options.episodes)
    weights = jax.jit(model.init)(key, jnp.asarray(request.features[:1]), jnp.asarray(lengths[:1]))
    state = State(
        weights, tx.init(weights), jnp.zeros(1 << (count - 1).bit_length())
    )  # few sizes for all rounds
    steps = 0
    for epoch in range(options.epochs):
        order = rng.permutation(count)
        kept = KEEP if epoch else 0.0  # what a sequence's first choices are worth is where it starts
        for start in range(0, count, size):
            at = order[start : start + size]
            counted = np.arange(size) < len(at)
            at = np.resize(at, size)  # one shape: a short batch is filled up with rows that do not count
            given = (request.features, lengths, request.there, request.diversity, request.squared)
            rows = Batch(*map(jnp.asarray, (*(array[at] for array in given), at, counted)))
            state = update(state, jax.random.fold_in(key, steps), rows, request.share, kept)
            steps += 1
    found = np.concatenate(
        [
            np.asarray(run(state.weights, request.features[i : i + 1], lengths[i : i + 1]))
            for i in range(count)
        ]
    )
    if not np.isfinite(found).all():
        raise ValueError(
            "the policy of cdal gives NaN: it has diverged; lower active.strategies.cdal.policy.lr"
        )
    return found


@functools.cache  # rounds of a run have one
def programs(width: int, lr: float, episodes: int) -> tuple[SelectionPolicy, Any, Any, Any]:
    """The policy, its optimiser, and the jitted update and probabilities."""
    model = SelectionPolicy(width)
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(lr))

    def run(weights: PyTree, features: Array, lengths: Array) -> Array:
        return jax.nn.sigmoid(_logits(model, weights, features, lengths))

    return model, tx, jax.jit(functools.partial(step, model, tx, episodes)), jax.jit(run)


class State(NamedTuple):
    """What an update changes: the policy's `weights`, `opt`, and `baseline` (`S` or more), what choices were worth."""

    weights: PyTree
    opt: PyTree
    baseline: Array


class Batch(NamedTuple):
    """Some sequences: `features [B,T,F]`, `lengths [B]`, `there [B,T]`, `diversity`, `squared` `[B,T,T]`, which ones
    they are, `at [B]`, and `counted [B]` bool, False = filling."""

    features: Array
    lengths: Array
    there: Array
    diversity: Array
    squared: Array
    at: Array
    counted: Array


def step(
    model: SelectionPolicy,
    tx: optax.GradientTransformation,
    episodes: int,
    state: State,
    key: Key,
    rows: Batch,
    share: Array,
    kept: Array,
) -> State:
    """One update on `B` sequences.

    Args:
      share: of the images that will be taken.
      kept: of the baselines; the rest of them is what the choices that are drawn now are worth.
    """
    before = state.baseline[rows.at]

    def loss(w: PyTree) -> tuple[Array, Array]:
        logits = _logits(model, w, rows.features, rows.lengths)
        shape = (len(logits), episodes, logits.shape[1])
        taken = jax.random.uniform(key, shape) < jax.nn.sigmoid(jax.lax.stop_gradient(logits))[:, None]
        worth = jax.vmap(lambda a, d, s, t: reward(a, diversity_tt=d, squared_tt=s, there_t=t))(
            taken, rows.diversity, rows.squared, rows.there
        )  # [B,E]
        each = jax.vmap(lambda x, a, v, t: policy_loss(x, a, v, there_t=t, share=share))(
            logits, taken, worth - before[:, None], rows.there
        )
        return (each * rows.counted).sum() / rows.counted.sum(), worth.mean(1)

    (_, mean), grads = jax.value_and_grad(loss, has_aux=True)(state.weights)
    updates, opt = tx.update(grads, state.opt, state.weights)
    now = kept * before + (1 - kept) * mean
    place = jnp.where(rows.counted, rows.at, len(state.baseline))  # filling is written nowhere
    baseline = state.baseline.at[place].set(now, mode="drop")
    return State(optax.apply_updates(state.weights, updates), opt, baseline)


def _logits(model: SelectionPolicy, weights: PyTree, features: Array, lengths: Array) -> Array:
    found: Any = model.apply(weights, features, lengths)
    return found
