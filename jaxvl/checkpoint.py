"""Checkpoints that survive a kill at any point. Only this file imports Orbax.

    directory/
      1200/                   one folder a step; it counts only once meta.json is there, which is written last
        state/                all arrays of the state, by Orbax: restored onto any mesh
        params.safetensors    the parameters alone, float32, names joined by "/": for any other program
        meta.json             step, the caller's metadata, and which folder holds the arrays

Names are canonical: stacked (scanned) layers are written one by one, so that a run may stack layers or not,
whatever wrote the checkpoint.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from etils import epath
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils

from jaxvl.types import PyTree

META, PARAMS, STATE = "meta.json", "params.safetensors", "state"
OURS = (META, PARAMS, STATE)
FORMAT = 1


class CheckpointMismatch(ValueError):
    """The checkpoint's arrays are not those of the requested state."""


class Checkpoints:
    """The checkpoints of one run: asynchronous saves, at most `keep` (and the best) on disk.

    Only a `save` changes the directory, so that other processes may read it while a run writes.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        best: str | None = None,
        mode: str = "max",
        unstack: Callable[[PyTree], PyTree] | None = None,
        stack: Callable[[PyTree, PyTree], PyTree] | None = None,
    ):
        """Open the directory; it is created by the first save.

        Args:
          directory: a local path or a bucket (`gs://...`).
          keep: how many of the newest steps stay; None = all.
          best: this entry of `meta["metrics"]` also keeps the step where it is best; None = none.
          mode: `"max"` or `"min"`: which value of `best` is better.
          unstack: nested dict with stacked layers -> the same with one subtree a layer.
          stack: `(unstacked, like) -> ` its inverse; `like` has the stacked names.

        Raises:
          ValueError: `keep` below 1, unknown `mode`, or only one of `unstack` and `stack`.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"checkpoint.keep={keep}: expected at least 1, or None to keep all")
        if mode not in ("max", "min"):
            raise ValueError(f"checkpoint.mode={mode!r}: expected 'max' or 'min'")
        if (unstack is None) != (stack is None):
            raise ValueError("checkpoint: give both unstack and stack, or neither")
        self.directory = epath.Path(directory).expanduser().resolve()  # Orbax takes absolute paths only
        self.keep, self.best_name, self.mode = keep, best, mode
        self._unstack, self._stack = unstack or (lambda tree: tree), stack or (lambda tree, like: tree)
        self._orbax = ocp.StandardCheckpointer()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._swept = False

    # ---- what is there ----------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending; leftovers of killed saves do not count."""
        return _complete_steps(self.directory)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the best `meta["metrics"][best]` (the later of equals); None if no step has it."""
        scored = []
        for step in self.steps():
            value = self.meta(step).get("metrics", {}).get(self.best_name)
            if value is not None and math.isfinite(value):
                scored.append((value if self.mode == "max" else -value, step))
        return max(scored)[1] if scored else None

    def meta(self, step: int) -> dict[str, Any]:
        """The metadata that `save` was given."""
        return self._complete(step)["meta"]

    # ---- save -------------------------------------------------------------------------------------------

    def save(
        self, step: int, state: PyTree, meta: Mapping[str, Any] | None = None, *, wait: bool = False
    ) -> None:
        """Write a checkpoint in the background; all processes must call it.

        Returns when the arrays are copied to host memory: the caller may donate `state` at once. An earlier
        save still under way is waited for. A step saved twice keeps the second state.

        Args:
          step: non-negative.
          state: tree of unboxed JAX arrays; its part `params`, if any, is also written as safetensors.
          meta: anything JSON can hold.
          wait: return when the checkpoint is complete.

        Raises:
          ValueError, TypeError: negative step, boxed parameters, `meta` not JSON; nothing is written.
          Exception: whatever stopped the previous save.
        """
        if step < 0:
            raise ValueError(f"checkpoint step {step} is negative")
        folder = self.directory / str(step)
        record = {"format": FORMAT, "step": step, "meta": _json(meta or {}, step)}
        tree = self._canonical(state)
        self.wait()
        primary = jax.process_index() == 0
        if primary and not self._swept:
            self._sweep()
        record["state"] = _free_name(folder)
        if primary:
            folder.mkdir(parents=True, exist_ok=True)
        params = {"/".join(k): _host_copy(v) for k, v in flatten_dict(tree.get("params", {})).items()}
        self._orbax.save(folder / record["state"], tree, force=True)
        self._pending = self._thread.submit(self._commit, folder, params, record)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until the save under way is complete; raises what stopped it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Complete the save under way and free the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def _commit(
        self, folder: epath.Path, params: Mapping[str, np.ndarray], record: Mapping[str, Any]
    ) -> None:
        """In the background: parameters, then wait for Orbax, then meta.json, which makes the step count."""
        primary = jax.process_index() == 0
        if primary and params:
            _write(folder / PARAMS, safetensors.numpy.save(dict(params)))
        self._orbax.wait_until_finished()
        if not primary:
            return
        _write(folder / META, (json.dumps(record, indent=1) + "\n").encode())
        for old in folder.iterdir():
            if old.name.startswith(OURS) and old.name not in (record["state"], PARAMS, META):
                _remove(old)
        self._prune()

    def _prune(self) -> None:
        """Delete complete steps beyond the newest `keep` and the best."""
        steps = self.steps()
        kept = set(steps if self.keep is None else steps[-self.keep :])
        best = self.best() if self.best_name else None
        if best is not None:
            kept.add(best)
        for step in set(steps) - kept:
            (self.directory / str(step) / META).unlink()  # first: a half-deleted step must not count
            _remove(self.directory / str(step))

    def _sweep(self) -> None:
        """Delete what killed saves left: numbered folders that hold nothing but our unfinished files."""
        self._swept = True
        if not self.directory.exists():
            return
        for folder in self.directory.iterdir():
            unfinished = folder.name.isdecimal() and not (folder / META).exists()
            if unfinished and all(p.name.startswith(OURS) for p in folder.iterdir()):
                _remove(folder)

    # ---- restore ----------------------------------------------------------------------------------------

    def restore(self, step: int, abstract: PyTree) -> PyTree:
        """The state of `step`, placed as `abstract` says.

        Args:
          step: one of `steps()`.
          abstract: tree of `jax.ShapeDtypeStruct` with shardings (any mesh), stacked or not.

        Raises:
          FileNotFoundError: no complete checkpoint of that step; names those there are.
          CheckpointMismatch: names, shapes or types differ; lists all of them.
        """
        source = self.directory / str(step) / self._complete(step)["state"]
        names, treedef, wanted = _named(abstract)
        unstacked = jax.eval_shape(self._unstack, wanted)
        if _same_names(unstacked, wanted):
            self._check(source, wanted)
            return _unnamed(names, treedef, self._read(source, wanted))
        lowered = jax.jit(self._unstack).lower(wanted)
        shardings = lowered.compile().output_shardings
        target = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), unstacked, shardings
        )
        self._check(source, target)
        stack = jax.jit(
            lambda tree: self._stack(tree, wanted), out_shardings=jax.tree.map(lambda x: x.sharding, wanted)
        )
        return _unnamed(names, treedef, stack(self._read(source, target)))

    @staticmethod
    def params(path: str | os.PathLike[str]) -> dict[str, Any]:
        """Nested dict of numpy arrays from a `.safetensors` file with names joined by "/".

        Raises:
          FileNotFoundError, ValueError: no such file, or not a safetensors file.
        """
        source = epath.Path(path)
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such params file")
        try:
            flat = safetensors.numpy.load(source.read_bytes())
        except safetensors.SafetensorError as e:
            raise ValueError(f"{source} is not a complete safetensors file: {e}") from e
        return unflatten_dict(flat, sep="/")

    @staticmethod
    def last_params(directory: str | os.PathLike[str], *, step: int | None = None) -> dict[str, Any]:
        """Parameters of a complete step of a checkpoint directory, None = the newest; see `params`."""
        root = epath.Path(directory)
        steps = _complete_steps(root)
        if not steps:
            raise FileNotFoundError(f"{root}: no complete checkpoint; train that stage first")
        return Checkpoints.params(root / str(max(steps) if step is None else step) / PARAMS)

    def _complete(self, step: int) -> dict[str, Any]:
        meta = _read_meta(self.directory / str(step))
        if meta is None:
            there = ", ".join(map(str, self.steps())) or "none"
            raise FileNotFoundError(
                f"{self.directory}: no complete checkpoint of step {step}; complete: {there}"
            )
        return meta

    def _canonical(self, state: PyTree) -> dict[str, Any]:
        """Nested dict of the state's arrays with unstacked layers."""
        _, _, tree = _named(state)
        shapes = jax.eval_shape(self._unstack, tree)
        return tree if _same_names(shapes, tree) else jax.jit(self._unstack)(tree)

    def _check(self, source: epath.Path, wanted: dict[str, Any]) -> None:
        """Raise one error that lists every difference between the checkpoint and what is wanted."""
        stored = self._stored(source)
        there = {"/".join(k): (tuple(v.shape), np.dtype(v.dtype)) for k, v in flatten_dict(stored).items()}
        want = {"/".join(k): (tuple(v.shape), np.dtype(v.dtype)) for k, v in flatten_dict(wanted).items()}
        missing = [f"{k} {want[k][0]}" for k in sorted(want.keys() - there.keys())]
        unexpected = [f"{k} {there[k][0]}" for k in sorted(there.keys() - want.keys())]
        unequal = [
            f"{k}: {there[k][0]} {there[k][1]} in the checkpoint, {want[k][0]} {want[k][1]} wanted"
            for k in sorted(want.keys() & there.keys())
            if want[k] != there[k]
        ]
        if missing or unexpected or unequal:
            raise CheckpointMismatch(
                f"{source} does not hold the requested state."
                + _listed("missing in the checkpoint", missing)
                + _listed("in the checkpoint, but not wanted", unexpected)
                + _listed("different", unequal)
                + "\nTo resume, use the config that the run was started with; to start a new run from these "
                f"parameters, give {source.parent / PARAMS} as init_from."
            )

    def _stored(self, source: epath.Path) -> dict[str, Any]:
        """Nested dict of the shapes and types of what is on disk."""
        try:
            metadata = self._orbax.metadata(source).item_metadata
        except (ValueError, OSError) as e:
            raise _unreadable(source, e) from e
        if metadata is None:
            raise _unreadable(source, "its list of arrays is gone")
        return metadata.tree

    def _read(self, source: epath.Path, target: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._orbax.restore(source, target)
        except (ValueError, OSError) as e:
            raise _unreadable(source, e) from e


def _unreadable(source: epath.Path, reason: object) -> ValueError:
    return ValueError(
        f"{source} cannot be read; delete {source.parent} to fall back to an earlier step: {reason}"
    )


def _named(tree: PyTree) -> tuple[list[tuple[str, ...]], Any, dict[str, Any]]:
    """(path of each leaf, tree definition, nested dict of the leaves)."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)
    )
    boxed = [
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, x in leaves
        if isinstance(x, nn.meta.AxisMetadata)
    ]
    if boxed:
        raise ValueError(f"checkpoint: {boxed[0]} is still in its box of logical names; nn.unbox the state")
    names = [tuple(jax.tree_util.keystr((k,), simple=True) for k in p) for p, _ in leaves]
    return names, treedef, unflatten_dict(dict(zip(names, (x for _, x in leaves), strict=True)))


def _unnamed(names: list[tuple[str, ...]], treedef: Any, tree: dict[str, Any]) -> PyTree:
    flat = flatten_dict(tree)
    return jax.tree.unflatten(treedef, [flat[n] for n in names])


def _same_names(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return flatten_dict(a).keys() == flatten_dict(b).keys()


def _host_copy(x: Any) -> np.ndarray:
    """The whole array in host memory, safe from a later donation of `x`; all processes take part."""
    if x.is_fully_addressable:
        return np.array(x)
    if x.is_fully_replicated:
        return np.array(x.addressable_data(0))
    return np.array(multihost_utils.process_allgather(x, tiled=True))


def _json(meta: Mapping[str, Any], step: int) -> Any:
    """`meta` as it will be read back."""
    try:
        return json.loads(json.dumps(dict(meta)))
    except TypeError as e:
        raise TypeError(f"checkpoint meta of step {step} is not JSON: {e}") from e


def _complete_steps(directory: epath.Path) -> list[int]:
    found = [int(p.name) for p in directory.iterdir() if p.name.isdecimal()] if directory.exists() else []
    return sorted(n for n in found if _read_meta(directory / str(n)) is not None)


def _read_meta(folder: epath.Path) -> dict[str, Any] | None:
    """The record that makes a step complete, or None: absent, unreadable, or its arrays are gone."""
    try:
        record = json.loads((folder / META).read_text())
        complete = (folder / record["state"] / "_METADATA").exists()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if complete else None


def _free_name(folder: epath.Path) -> str:
    """A name for the arrays beside those of a complete checkpoint, the same on all processes."""
    record = _read_meta(folder)
    taken = np.int32(record is not None and record["state"] == STATE)
    if jax.process_count() > 1:
        taken = multihost_utils.broadcast_one_to_all(taken)
    return f"{STATE}.1" if taken else STATE


def _write(path: epath.Path, data: bytes) -> None:
    """A reader sees the old file or the new one, never half of it."""
    temporary = path.parent / (path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def _remove(path: epath.Path) -> None:
    path.rmtree() if path.is_dir() else path.unlink()


def _listed(title: str, lines: list[str], limit: int = 20) -> str:
    if not lines:
        return ""
    more = f"\n    ... and {len(lines) - limit} more" if len(lines) > limit else ""
    return f"\n  {title} ({len(lines)}):" + "".join(f"\n    {line}" for line in lines[:limit]) + more
