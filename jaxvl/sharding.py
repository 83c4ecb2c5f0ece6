"""Where arrays live: the mesh, the rules from logical to mesh axes, and placement. Only this file names mesh axes.

The mesh has two axes: `data` splits the batch (and, under `fsdp`, the parameters), `model` splits the width of
layers. Models write logical axes (`embed`, `mlp`, ...) on their parameters; a rule set maps those to the mesh:

| rules     | on `data`      | on `model`           |
|-----------|----------------|----------------------|
| `dp`      | batch          |                      |
| `fsdp`    | batch, embed   |                      |
| `tp`      | batch          | mlp, heads, vocab    |
| `fsdp_tp` | batch, embed   | mlp, heads, vocab    |
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvl.types import Array, PyTree

DATA, MODEL = "data", "model"
AXES = (DATA, MODEL)
LOGICAL = ("batch", "length", "embed", "mlp", "heads", "kv", "vocab", "patch", "edge", "layers", "feat")
Rules = tuple[tuple[str, str | None], ...]

logger = logging.getLogger(__name__)


def _rules(**placed: str) -> Rules:
    return tuple((name, placed.get(name)) for name in LOGICAL)


RULES: Mapping[str, Rules] = {
    "dp": _rules(batch=DATA),
    "fsdp": _rules(batch=DATA, embed=DATA),
    "tp": _rules(batch=DATA, mlp=MODEL, heads=MODEL, vocab=MODEL),
    "fsdp_tp": _rules(batch=DATA, embed=DATA, mlp=MODEL, heads=MODEL, vocab=MODEL),
}


@dataclasses.dataclass(frozen=True)
class Partition:
    """A mesh and the rules that place arrays on it; made by `Partition.create`.

    A dimension that its mesh axis does not divide is kept whole on every device (JAX shards evenly or not at
    all); `state` logs a warning that names such parameters.
    """

    mesh: Mesh
    rules: Rules

    @classmethod
    def create(
        cls,
        *,
        mesh: Mapping[str, int] | None = None,
        rules: str = "fsdp",
        devices: Sequence[jax.Device] | None = None,
    ) -> Partition:
        """Build the mesh.

        Args:
          mesh: sizes of the axes `data` and `model`; one of them may be -1: all devices that are left. In a
            single process, fixed sizes may use fewer devices than there are: the first ones.
          rules: a key of `RULES`.
          devices: default all devices of all processes.

        Raises:
          ValueError: unknown rules or axes, or sizes that do not divide the number of devices.
        """
        if rules not in RULES:
            raise ValueError(_unknown("sharding.rules", rules, RULES))
        devices = list(jax.devices() if devices is None else devices)
        shape = _mesh_shape({DATA: -1, MODEL: 1, **(mesh or {})}, devices)
        axis_types = (AxisType.Auto,) * len(AXES)  # Linen's constraints raise under Explicit axes
        made = jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices[: shape[0] * shape[1]])
        ordered = made.devices[_by_process(made.devices)]
        return cls(mesh=Mesh(ordered, AXES, axis_types=axis_types), rules=RULES[rules])

    @property
    def batch_shards(self) -> int:
        """Into how many parts a batch is split; every batch size must be a multiple."""
        return self.mesh.shape[DATA]

    def state(self, abstract: PyTree) -> PyTree:
        """Shardings of a state.

        Args:
          abstract: result of `jax.eval_shape` with parameters still in their boxes of logical names; boxes
            inside an optimiser state count. What has no box is replicated.

        Returns:
          The same tree with a `NamedSharding` in place of each box or bare array: `out_shardings` of the
          jitted initialiser, whether it returns boxed or unboxed parameters.

        Raises:
          ValueError: a logical name that is not in the vocabulary; names the parameter.
        """
        whole: dict[tuple[str | None, int, str, int], list[str]] = collections.defaultdict(list)
        table = dict(self.rules)

        def place(path: Any, leaf: Any) -> NamedSharding:
            if not isinstance(leaf, nn.Partitioned):
                return self.replicated()
            names, shape = leaf.names, leaf.value.shape
            for name in names:
                if name is not None and name not in table:
                    raise ValueError(f"{_path(path)}: {_unknown('logical axis', name, table)}")
            axes = list(nn.logical_to_mesh_axes(names, self.rules) or ())
            for i, axis in enumerate(axes):
                if axis is not None and shape[i] % self.mesh.shape[axis]:
                    whole[names[i], shape[i], axis, self.mesh.shape[axis]].append(_path(path))
                    axes[i] = None
            return NamedSharding(self.mesh, PartitionSpec(*axes))

        out = jax.tree_util.tree_map_with_path(place, abstract, is_leaf=_is_box)
        for (name, size, axis, parts), paths in whole.items():
            shown = ", ".join(paths[:3]) + (" ..." if len(paths) > 3 else "")
            logger.warning(
                "%d arrays are not split: %s=%d is not a multiple of %s=%d (%s)",
                *(len(paths), name, size, axis, parts, shown),
            )
        return out

    def batch(self) -> NamedSharding:
        """Rows (axis 0) split over `data`, the same on all of `model`."""
        return NamedSharding(self.mesh, PartitionSpec(DATA))

    def replicated(self) -> NamedSharding:
        """The whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Call and trace jitted functions in here: without it, constraints inside models are silently nothing."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(self.rules):
            yield

    def rows(self, global_batch: int) -> tuple[int, int]:
        """Half-open range of the rows of a batch of `global_batch` rows that this process must supply.

        Processes that hold the same rows (a `model` axis across hosts) supply the same ones.

        Raises:
          ValueError: `global_batch` is not a multiple of `batch_shards`.
        """
        if global_batch < 1 or global_batch % self.batch_shards:
            raise ValueError(
                f"a batch of {global_batch} rows cannot be split over mesh {DATA}={self.batch_shards}: "
                f"take a multiple of {self.batch_shards}"
            )
        slots = _slots(self.mesh.devices, jax.process_index())
        each = global_batch // self.batch_shards
        return slots[0] * each, (slots[-1] + 1) * each

    def reader(self) -> tuple[int, int]:
        """(index, count): this process reads part `index` of `count` equal, consecutive parts of each batch.

        The processes' own (index, count), unless a `model` axis makes several processes hold the same rows.
        """
        start, stop = self.rows(self.batch_shards)
        return start // (stop - start), self.batch_shards // (stop - start)

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """Global arrays from the rows of this process.

        Args:
          batch: numpy arrays `[b, ...]`, the rows that `rows` asks this process for.

        Returns:
          Arrays `[B, ...]` with sharding `batch()`. On one device nothing but the transfer happens.
        """
        sharding, slots = self.batch(), _slots(self.mesh.devices, jax.process_index())

        def place(name: str, x: np.ndarray) -> Array:
            if x.ndim < 1 or len(x) % len(slots):
                raise ValueError(
                    f"batch[{name!r}] of shape {x.shape}: axis 0 must be a multiple of {len(slots)}, the parts of "
                    f"the batch (mesh {DATA}={self.batch_shards}) that this process holds"
                )
            rows = len(x) // len(slots) * self.batch_shards
            return jax.make_array_from_process_local_data(sharding, x, (rows, *x.shape[1:]))

        return {name: place(name, np.asarray(x)) for name, x in batch.items()}

    def fetch(self, tree: PyTree) -> PyTree:
        """The same tree as whole numpy arrays on every host; all processes must call it together.

        Waits for the arrays. Leaves that are not JAX arrays pass unchanged.
        """
        return jax.device_get(jax.tree.map(_to_host, tree))


def _to_host(x: Any) -> Any:
    if not isinstance(x, jax.Array) or x.is_fully_addressable:
        return x  # fetched with all others by one device_get
    if x.is_fully_replicated:
        return x.addressable_data(0)
    return multihost_utils.process_allgather(x, tiled=True)


def _unknown(what: str, name: Any, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}; expected one of {', '.join(known)}{hint}"


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.Partitioned)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _mesh_shape(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> tuple[int, int]:
    """Sizes of (data, model) with -1 resolved."""
    for name, size in sizes.items():
        if name not in AXES:
            raise ValueError(_unknown("axis of sharding.mesh", name, dict.fromkeys(AXES)))
        if not isinstance(size, int) or (size < 1 and size != -1):
            raise ValueError(
                f"sharding.mesh.{name}={size!r}: expected a positive number, or -1 for what is left"
            )
    data, model = sizes[DATA], sizes[MODEL]
    if data == model == -1:
        raise ValueError("sharding.mesh: only one of data and model can be -1")
    total, fixed = len(devices), abs(data * model)
    if fixed > total or total % fixed:
        raise ValueError(
            f"sharding.mesh data={data}, model={model} does not divide the {total} devices "
            f"({devices[0].platform}); sizes must multiply to a divisor of {total}, or give -1 for one of them"
        )
    if -1 not in (data, model) and fixed != total and len({d.process_index for d in devices}) > 1:
        raise ValueError(
            f"sharding.mesh data={data}, model={model} uses {fixed} of {total} devices: with several processes all "
            "must be used; give -1 for one of the sizes"
        )
    left = total // fixed
    return (left if data == -1 else data), (left if model == -1 else model)


def _by_process(devices: np.ndarray) -> np.ndarray:
    """Order of the rows of a `[data, model]` device array in which each process holds consecutive rows.

    Topology-aware meshes interleave hosts, but row `i` of a batch must be row `i` of the data set.
    """
    return np.argsort([min(d.process_index for d in row) for row in devices], kind="stable")


def _slots(devices: np.ndarray, process: int) -> list[int]:
    """Positions along `data` of which `process` has a device; they are consecutive and shared evenly."""
    owners = [{d.process_index for d in row} for row in devices]
    mine = [i for i, processes in enumerate(owners) if process in processes]
    if not mine:
        raise ValueError(f"process {process} has no device in the mesh {devices.shape}")
    groups = {frozenset(p) for p in owners}
    disjoint = sum(map(len, groups)) == len(frozenset().union(*groups))
    if not disjoint or mine != list(range(mine[0], mine[-1] + 1)):
        raise ValueError(
            f"mesh {DATA}={devices.shape[0]}, {MODEL}={devices.shape[1]} does not fit the processes: "
            f"{MODEL} must divide the devices of a host, or be a multiple of them"
        )
    return mine
