"""A round with people: a batch goes out as files, labels come in as files, and a round ends when enough are there.

round_003/batch/       what was exported
round_003/received/    labels that came in, one file an import, named by the hash of what was imported
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxvl.active.folder import LABELS, RunError, RunFolder, plain_record
from jaxvl.active.human import Imported, export_batch, merge_records, read_labels
from jaxvl.active.items import IMAGE
from jaxvl.active.ledger import Ledger
from jaxvl.active.world import World
from jaxvl.atomic import read_json, sha256, write_json, write_jsonl

DUPLICATES = "duplicates.json"  # items of the batch that show what another one shows: they are not exported
RECEIVED = "RECEIVED"  # an event between EXPORTED and IMPORTED


class Taken(NamedTuple):
    """Labels of a round: question `records`, the items `ids` they are of, and items never to ask for again."""

    records: list[dict[str, Any]]
    ids: list[int]
    excluded: list[int]


def export(run: RunFolder, round: int, world: World) -> Path:
    """Write the batch of a round for people; its folder."""
    folder = run.folder(round) / "batch"
    made = export_batch(
        run.selection(round), run=f"{run.method}/r{run.repeat}", round=round, images=world.picture,
        suggest=world.options.suggest, folder=folder,
    )  # fmt: skip
    write_json(folder / DUPLICATES, sorted(made.duplicates))
    return folder


def receive(run: RunFolder, ledger: Ledger, round: int, file: Path, *, partial: bool = False) -> Imported:
    """Take labels from a file; the same file twice changes nothing.

    Args:
      ledger: opened for writing.
      partial: take the good lines of a file that has bad ones; else such a file is refused as a whole.

    Raises:
      RunError: the round is not waiting for labels.
      ValueError: bad lines, all of them named.
    """
    now, phase = run.position()
    if (now, phase) != (round, "IMPORTED"):
        raise RunError(f"{run.path}: round {now} is at {phase or 'its end'}: no batch is waiting for labels")
    batch = run.selection(round)
    questions = None if run.unit == IMAGE else {row["question_id"]: row for row in batch}
    images = [row["image_id"] for row in batch]
    found = read_labels(file, batch_ids=images, partial=partial, questions=questions)
    target = run.folder(round) / "received" / f"{found.sha}.json"
    if not target.exists():
        write_json(
            target,
            {
                "records": [plain_record(r) for r in found.records],
                "skipped": list(found.skipped),
                "bad_images": list(found.bad_images),
            },
        )
    if ledger.last(RECEIVED, round=round, sha=found.sha) is None:
        ledger.append(
            RECEIVED,
            **{
                "round": round,
                "sha": found.sha,
                run.unit.many: len({r[run.unit.key] for r in found.records}),
            },
        )
    return found


def state(run: RunFolder, round: int) -> Taken:
    """What has come in for a round so far.

    An item that people skipped or found unusable is replaced by the next one of the reserve: labels of as many reserve
    items count, in the order of their ranks.
    """
    key = run.unit.key
    found: list[Mapping[str, Any]] = []
    excluded: set[int] = set()
    for event in run.ledger.valid():
        if event.kind == RECEIVED and event.data["round"] == round:
            content = read_json(run.folder(round) / "received" / f"{event.data['sha']}.json")
            found += content["records"]
            excluded |= {int(i) for i in [*content["skipped"], *content["bad_images"]]}
    copies = run.folder(round) / "batch" / DUPLICATES
    if copies.exists():
        excluded |= set(read_json(copies))
    records = merge_records(found, by=key)
    have = {int(r[key]) for r in records}
    selection = run.selection(round)
    batch = [row[key] for row in selection if not row.get("reserve")]
    reserve = [row[key] for row in selection if row.get("reserve")]
    excluded -= have
    taken = [i for i in batch if i in have]
    taken += [i for i in reserve if i in have][: sum(i in excluded for i in batch)]
    return Taken([plain_record(r) for r in records if int(r[key]) in set(taken)], taken, sorted(excluded))


def lacking(run: RunFolder, round: int, min_fraction: float) -> str:
    """What a round still waits for; empty if it can end."""
    wanted = sum(not row.get("reserve") for row in run.selection(round))
    have, need = len(state(run, round).ids), math.ceil(min_fraction * wanted)
    if have >= need:
        return ""
    got = f"{have} of {wanted} {run.unit.many} of round {round} have labels"
    return f"{got}, {need} are needed (al.py import, or commit)"


def taken(run: RunFolder, round: int) -> Taken:
    """The labels with which a round ends, checked against the pool."""
    found = state(run, round)
    pool = set(run.pool().tolist())
    strange = [i for i in found.ids if i not in pool]
    if strange:
        raise RunError(f"{run.path}: {run.unit.one} {strange[0]} has labels, but is not in the pool")
    return found


def commit(run: RunFolder, ledger: Ledger, round: int) -> Taken:
    """End a round that waits for labels with those that are there; the rest of the batch goes back into the pool.

    Raises:
      RunError: the round does not wait for labels, or none have come in.
    """
    if run.position() != (round, "IMPORTED"):
        raise RunError(f"{run.path}: round {round} is not waiting for labels")
    found = taken(run, round)
    if not found.ids:
        raise RunError(
            f"{run.path}: no labels have come in for round {round}; import some first (al.py import)"
        )
    write_jsonl(run.folder(round) / LABELS, found.records)
    data: dict[str, Any] = {"round": round, "ids": found.ids, "excluded": found.excluded}
    ledger.append("IMPORTED", **data, files={LABELS: sha256(run.folder(round) / LABELS)}, seconds=0.0)
    ledger.append("COMMITTED", **data, files={}, seconds=0.0)
    return found


def missing(run: RunFolder, round: int) -> Sequence[int]:
    """Items of the batch without labels."""
    have = set(state(run, round).ids)
    return [
        row[run.unit.key]
        for row in run.selection(round)
        if not row.get("reserve") and row[run.unit.key] not in have
    ]
