"""The folder of one run: a method and a repeat. Reading it needs no model, no data set and no lock.

    run.json                 method, repeat, seed, pool, initial set, what must agree between runs that are compared
    events.jsonl  lock       what happened: see `ledger`
    initial/  round_000/ ... labels.jsonl (questions and answers that came in), selection.jsonl, scores.npz,
                             metrics.json; with people: batch/, received/, answers.json, quality.json

The labelled images are derived from the COMMITTED events and stored nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active.ledger import Event, Ledger
from jaxvl.atomic import read_json, read_jsonl, sha256

ABOUT, SELECTION, LABELS, SCORES, METRICS, ANSWERS, QUALITY = (
    "run.json", "selection.jsonl", "labels.jsonl", "scores.npz", "metrics.json", "answers.json",
    "quality.json",
)  # fmt: skip
PHASES = ("TRAINED", "EVALUATED", "FITTED", "SCORED", "SELECTED", "EXPORTED", "IMPORTED", "COMMITTED")
INITIAL = -1  # the round that draws the initial images: it starts at SELECTED
FINISHED = "FINISHED"
FULL, RESULT = "full", "result.json"  # beside the methods of a workdir: models of the whole pool, by repeat


class RunError(ValueError):
    """A run that cannot go on, or files that are not what was written; names the file and the way out."""


class RunFolder:
    """What a run's folder holds; see the module.

    Raises:
      FileNotFoundError: the folder is no run.
    """

    def __init__(self, path: Path):
        self.path = path
        if not (path / ABOUT).exists():
            raise FileNotFoundError(f"{path}: not a run of active learning ({ABOUT} is not there)")
        self.about: dict[str, Any] = read_json(path / ABOUT)
        self.ledger = Ledger(path)

    @property
    def method(self) -> str:
        """Name of the strategy in the config."""
        return str(self.about["method"])

    @property
    def repeat(self) -> int:
        """Which of the repeats, from 0."""
        return int(self.about["repeat"])

    @property
    def full(self) -> Path | None:
        """The folder of what a model of the whole pool reached in this repeat; None if there is none (`al.py full`)."""
        path = self.path.parents[1] / FULL / f"r{self.repeat}"
        return path if (path / RESULT).exists() else None

    @property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for runs to be compared: pool, initial set, evaluation, proposer, answers."""
        return dict(self.about["protocol"])

    # ---- rounds -------------------------------------------------------------------------------------------

    def folder(self, round: int) -> Path:
        """The folder of a round."""
        return self.path / ("initial" if round == INITIAL else f"round_{round:03d}")

    def events(self, round: int) -> dict[str, Event]:
        """The phases of a round that are done, by name."""
        return {e.kind: e for e in self.ledger.valid() if e.kind in PHASES and e.data["round"] == round}

    def position(self) -> tuple[int, str | None]:
        """(round, next phase of it); the phase is None when the run is finished."""
        if self.ledger.last(FINISHED) is not None:
            return self.last_round(), None
        round = INITIAL
        while True:
            done = self.events(round)
            phases = PHASES[PHASES.index("SELECTED") :] if round == INITIAL else PHASES
            for phase in phases:
                if phase not in done:
                    return round, phase
            round += 1

    def last_round(self) -> int:
        """The newest round with an event; `INITIAL` before the first."""
        return max((e.data["round"] for e in self.ledger.valid() if e.kind in PHASES), default=INITIAL)

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The metrics of every round that was evaluated, in order."""
        found = []
        for round in range(self.last_round() + 1):
            if "EVALUATED" in self.events(round):
                found.append(read_json(self.folder(round) / METRICS))
        return found

    def selection(self, round: int) -> list[dict[str, Any]]:
        """The images that a round selected, best first, the reserve last (`"reserve": true`)."""
        path = self.folder(round) / SELECTION
        return read_jsonl(path) if "SELECTED" in self.events(round) else []

    def questions(self, round: int) -> list[dict[str, Any]]:
        """The question records that came in at the end of a round (`INITIAL`: those it all started with)."""
        path = self.folder(round) / LABELS
        return read_jsonl(path) if "COMMITTED" in self.events(round) else []

    # ---- what is derived ----------------------------------------------------------------------------------

    def labelled(self, round: int | None = None) -> list[int]:
        """Ids of the images with labels at the start of a round (None: now), in the order they came in."""
        ids: list[int] = []
        for event in self.ledger.valid():
            if event.kind == "COMMITTED" and (round is None or event.data["round"] < round):
                ids += event.data["ids"]
        return ids

    def excluded(self) -> set[int]:
        """Images that people skipped or found unusable: they are never asked for again."""
        return {i for e in self.ledger.valid() if e.kind == "COMMITTED" for i in e.data["excluded"]}

    def records(self, round: int | None = None) -> list[dict[str, Any]]:
        """The question records of `labelled(round)`."""
        last = self.last_round() + 1 if round is None else round
        return [record for r in range(INITIAL, last) for record in self.questions(r)]

    # ---- checks -------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """A line for each file that is not what its event says, and for each image that is labelled twice."""
        lines = []
        for event in self.ledger.valid():
            for name, digest in event.data.get("files", {}).items():
                path = self.folder(event.data["round"]) / name
                if not path.exists():
                    lines.append(f"{path} is missing (event {event.seq}, {event.kind})")
                elif sha256(path) != digest:
                    lines.append(
                        f"{path} is not the file of event {event.seq}, {event.kind}: its checksum differs"
                    )
        ids = self.labelled()
        twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
        lines += [f"image {i} was labelled twice" for i in twice]
        strange = set(ids) - set(self.pool().tolist())
        lines += [f"image {i} is labelled, but not in the pool" for i in sorted(strange)[:5]]
        return lines

    def pool(self) -> np.ndarray:
        """Sorted ids of all images of the pool `[N]` i64."""
        return np.array(read_json(self.path / "pool.json")["ids"], np.int64)


def digest_of(ids: Iterable[int]) -> str:
    """A hash of a set of image ids."""
    text = ",".join(str(i) for i in sorted(int(i) for i in ids))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def runs_in(workdir: Path) -> list[RunFolder]:
    """The runs below a folder (or the run that it is), by method and repeat."""
    if (workdir / ABOUT).exists():
        return [RunFolder(workdir)]
    found = [RunFolder(path.parent) for path in sorted(workdir.glob(f"*/*/{ABOUT}"))]
    return sorted(found, key=lambda run: (run.method, run.repeat))


def plain_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """A question record as JSON keeps it."""
    kept = (
        "image", "image_id", "question", "question_id", "answers", "answer_type", "question_type", "seconds",
        "annotators", "confidences",
    )  # fmt: skip
    return {k: _plain(record[k]) for k in kept if record.get(k) is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    return value
