"""What happened in a run, one line an event, appended and synced: everything else is derived from it.

Each line is `{"seq": n, "kind": ..., "data": {...}, "crc": ...}`; `seq` counts from 0, `crc` is the CRC-32 of the rest.
A last line that a kill cut short is dropped; any other line that does not fit is an error.
One process writes at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

EVENTS, LOCK = "events.jsonl", "lock"


class LedgerError(ValueError):
    """The events of a run cannot be read; the message names the file, the line and the way out."""


class Locked(RuntimeError):
    """Another process works on this run."""

    exit_code = 3


class Event(NamedTuple):
    """`kind` in capitals, e.g. "COMMITTED"; `data` is JSON."""

    seq: int
    kind: str
    data: Mapping[str, Any]


class Ledger:
    """The events of one folder. Reading needs no lock; `open` takes it, and only then `append` works."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.events, self._size = read(folder / EVENTS)
        self._lock: int | None = None

    def open(self) -> Ledger:
        """Become the one process that writes; what was cut short is removed.

        Raises:
          Locked: another process does; names it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(
                descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # the system frees that of a killed process
        except BlockingIOError as error:
            holder = os.read(descriptor, 64).decode(errors="replace").strip()
            os.close(descriptor)
            raise Locked(
                f"{self.folder}: process {holder or 'unknown'} works on this run; wait for it or stop it"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {os.uname().nodename}\n".encode())
        self._lock = descriptor
        self.events, self._size = read(self.folder / EVENTS)  # another process may have written since
        path = self.folder / EVENTS
        if path.exists() and path.stat().st_size > self._size:
            os.truncate(path, self._size)
        return self

    def close(self) -> None:
        """Let others write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Ledger:
        return self if self._lock is not None else self.open()

    def __exit__(self, *error: object) -> None:
        self.close()

    def append(self, kind: str, **data: Any) -> Event:
        """Write an event; it is on the disk when this returns."""
        if self._lock is None:
            raise LedgerError(f"{self.folder}: the ledger is open for reading only")
        event = Event(len(self.events), kind, data)
        line = _line(event)
        with (self.folder / EVENTS).open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.events.append(event)
        self._size += len(line)
        return event

    def last(self, kind: str, **match: Any) -> Event | None:
        """The newest event of a kind whose data has these values, after the newest rollback's cut."""
        for event in reversed(self.valid()):
            if event.kind == kind and all(event.data.get(k) == v for k, v in match.items()):
                return event
        return None

    def valid(self) -> list[Event]:
        """The events that count: ROLLED_BACK takes back all from the event `to` on."""
        kept: list[Event] = []
        for event in self.events:
            if event.kind == "ROLLED_BACK":
                kept = [e for e in kept if e.seq < event.data["to"]]
            else:
                kept.append(event)
        return kept


def read(path: Path) -> tuple[list[Event], int]:
    """The events of a file, and how many bytes of it they are; `([], 0)` where there is none.

    Raises:
      LedgerError: a line other than a last one that was cut short does not fit.
    """
    if not path.exists():
        return [], 0
    events: list[Event] = []
    size, content = 0, path.read_bytes()
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        event = _event(line, len(events))
        if event is None:
            if number == len(lines):
                break
            raise LedgerError(
                f"{path}, line {number}: not event {len(events)} (damaged or edited). Restore the file from a backup, "
                "or cut it before this line to go back to that point."
            )
        events.append(event)
        size += len(line)
    return events, size


def _line(event: Event) -> bytes:
    body = json.dumps({"seq": event.seq, "kind": event.kind, "data": event.data}, sort_keys=True)
    return f'{body[:-1]}, "crc": {zlib.crc32(body.encode())}}}\n'.encode()


def _event(line: bytes, seq: int) -> Event | None:
    """The event of a line; None if it is not the one with this number, whole and unchanged."""
    try:
        row = json.loads(line)
        event = Event(row["seq"], row["kind"], row["data"])
    except (ValueError, KeyError, TypeError):
        return None
    return event if event.seq == seq and line == _line(event) else None
