"""What a workdir of tables holds: one folder a job, and which code, scale and data all of it belongs to.

runs/tables/
  workdir.json                scale, data, commit, hash of the code
  stages/vqa-3f2a.../         a workdir of launch/main.py with one stage, log.txt, job.json, failure.json
  bridge_tower_4.md  .csv     the report
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxvl import config as cfg
from jaxvl.atomic import write_json
from jaxvl.config import ConfigError
from jaxvl.reproduce.jobs import Job, key_of
from jaxvl.run import RESULT

BELONGS = "workdir.json"


class Store:
    """A workdir of tables. Only `begin` and `start` write; a finished job is one whose stage has a result."""

    def __init__(self, workdir: Path, root: Path):
        """`root` is the repository, whose code and commit are recorded."""
        self.workdir, self.root = workdir.expanduser().absolute(), root
        self.mix = False

    # ---- whose it is --------------------------------------------------------------------------------------

    def begin(self, *, scale: str, data: str, mix: bool = False) -> None:
        """Take the workdir for this scale, data and code.

        Args:
          mix: go on with cells of other code.

        Raises:
          ConfigError: it belongs to another scale, other data or (unless `mix`) other code.
        """
        self.check(scale=scale, data=data)
        self.mix = mix
        self.check_code()
        if not (self.workdir / BELONGS).exists() or mix or not self.begun():
            record = {"scale": scale, "data": data, "commit": commit(self.root), "code": code(self.root)}
            write_json(self.workdir / BELONGS, record)

    def check(self, *, scale: str, data: str) -> None:
        """Raise ConfigError if the workdir holds cells of another scale or of other data."""
        before = read_json(self.workdir / BELONGS)
        for name, now in (("scale", scale), ("data", data)):
            if before and self.begun() and before[name] != now:
                raise ConfigError(
                    f"{self.workdir} holds cells of --{name}={before[name]}, not {now}: give another --workdir, e.g. "
                    f"{self.workdir}_{now}, or --{name}={before[name]}"
                )

    def check_code(self) -> None:
        """Raise ConfigError if cells were made by other code than there is now."""
        before = read_json(self.workdir / BELONGS)
        if before and self.begun() and not self.mix and before["code"] != code(self.root):
            raise ConfigError(
                f"{self.workdir} holds cells of commit {before['commit']}; the code is another now "
                f"({commit(self.root)}). Give another --workdir, --report_only to see them, or --mix_commits to go on "
                "(the CSV file names the commit of each cell)."
            )

    def begun(self) -> bool:
        """Whether any job was started."""
        return next(self.workdir.glob("stages/*/job.json"), None) is not None

    # ---- one job ------------------------------------------------------------------------------------------

    def folder(self, job: Job) -> Path:
        """The job's own workdir of launch/main.py."""
        return self.workdir / "stages" / job.name

    def result(self, job: Job) -> dict[str, Any] | None:
        """`{"steps", "seconds", "metrics"}` of a finished job; None for any other, also one found wrong afterwards."""
        return None if self.failure(job) else read_json(self.folder(job) / job.stage / RESULT)

    def record(self, job: Job) -> dict[str, Any]:
        """How the job was started: argument, overrides, command, commits, seconds so far; empty if it never was."""
        return read_json(self.folder(job) / "job.json") or {}

    def failure(self, job: Job) -> str | None:
        """The error that ended the job's last attempt."""
        found = read_json(self.folder(job) / "failure.json")
        return None if found is None else str(found["error"])

    def fail(self, job: Job, error: str) -> None:
        """Write down why an attempt ended."""
        write_json(self.folder(job) / "failure.json", {"error": error})

    def params(self, job: Job) -> Path:
        """The parameters of a finished job."""
        found = (self.folder(job) / job.stage / "checkpoints").glob("*/meta.json")
        step = (self.result(job) or {}).get("chosen") or max(int(path.parent.name) for path in found)
        return self.folder(job) / job.stage / "checkpoints" / str(step) / "params.safetensors"

    def start(self, job: Job, command: str) -> None:
        """Write down that the job starts now; the configuration of its first start stays."""
        before = self.record(job)
        now = commit(self.root)
        record = {
            "arg": job.arg, "overrides": dict(job.overrides), "seconds": 0.0, "seed": job.seed, **before,
            "command": command,
            "commits": list(dict.fromkeys([*before.get("commits", []), now])),
        }  # fmt: skip
        (self.folder(job) / "failure.json").unlink(missing_ok=True)
        write_json(self.folder(job) / "job.json", record)

    def spent(self, job: Job, seconds: float) -> None:
        """Add the wall time of an attempt."""
        record = self.record(job)
        write_json(self.folder(job) / "job.json", record | {"seconds": round(record["seconds"] + seconds, 1)})

    def seconds(self, job: Job) -> float | None:
        """Wall time of all attempts, or what the run itself took where the time of the attempt was lost."""
        result = self.result(job)
        return (self.record(job).get("seconds") or result["seconds"]) if result else None

    def check_key(self, job: Job) -> None:
        """Raise ConfigError if the folder's config is not the one that the job is known by."""
        config = cfg.load(self.folder(job) / "config.json")
        found = key_of(config, job.stage, {name: need.key for name, need in job.needs.items()})
        if found != job.key:
            raise ConfigError(
                f"{self.folder(job)}: its config has hash {found}, not {job.key}: the command did not build the "
                "config of the row (an override that the command line changes?)"
            )

    @contextmanager
    def lock(self, job: Job) -> Iterator[int | None]:
        """A descriptor that holds the job while it, or a process that inherits it, is open; None if another has it."""
        self.folder(job).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder(job) / "lock", os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield None
                return
            yield descriptor
        finally:
            os.close(descriptor)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file, or None where there is none.

    Raises:
      ConfigError: it is not JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as e:
        raise ConfigError(
            f"{path}, line {e.lineno}: not valid JSON ({e.msg}); delete its folder to train again"
        ) from e


def commit(root: Path) -> str:
    """The repository's commit, with `+` where files differ from it; "unknown" outside of git."""
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=7", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def code(root: Path) -> str:
    """A hash of the files that train: what a commit of the documentation leaves alone."""
    files = [p for p in (root / "jaxvl").rglob("*.py") if "reproduce" not in p.parts]
    digest = hashlib.sha256()
    for path in sorted([*files, root / "launch/main.py"]):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
