"""From the sections of an active-learning config to a `World`; everything that can be wrong is found here.

Nothing below this file sees a config.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvl import build, optim
from jaxvl.active import matching
from jaxvl.active.bank import KINDS
from jaxvl.active.budget import Cost, Stop, targets
from jaxvl.active.fitting import Fitter, Plateau, Stage
from jaxvl.active.oracle import Oracle, records_of
from jaxvl.active.proposers import MATCHED, PROPOSERS
from jaxvl.active.scoring import PoolScorer
from jaxvl.active.strategies import load_strategies
from jaxvl.active.strategies.ccrl import ENGINE
from jaxvl.active.vocabulary import SCOPES, Scope
from jaxvl.active.world import SAMPLER, SHARING, TASK, Options, World
from jaxvl.config import ConfigError, make, plain, unknown
from jaxvl.data import PROVIDERS, scenes
from jaxvl.data.answers import build_answers, read_answers
from jaxvl.data.region_source import RegionQuestions, require_regions
from jaxvl.data.words import Words
from jaxvl.models import MODELS
from jaxvl.sharding import Partition
from jaxvl.tasks import TASKS
from jaxvl.train import Sigterm, Trainer

ORACLES = ("simulate", "people")
PEOPLE_ASK = 20  # questions that people are expected to ask of an image, at most: room in the tables of rates


def world(config: ConfigDict, root: Path, *, methods: Sequence[str], sigterm: Sigterm | None = None) -> World:
    """Build what the runs of a config share; only the stages that these methods need.

    Raises:
      ConfigError, ValueError, FileNotFoundError: bad input; nothing was written.
    """
    active, partition = config.active, Partition.create(**plain(config.sharding))
    if jax.process_count() > 1:
        raise ConfigError(
            "active learning runs in one process (with all its devices): start it without --multihost"
        )
    if active.oracle.name not in ORACLES:
        raise unknown("config.active.oracle.name", active.oracle.name, ORACLES)
    protocol = options(active)
    provider = make(PROVIDERS, "region provider", active.regions)
    pool, val = (build.reader(active[part], f"config.active.{part}") for part in ("pool", "val"))
    if hasattr(
        provider, "require_world"
    ):  # features of generated scenes must be of the scenes of the questions
        provider.require_world(pool)
        provider.require_world(val)
    simulated = active.oracle.name == "simulate"
    # People ask and answer: of their pool only the images count, and the words of questions it may come with.
    records = records_of(pool) if simulated else [pool.annotation(i) for i in range(len(pool))]
    held = records_of(val)
    check_apart(records, held)
    images = dict.fromkeys(int(r["image_id"]) for r in [*records, *held])
    require_regions(provider, images, wanted_by="config.active.pool and config.active.val")
    make_words = word_maker(active.words)
    words = make_words(r["question"] for r in [*(r for r in records if r.get("question")), *held])
    answers = answer_list(active.answers, pool)
    oracle = Oracle(records if simulated else [], images=[int(r["image_id"]) for r in records])
    try:
        counts = targets(len(oracle.ids), init=active.init, step=active.step, budget=active.budget)
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error
    strategies = chosen(config, methods)
    needed = [TASK, *dict.fromkeys(stage for s in strategies.values() for stage in protocol.needs(s))]
    rows = max(len(records), len(oracle.ids)) if simulated else PEOPLE_ASK * len(oracle.ids)

    def parts(words: Words, answers: list[str]) -> dict[str, Any]:
        """All that depends on the vocabulary."""
        stages = {
            name: stage(config, name, words, answers, provider, partition, rows)
            for name in needed
            if name != SAMPLER
        }
        if SAMPLER in needed:  # the task model's programs serve both
            stages[SAMPLER] = dataclasses.replace(stages[TASK], name=SAMPLER)
        return dict(
            words=words, answers=answers, val=RegionQuestions(provider, held, words, answers, kinds=KINDS),
            fitter=Fitter(root / "models", stages, sigterm=sigterm), engines=engines(config, stages, partition),
        )  # fmt: skip

    made = World(
        seed=config.seed, oracle=oracle, counts=counts, provider=provider, strategies=strategies, options=protocol,
        simulated=simulated, data_key=data_key(config, records, held, provider), make_words=make_words,
        picture=pictures(pool, provider, records), **parts(words, answers),
    )  # fmt: skip
    made.rebuild = lambda words, answers: dataclasses.replace(made, **parts(words, answers))
    check_shapes(made, made.fitter.stages)
    return made


def options(active: ConfigDict) -> Options:
    """The protocol's choices."""
    oracle = active.oracle
    if active.proposer not in PROPOSERS:
        raise unknown("config.active.proposer", active.proposer, PROPOSERS)
    if active.proposer == "visible" and oracle.name != "simulate":
        raise ConfigError(
            "config.active.proposer='visible' needs config.active.oracle.name='simulate': the images that people "
            "annotate have no questions yet"
        )
    if active.share_task_model not in SHARING:
        raise unknown("config.active.share_task_model", active.share_task_model, SHARING)
    return Options(
        asked=active.asked, proposer=active.proposer, share_task_model=active.share_task_model,
        warm_start=active.warm_start, vocabulary=scope_of(active),
        variant=active.variant, bank=plain(active.bank), shared_init=active.shared_init,
        min_fraction=oracle.min_fraction, reserve=oracle.reserve, suggest=oracle.suggest,
        cost=Cost(**plain(active.cost)), stop=Stop(**plain(active.stop)),
    )  # fmt: skip


def chosen(config: ConfigDict, methods: Sequence[str]) -> dict[str, Any]:
    """The strategies of these methods."""
    known, out = load_strategies(), {}
    for method in methods:
        if method not in config.active.strategies:
            raise unknown("method", method, config.active.strategies)
        out[method] = make(known, "strategy", config.active.strategies[method])
    return out


def stage(
    config: ConfigDict,
    name: str,
    words: Words,
    answers: Sequence[str],
    provider: Any,
    partition: Partition,
    rows: int,
) -> Stage:
    """A stage with its trainer; `rows` is the most that it can be trained on."""
    if name not in config.stages:
        raise unknown("stage", name, config.stages)
    section = config.stages[name]
    model = region_model(config, section.model, words, answers, provider)
    given = {"model": model, "seed": config.seed}
    task = build.given(TASKS, "task", plain(section.task), given)
    each = max(1, rows // section.batch_size)
    most = math.ceil(section.epochs * each) + section.min_steps + each
    kwargs = {k: v for k, v in plain(section.optim).items() if k != "schedule"}
    tx = optim.make_optimizer(schedule=optim.Table(most), bounds={}, **kwargs)
    optim.make_schedule(steps=2, steps_per_epoch=1, examples=2, batch_size=1, **plain(section.optim.schedule))
    plateau = None
    if section.plateau is not None:
        plateau = Plateau(score=matching.held_out_scores, key="balanced_accuracy", **plain(section.plateau))
    given_words = config.active.words.glove is not None and hasattr(model, "words")
    return Stage(
        name=name,
        trainer=Trainer(task, tx, partition=partition, seed=config.seed, eval_batch_size=section.batch_size),
        section=dict(
            plain(section), precision=plain(config.precision), words=digest(words.vocab), answers=digest(answers)
        ),
        schedule=plain(section.optim.schedule),
        batch_size=section.batch_size, epochs=section.epochs, min_steps=section.min_steps, most_steps=most,
        plateau=plateau, vectors=words.vectors if given_words else None,
        loader={k: v for k, v in plain(config.loader).items() if k != "workers"},
    )  # fmt: skip


def region_model(
    config: ConfigDict, section: Mapping[str, Any], words: Words, answers: Sequence[str], provider: Any
) -> Any:
    """A model of regions and words: it gets the sizes of vocabulary, answers and features that it has fields for."""
    if config.precision.compute not in ("float32", "bfloat16"):
        raise unknown("precision.compute", config.precision.compute, ("float32", "bfloat16"))
    given = {
        "words": len(words), "word_dim": words.vectors.shape[1], "classes": len(answers), "feat_dim": provider.width,
        "dtype": jnp.dtype(config.precision.compute),
    }  # fmt: skip
    return build.given(MODELS, "model", plain(section), given)


def engines(config: ConfigDict, stages: Mapping[str, Stage], partition: Partition) -> dict[str, Any]:
    """Predictors over several models: the pool scorer, if a method trains a matcher or an answer model."""
    matchers = [s for name, s in stages.items() if name.startswith("vqme")]
    answers = stages.get("vaue")
    if not matchers and answers is None:
        return {}
    matcher = _model_of(matchers[0]) if matchers else None
    answer = _model_of(answers) if answers else None
    scorer = PoolScorer(matcher, answer, partition=partition, **plain(config.active.scoring))
    return {ENGINE: scorer, MATCHED: scorer.strongest}


def _model_of(stage: Stage) -> Any:
    task: Any = stage.trainer.task
    return task.model


def word_maker(section: ConfigDict) -> Callable[[Iterable[str]], Words]:
    """questions -> their words with vectors, no answers involved: of pool and evaluation, or of each round's labels."""
    return functools.partial(Words.build, **{k: v for k, v in plain(section).items() if k != "scope"})


def scope_of(active: ConfigDict) -> Scope:
    """What is known of words and answers before they are labelled (A18)."""
    answers, words = active.answers, active.words.scope
    for name, value in (("words", words), ("answers", answers.scope)):
        if value not in SCOPES[name]:
            raise unknown(f"config.active.{name}.scope", value, SCOPES[name])
    if answers.grow and answers.scope == "strict":
        raise ConfigError(
            "config.active.answers.grow has no effect with config.active.answers.scope='strict', which takes the "
            "answers from the labels of every round: set one of them only"
        )
    scope = Scope(words, answers.scope, answers.grow, answers.min_count)
    if active.warm_start and scope.changes:
        raise ConfigError(
            "config.active.warm_start needs models of one shape: set config.active.words.scope='all', "
            "config.active.answers.scope='fixed' and config.active.answers.grow=False, or no warm start"
        )
    return scope


def answer_list(section: ConfigDict, pool: Any) -> list[str]:
    """Candidate answers, fixed before round 0: the embedded world's, a file's, or those of the pool (A18)."""
    if section.file == "scenes":
        return scenes.answers()
    if section.file:
        return read_answers(Path(section.file))
    return build_answers(pool, min_count=section.min_count, order="appearance")


def check_apart(records: Sequence[Any], held: Sequence[Any]) -> None:
    """Raise ConfigError if an evaluation image is in the pool."""
    both = {int(r["image_id"]) for r in records} & {int(r["image_id"]) for r in held}
    if both:
        raise ConfigError(
            f"config.active.val: {len(both)} of its images are in the pool too, e.g. image_id {min(both)}: evaluation "
            "images must never be selectable"
        )


def check_shapes(world: World, stages: Mapping[str, Stage]) -> None:
    """What only a model can refuse: its shapes with rows of this data."""
    rows = world.val
    for name in (TASK, "vqme", "vaue", "ll"):
        if name in stages:
            one = {k: np.stack([v] * 2) for k, v in rows[0].items()}
            try:
                jax.eval_shape(stages[name].trainer.task.init, jax.random.key(0), one)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"config.stages.{name}: {error}") from error


def all_missing(config: ConfigDict) -> str:
    """Every input that is not there, one a line, and how to get them; empty if all are."""
    active = config.active
    wanted: list[Callable[[], Any]] = [
        functools.partial(build.reader, active[part], f"config.active.{part}") for part in ("pool", "val")
    ]
    paths = active.regions.get("paths", ())
    for path in [paths] if isinstance(paths, str) else paths:
        wanted.append(
            functools.partial(make, PROVIDERS, "region provider", {**active.regions, "paths": path})
        )
    if active.words.glove is not None:
        wanted.append(functools.partial(build.weights_file, "config.active.words.glove", active.words.glove))
    if active.answers.file not in (None, "scenes"):
        wanted.append(
            functools.partial(build.weights_file, "config.active.answers.file", active.answers.file)
        )
    missing = []
    for need in wanted:
        try:
            need()
        except FileNotFoundError as error:
            missing.append(str(error))
        except ValueError:
            pass  # reported once the files are there
    lines = "".join(f"\n- {line}" for line in dict.fromkeys(missing))
    where = f"{len(set(missing))} inputs are missing (paths are relative to {Path.cwd()}):"
    return lines and f"{where}{lines}\n{config.hint}"


def picture(config: ConfigDict) -> Any:
    """`pictures` of a config's pool, without its models."""
    pool = build.reader(config.active.pool, "config.active.pool")
    records = [pool.annotation(i) for i in range(len(pool))]
    return pictures(pool, make(PROVIDERS, "region provider", config.active.regions), records)


def pictures(pool: Any, provider: Any, records: Sequence[Any]) -> Any:
    """image_id -> RGB array of the pool's images, for people to look at; None where there are none."""
    if hasattr(provider, "picture"):
        return provider.picture
    first = {int(r["image_id"]): i for i, r in reversed(list(enumerate(records)))}

    def picture(image_id: int) -> Any:
        return pool.image(first[image_id])

    return picture if hasattr(pool, "image") else None


def data_key(
    config: ConfigDict, records: Sequence[Any], held: Sequence[Any], provider: Any
) -> dict[str, str]:
    """Which data this is: hashes of the pool's questions and answers, the evaluation questions and the features."""
    return {
        "pool": _digest(records),
        "val": _digest(held) + f"-{config.active.variant}",
        "regions": str(provider.digest),
        "asked": ("" if config.active.proposer == "bank_random" else f"{config.active.proposer}/")
        + str(config.active.asked),
    }


def digest(lines: Sequence[str]) -> str:
    """A hash of a list of strings."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _digest(records: Sequence[Mapping[str, Any]]) -> str:
    found = hashlib.sha256()
    for r in records:
        row = [int(r["image_id"]), *(r.get(k) for k in ("question_id", "question", "answers"))]
        found.update(json.dumps(row, default=list).encode())
    return found.hexdigest()[:16]
