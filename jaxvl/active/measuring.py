"""What a round's task model is worth: its answers scored here, or written down for EvalAI, and the round's metrics."""

from __future__ import annotations

import functools
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvl.active import balance, evalai, evaluation, vocabulary
from jaxvl.active.bank import KINDS, Bank
from jaxvl.active.beginning import proposer_of
from jaxvl.active.fitting import exclusive
from jaxvl.active.oracle import Record
from jaxvl.active.pool import Labelled
from jaxvl.active.world import TASK, World
from jaxvl.atomic import write_file
from jaxvl.types import Predict


def assess(world: World, predict: Predict, *, key: str, folder: Path) -> tuple[str, dict[str, float]]:
    """(file in the round's folder, accuracy): the evaluation questions scored, or answered for EvalAI.

    One model is asked once, whoever shares it.

    Args:
      key: of the task model.
      folder: of the round.
    """
    test = world.options.protocol == "test"
    name = evalai.RESULTS if test else "evaluation.npz"
    model = world.fitter.folder / f"{TASK}-{key}"
    which = f"{world.data_key['val']}-{world.data_key['annotations']}"
    kept = model / f"evaluation-{which}{Path(name).suffix}"
    with exclusive(model):
        if not kept.exists():
            _write_answers(world, predict, kept, test=test)
    write_file(folder / name, lambda p: shutil.copyfile(kept, p))
    return name, {} if test else evaluation.Scored.load(kept).accuracy()


def by_question_type(world: World, file: Path) -> dict[str, float]:
    """Accuracy in percent of the questions of each `question_type` (VQA v2's prefixes); empty where files name none."""
    types = [str(world.val.annotation(i).get("question_type") or "") for i in range(len(world.val))]
    if not any(types) or file.suffix != ".npz":
        return {}
    value, kind = evaluation.Scored.load(file).value, np.array(types)
    return {name: 100 * float(value[kind == name].mean()) for name in sorted(set(types))}


def bank_summary(bank: Bank) -> dict[str, Any]:
    """How many patterns, of how many distinct questions, and of which kinds."""
    found = np.bincount(bank.kinds, minlength=len(KINDS)).tolist()
    return {"size": len(bank), "distinct": bank.distinct, "by_kind": dict(zip(KINDS, found, strict=True))}


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {name: version(name) for name in ("jaxvl", "jax", "jaxlib", "flax", "optax", "numpy")}


def peak_memory() -> dict[str, float]:
    """The most that this process and each of its devices that says so has held so far, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # Linux counts KiB, macOS bytes
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    stats = [d.memory_stats() or {} for d in jax.local_devices()]
    device = max((s["peak_bytes_in_use"] / 2**30 for s in stats if "peak_bytes_in_use" in s), default=None)
    return {"host": round(host, 3)} | ({} if device is None else {"device": round(device, 3)})


def _write_answers(world: World, predict: Predict, kept: Path, *, test: bool) -> None:
    """The model's scored answers, or with `test` those for EvalAI, in the file `kept`."""
    ask = functools.partial(predict, f"{TASK}/answer")
    if test:
        ids = [int(world.val.annotation(i)["question_id"]) for i in range(len(world.val))]
        evalai.write_results(kept, evaluation.answered(ask, world.val, world.answers), ids=ids)
    else:
        scored = evaluation.score(ask, world.val, world.answers, variant=world.options.variant)
        write_file(kept, lambda p: scored.save(p))


def metrics(
    world: World,
    labelled: Labelled,
    *,
    round: int,
    accuracy: Mapping[str, float],
    result: Mapping[str, Any],
    seed: int,
    before: Sequence[Mapping[str, Any]],
    file: Path,
) -> dict[str, Any]:
    """What `metrics.json` says of a round.

    Args:
      labelled: items at its start.
      accuracy: of the task model; none under the protocol "test": see `RunFolder.rounds`.
      result: of its training; seed: of it.
      before: metrics of the rounds before.
      file: what `assess` wrote.
    """
    records, images = labelled.records, len(np.unique(labelled.image_ids))
    return {
        "schema": "jaxvl.round/1",
        "round": round,
        "fraction": len(labelled) / len(world.oracle.ids),
        "n_images": images,
        "n_qas": len(records),
        "n_answers": sum(len(r["answers"]) for r in records),
        "cost": cost(world, records, images),
        "acc": accuracy,
        "question_types": by_question_type(world, file),
        "train": {TASK: result},
        "balance": balance.summary(labelled.shares.counts, KINDS),
        "seeds": {"master": world.seed, "task": seed},
        "proposer": proposer_of(world),
        "bank": bank_summary(labelled.bank) if world.questions is None else None,
        "versions": versions(),
        "peak_mem": peak_memory(),
        "vocabulary": vocabulary.summary(
            records, world.words.vocab, world.answers, before=before[-1].get("vocabulary") if before else None
        ),
    }


def cost(world: World, records: Sequence[Record], images: int) -> dict[str, float]:
    """What these labels have cost, in total and by what is counted."""
    seconds = sum(float(r.get("seconds") or 0.0) for r in records)
    total = world.options.cost.of(records, images=images, seconds=seconds)
    return {"total": total, "images": images, "questions": len(records), "seconds": seconds}
