"""Files that are written whole or not at all, and by one process at a time.

A reader sees the old one or the new one, even after a power cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then put it in its place; makes the folder if need be.

    Processes that write the same file at once leave that of one of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last; systems whose folders cannot be opened have no way to ask for it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:  # a file system without it
        pass
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write JSON."""
    write_file(path, lambda p: p.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8"))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON object a line."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_file(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: it is not JSON; names file and line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); restore it") from error


def read_jsonl(path: Path) -> list[Any]:
    """The objects of a file with one a line.

    Raises:
      ValueError: a line is not JSON; names file and line.
    """
    rows = []
    # Not splitlines: strings may hold U+2028 and its like.
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not valid JSON ({error.msg}); restore it") from error
    return rows


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Lock:
    """Keeps other writers out of a folder until `release`; the system frees the lock of a killed process.

    Args:
      folder: it exists.
      error: raised, with a message that names the folder, if another process has the lock.
    """

    def __init__(self, folder: Path, *, error: type[Exception]) -> None:
        self._file: int | None = None
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            return
        self._file = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as found:
            self.release()
            raise error(f"{folder}: another process writes to this store; wait for it") from found
        except OSError:  # a file system without locks
            self.release()

    def release(self) -> None:
        """Let others write."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
