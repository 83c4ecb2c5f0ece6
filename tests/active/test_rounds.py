"""Rounds: killed and resumed anywhere, the same images are selected; nothing is labelled twice; methods start alike."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from active_world import FakeFitter, world

from jaxvl.active import loop
from jaxvl.active.beginning import begin
from jaxvl.active.folder import INITIAL, PHASES, RunError, RunFolder, runs_in
from jaxvl.active.ledger import EVENTS
from jaxvl.active.measuring import by_question_type
from jaxvl.active.report.checks import incomparable
from jaxvl.active.rounds import Run
from jaxvl.active.strategies.classics import Entropy, Margin


def run(folder, *, method="entropy", repeat=0, shared=None, **kwargs):
    """A run of its own world, as a new process would have it; returns its outcome."""
    with Run(
        shared or world(folder),
        method=method,
        repeat=repeat,
        folder=folder / method / f"r{repeat}",
        say=lambda line: None,
    ) as one:
        return one.advance(**kwargs)


def selections(folder, method="entropy", repeat=0):
    one = RunFolder(folder / method / f"r{repeat}")
    return [(one.folder(r) / "selection.jsonl").read_bytes() for r in range(INITIAL, one.last_round())]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder).state == "finished"
    return folder


def test_the_budget_is_reached_and_every_image_labelled_once(whole):
    one = RunFolder(whole / "entropy" / "r0")
    assert [m["n_images"] for m in one.rounds] == [6, 13, 19, 25]
    ids = one.labelled()
    assert len(ids) == len(set(ids)) == 25 and set(ids) <= set(one.pool().tolist())
    assert one.problems() == []


def test_metrics_say_what_a_round_knew_and_with_what_it_ran(whole):
    metrics = RunFolder(whole / "entropy" / "r0").rounds
    for found in metrics:
        bank = found["bank"]
        assert bank["size"] == sum(bank["by_kind"].values()) <= bank["distinct"]
        assert (
            found["versions"]["jax"]
            and found["peak_mem"]["host"] > 0.01
            and "colour_of" in found["question_types"]
        )
    assert metrics[0]["bank"]["distinct"] < metrics[-1]["bank"]["distinct"]


def test_accuracy_of_each_official_question_type(tmp_path):
    np.savez(tmp_path / "e.npz", value=np.float32([1, 0, 1]), question_id=np.arange(3), image_id=np.arange(3),
             kind=np.zeros(3, np.int8))  # fmt: skip
    rows = [{"question_type": t} for t in ("is it", "is it", "how many")]
    held = type("Held", (), {"annotation": lambda self, i: rows[i], "__len__": lambda self: 3})()
    world = SimpleNamespace(val=held)
    assert by_question_type(world, tmp_path / "e.npz") == {"how many": 100.0, "is it": 50.0}
    assert by_question_type(world, tmp_path / "results.json") == {}


def test_every_selected_image_says_how_many_it_stands_for(whole):
    one = RunFolder(whole / "entropy" / "r0")
    rows = one.selection(1)
    assert (
        sum(r["stands_for"] for r in rows) == 50 - len(one.labelled(2))
        and one.selection(INITIAL)[0]["score"] is None
    )
    assert "stands_for" not in one.selection(INITIAL)[0]


def test_what_images_stand_for_is_not_counted_if_it_is_not_wanted(tmp_path):
    run(tmp_path, shared=world(tmp_path, stands_for=False), rounds=1)
    assert "stands_for" not in RunFolder(tmp_path / "entropy" / "r0").selection(0)[0]


@pytest.mark.parametrize("phase", PHASES)
def test_stopped_after_any_phase_and_resumed_the_same_images_are_selected(tmp_path, whole, phase):
    while (outcome := run(tmp_path, until=phase)).state != "finished":
        assert outcome.state == "paused"
    assert selections(tmp_path) == selections(whole)


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    run(tmp_path, until="SCORED")
    left = tmp_path / "entropy" / "r0" / "round_000" / "scores.npz.1f2e.tmp"
    left.write_bytes(b"half")
    run(tmp_path, until="SELECTED")
    assert not left.exists()


def test_a_torn_event_is_made_up_for(tmp_path, whole):
    run(tmp_path, until="SCORED")
    path = tmp_path / "entropy" / "r0" / EVENTS
    path.write_bytes(path.read_bytes()[:-20])  # killed while the event was written
    run(tmp_path)
    assert selections(tmp_path) == selections(whole)


def test_methods_of_a_repeat_share_initial_images_and_their_model_but_repeats_do_not(tmp_path):
    shared = world(tmp_path)
    loop.run(shared, tmp_path, methods=["random", "entropy"], repeats=[0, 1], say=lambda line: None)
    first = {(one.method, one.repeat): one.questions(INITIAL) for one in runs_in(tmp_path)}
    assert first["random", 0] == first["entropy", 0] != first["random", 1] == first["entropy", 1]
    assert len(shared.fitter.fits) == 2 * (4 + 3)  # round 0 once for both methods
    hits = [
        e.data["model"]["hit"] for one in runs_in(tmp_path) for e in one.ledger.events if e.kind == "TRAINED"
    ]
    assert sum(hits) == 2


def test_a_shared_initial_pool_is_that_of_the_first_repeat(tmp_path):
    for repeat in (0, 1):
        run(tmp_path, repeat=repeat, shared=world(tmp_path, shared_init=True), until="COMMITTED")
    assert selections(tmp_path) + [1] == selections(tmp_path, repeat=1) + [1]


def test_another_protocol_in_the_same_folder_is_refused(tmp_path, whole):
    with pytest.raises(RunError, match="protocol differ"):
        begin(world(tmp_path, budget=0.25), "entropy", 0, whole / "entropy" / "r0")


def test_another_task_model_or_bank_is_another_protocol_but_older_runs_go_on(tmp_path, whole):
    path = tmp_path / "r0"
    shutil.copytree(whole / "entropy" / "r0", path)
    shared = world(tmp_path)
    for change in (
        replace(shared, fitter=FakeFitter(tmp_path, 3, section="lr=1")),
        replace(shared, options=replace(shared.options, bank={"max": 7})),
    ):
        with pytest.raises(RunError, match="protocol differ"):
            begin(change, "entropy", 0, path)
    about = json.loads((path / "run.json").read_text())
    now = RunFolder(path)
    for name in ("task_model", "bank"):
        del about["protocol"][name]
    (tmp_path / "old").mkdir()
    (tmp_path / "old/run.json").write_text(json.dumps(about))
    before = begin(shared, "entropy", 0, tmp_path / "old")
    assert "bank" not in before.protocol and "bank" in now.protocol
    record = SimpleNamespace(method="entropy", repeat=0, rounds=[], labelled=lambda round: [], options={})
    old, new = (SimpleNamespace(**{**vars(record), "protocol": p}) for p in (before.protocol, now.protocol))
    assert incomparable([old, new]) == []
    other = SimpleNamespace(**{**vars(record), "protocol": {**now.protocol, "task_model": "x"}})
    assert "task_model" in incomparable([new, other])[0]


def test_two_methods_of_one_name_are_not_repeats_of_it(tmp_path):
    """Options of a strategy, or of what it trains, must agree; options that older code did not have do not tell."""
    runs = []
    for repeat, strategy in enumerate((Margin(), Margin(), Entropy())):
        folder = tmp_path / str(repeat)
        shared = replace(world(folder), strategies={"x": strategy})
        run(folder, method="x", repeat=repeat, shared=shared, rounds=1)
        runs.append(RunFolder(folder / "x" / f"r{repeat}"))
    assert incomparable(runs[:2]) == []
    (line,) = incomparable(runs[1:])
    assert 'strategy.class is "Entropy", that of x, repeat 1 is "Margin"' in line
    del runs[0].about["options"]
    assert incomparable(runs[:2]) == [] and incomparable(runs) == [line]


def test_files_that_were_changed_are_found(tmp_path):
    run(tmp_path)
    one = RunFolder(tmp_path / "entropy" / "r0")
    (one.folder(1) / "selection.jsonl").write_text("{}\n")
    (one.folder(2) / "metrics.json").unlink()
    found = "\n".join(one.problems())
    assert (
        "round_001/selection.jsonl is not the file" in found and "round_002/metrics.json is missing" in found
    )


def test_a_rollback_forgets_a_round_and_the_rerun_selects_the_same(tmp_path, whole):
    run(tmp_path)
    one = RunFolder(tmp_path / "entropy" / "r0")
    with one.ledger.open() as ledger:
        at = next(e.seq for e in ledger.valid() if e.data.get("round") == 2)
        ledger.append("ROLLED_BACK", to=at, round=2)
    assert len(RunFolder(one.path).labelled()) == 19
    run(tmp_path)
    assert selections(tmp_path) == selections(whole)


def test_selections_of_an_approximate_way_are_stamped_wherever_they_are_used(tmp_path):
    ways = {"entropy": ("k_max=16", "compute=bfloat16")}
    said = []
    shared, folder = world(tmp_path, budget=0.25, approximate=ways), tmp_path / "entropy" / "r0"
    with Run(shared, method="entropy", repeat=0, folder=folder, say=said.append) as one:
        one.advance()
    found = RunFolder(folder)
    stamp = list(ways["entropy"])
    assert found.events(0)["SCORED"].data["approximate"] == stamp
    assert all(row["approximate"] == stamp for row in found.selection(0))
    assert all("approximate" not in row for row in found.selection(INITIAL))
    assert all(m["approximate"] == stamp for m in found.rounds)
    assert sum("selected approximately: k_max=16, compute=bfloat16" in line for line in said) == 1


def test_questions_and_answers_of_unlabelled_images_are_never_read(tmp_path):
    read, hidden = set(), {"question", "question_type", "answers", "answer_type", "multiple_choice_answer"}

    class Secret(dict):
        def __getitem__(self, name):
            if name in hidden:
                read.add(self["image_id"])
            return super().__getitem__(name)

        def get(self, name, default=None):
            return self[name] if name in self else default  # noqa: SIM401  the trap is in [...]

    shared = world(tmp_path, wrap=lambda records: [Secret(r) for r in records])
    with Run(shared, method="entropy", repeat=0, folder=tmp_path / "r", say=lambda line: None) as one:
        one.advance(rounds=2)
        known = set(one.folder.labelled())
        assert read == known and len(known) == 19  # what was labelled was read: the trap works
        one.advance(until="SCORED")
        pool = one.pool(2)
    assert read == known and not known & set(pool.ids.tolist()) and len(pool) == 31
    assert not {"records", "questions", "truth", "answers"} & set(dir(pool)) and not hidden & set(pool[0])
    assert known | set(pool.ids.tolist()) == set(shared.oracle.ids.tolist())


def test_an_early_stop_says_why(tmp_path):
    from jaxvl.active.budget import Stop

    outcome = run(tmp_path, shared=world(tmp_path, stop=Stop(cost=10)))
    assert outcome.state == "finished" and "cost" in outcome.why
    assert len(RunFolder(tmp_path / "entropy" / "r0").labelled()) == 13


def test_a_strategy_that_cheats_on_the_budget_is_stopped(tmp_path):
    from jaxvl.active.strategies.base import Selection, Strategy

    class Greedy(Strategy):
        def __call__(self, predict, pool, labelled, budget, rng):
            return Selection([0] * budget)

    shared = world(tmp_path)
    shared.strategies = {"greedy": Greedy()}
    with pytest.raises(ValueError, match="greedy.*1 distinct"):
        run(tmp_path, method="greedy", shared=shared)


def test_a_resumed_round_does_not_make_the_rows_of_its_samplers_again(tmp_path):
    from jaxvl.active.strategies.classics import Entropy

    made = []

    class Sampled(Entropy):
        needs = ("task",)

        def data(self, stage, predict, pool, labelled, rng):
            made.append(stage)
            return labelled.questions

    for until in ("FITTED", "SELECTED"):
        shared = world(tmp_path)
        shared.strategies = {"sampled": Sampled()}
        run(tmp_path, method="sampled", shared=shared, until=until)
    assert made == ["task"]
