"""The task model of the whole pool: what accuracies are a share of, and whose epochs make the dataset map.

workdir/full/r0/result.json      its accuracy, and what it was trained on: shared by all methods of the repeat
               /evaluation.npz   the score of each evaluation question
               /map.npz          confidence and variability of each question of the pool over its epochs
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvl.active import evaluation
from jaxvl.active.bank import KINDS
from jaxvl.active.beginning import protocol_of
from jaxvl.active.folder import FULL, RESULT, RunError, digest_of
from jaxvl.active.report.dataset_map import MAP, DatasetMap
from jaxvl.active.report.full import SAME
from jaxvl.active.seeds import seed_of
from jaxvl.active.world import TASK, Options, World
from jaxvl.atomic import read_json, write_file, write_json
from jaxvl.data.region_source import RegionQuestions
from jaxvl.types import Predict

EPOCHS = "epochs"  # in the model's folder: the probability of the true answers after each epoch


def train(
    world: World, workdir: Path, repeat: int, *, say: Callable[[str], None] = print
) -> Mapping[str, Any]:
    """Train, score and record the model of the whole pool of a repeat, once; `result.json`.

    It is trained as the model of a round is, from the same stage, on the questions of all images.

    Raises:
      RunError: there is no such model: see `check_full`.
    """
    folder = workdir / FULL / f"r{repeat}"
    protocol = {k: v for k, v in protocol_of(world, repeat).items() if k in SAME}
    seed = seed_of(world.seed, repeat, FULL, TASK)
    data, earlier = (
        {"labelled": digest_of(world.oracle.ids), **key, "recorded": EPOCHS}
        for key in (world.data_key, world.earlier_key)
    )
    if (folder / RESULT).exists():
        kept = read_json(folder / RESULT)
        keys = [world.fitter.key(TASK, seed=seed, data=d) for d in (data, earlier)]
        if kept["protocol"] == protocol and kept["model"] in keys:
            say(f"model of the whole pool, repeat {repeat}: kept, accuracy {kept['acc']['overall']:.2f}")
            return kept
    try:
        check_full(world.options, simulated=world.simulated)
    except ValueError as error:
        raise RunError(f"no model of the whole pool: {error}") from error
    source = RegionQuestions(
        world.provider, world.oracle.everything(), world.words, world.answers, kinds=KINDS
    )
    images = len(np.unique(source.image_ids))
    say(f"model of the whole pool, repeat {repeat}: {images} images, {len(source)} questions")
    fitted = world.fitter.fit(
        TASK, source, seed=seed, data=data,
        title=f"whole pool {repeat}", each_epoch=functools.partial(record, source),
    )  # fmt: skip
    predict = functools.partial(world.fitter.stages[TASK].trainer.predict, fitted.params)
    scored = evaluation.score(
        functools.partial(predict, "answer"), world.val, world.answers, variant=world.options.variant
    )
    epochs = sorted((world.fitter.folder / f"{TASK}-{fitted.key}" / EPOCHS).glob("*.npy"))
    lost = sorted(set(range(1, 1 + max(int(p.stem) for p in epochs))) - {int(p.stem) for p in epochs})
    if lost:  # a signal at the very step of an epoch's end stops the fit before the epoch is recorded
        say(
            f"model of the whole pool, repeat {repeat}: the dataset map lacks the epochs {lost}, lost to a stop"
        )
    found = DatasetMap.of_epochs(
        np.array([int(r["question_id"]) for r in source.records], np.int64),
        source.image_ids,
        np.stack([np.load(p) for p in epochs]),
    )
    write_file(folder / "evaluation.npz", scored.save)
    write_file(folder / MAP, found.save)
    accuracy = scored.accuracy()
    result = {
        "schema": "jaxvl.full/1", "protocol": protocol, "acc": accuracy, "n_images": images,
        "n_qas": len(source), "epochs": len(epochs), "model": fitted.key, "train": dict(fitted.result),
    }  # fmt: skip
    write_json(folder / RESULT, result)
    say(f"model of the whole pool, repeat {repeat}: accuracy {accuracy['overall']:.2f}")
    return result


def check_full(options: Options, *, simulated: bool) -> None:
    """Raise ValueError where a model of the whole pool could not be trained and scored as those of the rounds are."""
    if not simulated:
        raise ValueError("people label here, and nobody has labelled the whole pool")
    if options.protocol == "test":
        raise ValueError("only EvalAI would know its accuracy under the protocol test")
    if options.vocabulary.changes:
        raise ValueError(
            "words and answers follow the labels of rounds (words.scope, answers.scope, answers.grow), so that it "
            "would answer from other words and answers than they do"
        )
    if options.warm_start:
        raise ValueError(
            "with warm_start rounds begin at the model of the round before, and it has none before it"
        )


def record(source: RegionQuestions, folder: Path, number: int, predict: Predict) -> dict[str, float]:
    """Keep the probability of each true answer after an epoch; its mean for the log."""
    truth = np.asarray(predict("truth", source), np.float32)

    def save(path: Path) -> None:
        with path.open("wb") as file:  # numpy.save would append .npy to the temporary name
            np.save(file, truth, allow_pickle=False)

    write_file(folder / EPOCHS / f"{number:05d}.npy", save)
    return {"confidence": float(truth.mean(dtype=np.float64))}
