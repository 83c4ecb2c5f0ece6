"""From `config.active` to the choices of the protocol; what contradicts itself is refused before data are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jaxvl.active import evalai
from jaxvl.active.bank import KINDS, REDUCE
from jaxvl.active.budget import Cost, Stop
from jaxvl.active.folder import PHASES
from jaxvl.active.full import check_full
from jaxvl.active.items import IMAGE, UNITS
from jaxvl.active.oracle import records_of
from jaxvl.active.proposers import PROPOSERS
from jaxvl.active.vocabulary import SCOPES, Scope
from jaxvl.active.world import SHARING, Options
from jaxvl.config import ConfigError, plain, unknown

ORACLES, PROTOCOLS = ("simulate", "people"), ("val", "test")


def options(active: ConfigDict) -> Options:
    """The protocol's choices.

    Raises:
      ConfigError: one is unknown, or two of them contradict each other; names both and the way out.
    """
    oracle = active.oracle
    for key, value, known in (
        ("oracle.name", oracle.name, ORACLES),
        ("unit", active.unit, UNITS),
        ("proposer", active.proposer, PROPOSERS),
        ("share_task_model", active.share_task_model, SHARING),
    ):
        if value not in known:
            raise unknown(f"config.active.{key}", value, known)
    made = Options(
        protocol=protocol_of(active), asked=active.asked, proposer=active.proposer,
        share_task_model=active.share_task_model, warm_start=active.warm_start, vocabulary=scope_of(active),
        variant=active.variant, bank=plain(active.bank), shared_init=active.shared_init, stands_for=active.stands_for,
        min_fraction=oracle.min_fraction, reserve=oracle.reserve, suggest=oracle.suggest, gold=oracle.gold,
        min_answers=oracle.get("min_answers", 1),
        cost=Cost(**plain(active.cost)), stop=Stop(**plain(active.stop)),
    )  # fmt: skip
    check_proposer(active)
    check_people(active)
    if active.bank.reduce not in REDUCE:
        raise unknown("config.active.bank.reduce", active.bank.reduce, REDUCE)
    if active.bank.max is not None and active.bank.max < 1:
        raise ConfigError(
            f"config.active.bank.max={active.bank.max}: at least one pattern, or None for all of them"
        )
    check_pause(plain(active.get("pause", {})))
    if active.full:
        try:
            check_full(made, simulated=oracle.name == "simulate")
        except ValueError as error:
            raise ConfigError(f"config.active.full: {error}; leave it out (False)") from error
    return made


def check_proposer(active: ConfigDict) -> None:
    """Raise ConfigError where nobody could be asked what the proposer proposes."""
    if active.proposer != "bank_random" and active.unit != IMAGE.name:
        raise ConfigError(
            f"config.active.proposer={active.proposer!r} has no effect with config.active.unit={active.unit!r}, where "
            "each question is asked itself: leave the proposer at 'bank_random'"
        )
    if active.proposer == "visible" and active.oracle.name != "simulate":
        raise ConfigError(
            "config.active.proposer='visible' needs config.active.oracle.name='simulate': the images that people "
            "annotate have no questions yet"
        )


def check_pause(pause: Mapping[str, Any]) -> None:
    """Raise ConfigError for an unknown phase, or no number of rounds."""
    rounds, until = pause.get("rounds"), pause.get("until")
    if rounds is not None and not (type(rounds) is int and rounds > 0):
        raise ConfigError(
            f"config.active.pause.rounds={rounds!r}: expected a number of rounds from 1, or None"
        )
    if until is not None and until not in PHASES:
        raise unknown("config.active.pause.until", until, PHASES)


def check_people(active: ConfigDict) -> None:
    """Raise ConfigError for what only people can be asked, or only annotations can answer."""
    oracle = active.oracle
    if not 0 < oracle.min_fraction <= 1:
        raise ConfigError(
            f"config.active.oracle.min_fraction={oracle.min_fraction}: a share of the batch above 0, at most 1"
        )
    if not 0 <= oracle.reserve <= 1:
        raise ConfigError(
            f"config.active.oracle.reserve={oracle.reserve}: a share of the batch, between 0 and 1"
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
        evalai.require_whole(file, evalai.subtype_of(file))
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
