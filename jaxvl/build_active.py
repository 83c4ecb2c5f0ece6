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
from jaxvl.active import calibration, matching, policy
from jaxvl.active.bank import KINDS
from jaxvl.active.budget import targets
from jaxvl.active.fitting import Fitter, Stage
from jaxvl.active.items import IMAGE, UNITS, Questions
from jaxvl.active.objects import ObjectWords
from jaxvl.active.oracle import Oracle, records_of
from jaxvl.active.plateau import Plateau
from jaxvl.active.proposers import MATCHED
from jaxvl.active.scoring import Scorers
from jaxvl.active.strategies import load_strategies
from jaxvl.active.strategies.ccrl import CCRL, ENGINE, JOINT
from jaxvl.active.strategies.cdal import POLICY
from jaxvl.active.world import SAMPLER, TASK, World, digest
from jaxvl.build_protocol import evaluation_records, options, protocol_of
from jaxvl.config import ConfigError, make, plain, unknown
from jaxvl.data import PROVIDERS, scenes
from jaxvl.data.answers import build_answers, read_answers
from jaxvl.data.images import ImageError
from jaxvl.data.region_source import RegionQuestions, features_digest, require_regions
from jaxvl.data.words import Words
from jaxvl.models import MODELS
from jaxvl.sharding import Partition
from jaxvl.tasks import TASKS
from jaxvl.train import Sigterm, Trainer

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
    protocol = options(active)
    strategies = chosen(config, methods)  # before anything is read: some choose images only
    provider = make(PROVIDERS, "region provider", active.regions)
    pool, val = (build.reader(active[part], f"config.active.{part}") for part in ("pool", "val"))
    if hasattr(
        provider, "require_world"
    ):  # features of generated scenes must be of the scenes of the questions
        provider.require_world(pool)
        provider.require_world(val)
    simulated = active.oracle.name == "simulate"
    unit = UNITS[active.unit]
    # People answer, and ask if items are images: of their pool, only these or the questions and the words count.
    records = records_of(pool) if simulated else [pool.annotation(i) for i in range(len(pool))]
    held = evaluation_records(config.active, val)
    check_apart(records, held)
    images = dict.fromkeys(int(r["image_id"]) for r in [*records, *held])
    require_regions(provider, images, wanted_by="config.active.pool and config.active.val")
    make_words = word_maker(active.words)
    words = make_words(r["question"] for r in [*(r for r in records if r.get("question")), *held])
    answers = answer_list(active.answers, pool)
    questions = None if unit == IMAGE else Questions(records)
    oracle = Oracle(records if simulated else [], pool=[int(r[unit.key]) for r in records], unit=unit)
    try:
        counts = targets(len(oracle.ids), init=active.init, step=active.step, budget=active.budget)
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error
    approximate = approximations(config, strategies)
    needed = [TASK, *dict.fromkeys(stage for s in strategies.values() for stage in protocol.needs(s))]
    known = simulated or questions is not None
    rows = max(len(records), len(oracle.ids)) if known else PEOPLE_ASK * len(oracle.ids)
    by_name = any(getattr(s, "match", None) == "raw_glove" for s in strategies.values())

    def parts(words: Words, answers: list[str]) -> dict[str, Any]:
        """All that depends on the vocabulary."""
        stages = {
            name: stage(config, name, words, answers, provider, partition, rows)
            for name in needed
            if name != SAMPLER
        }
        if SAMPLER in needed:  # the task model's programs serve both
            stages[SAMPLER] = dataclasses.replace(stages[TASK], name=SAMPLER)
        objects = None
        if by_name:
            objects = ObjectWords(provider, words, glove=active.words.glove, dim=active.words.dim)
        return dict(
            words=words, answers=answers, val=RegionQuestions(provider, held, words, answers, kinds=KINDS),
            fitter=Fitter(root / "models", stages, sigterm=sigterm),
            engines=engines(config, stages, partition, objects),
        )  # fmt: skip

    made = World(
        seed=config.seed, oracle=oracle, counts=counts, provider=provider, strategies=strategies, options=protocol,
        simulated=simulated, data_key=data_key(config, records, held, provider), make_words=make_words,
        picture=pictures(config, pool, provider, records), questions=questions, approximate=approximate,
        **parts(words, answers),
    )  # fmt: skip
    made.rebuild = lambda words, answers: dataclasses.replace(made, **parts(words, answers))
    check_shapes(made, made.fitter.stages)
    return made


def chosen(config: ConfigDict, methods: Sequence[str]) -> dict[str, Any]:
    """The strategies of these methods, for the unit of the config.

    Raises:
      ConfigError: an unknown method, strategy or unit; methods that cannot choose items of the unit, all of them named.
    """
    unit = config.active.unit
    if unit not in UNITS:
        raise unknown("config.active.unit", unit, UNITS)
    known, out, refused = load_strategies(), {}, []
    for method in methods:
        if method not in config.active.strategies:
            raise unknown("method", method, config.active.strategies)
        strategy = make(known, "strategy", config.active.strategies[method])
        try:
            out[method] = strategy.on(unit)
        except ValueError as error:
            refused.append(f"\n- {method}: {error}")
    rigid = [
        m
        for m, s in out.items()
        if getattr(s, "passes", False) and not config.stages[TASK].model.get("dropout", 1)
    ]
    if rigid:
        raise ConfigError(
            f"config.stages.{TASK}.model.dropout=0: all dropout passes are the same network, so {', '.join(rigid)} "
            "have nothing to choose by; set it (0.1 in the paper), or leave these methods out"
        )
    if refused:
        raise ConfigError(
            f"config.active.unit={unit!r}: {len(refused)} of {len(methods)} methods cannot choose among "
            f"{UNITS[unit].many}. Leave them out, or change their options:{''.join(refused)}"
        )
    return out


def approximations(config: ConfigDict, strategies: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Method -> in which ways its selections are approximate; methods that are exact are left out.

    Raises:
      ConfigError: there are some, and the config does not allow it.
    """
    found = {method: tuple(getattr(s, "approximations", ())) for method, s in strategies.items()}
    compute = config.active.scoring.get("compute", "float32")
    if compute != "float32":
        matched = config.active.proposer == "bank_matched"  # the scorer says what is asked, too
        scored = (m for m, s in strategies.items() if isinstance(s, CCRL) or (matched and s.asks))
        found |= {m: (*found[m], f"compute={compute}") for m in scored}
    found = {method: ways for method, ways in found.items() if ways}
    if found and not config.active.allow_approx:
        said = "; ".join(f"{method}: {', '.join(ways)}" for method, ways in found.items())
        raise ConfigError(
            f"these methods select only approximately ({said}). Say --config.active.allow_approx=True to have that, "
            "stamped on all that follows from it; bench/pool_scoring.py --accept measures what it costs"
        )
    return found


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
    plateau = None if section.plateau is None else plateau_of(plain(section.plateau), task, name)
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


def plateau_of(section: dict[str, Any], task: Any, name: str) -> Plateau:
    """How a stage is scored on held-out images: a matcher by the pairs it tells apart, an answer model by its answers.

    Args:
      section: `plateau` of the config.
      task, name: of the stage.

    Raises:
      ConfigError: the task has no such score.
    """
    calibrate = section.pop("calibrate", False)
    if "match" in task.predictors:
        key = "balanced_accuracy_scaled" if calibrate else "balanced_accuracy"
        score: Any = functools.partial(matching.held_out_scores, calibrate=calibrate)
        finish: Any = functools.partial(matching.finished, calibrate=calibrate)
    elif calibration.PREDICTOR in task.predictors:
        key, score = "accuracy", calibration.held_out_scores
        finish = functools.partial(calibration.finished, calibrate=calibrate)
    else:
        raise ConfigError(
            f"config.stages.{name}.plateau: {type(task).__name__} has no score on held-out images; set it to None"
        )
    return Plateau(score=score, key=key, finish=finish, **section)


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


def engines(
    config: ConfigDict, stages: Mapping[str, Stage], partition: Partition, objects: ObjectWords | None = None
) -> dict[str, Any]:
    """Predictors over more than one model and source: the learner of policies, and the pool scorer, if a method trains
    a matcher or an answer model."""
    found: dict[str, Any] = {POLICY: policy.learn}
    matchers = {name: _model_of(s) for name, s in stages.items() if name.startswith("vqme") or name == JOINT}
    answers = stages.get("vaue")
    if not matchers and answers is None:
        return found
    answer = _model_of(answers) if answers else None
    rough = stages.get("prefilter")
    more: dict[str, Any] = dict(objects=objects, prefilter=_model_of(rough) if rough else None)
    scorer = Scorers(matchers, answer, partition=partition, **more, **plain(config.active.scoring))
    return found | {ENGINE: scorer, MATCHED: scorer.strongest}


def _model_of(stage: Stage) -> Any:
    task: Any = stage.trainer.task
    return task.model


def word_maker(section: ConfigDict) -> Callable[[Iterable[str]], Words]:
    """questions -> their words with vectors, no answers involved: of pool and evaluation, or of each round's labels."""
    return functools.partial(Words.build, **{k: v for k, v in plain(section).items() if k != "scope"})


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
    for name in (TASK, "vqme", "vaue", JOINT, "ll"):
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
    missing = build.missing(wanted)
    lines = "".join(f"\n- {line}" for line in missing)
    where = f"{len(missing)} inputs are missing (paths are relative to {Path.cwd()}):"
    return lines and f"{where}{lines}\n{config.hint}"


def picture(config: ConfigDict) -> Any:
    """`pictures` of a config's pool, without its models."""
    pool = build.reader(config.active.pool, "config.active.pool")
    records = [pool.annotation(i) for i in range(len(pool))]
    return pictures(config, pool, make(PROVIDERS, "region provider", config.active.regions), records)


def digest_of_features(config: ConfigDict) -> Callable[[int], str | None]:
    """image_id -> hash of the image's features, by the config's provider."""
    return functools.partial(features_digest, make(PROVIDERS, "region provider", config.active.regions))


def pictures(config: ConfigDict, pool: Any, provider: Any, records: Sequence[Any]) -> Any:
    """image_id -> RGB array of the pool's images, for people to look at; None where there are none.

    There are none if the config names no folder of images (`active.pool.images=None`, as at paper scale, which needs
    features only) and the first image cannot be read without one. In a folder that is named all must be there.
    """
    if hasattr(provider, "picture"):
        return provider.picture
    first = {int(r["image_id"]): i for i, r in reversed(list(enumerate(records)))}

    def picture(image_id: int) -> Any:
        return pool.image(first[image_id])

    if not hasattr(pool, "image"):
        return None
    if config.active.pool.get("images") is None and len(records):
        try:
            pool.image(0)
        except ImageError:
            return None
    return picture


def data_key(
    config: ConfigDict, records: Sequence[Any], held: Sequence[Any], provider: Any
) -> dict[str, str]:
    """Which data this is: hashes of the pool's questions and answers, the evaluation questions and the features."""
    unit = config.active.unit
    return ({} if unit == IMAGE.name else {"unit": unit}) | {
        "pool": _digest(records),
        "val": _digest(held)
        + f"-{config.active.variant}"
        + ("-test" if protocol_of(config.active) == "test" else ""),
        "regions": str(provider.digest),
        "annotations": _digest_annotations([*records, *held]),
        "asked": ("" if config.active.proposer == "bank_random" else f"{config.active.proposer}/")
        + str(config.active.asked),
    }


def _digest_annotations(records: Sequence[Mapping[str, Any]]) -> str:
    """Of what training and scores read of annotations beside the answers."""
    rows = [[r.get(k) for k in ("question_id", "answer_type", "multiple_choice_answer")] for r in records]
    return hashlib.sha256(json.dumps(rows, default=list).encode()).hexdigest()[:16]


def _digest(records: Sequence[Mapping[str, Any]]) -> str:
    found = hashlib.sha256()
    for r in records:
        row = [int(r["image_id"]), *(r.get(k) for k in ("question_id", "question", "answers"))]
        found.update(json.dumps(row, default=list).encode())
    return found.hexdigest()[:16]
