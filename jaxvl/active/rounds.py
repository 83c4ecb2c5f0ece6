"""One run: a method and a repeat, round by round. Every phase is an event; what is done is never done again.

    TRAINED -> EVALUATED -> FITTED -> SCORED -> SELECTED -> EXPORTED -> IMPORTED -> COMMITTED -> the next round

Files are written first, then the event with their checksums: a run that is killed anywhere goes on at the first missing
event and selects the same images. Specification: sections 1.4, 7.1 and 11.1.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvl.active import evaluation, matching, measuring, people, vocabulary
from jaxvl.active.bank import KINDS, Bank, build_bank, propose
from jaxvl.active.beginning import begin
from jaxvl.active.folder import (
    ANSWERS,
    FINISHED,
    INITIAL,
    LABELS,
    METRICS,
    QUALITY,
    SCORES,
    SELECTION,
    RunError,
    digest_of,
    plain_record,
)
from jaxvl.active.pool import Candidates, Labelled
from jaxvl.active.proposers import PROPOSERS, About, Asked
from jaxvl.active.seeds import generator, seed_of
from jaxvl.active.selecting import (
    arrays_of,
    check_selection,
    drawn,
    initial_rows,
    save_npz,
    score_summary,
    selection_rows,
    standing,
)
from jaxvl.active.strategies.base import Strategy
from jaxvl.active.world import SAMPLER, TASK, World
from jaxvl.atomic import TEMPORARY, sha256, write_file, write_json, write_jsonl
from jaxvl.data.region_source import RegionImages, RegionQuestions
from jaxvl.types import PyTree, Rows, Source

SHARDS = "scoring"  # folder of a round for what an engine has scored so far
COUNT = 0.95  # rank correlation of score and match count above which a score is reported to be a count


class Outcome(NamedTuple):
    """Where a run stands when it stops: "finished", "waiting" (for people), or "paused" (as asked); and why."""

    state: str
    why: str


class Run:
    """Drives one run in its folder. Use as a context: it holds the run's lock.

    Args:
      world: what all runs of a config share.
      method: key of `world.strategies`.
      repeat: repeats share nothing but the data; methods of one repeat share the initial items and all seeds of the
        task model.
      folder: the run's; made if it is not there.
      say: takes a line for each phase.
    """

    def __init__(
        self, world: World, *, method: str, repeat: int, folder: Path, say: Callable[[str], None] = print
    ):
        self.base, self.method, self.repeat, self.say = world, method, repeat, say
        self.world = world  # with the words and answers of the present round
        self._entered: int | None = None
        self.folder = begin(world, method, repeat, folder)
        self.ledger = self.folder.ledger
        self.strategy: Strategy = world.strategies[method]
        self.approximate = list(world.approximate.get(method, ()))
        self.params: dict[str, PyTree] = {}
        self.keys: dict[str, str] = {}
        self.needs = world.options.needs(self.strategy)
        self._pool: tuple[Labelled, Candidates] | None = None
        self.started = time.monotonic()

    def __enter__(self) -> Run:
        self.ledger.open()
        for left in self.folder.path.rglob(f"*{TEMPORARY}"):  # of a process that was killed
            left.unlink()
        return self

    def __exit__(self, *error: object) -> None:
        self.ledger.close()

    # ---- the machine --------------------------------------------------------------------------------------

    def advance(self, *, rounds: int | None = None, until: str | None = None) -> Outcome:
        """Go on until the budget is spent, people are needed, `rounds` more are committed, or phase `until` is done."""
        committed = 0
        while True:
            round, phase = self.folder.position()
            if phase is None:
                last = self.ledger.last(FINISHED) or self.ledger.events[-1]
                return Outcome("finished", str(last.data["why"]))
            if phase == "IMPORTED" and not self.world.simulated:
                lacking = people.lacking(self.folder, round, self.world.options.min_fraction)
                if lacking:
                    return Outcome("waiting", lacking)
            self._enter(round, note=phase == "TRAINED")
            why = self._over(round) if phase == "FITTED" else None
            if why is not None:
                self.ledger.append(FINISHED, round=round, why=why)
                continue
            started = time.monotonic()
            data = getattr(self, f"_{phase.lower()}")(round)
            files = {name: sha256(self.folder.folder(round) / name) for name in data.pop("files", ())}
            seconds = float(np.round(time.monotonic() - started, 3))
            self.ledger.append(phase, **{"round": round, "seconds": seconds, "files": files, **data})
            committed += phase == "COMMITTED" and round != INITIAL
            if (rounds is not None and committed >= rounds) or phase == until:
                return Outcome("paused", f"round {round}: {phase}")

    def _enter(self, round: int, *, note: bool = False) -> None:
        """Have the words and answers of a round, if rounds differ in them; `note`: the ledger may be written."""
        scope = self.base.options.vocabulary
        if not scope.changes or round in (INITIAL, self._entered):
            return
        words, answers, new = vocabulary.of_round(self.base, self.folder, round, note=note)
        if new:
            self._tell(round, f"{len(new)} new answers: {', '.join(new[:5])}")
        if (words.vocab, answers) != (self.world.words.vocab, self.world.answers):
            assert self.base.rebuild is not None
            self.world = self.base.rebuild(words, answers)
            self.params, self.keys = {}, {}
        self._entered = round

    def _over(self, round: int) -> str | None:
        """Why no more items are bought after this round's evaluation."""
        counts = self.world.counts
        if round + 1 >= len(counts):
            return f"budget of {counts[-1]} {self.world.unit.many} reached"
        if not len(self.folder.free(self.world.oracle.ids, round)):
            return f"no {self.world.unit.many} left: all others are labelled or left out"
        metrics = self.folder.rounds
        known = (
            metrics if self.world.options.protocol == "val" else []
        )  # scores of a server come too late to stop by
        curve, cost = [m["acc"]["overall"] for m in known], metrics[-1]["cost"]["total"]
        return self.world.options.stop.reason(curve, cost=cost, seconds=time.monotonic() - self.started)

    # ---- phases -------------------------------------------------------------------------------------------

    def _trained(self, round: int) -> dict[str, Any]:
        start = None  # from scratch, unless the model of the round before is to be trained on
        if self.world.options.warm_start and round > 0:
            start = self.folder.events(round - 1)["TRAINED"].data["model"]["key"]
        data = {} if start is None else {"start": start}
        fitted = self._fit(TASK, self.labelled(round).questions, round, data=data, start=start)
        self._tell(
            round, f"task model on {len(self.labelled(round))} {self.world.unit.many}: {_time(fitted)}"
        )
        return {"model": fitted}

    def _evaluated(self, round: int) -> dict[str, Any]:
        world, labelled = self.world, self.labelled(round)
        path = self.folder.folder(round)
        self._load(TASK, round)
        name, accuracy = measuring.assess(world, self.predict, key=self.keys[TASK], folder=path)
        metrics = measuring.metrics(
            world, labelled, round=round, accuracy=accuracy, result=self._result(TASK, round),
            seed=self._seed(TASK, round), before=self.folder.rounds, file=path / name,
        )  # fmt: skip
        metrics |= {"approximate": self.approximate} if self.approximate else {}
        write_json(path / METRICS, metrics)
        said = f"accuracy {accuracy['overall']:.2f}" if accuracy else f"answers for EvalAI in {path / name}"
        self._tell(round, said)
        return {"files": (METRICS, name), "accuracy": accuracy.get("overall")}

    def _fitted(self, round: int) -> dict[str, Any]:
        self._load(TASK, round)
        self.keys = {TASK: self.keys[TASK]}  # keys of models must not tell whether a run was resumed
        models = {}
        for stage in self.needs:
            source = self._rows(stage, round)
            shared = stage not in self.strategy.needs or type(self.strategy).data is Strategy.data
            data = {} if shared else self._dependent()
            models[stage] = self._fit(stage, source, round, data=data)
            held = models[stage]["result"].get("held_out", {})
            self._tell(round, f"{stage}: {_time(models[stage])}{matching.said(held)}")
            models[stage]["warnings"] = matching.warnings(held)
            for doubt in models[stage]["warnings"]:
                self._tell(round, f"{stage}: {doubt}")
        return {"models": models}

    def _scored(self, round: int) -> dict[str, Any]:
        self._load_all(round)
        pool, wanted = self.pool(round), self._wanted(round)
        budget = min(wanted + self._reserve(wanted), len(pool))
        started = time.monotonic()
        found = self.strategy(self.ask, pool, self.labelled(round), budget, self._rng(round, "select"))
        check_selection(found, pool, budget, self.method)
        path = self.folder.folder(round) / SCORES
        arrays = arrays_of(found, pool.ids)
        seconds = float(np.round(time.monotonic() - started, 3))
        if self.world.options.stands_for and self.world.questions is None:
            name = self.strategy.vectors
            arrays["stands_for"] = standing(self.ask, name, pool, np.asarray(found.rows)[:wanted])
        write_file(path, lambda p: save_npz(p, **arrays))
        shutil.rmtree(self.folder.folder(round) / SHARDS, ignore_errors=True)
        summary = score_summary(found)
        if summary.get("spearman_n_match", 0.0) > COUNT:
            self._tell(
                round,
                f"the score is nearly a count of matches (rank correlation {summary['spearman_n_match']:.2f})",
            )
        found_by = {"approximate": self.approximate} if self.approximate else {}
        if found_by:
            self._tell(round, f"selected approximately: {', '.join(self.approximate)}")
        about = {"strategy_seconds": seconds, "wanted": wanted, "score": summary, **found_by}
        return {"files": (SCORES,), **about}

    def _selected(self, round: int) -> dict[str, Any]:
        path = self.folder.folder(round)
        rows: list[dict[str, Any]]
        if round == INITIAL:
            wanted = self.world.counts[0]
            rng = generator(self.world.seed, self._repeat_of_init(), "initial pool")
            ids = drawn(self.world.oracle.ids, wanted, self._reserve(wanted), rng)
            rows = initial_rows(ids, wanted, self.world.questions)
        else:
            wanted = self.folder.events(round)["SCORED"].data["wanted"]
            with np.load(path / SCORES) as scores:
                rows = self._lines(scores, wanted, round)
            if self.approximate:
                rows = [{**row, "approximate": self.approximate} for row in rows]
        write_jsonl(path / SELECTION, rows)
        key = self.world.unit.key
        return {
            "files": (SELECTION,),
            self.world.unit.many: len(rows),
            "sha": digest_of(r[key] for r in rows),
        }

    def _exported(self, round: int) -> dict[str, Any]:
        if self.world.simulated:
            return {}
        where, gold, copies = people.export(self.folder, round, self.world)
        mixed = f", {len(gold)} images with known labels among it" if gold else ""
        self._tell(round, f"a batch for people is in {where}{mixed}")
        about = {"batch": str(where.relative_to(self.folder.path)), "gold": gold, "duplicates": copies}
        return {**about, "files": (ANSWERS,)}

    def _imported(self, round: int) -> dict[str, Any]:
        path = self.folder.folder(round)
        path.mkdir(parents=True, exist_ok=True)
        if self.world.simulated:
            self.world.oracle.restore(self.folder.labelled(round))
            chosen = self.folder.selection(round)
            ids = [row[self.world.unit.key] for row in chosen if not row.get("reserve")]
            records = self.world.oracle.label(ids, selected=set(ids))
            taken = people.Taken([plain_record(r) for r in records], ids, [])
        else:
            taken = people.taken(self.folder, round)
            write_json(path / QUALITY, people.quality(self.folder, round, taken.records))
        write_jsonl(path / LABELS, taken.records)
        return {
            "files": (LABELS,) if self.world.simulated else (LABELS, QUALITY),
            "ids": [int(i) for i in taken.ids],
            "excluded": [int(i) for i in taken.excluded],
        }

    def _committed(self, round: int) -> dict[str, Any]:
        imported = self.folder.events(round)["IMPORTED"].data
        data = {"ids": imported["ids"], "excluded": imported["excluded"]}
        if round == INITIAL:
            return data
        self._tell(round, f"{len(data['ids'])} {self.world.unit.many} labelled")
        return data

    def answers(
        self, records: Sequence[Mapping[str, Any]], *, round: int | None = None
    ) -> tuple[int, list[dict[str, Any]]]:
        """(round, `[{"question_id", "answer"}]`) of any questions, by the task model of a round (None: the newest).

        Nothing is written.

        Raises:
          RunError: that round has no model.
          DataError: images without regions.
        """
        trained = [r for r in range(self.folder.last_round() + 1) if "TRAINED" in self.folder.events(r)]
        if not trained or (round is not None and round not in trained):
            there = ", ".join(map(str, trained)) or "none"
            raise RunError(f"{self.folder.path}: round {round} has no model; rounds that have one: {there}")
        chosen = trained[-1] if round is None else round
        self._enter(chosen)
        self._load(TASK, chosen)
        world = self.world
        source = RegionQuestions(world.provider, records, world.words, world.answers, kinds=KINDS)
        ask = functools.partial(self.predict, f"{TASK}/answer")
        return chosen, evaluation.answered(ask, source, world.answers)

    def preview(self, ids: Sequence[int]) -> tuple[int, list[dict[str, Any]]]:
        """(round, lines as of `selection.jsonl`) for any images, by the newest round whose models are there.

        Nothing is written. Every image gets a line, as chosen. Where items are questions, `ids` are of the pool's.

        Raises:
          RunError: no round has models yet, an image has no features, or a question is not in the pool.
        """
        fitted = [r for r in range(self.folder.last_round() + 1) if "FITTED" in self.folder.events(r)]
        if not fitted:
            raise RunError(f"{self.folder.path}: no round has trained its samplers yet; run one first")
        known = set(self.world.oracle.ids.tolist())
        pairs = self.world.questions is not None
        strange = [i for i in ids if not (int(i) in known if pairs else self.world.provider.has(int(i)))]
        if strange:
            what = (
                "is not a question of this run's pool"
                if pairs
                else "has no region features in this run's data"
            )
            raise RunError(f"{self.world.unit.one} {strange[0]} {what}")
        round = fitted[-1]
        self._enter(round)
        self._load_all(round)
        labelled = self.labelled(round)
        pool = self._candidates(np.array(sorted(set(ids)), np.int64), round)
        found = self.strategy(self.ask, pool, labelled, len(pool), self._rng(round, "preview"))
        return round, self._lines(arrays_of(found, pool.ids), len(pool), round)

    def _lines(self, scores: Mapping[str, np.ndarray], wanted: int, round: int) -> list[dict[str, Any]]:
        questions = self.world.questions
        asked = self.bank(round) if questions is None else questions
        return selection_rows(scores, wanted, asked, self.world.answers)

    # ---- what phases work with ------------------------------------------------------------------------------

    def predict(self, name: str, source: Source) -> Rows:
        """Rows of `<stage>/<predictor>` on a source, or of an engine, by the models of the present round."""
        engine = self.world.engines.get(name)
        if engine is not None:
            return engine(self.params, source)
        stage, _, predictor = name.partition("/")
        if stage not in self.params:
            raise KeyError(
                f"predict({name!r}): no model {stage!r} in this round; there are {', '.join(self.params)}"
            )
        return self.world.fitter.stages[stage].trainer.predict(self.params[stage], predictor, source)

    def ask(self, name: str, source: Source) -> Rows:
        """`predict` as the strategy has it: "task" is its own model if the scored one is not shared (A16)."""
        if SAMPLER in self.needs and name.startswith(f"{TASK}/"):
            name = f"{SAMPLER}/{name.partition('/')[2]}"
        return self.predict(name, source)

    @functools.lru_cache(maxsize=1)  # noqa: B019  a run lives as long as its command
    def labelled(self, round: int) -> Labelled:
        """The labelled items at the start of a round, with their questions."""
        ids = np.array(sorted(self.folder.labelled(round)), np.int64)
        return self.world.labelled(ids, self.folder.records(round), self.bank_of)

    def bank_of(self, records: Sequence[Mapping[str, Any]]) -> Bank:
        """The question bank of these records; its randomness is the repeat's, so methods with equal sets share it."""
        rng = generator(self.world.seed, self.repeat, digest_of(r["question_id"] for r in records), "bank")
        return build_bank(records, self.world.words, rng=rng, **self.world.options.bank)

    def bank(self, round: int) -> Bank:
        """The question bank of a round."""
        return self.labelled(round).bank

    def pool(self, round: int) -> Candidates:
        """The unlabelled items of a round, with the questions that are asked of them."""
        labelled = self.labelled(round)
        if self._pool is not None and self._pool[0] is labelled:
            return self._pool[1]
        cache = self.folder.folder(round) / SHARDS  # a pass over a large pool goes on where it was killed
        self._pool = (
            labelled,
            self._candidates(self.folder.free(self.world.oracle.ids, round), round, cache=cache),
        )
        return self._pool[1]

    def _candidates(self, ids: np.ndarray, round: int, *, cache: Path | None = None) -> Candidates:
        labelled, options = self.labelled(round), self.world.options
        # Where nobody reads what is asked, the cheapest questions do.
        chosen = PROPOSERS[options.proposer if self.strategy.asks else "bank_random"]

        def asked(images: RegionImages) -> Asked:
            about = About(
                labelled.bank, self.asked(round), options.asked, labelled.records, self.predict,
                self.world.oracle.questions, self.world.words,
            )  # fmt: skip
            return chosen(images, about)

        return self.world.candidates(ids, labelled, asked, cache=cache)

    @functools.lru_cache(maxsize=1)  # noqa: B019
    def asked(self, round: int) -> np.ndarray:
        """Positions in the bank of the patterns that "bank_random" asks of every image (A17): common to methods, if
        they are at equal labelled sets."""
        labelled = self.labelled(round)
        kinds = Counter(r["answer_type"] for r in labelled.records)
        rng = generator(self.world.seed, self.repeat, round, "proposer")
        return propose(
            labelled.bank, np.array([kinds[k] for k in KINDS]), count=self.world.options.asked, rng=rng
        )

    # ---- models ---------------------------------------------------------------------------------------------

    def _fit(
        self, stage: str, source: Source, round: int, *, data: Mapping[str, Any], start: str | None = None
    ) -> dict[str, Any]:
        fitted = self.world.fitter.fit(
            stage,
            source,
            seed=self._seed(stage, round),
            data=self._data(round, data),
            title=self._title(round, stage),
            start=start,
        )
        self.params[stage], self.keys[stage] = fitted.params, fitted.key
        return {"key": fitted.key, "hit": fitted.hit, "result": dict(fitted.result)}

    def _load(self, stage: str, round: int) -> None:
        """Have the model of a finished phase at hand, also in a new process."""
        event = self.folder.events(round)
        known = event["TRAINED"].data["model"] if stage == TASK else event["FITTED"].data["models"][stage]
        if self.keys.get(stage) != known["key"]:
            self.params[stage] = self.world.fitter.load(stage, known["key"])
            self.keys[stage] = known["key"]

    def _load_all(self, round: int) -> None:
        for stage in (TASK, *self.needs):
            self._load(stage, round)

    def _rows(self, stage: str, round: int) -> Source:
        """Training rows of a sampler stage: the strategy's, or the labelled questions for one it did not ask for."""
        labelled = self.labelled(round)
        if stage not in self.strategy.needs:
            return labelled.questions
        return self.strategy.data(
            stage, self.ask, self.pool(round), labelled, self._rng(round, stage, "data")
        )

    def _result(self, stage: str, round: int) -> dict[str, Any]:
        model = self.folder.events(round)["TRAINED"].data["model"]
        return {**model["result"], "kept": model["hit"], "key": model["key"]}

    def _data(self, round: int, more: Mapping[str, Any]) -> dict[str, Any]:
        labels = {} if self.world.simulated else {"labels": people.labels_key(self.labelled(round).records)}
        return {"labelled": digest_of(self.folder.labelled(round)), **labels, **self.world.data_key, **more}

    def _dependent(self) -> dict[str, Any]:
        """What training rows depend on that a strategy makes itself: its options and the models before."""
        return {
            "strategy": repr(self.strategy),
            "models": dict(self.keys),
            "excluded": digest_of(self.folder.excluded()),
        }

    def _seed(self, stage: str, round: int) -> int:
        own = (self.method,) if stage == SAMPLER else ()  # the others are shared where their rows agree
        return seed_of(self.world.seed, self.repeat, *own, round, stage)

    def _rng(self, round: int, *purpose: str) -> np.random.Generator:
        return generator(self.world.seed, self.repeat, self.method, round, *purpose)

    # ---- small things ---------------------------------------------------------------------------------------

    def _repeat_of_init(self) -> int:
        return 0 if self.world.options.shared_init else self.repeat

    def _reserve(self, wanted: int) -> int:
        """How many items go out to people beyond a batch."""
        return 0 if self.world.simulated else int(np.ceil(self.world.options.reserve * wanted))

    def _wanted(self, round: int) -> int:
        have = len(self.folder.labelled(round))
        return max(1, self.world.counts[round + 1] - have)

    def _title(self, round: int, what: str) -> str:
        return f"{self.method} {self.repeat} round {round} {what}"

    def _tell(self, round: int, text: str) -> None:
        name = "initial" if round == INITIAL else f"round {round}"
        self.say(f"{self.method}  repeat {self.repeat}  {name}  {text}")


def _time(fitted: Mapping[str, Any]) -> str:
    return "kept" if fitted["hit"] else f"{fitted['result']['seconds']:.1f} s"
