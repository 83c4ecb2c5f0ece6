"""Machinery of name tables: one table per foreign model, read in both directions.

A table is a tuple of `Row`s. A row says which foreign module is which jaxvl module and of what kind it is;
`links` expands rows to one `Link` per foreign tensor, repeating those with `{i}` for every layer. `decode`
follows links from foreign tensors to canonical paths, `encode` follows them back, both bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxvl.interop.files import Tensors, WeightsError
from jaxvl.interop.report import UNKNOWN, Report


@dataclass(frozen=True)
class Codec:
    """How one foreign tensor becomes one or more canonical ones, and back; `note` is empty if it stays as it is.

    Tensors are floating, and float32 once imported, unless `integral` names the integer type they take.
    """

    note: str
    decode: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    encode: Callable[..., np.ndarray]
    integral: type[np.integer] | None = None


SAME = Codec("", lambda x: (x,), lambda x: x)
TRANSPOSE = Codec("transposed", lambda x: (x.T,), lambda x: x.T)
CONV = Codec("OIHW to HWIO", lambda x: (x.transpose(2, 3, 1, 0),), lambda x: x.transpose(3, 2, 0, 1))
QKV_KERNEL = Codec(
    "split into query, key, value and transposed",
    lambda x: tuple(part.T for part in np.split(x, 3)),
    lambda *parts: np.concatenate([part.T for part in parts]),
)
QKV_BIAS = Codec(
    "split into query, key, value", lambda x: tuple(np.split(x, 3)), lambda *x: np.concatenate(x)
)
CLASS_TOKEN = Codec("[D] to [1,1,D]", lambda x: (x.reshape(1, 1, -1),), lambda x: x.reshape(-1))
ROWS = Codec("[P,D] to [1,P,D]", lambda x: (x[None],), lambda x: x[0])

KINDS: Mapping[str, tuple[tuple[str, str, Codec], ...]] = {  # foreign suffix, canonical suffix, codec
    "array": (("", "", SAME),),
    "table": ((".weight", "/embedding", SAME),),
    "dense": ((".weight", "/kernel", TRANSPOSE), (".bias", "/bias", SAME)),
    "conv": ((".weight", "/kernel", CONV), (".bias", "/bias", SAME)),
    "norm": ((".weight", "/scale", SAME), (".bias", "/bias", SAME)),
    "qkv": ((".weight", "/kernel", QKV_KERNEL), (".bias", "/bias", QKV_BIAS)),
    "in_proj": (("_weight", "/kernel", QKV_KERNEL), ("_bias", "/bias", QKV_BIAS)),
    "unbiased conv": ((".weight", "/kernel", CONV),),
    "unbiased dense": ((".weight", "/kernel", TRANSPOSE),),
    "class": (("", "", CLASS_TOKEN),),
    "rows": (("", "", ROWS),),
}


@dataclass(frozen=True)
class Row:
    """Foreign module `foreign` is canonical `ours`; `{i}` counts layers, `{n}` is `{i}` in foreign numbering."""

    foreign: str
    ours: str | tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Link:
    """One foreign tensor and the canonical paths that it fills."""

    foreign: str
    ours: tuple[str, ...]
    codec: Codec = SAME


def links(
    rows: Iterable[Row], *, foreign: str = "", ours: str = "", count: int = 1, offset: int = 0
) -> tuple[Link, ...]:
    """Expand a table.

    Args:
      rows: those with `{i}` or `{n}` in them are repeated for every layer.
      foreign: prefix of all foreign names, with its dot.
      ours: prefix of all canonical paths, with its slash.
      count: number of layers.
      offset: foreign number of the first layer.
    """
    found = {}
    for i in range(count):
        for row in rows:
            paths = (row.ours,) if isinstance(row.ours, str) else row.ours
            for suffix, our_suffix, codec in KINDS[row.kind]:
                name = foreign + row.foreign.format(n=i + offset) + suffix
                found[name] = Link(name, tuple(ours + p.format(i=i) + our_suffix for p in paths), codec)
    return tuple(found.values())


def layer_count(names: Collection[str], pattern: str) -> int:
    """One more than the largest number that `pattern` captures at the start of a name; 0 if none matches."""
    matches = (re.match(pattern, name) for name in names)
    return 1 + max((int(m[1]) for m in matches if m), default=-1)


def named_arrays(state: Mapping[str, Any]) -> Tensors:
    """`state` as names of arrays, without the `module.` that parallel wrappers put before every name.

    Raises:
      WeightsError: `state` is the wrong level of a checkpoint, or holds something that is not an array.
    """
    if not state:
        raise WeightsError("there is no tensor to import")
    nested = [key for key, value in state.items() if isinstance(value, Mapping)]
    if nested:
        raise WeightsError(
            f"wrong level of the file: {nested[0]!r} is a dictionary, not a tensor; pass state[{nested[0]!r}]"
        )
    arrays = {name: np.asarray(value) for name, value in state.items()}
    odd = [name for name, array in arrays.items() if array.dtype.kind not in "fiubV"]
    if odd:
        raise WeightsError(f"{odd[0]!r} is a {type(state[odd[0]]).__name__}, not an array of numbers")
    if all(name.startswith("module.") for name in arrays):
        return {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


def find_prefix(names: Collection[str], marker: str, prefixes: Iterable[str]) -> str | None:
    """The prefix under which `marker` is in `names`, or None."""
    return next((p for p in prefixes if p + marker in names), None)


def foreign_error(names: Collection[str], expected: str) -> WeightsError:
    """The error of a file that is not of the expected kind, with a sample of its names."""
    sample = ", ".join(repr(name) for name in sorted(names)[:4])
    return WeightsError(
        f"not {expected}: the names are {sample}, ... ({len(names)}). If they start with the name of a level or "
        "wrapper ('model.', 'state_dict.'), pass the inner dictionary; else choose another import"
    )


@dataclass
class Decoder:
    """Collects one import: which names were used, left out or missing, and the arrays by canonical path."""

    state: Tensors
    arrays: Tensors = field(default_factory=dict)
    mapped: list[tuple[str, str]] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)

    def take(self, table: Iterable[Link], *, under: str = "") -> None:
        """Move the tensors of `table` to their paths, all put below `under`; note those that are not there."""
        table = tuple(table)
        absent: list[str] = []
        for link in table:
            if link.foreign not in self.state:
                absent += link.ours
                continue
            array = self.state[link.foreign]
            note = [link.codec.note] if link.codec.note else []
            if array.dtype != np.float32 and array.dtype.kind in "fV":
                note.append(f"{array.dtype} to float32")
            for path, part in zip(link.ours, _decoded(link, array), strict=True):
                self.arrays[under + path] = part
                self.mapped.append((link.foreign, under + path))
            if note:
                self.adapted[link.foreign] = ", ".join(note)
        self.missing += [under + path for path in collapse(absent, [p for link in table for p in link.ours])]

    def ignore(self, names: Iterable[str], why: str) -> None:
        """Leave out those of `names` that are in the file, for a reason that the report gives."""
        self.unused |= {name: why for name in names if name in self.state}

    def tied(self, name: str, to: str) -> None:
        """Leave out `name`, a second copy of `to`. Raises WeightsError if it differs: the model shares them."""
        if name not in self.state:
            return
        if to not in self.state or not np.array_equal(self.state[name], self.state[to]):
            raise WeightsError(f"{name!r} must equal {to!r}, with which jaxvl shares it, but it does not")
        self.unused[name] = f"equal to {to}"

    def report(self) -> Report:
        """What happened; names that no table knew are unused as `UNKNOWN`."""
        used = {foreign for foreign, _ in self.mapped} | set(self.unused)
        unknown = [(name, UNKNOWN) for name in self.state if name not in used]
        return Report(
            tuple(self.mapped),
            tuple(self.unused.items()) + tuple(unknown),
            tuple(self.missing),
            tuple(self.adapted.items()),
        )


def _decoded(link: Link, array: np.ndarray) -> tuple[np.ndarray, ...]:
    """Canonical arrays of their own (the file may go away), floating ones in float32."""
    try:
        parts = link.codec.decode(array)
    except (ValueError, np.exceptions.AxisError) as error:
        raise WeightsError(
            f"{link.foreign!r} of shape {array.shape} cannot be {link.codec.note}: {error}"
        ) from error
    integral = link.codec.integral
    if array.dtype.kind not in ("iu" if integral else "fV"):
        raise WeightsError(
            f"{link.foreign!r} is {array.dtype}, expected {'integers' if integral else 'floating-point numbers'}; "
            "quantised files must be imported from their original"
        )
    return tuple(np.array(part, integral or np.float32, order="C") for part in parts)


def collapse(absent: Collection[str], expected: Collection[str]) -> list[str]:
    """Replace paths that make up all that is `expected` of a module by the outermost such module, `"a/b/"`."""
    lost = set(absent)
    found = []
    for path in absent:
        parts = path.split("/")
        modules = ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts))]
        whole = (m for m in modules if all(p in lost for p in expected if p.startswith(m)))
        found.append(next(whole, path))
    return list(dict.fromkeys(found))


def encode(arrays: Mapping[str, Any], table: Iterable[Link]) -> tuple[Tensors, set[str]]:
    """Foreign tensors of all links whose paths are in `arrays`, and the paths they used.

    Raises:
      WeightsError: only some of the paths that make one foreign tensor are there.
    """
    tensors: Tensors = {}
    used: set[str] = set()
    for link in table:
        there = [path for path in link.ours if path in arrays]
        if not there:
            continue
        if len(there) < len(link.ours):
            lost = sorted(set(link.ours) - set(there))
            raise WeightsError(f"{link.foreign!r} needs {', '.join(lost)} too, which params lack")
        tensors[link.foreign] = np.array(link.codec.encode(*(arrays[p] for p in link.ours)), order="C")
        used |= set(link.ours)
    return tensors, used


def encode_all(arrays: Mapping[str, Any], table: Iterable[Link], what: str, *, kind: str) -> Tensors:
    """`encode`, where every one of `arrays` must have a name.

    Raises:
      WeightsError: one of `what` has no name in the format of `kind`, or only part of a fused tensor is there.
    """
    tensors, used = encode(arrays, table)
    lost = [path for path in arrays if path not in used]
    if lost:
        scanned = " (scanned stack: unstack the layers first)" if re.search(r"_\d+_\d+/", lost[0]) else ""
        raise WeightsError(
            f"{what}: {lost[0]!r} has no name in {kind}'s format{scanned}; {len(lost)} such tensors"
        )
    return tensors
