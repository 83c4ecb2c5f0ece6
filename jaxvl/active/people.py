"""A round with people: a batch goes out as files, labels come in as files, and a round ends when enough are there.

round_003/batch/       what was exported
round_003/received/    labels that came in, one file an import, named by the hash of what was imported
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active.bank import pattern_id
from jaxvl.active.folder import ANSWERS, LABELS, QUALITY, RunError, RunFolder, plain_record
from jaxvl.active.human import Imported, export_batch, merge_records, read_labels
from jaxvl.active.human.export import QUESTIONS
from jaxvl.active.human.quality import choose_gold, summary
from jaxvl.active.items import IMAGE
from jaxvl.active.ledger import Event, Ledger
from jaxvl.active.report.balance import question_key
from jaxvl.active.report.pictures import Pictures
from jaxvl.active.seeds import generator
from jaxvl.active.world import World
from jaxvl.atomic import read_json, sha256, write_json, write_jsonl
from jaxvl.data.region_source import features_digest
from jaxvl.vqa_normalise import normalise

RECEIVED = "RECEIVED"  # an event between EXPORTED and IMPORTED
UNREAD = ("image", "seconds", "annotators")  # fields of a record that no model reads


class Taken(NamedTuple):
    """Labels of a round: question `records`, the items `ids` they are of, and items never to ask for again."""

    records: list[dict[str, Any]]
    ids: list[int]
    excluded: list[int]


class Exported(NamedTuple):
    """A batch: its `folder`, the labelled images `gold` that test people, and the `duplicates` that were left out, each
    with the item that it equals (as JSON has it: ids as strings)."""

    folder: Path
    gold: list[int]
    duplicates: dict[str, int]


def export(run: RunFolder, round: int, world: World) -> Exported:
    """Write the batch of a round for people."""
    folder, chosen = run.folder(round) / "batch", gold(run, round, world.options.gold)
    copies = write_batch(
        run, round, chosen, images=world.picture, suggest=world.options.suggest, folder=folder,
        digest=functools.partial(features_digest, world.provider),
    )  # fmt: skip
    write_json(run.folder(round) / ANSWERS, world.answers)
    (run.folder(round) / QUALITY).unlink(missing_ok=True)  # of a round that was rolled back
    return Exported(folder, chosen, {str(copy): first for copy, first in copies.items()})


def write_batch(
    run: RunFolder,
    round: int,
    gold: Sequence[int],
    *,
    images: Pictures | None,
    suggest: bool,
    folder: Path,
    digest: Callable[[int], str | None],
) -> dict[int, int]:
    """Write the files of a round's batch into a folder; the images that were left out, as `Batch.duplicates`.

    With gold images, all images come with questions, so that they cannot be told apart: gold images with those whose
    answers are known, images that the strategy has no question for with some that were asked of other images. Of
    images with the same `digest`, or the same picture, the gold one or else the first is exported.

    Raises:
      RunError: `gold` without `suggest`: its answers could not be judged.
    """
    if gold and not suggest:
        raise RunError(
            f"{run.path}: {len(gold)} images of this batch test annotators by known questions, which must be shown: "
            "leave out --no-suggest"
        )
    rows = run.selection(round)
    rng = _rng(run, round, "places of gold images")
    known = _questions(run, round, gold, [r["image_id"] for r in rows], rng) if gold else {}
    made = export_batch(
        rows, run=f"{run.method}/r{run.repeat}", round=round, images=images, suggest=suggest, folder=folder,
        gold=gold, known=known, rng=rng, digests={i: digest(i) for i in [*(int(r["image_id"]) for r in rows), *gold]},
    )  # fmt: skip
    return made.duplicates


def gold(run: RunFolder, round: int, share: float) -> list[int]:
    """Labelled images to mix into the batch of a round; none into the first, when no image has labels."""
    if not share:
        return []
    batch = sum(not row.get("reserve") for row in run.selection(round))
    asked = {int(r["image_id"]) for r in run.records(round)}
    return choose_gold(sorted(asked), batch=batch, share=share, rng=_rng(run, round, "gold images"))


def gold_of(run: RunFolder, round: int) -> list[int]:
    """The labelled images that were mixed into the batch of a round."""
    event = run.events(round).get("EXPORTED")
    return [] if event is None else [int(i) for i in event.data.get("gold", ())]


def _questions(
    run: RunFolder, round: int, gold: Sequence[int], others: Sequence[int], rng: np.random.Generator
) -> dict[int, list[dict[str, Any]]]:
    """Questions to suggest: the known ones of gold images, for other images as many that are known of any image."""
    bare = [
        (int(r["image_id"]), {"pattern_id": pattern_id(question_key(r["question"])), "question": r["question"],
         "type": r["answer_type"]})
        for r in run.records(round)
    ]  # fmt: skip
    out: dict[int, list[dict[str, Any]]] = {int(i): [q for j, q in bare if j == i] for i in gold}
    distinct = list({q["pattern_id"]: q for _, q in bare}.values())
    counts = [min(QUESTIONS, len(asked), len(distinct)) for asked in out.values()]
    for image_id in others:
        some = rng.choice(len(distinct), rng.choice(counts), replace=False)
        out[int(image_id)] = [distinct[k] for k in some]
    return out


def _rng(run: RunFolder, round: int, purpose: str) -> np.random.Generator:
    return generator(run.protocol["seed"], run.repeat, run.method, round, purpose)


def receive(
    run: RunFolder, ledger: Ledger, round: int, file: Path, *, partial: bool = False, replace: bool = False
) -> Imported:
    """Take labels from a file; the same file twice changes nothing.

    Args:
      ledger: opened for writing.
      partial: take the good lines of a file that has bad ones; else such a file is refused as a whole.
      replace: answers without an annotator may take the place of those of an earlier file of the same name; a file that
        was taken before becomes the newest again.

    Raises:
      RunError: the round is not waiting for labels; or, without `replace`, there are such answers.
      ValueError: bad lines, all of them named.
    """
    now, phase = run.position()
    if (now, phase) != (round, "IMPORTED"):
        raise RunError(f"{run.path}: round {now} is at {phase or 'its end'}: no batch is waiting for labels")
    batch = run.selection(round)
    questions = None if run.unit == IMAGE else {row["question_id"]: row for row in batch}
    images = [row["image_id"] for row in batch]
    found = read_labels(
        file, batch_ids=images, partial=partial, gold_ids=gold_of(run, round), questions=questions
    )
    known = {e.data["sha"]: e for e in _imports(run, round)}
    whole = found.sha in known and _intact(run, round, known[found.sha])
    lost = [] if replace or found.sha in known else _replaced(run, round, file.stem, found)
    if lost:
        raise RunError(
            f"{file}: to {len(lost)} questions, the first of {run.unit.one} {lost[0]}, an earlier file named "
            f"{file.stem!r} gave other answers without an annotator, whose place these would take. Is it another "
            "person's file? Give it another name, or name the annotators. Is it a correction? Import it with --replace"
        )
    path = _kept(run, round, found.sha)
    if not whole:
        content = {
            "records": [plain_record(r) for r in found.records], "skipped": list(found.skipped),
            "bad_images": list(found.bad_images), "gold": [plain_record(r) for r in found.gold],
        }  # fmt: skip
        write_json(path, content)
    if not whole or (replace and list(known)[-1] != found.sha):
        count = {run.unit.many: len({r[run.unit.key] for r in found.records})}
        files = {f"received/{path.name}": sha256(path)}
        ledger.append(RECEIVED, round=round, sha=found.sha, files=files, **count)
    if all(_intact(run, round, e) for e in _imports(run, round)):  # others may have to come in again first
        write_json(run.folder(round) / QUALITY, quality(run, round, state(run, round).records))
    return found


def _replaced(run: RunFolder, round: int, source: str, found: Imported) -> list[int]:
    """Items with nameless answers that an earlier file named `source` gave, and this one of that name has not."""

    def nameless(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str], Counter[str]]:
        out: dict[tuple[int, str], Counter[str]] = {}
        for row in rows:
            names = row.get("annotators") or ()
            mine = [i for i, name in enumerate(names) if str(name).startswith(f"{source}#")]
            if mine and source not in names:  # else they are second answers of a person of that name
                key = int(row[run.unit.key]), question_key(row["question"])
                out[key] = Counter(normalise(row["answers"][i]) for i in mine)
        return out

    now = nameless([*found.records, *found.gold])
    before: dict[tuple[int, str], Counter[str]] = {}
    for event in _imports(run, round):  # the later ones have taken the place of the earlier ones
        if _intact(run, round, event):
            content = read_json(_kept(run, round, event.data["sha"]))
            before |= nameless([*content["records"], *content.get("gold", ())])
    return [key[0] for key, answers in before.items() if key in now and answers - now[key]]


def state(run: RunFolder, round: int) -> Taken:
    """What has come in for a round so far.

    An item that people skipped or found unusable is replaced by the next one of the reserve: labels of as many reserve
    items count, in the order of their ranks. Copies of items that were asked for are excluded, those of a reserve item
    only if its labels count.
    """
    key = run.unit.key
    found: list[Mapping[str, Any]] = []
    excluded: set[int] = set()
    for content in _received(run, round):
        found += content["records"]
        excluded |= {int(i) for i in [*content["skipped"], *content["bad_images"]]}
    copies = _copies(run, round)
    records = merge_records(found, by=key, min_answers=int(run.protocol.get("min_answers", 1)))
    have = {int(r[key]) for r in records}
    selection = run.selection(round)
    batch = [row[key] for row in selection if not row.get("reserve")]
    reserve = [row[key] for row in selection if row.get("reserve")]
    excluded |= {i for i, first in copies.items() if first not in reserve}
    excluded -= have
    taken = [i for i in batch if i in have]
    taken += [i for i in reserve if i in have][: sum(i in excluded for i in batch)]
    excluded |= {i for i, first in copies.items() if first in taken}
    return Taken([plain_record(r) for r in records if int(r[key]) in set(taken)], taken, sorted(excluded))


def _copies(run: RunFolder, round: int) -> dict[int, int | None]:
    """Items that were left out of a round's batch -> the item that each equals (None: an older run did not say)."""
    event = run.events(round).get("EXPORTED")
    found = {} if event is None else event.data.get("duplicates", {})
    return {int(i): int(found[i]) if isinstance(found, dict) else None for i in found}


def _imports(run: RunFolder, round: int) -> list[Event]:
    """The newest event of each file that labels of a round came in by, in their order."""
    newest: dict[str, Event] = {}
    for event in run.ledger.valid():
        if event.kind == RECEIVED and event.data["round"] == round:
            newest.pop(event.data["sha"], None)
            newest[event.data["sha"]] = event
    return list(newest.values())


def _kept(run: RunFolder, round: int, sha: str) -> Path:
    """Where the labels of an import are kept."""
    return run.folder(round) / "received" / f"{sha}.json"


def _intact(run: RunFolder, round: int, event: Event) -> bool:
    """Whether the labels of an import are what was written; of older runs, whether they are there."""
    path = _kept(run, round, event.data["sha"])
    known = event.data.get("files", {}).get(f"received/{path.name}")
    return path.exists() and known in (None, sha256(path))


def _received(run: RunFolder, round: int) -> list[Mapping[str, Any]]:
    """What came in for a round, an item an import.

    Raises:
      RunError: some of it is not what was written.
    """
    events = _imports(run, round)
    bad = [str(_kept(run, round, e.data["sha"])) for e in events if not _intact(run, round, e)]
    if bad:
        raise RunError(
            f"{', '.join(bad)}: not what was written when these labels came in; import their files again"
        )
    return [read_json(_kept(run, round, e.data["sha"])) for e in events]


def quality(run: RunFolder, round: int, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is said of these labels of a round, and of the answers on its gold images; see `human.quality.summary`."""
    given = merge_records([r for content in _received(run, round) for r in content.get("gold", ())])
    images = {int(r["image_id"]) for r in given}
    truth = [r for r in run.records(round) if int(r["image_id"]) in images]
    path = run.folder(round) / ANSWERS
    answers = read_json(path) if path.exists() else None
    return summary(records, given, truth, selection=run.selection(round), answers=answers)


def labels_key(records: Sequence[Mapping[str, Any]]) -> str:
    """A hash of what people answered, so that a model of other labels of the same items is another model."""
    plain = ({k: v for k, v in plain_record(r).items() if k not in UNREAD} for r in records)
    rows = sorted(json.dumps(row, sort_keys=True) for row in plain)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


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
    write_json(run.folder(round) / QUALITY, quality(run, round, found.records))
    data: dict[str, Any] = {"round": round, "ids": found.ids, "excluded": found.excluded}
    files = {name: sha256(run.folder(round) / name) for name in (LABELS, QUALITY)}
    ledger.append("IMPORTED", **data, files=files, seconds=0.0)
    ledger.append("COMMITTED", **data, files={}, seconds=0.0)
    return found


def missing(run: RunFolder, round: int) -> Sequence[int]:
    """Items of the batch that people were given, without labels."""
    now = state(run, round)
    have = {*now.ids, *now.excluded}
    return [
        row[run.unit.key]
        for row in run.selection(round)
        if not row.get("reserve") and row[run.unit.key] not in have
    ]
