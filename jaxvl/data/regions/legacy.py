"""Pickles of region features, read with a list of what they may hold: plain values and arrays of numbers.

Two layouts, and the confidences of a third, exist as pickles only. A pickle is a program; here it can build dicts,
lists, tuples, sets, numbers, texts and numpy arrays, and any other name in it is refused before it is looked up. These
pickles are read only where the user says so (`--allow-legacy-pickle`).
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxvl.data.records import DataError

NUMBERS = frozenset(
    [f"{kind}{size}" for kind, sizes in {"f": (2, 4, 8), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8)}.items()
     for size in sizes] + ["b1"]
)  # fmt: skip
OBJECT = ("O", "O8")
MOST_TUPLES = 5000
DAMAGED = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    MemoryError, RecursionError,
)  # fmt: skip


class UnsafePickleError(DataError):
    """A pickle asks for something else than plain values and arrays."""


def read_pickle(data: bytes | memoryview, *, where: str) -> Any:
    """What a pickle holds; texts of Python 2 become `str` (latin-1).

    Raises:
      UnsafePickleError: it asks for another object; names it.
      DataError: damaged.
    """
    raw = bytes(data)
    try:
        _check(raw)
        return _opened(_Unpickler(raw).load(), {})
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{where}: {error}") from error
    except DAMAGED as error:
        raise DataError(f"{where}: not a pickle, or damaged ({error}); fetch it again") from error


class _DType:
    """A dtype under construction; only of numbers, or of objects for the array around a dict."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in NUMBERS and code not in OBJECT:
            raise UnsafePickleError(f"an array of {code!r}; only numbers are read")
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "<"


class _Array:
    """An array under construction: numpy's own would believe any shape."""

    def __init__(self, *_: Any) -> None:
        self.value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.code in OBJECT:
            self.value = list(raw)
            return
        if isinstance(raw, str):  # bytes of Python 2
            raw = raw.encode("latin-1")
        flat = np.frombuffer(raw, np.dtype(dtype.order + dtype.code))
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _scalar(dtype: _DType, raw: bytes | str) -> Any:
    data = raw.encode("latin-1") if isinstance(raw, str) else raw
    return np.frombuffer(data, np.dtype(dtype.order + dtype.code), count=1)[0].item()


def _frombuffer(raw: bytes | bytearray, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    if dtype.code in OBJECT:
        raise UnsafePickleError("an array of objects as raw bytes")
    return np.frombuffer(bytes(raw), np.dtype(dtype.order + dtype.code)).reshape(
        shape, order="F" if order == "F" else "C"
    )


def _bytes(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError(f"bytes encoded as {encoding!r}")
    return text.encode("latin-1")


def _class(name: str) -> Callable[..., Any]:
    """Stands for a class that is only named, as an argument."""
    return type(name, (), {})


ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    **{(module, name): kind for module in ("__builtin__", "builtins")
       for name, kind in (("set", set), ("frozenset", frozenset))},
    **{(f"numpy.{core}.multiarray", name): made for core in ("core", "_core")
       for name, made in (("_reconstruct", _Array), ("scalar", _scalar))},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _class("ndarray"),
    ("_codecs", "encode"): _bytes,
    ("collections", "OrderedDict"): dict,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"the pickle asks for {module}.{name}; only plain values and arrays are read. If you trust it, write "
                "it again as plain dicts and arrays"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError(f"the pickle asks for an object outside of it ({str(pid)[:40]})")


def _opened(value: Any, done: dict[int, Any]) -> Any:
    """`value` with finished arrays in place of those under construction; `done` has what was met before, by `id`."""
    if not isinstance(value, (_Array, dict, list, tuple)):
        return value
    if id(value) not in done:
        if isinstance(value, _Array):
            found = _opened(value.value, done)
        elif isinstance(value, dict):
            found = {key: _opened(item, done) for key, item in value.items()}
        else:
            found = type(value)(_opened(item, done) for item in value)
        done[id(value)] = found
    return done[id(value)]


def _check(data: bytes) -> None:
    """Raise ValueError for what would take the process down before it is seen.

    The unpickler allocates a table up to the greatest memo number, and the hash of nested tuples goes down without end.
    """
    tuples = 0
    for opcode, argument, _ in pickletools.genops(data):  # checks lengths itself
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError(f"memo number {argument}")
        tuples += opcode.name.startswith("TUPLE")
    if tuples > MOST_TUPLES:
        raise ValueError(f"{tuples} tuples; features have few")
