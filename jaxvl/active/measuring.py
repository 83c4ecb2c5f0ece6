"""What a round's task model is worth: its answers scored here, or written down for EvalAI, and the round's metrics."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active import balance, evalai, evaluation, vocabulary
from jaxvl.active.bank import KINDS
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
    kept = model / f"evaluation-{world.data_key['val']}{Path(name).suffix}"
    with exclusive(model):
        if not kept.exists():
            _write_answers(world, predict, kept, test=test)
    write_file(folder / name, lambda p: shutil.copyfile(kept, p))
    return name, {} if test else evaluation.Scored.load(kept).accuracy()


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
) -> dict[str, Any]:
    """What `metrics.json` says of a round.

    Args:
      labelled: items at its start.
      accuracy: of the task model; none under the protocol "test": see `RunFolder.rounds`.
      result: of its training; seed: of it.
      before: metrics of the rounds before.
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
        "train": {TASK: result},
        "balance": balance.summary(labelled.shares.counts, KINDS),
        "seeds": {"master": world.seed, "task": seed},
        "proposer": proposer_of(world),
        "vocabulary": vocabulary.summary(
            records, world.words.vocab, world.answers, before=before[-1].get("vocabulary") if before else None
        ),
    }


def cost(world: World, records: Sequence[Record], images: int) -> dict[str, float]:
    """What these labels have cost, in total and by what is counted."""
    seconds = sum(float(r.get("seconds") or 0.0) for r in records)
    total = world.options.cost.of(records, images=images, seconds=seconds)
    return {"total": total, "images": images, "questions": len(records), "seconds": seconds}
