"""AdamW as in PyTorch, with what the papers add to it, and learning-rate schedules that count optimiser updates.

Source of the recipe: `salesforce/ALBEF` (AdamW, weight decay 0.02, cosine by epoch, a warm-up that counts units of
100 iterations). Nothing here asks for the model: parameters are chosen by their path.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxvl.objectives.mcan_rate import mcan_rate
from jaxvl.types import Array, PyTree

Schedule = Callable[[Any], Any]  # number of updates done before -> learning rate of the next one


class Table(NamedTuple):
    """A schedule that is part of the optimiser's state: `rates [size]` f32, one for each update.

    One compiled step then serves runs of different lengths: `set_rates` fills in the rates of the next one.
    """

    size: int


class TableState(NamedTuple):
    """Updates `done`, and the `rates` of all; update `n` takes `rates[n]`, later ones the last."""

    done: Array
    rates: Array


NO_DECAY = frozenset(
    {"bias", "scale"}
)  # last part of the path; temp, cls_token, embeddings decay, as in ALBEF
NEW = ("hypergraph", "hg_fusion")  # modules that no published checkpoint contains
BOUNDS: Mapping[str, tuple[float, float]] = {"temp": (0.001, 0.5)}


def make_optimizer(
    *,
    schedule: Schedule | Table | float,
    weight_decay: float = 0.02,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    clip: float | None = None,
    new_lr_mult: float = 1.0,
    new: Sequence[str] = NEW,
    lr_mult: Mapping[str, float] = {},
    bounds: Mapping[str, tuple[float, float]] = BOUNDS,
) -> optax.GradientTransformation:
    """AdamW with PyTorch's update rule (decoupled decay times the learning rate, eps outside the root).

    Args:
      schedule: learning rate of update `n` (counted from 0), a constant, or a `Table` to be filled by `set_rates`.
      weight_decay: on every parameter but those whose last path part is in `NO_DECAY`.
      betas: decay rates of the two moments.
      eps: added to the root of the second moment.
      clip: largest global norm of the gradient; None = no clipping.
      new_lr_mult: factor on the learning rate (decay included) of the modules in `new`.
      new: names (`hypergraph`) or partial paths (`fusion_encoder/layers_0`) of modules.
      lr_mult: `{name: factor}` likewise, e.g. of heads and of cross-modal layers; a parameter that several names fit
        gets all their factors.
      bounds: `{path: (low, high)}`: after each update the parameter is put back into the interval. The loss
        itself does not clip, so its gradient at a bound is alive and can lead the parameter away from it.

    Raises:
      ValueError: a value out of range; at `init`: a name in `new`, `lr_mult` or `bounds` that no parameter has (the
        defaults may be absent: ALBEF has no hypergraph).
    """
    b1, b2 = betas
    in_range = (
        0 <= b1 < 1,
        0 <= b2 < 1,
        eps > 0,
        weight_decay >= 0,
        min((new_lr_mult, *lr_mult.values())) >= 0,
        clip is None or clip > 0,
    )
    if not all(in_range):
        raise ValueError(
            f"optim: betas={tuple(betas)}, eps={eps}, weight_decay={weight_decay}, new_lr_mult={new_lr_mult}, "
            f"lr_mult={dict(lr_mult)}, clip={clip}: betas must be in [0,1), eps and clip positive (clip may be None), "
            "the others not negative"
        )
    for name, (low, high) in bounds.items():
        if not low < high:
            raise ValueError(f"optim.bounds[{name!r}]=({low}, {high}): low must be below high")

    def decay(path: str, update: Array, param: Array) -> Array:
        return update if path.rsplit("/", 1)[-1] in NO_DECAY else update + weight_decay * param

    def speed(path: str, update: Array, param: Array) -> Array:
        factor = new_lr_mult if any(_matches(name, path) for name in new) else 1.0
        return update * factor * math.prod(f for name, f in lr_mult.items() if _matches(name, path))

    def project(path: str, update: Array, param: Array) -> Array:
        interval = [b for name, b in bounds.items() if _matches(name, path)]
        return _inside(update, param, *interval[0]) if interval else update

    parts = [
        _check_names(new, NEW, "optim.new"),
        _check_names(lr_mult, (), "optim.lr_mult"),
        _check_names(bounds, BOUNDS, "optim.bounds"),
        optax.clip_by_global_norm(clip) if clip is not None else optax.identity(),
        _adam(b1, b2, eps),
        _by_path(decay),
        _by_path(speed) if new_lr_mult != 1.0 or lr_mult else optax.identity(),
        _tabled(schedule.size) if isinstance(schedule, Table) else optax.scale_by_learning_rate(schedule),
        _by_path(project),
    ]
    return optax.chain(*parts)


def _tabled(size: int) -> optax.GradientTransformation:
    def init(params: PyTree) -> TableState:
        return TableState(jnp.zeros((), jnp.int32), jnp.zeros(size, jnp.float32))

    def update(updates: PyTree, state: TableState, params: PyTree = None) -> tuple[PyTree, TableState]:
        rate = state.rates[jnp.minimum(state.done, size - 1)]
        scaled = jax.tree.map(lambda u: -rate * u, updates)
        return scaled, TableState(optax.safe_increment(state.done), state.rates)

    return optax.GradientTransformation(init, update)


def set_rates(opt_state: PyTree, schedule: Schedule, *, steps: int) -> PyTree:
    """`opt_state` of an optimiser made with a `Table`, whose rates are now those of `schedule` for `steps` updates.

    Raises:
      ValueError: the optimiser has no `Table`, or it is shorter than `steps`.
    """
    found = 0

    def fill(part: Any) -> Any:
        nonlocal found
        if not isinstance(part, TableState):
            return part
        found += 1
        if steps > len(part.rates):
            raise ValueError(
                f"{steps} updates, but the table of learning rates has room for {len(part.rates)}"
            )
        rates = jnp.asarray(schedule(jnp.arange(len(part.rates))), jnp.float32)
        return TableState(part.done, jax.device_put(rates, part.rates.sharding))

    out = jax.tree.map(fill, opt_state, is_leaf=lambda part: isinstance(part, TableState))
    if not found:
        raise ValueError("this optimiser has no table of learning rates: make it with schedule=Table(size)")
    return out


def _adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's direction. `1 - b**n` by expm1: in float32, `1 - 0.999**1` would be wrong by 5e-5 of itself."""

    def init(params: PyTree) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(
            count=jnp.zeros((), jnp.int32), mu=zeros, nu=jax.tree.map(jnp.copy, zeros)
        )

    def update(grads: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, optax.ScaleByAdamState]:
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(g), state.nu, grads)
        c1, c2 = _one_minus_power(b1, count), jnp.sqrt(_one_minus_power(b2, count))
        direction = jax.tree.map(lambda m, v: (m / c1) / (jnp.sqrt(v) / c2 + eps), mu, nu)
        return direction, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def _one_minus_power(base: float, n: Array) -> Array:
    return -jnp.expm1(n * math.log(base)) if base else jnp.ones(())


def decays(params: PyTree) -> PyTree:
    """Tree of bools: which parameters weight decay acts on."""
    return jax.tree_util.tree_map_with_path(lambda p, _: _name(p).rsplit("/", 1)[-1] not in NO_DECAY, params)


def _by_path(rule: Callable[[str, Array, Array], Array]) -> optax.GradientTransformation:
    """Stateless transformation `update <- rule(path, update, param)`."""

    def apply(updates: PyTree, params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(lambda p, u, x: rule(_name(p), u, x), updates, params)

    return optax.stateless(apply)


def _inside(update: Array, param: Array, low: float, high: float) -> Array:
    """The update after which `param + update`, as rounded, lies in `[low, high]`."""
    update = jnp.clip(param + update, low, high) - param
    after = param + update
    up = jnp.nextafter(update, jnp.full_like(update, jnp.inf))
    down = jnp.nextafter(update, jnp.full_like(update, -jnp.inf))
    return jnp.where(after < low, up, jnp.where(after > high, down, update))


def _check_names(names: Iterable[str], optional: Iterable[str], what: str) -> optax.GradientTransformation:
    """Does nothing but refuse, at `init`, names that match no parameter."""
    required = [n for n in names if n not in set(optional)]

    def init(params: PyTree) -> optax.EmptyState:
        paths = [_name(p) for p, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
        for name in required:
            if not any(_matches(name, path) for path in paths):
                parts = {part for path in paths for part in (path, *path.split("/"))}
                close = difflib.get_close_matches(name, sorted(parts), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{what}: no parameter's path contains {name!r}{hint}")
        return optax.EmptyState()

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


def _matches(name: str, path: str) -> bool:
    """Whether the parts of `name` are consecutive parts of `path`."""
    return f"/{name}/" in f"/{path}/"


def _name(path: Any) -> str:
    """`a/b/c` of the dict keys of a tree path; a box of logical names around the leaf adds nothing."""
    return "/".join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))


def albef(
    *,
    steps: int,
    steps_per_epoch: int,
    lr: float,
    warmup_lr: float = 1e-5,
    min_lr: float = 1e-5,
    warmup: int = 20,
    unit: int | str = 100,
    granularity: str = "epoch",
) -> Schedule:
    """ALBEF's schedule in closed form: warm-up in stairs within epoch 0, then a cosine constant within each epoch.

    In epoch 0, iteration `i` has `t = min(warmup, floor((i-1)/unit))` (0 at `i=0`) and the rate
    `warmup_lr + t (lr - warmup_lr) / warmup`; a warm-up longer than epoch 0 is cut short. Epoch `e >= 1` has
    `min_lr + (lr - min_lr)(1 + cos(pi e / epochs)) / 2`: `min_lr` is never reached.

    Args:
      steps: all updates of the run; `epochs = steps / steps_per_epoch`.
      steps_per_epoch: updates of an epoch.
      lr: the highest rate.
      warmup_lr: rate at the first update.
      min_lr: the limit of the cosine.
      warmup: length of the warm-up in units.
      unit: updates in a unit of `warmup`, or `"epoch"`: the rate then rises by a stair an epoch, for `warmup`
        epochs, and the cosine of the epoch follows.
      granularity: `"epoch"`, or `"step"`: linear warm-up of `warmup` units, then one cosine down to `min_lr`.
    """
    _check_steps(steps, steps_per_epoch)
    if granularity not in ("epoch", "step"):
        raise ValueError(f"schedule.granularity={granularity!r}: expected 'epoch' or 'step'")
    if unit != "epoch" and not (isinstance(unit, int) and unit >= 1):
        raise ValueError(f"schedule.unit={unit!r}: expected a number of updates or 'epoch'")
    length = steps_per_epoch if unit == "epoch" else int(unit)
    if granularity == "step":
        return cosine(
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            lr=lr,
            min_lr=min_lr,
            warmup=min(warmup * length, steps),
            warmup_lr=warmup_lr,
        )
    epochs = steps / steps_per_epoch

    def rate(count: Any) -> Array:
        count = jnp.asarray(count)
        epoch = count // steps_per_epoch
        decayed = min_lr + 0.5 * (lr - min_lr) * (1 + jnp.cos(jnp.pi * epoch / epochs))
        stair = epoch if unit == "epoch" else jnp.maximum(count - 1, 0) // length
        rising = warmup_lr + jnp.minimum(stair, warmup) * ((lr - warmup_lr) / max(warmup, 1))
        warming = epoch < (warmup if unit == "epoch" else 1)
        return jnp.where(warming, rising if warmup else lr, decayed)

    return rate


def cosine(
    *,
    steps: int,
    steps_per_epoch: int,
    lr: float,
    min_lr: float = 0.0,
    warmup: int | float = 0,
    warmup_lr: float = 0.0,
) -> Schedule:
    """Linear from `warmup_lr` to `lr` over the warm-up, then a half cosine that reaches `min_lr` after the last update.

    `warmup` is a number of updates if it is an int, and a share of `steps` in [0,1) if it is a float.
    """
    _check_steps(steps, steps_per_epoch)
    rise = _updates(warmup, steps)

    def rate(count: Any) -> Array:
        count = jnp.asarray(count)
        rising = warmup_lr + (lr - warmup_lr) * count / max(rise, 1)
        done = jnp.clip((count - rise) / max(steps - rise, 1), 0, 1)
        decayed = min_lr + 0.5 * (lr - min_lr) * (1 + jnp.cos(jnp.pi * done))
        return jnp.where(count < rise, rising, decayed)

    return rate


def linear(
    *, steps: int, steps_per_epoch: int, lr: float, min_lr: float = 0.0, warmup: int | float = 0.1
) -> Schedule:
    """Linear from 0 to `lr` over the warm-up, then linear to `min_lr` after the last update (BERT, ViLT, BridgeTower).

    `warmup` is as in `cosine`.
    """
    _check_steps(steps, steps_per_epoch)
    rise = _updates(warmup, steps)

    def rate(count: Any) -> Array:
        count = jnp.asarray(count)
        left = jnp.clip((steps - count) / max(steps - rise, 1), 0, 1)
        return jnp.where(count < rise, lr * count / max(rise, 1), min_lr + (lr - min_lr) * left)

    return rate


def constant(*, steps: int, steps_per_epoch: int, lr: float) -> Schedule:
    """The same rate at every update."""
    _check_steps(steps, steps_per_epoch)
    return lambda count: jnp.full(jnp.shape(count), lr, jnp.float32)


def stairs(
    *, steps: int, steps_per_epoch: int, lr: float, factor: float = 0.1, at: Sequence[float] = (0.8,)
) -> Schedule:
    """`lr`, times `factor` from each of the shares `at` of all updates on; the defaults are VaB-AL's."""
    _check_steps(steps, steps_per_epoch)
    if not factor > 0 or not all(0 < share < 1 for share in at):
        raise ValueError(f"schedule: factor={factor} must be positive and at={tuple(at)} shares in (0,1)")
    edges = jnp.asarray(sorted(math.ceil(share * steps - 1e-9) for share in at), jnp.int32)

    def rate(count: Any) -> Array:
        falls = (jnp.asarray(count)[..., None] >= edges).sum(-1)
        return lr * jnp.power(jnp.float32(factor), falls)

    return rate


def mcan(*, steps: int, steps_per_epoch: int, examples: int, batch_size: int, lr: float = 1e-4) -> Schedule:
    """MCAN's schedule (`MILVLG/openvqa`): see `mcan_rate`; it counts examples, not epochs, and knows no end."""
    _check_steps(steps, steps_per_epoch)
    return lambda count: mcan_rate(count, examples, base=lr, batch=batch_size)


SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "albef": albef,
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "stairs": stairs,
    "mcan": mcan,
}


def make_schedule(*, name: str, **kwargs: Any) -> Schedule:
    """The schedule `SCHEDULES[name](**kwargs)`; unknown names and arguments raise ValueError with suggestions.

    `examples` and `batch_size` are for schedules that count examples; others do without.
    """
    if name not in SCHEDULES:
        raise ValueError(_unknown("schedule", name, SCHEDULES))
    known = inspect.signature(SCHEDULES[name]).parameters
    kwargs = {k: v for k, v in kwargs.items() if k in known or k not in ("examples", "batch_size")}
    for key in kwargs:
        if key not in known:
            raise ValueError(f"schedule {name!r}: {_unknown('argument', key, known)}")
    missing = [k for k, p in known.items() if p.default is p.empty and k not in kwargs]
    if missing:
        raise ValueError(f"schedule {name!r} needs {', '.join(missing)}")
    return SCHEDULES[name](**kwargs)


def _unknown(what: str, name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}; expected one of {', '.join(known)}{hint}"


def _updates(warmup: int | float, steps: int) -> int:
    """Length of a warm-up in updates."""
    if warmup < 0 or (isinstance(warmup, float) and warmup >= 1):
        raise ValueError(
            f"schedule.warmup={warmup}: expected a number of updates (int) or a share in [0,1) (float)"
        )
    return round(warmup * steps) if isinstance(warmup, float) else warmup


def _check_steps(steps: int, steps_per_epoch: int) -> None:
    if steps < 1 or steps_per_epoch < 1:
        raise ValueError(f"schedule: steps={steps} and steps_per_epoch={steps_per_epoch} must be positive")
