"""From the sections of an active-learning config to a `World`; everything that can be wrong is found here.

Nothing below this file sees a config.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxvl import build, optim
from jaxvl.active import evalai, matching, policy
from jaxvl.active.bank import KINDS
from jaxvl.active.budget import Cost, Stop, targets
from jaxvl.active.fitting import Fitter, Plateau, Stage
from jaxvl.active.items import IMAGE, UNITS, Questions
from jaxvl.active.objects import ObjectWords
from jaxvl.active.oracle import Oracle, records_of
from jaxvl.active.scoring import PoolScorer
from jaxvl.active.strategies import load_strategies
from jaxvl.active.strategies.ccrl import CCRL, ENGINE
from jaxvl.active.strategies.cdal import POLICY
from jaxvl.active.world import TASK, Options, World, digest
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

ORACLES, PROTOCOLS = ("simulate", "people"), ("val", "test")
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
    check_people(active)
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
    words = vocabulary(config, [r for r in records if r.get("question")], held)
    answers = answer_list(active.answers, pool)
    questions = None if unit == IMAGE else Questions(records)
    oracle = Oracle(records if simulated else [], pool=[int(r[unit.key]) for r in records], unit=unit)
    try:
        counts = targets(len(oracle.ids), init=active.init, step=active.step, budget=active.budget)
    except ValueError as error:
        raise ConfigError(f"config.{error}") from error
    approximate = approximations(config, strategies)
    needed = [TASK, *dict.fromkeys(stage for s in strategies.values() for stage in s.needs)]
    known = simulated or questions is not None
    rows = max(len(records), len(oracle.ids)) if known else PEOPLE_ASK * len(oracle.ids)
    stages = {name: stage(config, name, words, answers, provider, partition, rows) for name in needed}
    objects = None
    if any(getattr(s, "match", None) == "raw_glove" for s in strategies.values()):
        objects = ObjectWords(provider, words, glove=active.words.glove, dim=active.words.dim)
    val = RegionQuestions(provider, held, words, answers, kinds=KINDS)
    made = World(
        seed=config.seed, oracle=oracle, counts=counts, provider=provider, words=words, answers=answers, val=val,
        fitter=Fitter(root / "models", stages, sigterm=sigterm), strategies=strategies, options=options(active),
        engines=engines(config, stages, partition, objects), simulated=simulated,
        data_key=data_key(config, records, held, provider), picture=pictures(config, pool, provider, records),
        questions=questions, approximate=approximate,
    )  # fmt: skip
    check_shapes(made, stages)
    return made


def evaluation_records(active: ConfigDict, val: Any) -> list[Any]:
    """The evaluation questions; under the protocol "test" without answers, even where the files have some.

    Raises:
      ConfigError, ValueError: an unknown protocol, or what "test" cannot do: see the message.
    """
    if protocol_of(active) == "val":
        return records_of(val)
    wrong = [
        f"config.active.stop.{k}={active.stop[k]}"
        for k in ("accuracy", "plateau")
        if active.stop[k] is not None
    ]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: under active.protocol=test nobody here knows an accuracy to stop by; give None"
        )
    files = active.val.get("questions")
    for file in [files] if isinstance(files, str) else files if isinstance(files, (list, tuple)) else []:
        evalai.require_whole(file)
    records, hidden = (
        records_of(val, answered=False),
        ("answers", "targets", "answer_type", "multiple_choice_answer"),
    )
    ids = [int(r["question_id"]) for r in records]
    evalai.check_ids(ids, ids, where="config.active.val", of="EvalAI refuses files with a question twice")
    # Rows must have a kind; nothing asks for that of an evaluation question whose answers are hidden.
    return [{k: v for k, v in r.items() if k not in hidden} | {"answer_type": KINDS[-1]} for r in records]


def protocol_of(active: ConfigDict) -> str:
    """The protocol; configs of older workdirs do not name theirs, "val"."""
    found = active.get("protocol", "val")
    if found not in PROTOCOLS:
        raise unknown("config.active.protocol", str(found), PROTOCOLS)
    return str(found)


def options(active: ConfigDict) -> Options:
    """The protocol's choices."""
    oracle = active.oracle
    return Options(
        protocol=protocol_of(active), asked=active.asked, variant=active.variant, bank=plain(active.bank),
        shared_init=active.shared_init, stands_for=active.stands_for,
        min_fraction=oracle.min_fraction, reserve=oracle.reserve, suggest=oracle.suggest, gold=oracle.gold,
        cost=Cost(**plain(active.cost)), stop=Stop(**plain(active.stop)),
    )  # fmt: skip


def check_people(active: ConfigDict) -> None:
    """Raise ConfigError for what only people can be asked, or only annotations can answer."""
    oracle = active.oracle
    if active.full and oracle.name == "people":
        raise ConfigError(
            "config.active.full: nobody has labelled the whole pool; leave it out (False) where people label"
        )
    if active.full and protocol_of(active) == "test":
        raise ConfigError(
            "config.active.full: only EvalAI would know its accuracy; leave it out (False) under the protocol test"
        )
    where = "config.active.oracle.gold"
    if not 0 <= oracle.gold <= 1:
        raise ConfigError(f"{where}={oracle.gold}: a share of the batch, between 0 and 1")
    if oracle.gold and oracle.name != "people":
        raise ConfigError(
            f"{where}={oracle.gold}: only people are tested by it; add variant=people, or set it to 0"
        )
    if oracle.gold and active.unit != IMAGE.name:
        raise ConfigError(
            f"{where}={oracle.gold}: gold images are mixed in among images; with unit=qa set it to 0"
        )
    if oracle.gold and not oracle.suggest:
        raise ConfigError(
            f"{where}={oracle.gold}: only known questions can be judged, and with suggest=False none are shown; "
            "set config.active.oracle.suggest=True, or gold=0"
        )


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
        found |= {m: (*found[m], f"compute={compute}") for m, s in strategies.items() if isinstance(s, CCRL)}
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
    plateau = None
    if section.plateau is not None:
        options = plain(section.plateau)
        finish = functools.partial(matching.finished, calibrate=options.pop("calibrate", False))
        score = matching.held_out_scores
        plateau = Plateau(score=score, key="balanced_accuracy", finish=finish, **options)
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


def engines(
    config: ConfigDict, stages: Mapping[str, Stage], partition: Partition, objects: ObjectWords | None = None
) -> dict[str, Any]:
    """Predictors over more than one model and source: the learner of policies, and the pool scorer, if a method trains
    a matcher or an answer model."""
    found: dict[str, Any] = {POLICY: policy.learn}
    matchers = [s for name, s in stages.items() if name.startswith("vqme")]
    answers = stages.get("vaue")
    if not matchers and answers is None:
        return found
    matcher = _model_of(matchers[0]) if matchers else None
    answer = _model_of(answers) if answers else None
    rough = stages.get("prefilter")
    more: dict[str, Any] = dict(objects=objects, prefilter=_model_of(rough) if rough else None)
    scorer = PoolScorer(matcher, answer, partition=partition, **more, **plain(config.active.scoring))
    return found | {ENGINE: scorer}


def _model_of(stage: Stage) -> Any:
    task: Any = stage.trainer.task
    return task.model


def vocabulary(config: ConfigDict, records: Sequence[Any], held: Sequence[Any]) -> Words:
    """Words of all questions of pool and evaluation (`scope="all"`), with their vectors; no answers are involved."""
    section = plain(config.active.words)
    scope = section.pop("scope")
    if scope != "all":
        raise unknown("config.active.words.scope", scope, ("all",))
    return Words.build((r["question"] for r in [*records, *held]), **section)


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
        "asked": str(config.active.asked),
    }


def _digest(records: Sequence[Mapping[str, Any]]) -> str:
    found = hashlib.sha256()
    for r in records:
        row = [int(r["image_id"]), *(r.get(k) for k in ("question_id", "question", "answers"))]
        found.update(json.dumps(row, default=list).encode())
    return found.hexdigest()[:16]
