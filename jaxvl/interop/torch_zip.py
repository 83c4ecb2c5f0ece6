"""The zip archive that torch >= 1.6 writes, read without PyTorch and without running code from it.

`data.pkl` describes tensors, `data/<key>` holds the raw numbers of each storage. The description is unpickled
with a list of the few names that tensors need; any other name is refused before it is looked up. Storages are
mapped into memory: a tensor costs memory only when it is copied, and state that nobody asks for is never read.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxvl.interop.files import WeightsError

MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # first pickle of the format before torch 1.6
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
DAMAGED = (ValueError, TypeError, LookupError, AttributeError, ImportError, OverflowError, RecursionError)

STORAGES: Mapping[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
IGNORED = frozenset(  # harmless company of tensors: read as an object that keeps nothing
    ["torch.Size", "torch.device", "argparse.Namespace", "numpy.dtype", "_codecs.encode"]
    + ["numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"]
    + [f"torch.{t}" for t in DTYPES]
)


class UnsafeWeightsError(WeightsError):
    """The file asks for an object that is neither a tensor nor known to be harmless."""


def read_zip(path: Path) -> dict[Any, Any]:
    """The dictionary in the file, nested as it was saved, with a `StoredTensor` for every tensor.

    Raises:
      UnsafeWeightsError: the file asks for something else than tensors and plain values.
      WeightsError: damaged, truncated, or of another format.
    """
    _refuse_other_formats(path)
    try:
        archive = _Archive.open(path)
        _check_memory(archive.bytes("data.pkl"))
        tree = _Unpickler(archive).load()
    except WeightsError:
        raise
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise WeightsError(f"{path}: truncated or damaged ({error}); download it again") from error
    except DAMAGED as error:
        raise WeightsError(f"{path}: its description of the tensors is damaged ({error})") from error
    if not isinstance(tree, dict):
        raise WeightsError(
            f"{path}: holds a {type(tree).__name__}, not a dictionary; save model.state_dict()"
        )
    return tree


def _check_memory(description: memoryview) -> None:
    """Raise ValueError if a length or memo number exceeds the description: the unpickler would allocate that much."""
    for opcode, argument, _ in pickletools.genops(description.tobytes()):  # checks lengths itself
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(description):
            raise ValueError(f"memo number {argument}")


def _refuse_other_formats(path: Path) -> None:
    with open(path, "rb") as file:
        head = file.read(512)
    if head.startswith(MAGIC) or head[257:262] == b"ustar":
        raise WeightsError(
            f"{path}: written in the format before torch 1.6; read it once with torch (weights_only=True) and "
            "write it again with torch.save, or as .safetensors"
        )
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in its repository"
        )
    if not head.startswith(b"PK"):
        raise WeightsError(f"{path}: neither a zip archive of torch.save nor .safetensors; download it again")


@dataclass(frozen=True)
class _Archive:
    """Entries of a torch zip file; those stored uncompressed are slices of one memory map."""

    path: Path
    root: str
    entries: Mapping[str, zipfile.ZipInfo]
    memory: memoryview
    order: str
    checked: dict[str, memoryview] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> _Archive:
        with zipfile.ZipFile(path) as zipped, open(path, "rb") as file:
            entries = {info.filename: info for info in zipped.infolist()}
            roots = [
                name[: -len("data.pkl")]
                for name in entries
                if name.count("/") == 1 and name.endswith("/data.pkl")
            ]
            if not roots:
                raise WeightsError(f"{path}: a zip archive without data.pkl, so not a file of torch.save")
            if roots[0] + "constants.pkl" in entries:
                raise WeightsError(
                    f"{path}: a TorchScript program, not weights; save its state_dict() instead"
                )
            order = zipped.read(roots[0] + "byteorder") if roots[0] + "byteorder" in entries else b"little"
            memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return cls(path, roots[0], entries, memory, order.decode("ascii").strip())

    def bytes(self, name: str) -> memoryview:
        """Contents of the entry `name`, checked once against its checksum."""
        if name not in self.checked:
            data = self._contents(self.entries[self.root + name])
            if zlib.crc32(data) != self.entries[self.root + name].CRC:
                raise WeightsError(
                    f"{self.path}: {name} does not match its checksum: the file is damaged, download it again "
                    "(if it was saved with compute_crc32=False, save it again with checksums)"
                )
            self.checked[name] = data
        return self.checked[name]

    def _contents(self, info: zipfile.ZipInfo) -> memoryview:
        if info.compress_type != zipfile.ZIP_STORED:
            try:
                with zipfile.ZipFile(self.path) as zipped:
                    return memoryview(zipped.read(info))
            except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
                raise WeightsError(f"{self.path}: {info.filename} cannot be unpacked ({error})") from error
        header = self.memory[info.header_offset : info.header_offset + 30]
        if bytes(header[:4]) != b"PK\x03\x04":
            raise WeightsError(
                f"{self.path}: {info.filename} is not where the archive says; download it again"
            )
        name, extra = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
        start = info.header_offset + 30 + name + extra
        return self.memory[start : start + info.file_size]


class _Sealed:
    """A pickle may create these objects but not rewrite their fields."""

    def __setstate__(self, _: Any) -> None:
        raise WeightsError("the description of the tensors rewrites a tensor: the file is damaged or hostile")


@dataclass(frozen=True)
class _Storage(_Sealed):
    archive: _Archive
    key: str
    dtype: np.dtype
    size: int

    def array(self) -> np.ndarray:
        """All numbers of the storage, `[size]`; a view of the file where its byte order is ours."""
        data = self.archive.bytes(f"data/{self.key}")
        swapped = self.archive.order == "big"
        dtype = self.dtype.newbyteorder(">") if swapped else self.dtype
        array = np.frombuffer(data, dtype, count=self.size)
        return array.astype(self.dtype) if swapped else array


@dataclass(frozen=True)
class StoredTensor(_Sealed):
    """A view of a storage, not read yet. Offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        flat = self.storage.array()[self.offset :]
        strides = tuple(
            s * flat.itemsize if n > 1 else 0 for n, s in zip(self.shape, self.strides, strict=True)
        )
        try:
            return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        except ValueError as error:  # more axes or numbers than numpy can count
            raise WeightsError(
                f"{self.storage.archive.path}: a tensor of shape {self.shape}: {error}"
            ) from error


class _Ignored:
    """Stands for an object that is not a tensor; drops whatever it is given."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries, lists, numbers, strings and `StoredTensor`s; refuses everything else by name."""

    def __init__(self, archive: _Archive) -> None:
        super().__init__(io.BytesIO(archive.bytes("data.pkl")), encoding="utf-8")
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if module == "torch" and name in STORAGES:
            return name
        if full in IGNORED:
            return _Ignored
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
        }
        if full in known:
            return known[full]
        raise UnsafeWeightsError(
            f"{self.archive.path}: refused to read {full!r}, which no tensor of numbers needs. If you trust the file, "
            "read it with torch where it was made and save only model.state_dict()"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """`pid` = ("storage", type, key, device, number of elements)."""
        tag, kind, key, _, size = pid
        if tag != "storage" or kind not in STORAGES or not isinstance(key, str) or not isinstance(size, int):
            raise WeightsError(f"{self.archive.path}: unknown kind of storage {pid!r}")
        entry = self.archive.entries.get(f"{self.archive.root}data/{key}")
        if entry is None or not 0 <= size * STORAGES[kind].itemsize <= entry.file_size:
            raise WeightsError(
                f"{self.archive.path}: storage {key!r} is missing or too short; download it again"
            )
        return _Storage(self.archive, key, STORAGES[kind], size)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StoredTensor:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
            raise WeightsError(
                f"{self.archive.path}: a tensor with offset {offset}, shape {shape}, strides {strides}"
            )
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.size:
            raise WeightsError(f"{self.archive.path}: a tensor reaches beyond storage {storage.key!r}")
        return StoredTensor(storage, offset, tuple(shape), tuple(strides))

    def _parameter(self, data: Any, *_: Any) -> Any:
        return data
