"""The folder of one run: a method and a repeat. Reading it needs no model, no data set and no lock.

    run.json                 method, repeat, seed, pool, initial set, what must agree between runs that are compared
    events.jsonl  lock       what happened: see `ledger`
    evalai_scores.json       what EvalAI said of the answers of rounds, under the protocol "test"
    initial/  round_000/ ... labels.jsonl (questions and answers that came in), selection.jsonl, scores.npz,
                             metrics.json; with people: batch/, received/, answers.json, quality.json

The labelled items (images or, with the unit "qa", questions) are derived from the COMMITTED events and stored nowhere
else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active import evalai
from jaxvl.active.items import IMAGE, UNITS, Unit
from jaxvl.active.ledger import Event, Ledger
from jaxvl.atomic import read_json, read_jsonl, sha256

ABOUT, SELECTION, LABELS, SCORES, METRICS, ANSWERS, QUALITY = (
    "run.json", "selection.jsonl", "labels.jsonl", "scores.npz", "metrics.json", "answers.json",
    "quality.json",
)  # fmt: skip
PHASES = ("TRAINED", "EVALUATED", "FITTED", "SCORED", "SELECTED", "EXPORTED", "IMPORTED", "COMMITTED")
INITIAL = -1  # the round that draws the initial images: it starts at SELECTED
FINISHED = "FINISHED"
LATER = ("task_model", "bank", "annotations")  # parts of a protocol that older runs do not name
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

    @property
    def options(self) -> dict[str, Any]:
        """What must be equal for runs to be repeats of one method, by dotted name; empty for older runs."""
        return dict(self.about.get("options", {}))

    @property
    def unit(self) -> Unit:
        """What was chosen and labelled: images, or questions about them."""
        return UNITS[self.about["protocol"].get("unit", IMAGE.name)]

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
        """The metrics of every round that was evaluated, in order.

        Under the protocol "test" their `acc` is what EvalAI said, with its `phase`, and empty as long as it has not.
        """
        found, (phase, scores) = [], evalai.scores_of(self.path)
        for round in range(self.last_round() + 1):
            if "EVALUATED" in self.events(round):
                metrics = read_json(self.folder(round) / METRICS)
                known = scores.get(round)
                if known is not None and known["sha256"] == self.results.get(round):
                    metrics |= {"acc": known["acc"], "phase": phase}
                found.append(metrics)
        return found

    @property
    def results(self) -> dict[int, str]:
        """Round -> SHA-256 of its answers for EvalAI, of the rounds that have such a file."""
        files = {r: self.events(r) for r in range(self.last_round() + 1)}
        named = {r: e["EVALUATED"].data.get("files", {}) for r, e in files.items() if "EVALUATED" in e}
        return {r: names[evalai.RESULTS] for r, names in named.items() if evalai.RESULTS in names}

    def selection(self, round: int) -> list[dict[str, Any]]:
        """The items that a round selected, in the order of choice, the reserve last (`"reserve": true`)."""
        path = self.folder(round) / SELECTION
        return read_jsonl(path) if "SELECTED" in self.events(round) else []

    def questions(self, round: int) -> list[dict[str, Any]]:
        """The question records that came in at the end of a round (`INITIAL`: those it all started with)."""
        path = self.folder(round) / LABELS
        return read_jsonl(path) if "COMMITTED" in self.events(round) else []

    # ---- what is derived ----------------------------------------------------------------------------------

    def labelled(self, round: int | None = None) -> list[int]:
        """Ids of the items with labels at the start of a round (None: now), in the order they came in."""
        ids: list[int] = []
        for event in self.ledger.valid():
            if event.kind == "COMMITTED" and (round is None or event.data["round"] < round):
                ids += event.data["ids"]
        return ids

    def excluded(self) -> set[int]:
        """Items that people skipped or found unusable: they are never asked for again."""
        return {i for e in self.ledger.valid() if e.kind == "COMMITTED" for i in e.data["excluded"]}

    def records(self, round: int | None = None) -> list[dict[str, Any]]:
        """The question records of `labelled(round)`."""
        last = self.last_round() + 1 if round is None else round
        return [record for r in range(INITIAL, last) for record in self.questions(r)]

    # ---- checks -------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """A line for each file that is not what its event says, and for each item that is labelled twice."""
        lines = []
        newest: dict[Path, tuple[Event, str]] = {}  # labels may have come in again
        for event in self.ledger.valid():
            for name, digest in event.data.get("files", {}).items():
                newest[self.folder(event.data["round"]) / name] = (event, digest)
        for path, (event, digest) in newest.items():
            if not path.exists():
                lines.append(f"{path} is missing (event {event.seq}, {event.kind})")
            elif sha256(path) != digest:
                lines.append(
                    f"{path} is not the file of event {event.seq}, {event.kind}: its checksum differs"
                )
        for event in self.ledger.valid():
            lines += self._model_problems(event)
        pool = self.pool().tolist()
        if self.protocol.get("pool") not in (None, digest_of(pool)):
            lines.append(f"{self.path / 'pool.json'} is not the pool that the run was begun with")
        ids = self.labelled()
        twice = sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []
        lines += [f"{self.unit.one} {i} was labelled twice" for i in twice]
        now = self.results
        lines += [
            f"{self.path / evalai.SCORES_FILE}: round {r} was scored for another {evalai.RESULTS} than there is now"
            for r, one in evalai.scores_of(self.path)[1].items()
            if now.get(r) != one["sha256"]
        ]
        strange = set(ids) - set(pool)
        lines += [f"{self.unit.one} {i} is labelled, but not in the pool" for i in sorted(strange)[:5]]
        return lines

    def free(self, ids: np.ndarray, round: int) -> np.ndarray:
        """Those of `ids` `[N]` that have no labels at the start of a round and are not left out."""
        taken = {*self.labelled(round), *self.excluded()}
        return np.array([i for i in ids.tolist() if i not in taken], np.int64)

    def _model_problems(self, event: Event) -> list[str]:
        """A line for each model of an event whose parameters are gone, or are others than were trained."""
        one = event.data.get("model")
        models = {**event.data.get("models", {}), **({"task": one} if one else {})}
        lines = []
        for stage, model in models.items():
            digest = model["result"].get("sha256")  # older runs do not say
            path = self.path.parents[1] / "models" / f"{stage}-{model['key']}" / "params.safetensors"
            if digest is not None and (not path.exists() or sha256(path) != digest):
                wrong = "its checksum differs" if path.exists() else "it is missing"
                lines.append(f"{path} is not the model of event {event.seq}, {event.kind}: {wrong}")
        return lines

    def pool(self) -> np.ndarray:
        """Sorted ids of all items of the pool `[N]` i64."""
        return np.array(read_json(self.path / "pool.json")["ids"], np.int64)


def digest_of(ids: Iterable[int]) -> str:
    """A hash of a set of ids."""
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
        "image", "image_id", "question", "question_id", "answers", "answer_type", "question_type",
        "multiple_choice_answer", "seconds", "annotators", "confidences",
    )  # fmt: skip
    return {k: _plain(record[k]) for k in kept if record.get(k) is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    return value
