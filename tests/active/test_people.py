"""A round with people: it waits, takes labels once, replaces what they skip from the reserve, and goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from active_world import world

from jaxvl.active import people
from jaxvl.active.folder import INITIAL, RunError, RunFolder
from jaxvl.active.report import labelling
from jaxvl.active.rounds import Run


def start(folder, **kwargs):
    """Run until people are needed; the run's folder and the outcome."""
    change = kwargs.pop("change", lambda shared: shared)
    shared = change(world(folder, simulated=False, budget=0.25, **kwargs))
    path = folder / "entropy" / "r0"
    with Run(shared, method="entropy", repeat=0, folder=path, say=lambda line: None) as one:
        outcome = one.advance()
    return RunFolder(path), outcome


def lines(ids, answer="red", **status):
    """Label lines for these images: two questions with one answer each, or a status."""
    for i in ids:
        row = {"schema": "ccrl.labels/1", "image_id": int(i), "status": status.get("status", "ok")}
        asked = [
            {"question": q, "answers": [{"answer": answer}]}
            for q in ("what color is it?", f"is it number {i}?")
        ]
        yield json.dumps({**row, "qas": [] if status else asked})


def give(run, text, tmp_path, name="labels.jsonl", **kwargs):
    file = tmp_path / name
    file.write_text("\n".join(text) + "\n")
    with run.ledger.open() as ledger:
        return people.receive(run, ledger, run.position()[0], file, **kwargs)


def batch(run, reserve=False):
    round, _ = run.position()
    return [r["image_id"] for r in run.selection(round) if bool(r.get("reserve")) == reserve]


def test_the_initial_images_and_each_round_wait_for_labels_and_then_go_on(tmp_path):
    run, outcome = start(tmp_path)
    assert outcome.state == "waiting" and "0 of 6" in outcome.why
    assert (run.folder(INITIAL) / "batch" / "gallery.html").exists()
    give(run, lines(batch(run)), tmp_path)
    run, outcome = start(tmp_path)
    assert outcome.state == "waiting" and run.position() == (0, "IMPORTED")
    give(run, lines(batch(run)), tmp_path)
    run, outcome = start(tmp_path)
    assert outcome.state == "finished" and len(run.labelled()) == 13
    assert len(run.records()) == 26 and run.records()[0]["answer_type"] == "other"


def test_the_same_file_twice_is_one_import(tmp_path):
    run, _ = start(tmp_path)
    text = list(lines(batch(run)))
    give(run, text, tmp_path)
    give(run, text, tmp_path)
    assert sum(e.kind == people.RECEIVED for e in run.ledger.events) == 1


def test_images_outside_the_batch_are_refused_and_nothing_is_taken(tmp_path):
    run, _ = start(tmp_path)
    inside, outside = batch(run), next(i for i in run.pool().tolist() if i not in batch(run))
    with pytest.raises(ValueError, match=str(outside)):
        give(run, lines([*inside, outside]), tmp_path)
    assert people.state(run, INITIAL).ids == []
    give(run, lines([*inside, outside]), tmp_path, partial=True)
    assert people.state(run, INITIAL).ids == inside


def test_skipped_images_are_replaced_from_the_reserve_and_never_asked_for_again(tmp_path):
    run, _ = start(tmp_path)
    give(run, lines(batch(run)), tmp_path)
    run, _ = start(tmp_path, reserve=0.5)
    chosen, reserve = batch(run), batch(run, reserve=True)
    assert len(reserve) == 4
    give(run, lines(chosen[:1], status="skip"), tmp_path)
    give(run, lines([*chosen[1:], *reserve]), tmp_path)
    assert people.state(run, 0).ids == [*chosen[1:], reserve[0]]  # one for one, best first
    run, _ = start(tmp_path, reserve=0.5)
    assert run.excluded() == set(chosen[:1]) and chosen[0] not in run.labelled()


def test_an_explicit_commit_ends_a_partial_round_and_needs_labels(tmp_path):
    run, _ = start(tmp_path)
    with run.ledger.open() as ledger, pytest.raises(RunError, match="no labels"):
        people.commit(run, ledger, INITIAL)
    give(run, lines(batch(run)[:2]), tmp_path)
    assert "2 of 6" in people.lacking(run, INITIAL, 0.9)
    with run.ledger.open() as ledger:
        people.commit(run, ledger, INITIAL)
    assert len(RunFolder(run.path).labelled()) == 2 and run.problems() == []


def test_a_commit_that_was_killed_halfway_is_finished_by_the_next_run(tmp_path, monkeypatch):
    run, _ = start(tmp_path)
    give(run, lines(batch(run)[:5]), tmp_path)
    with run.ledger.open() as ledger:
        append = ledger.append

        def dies(kind, **data):
            if kind == "COMMITTED":
                raise KeyboardInterrupt
            return append(kind, **data)

        monkeypatch.setattr(ledger, "append", dies)
        with pytest.raises(KeyboardInterrupt):
            people.commit(run, ledger, INITIAL)
    assert RunFolder(run.path).labelled() == []
    again, _ = start(tmp_path)
    assert again.labelled(0) == batch(run)[:5] and again.position() == (0, "IMPORTED")
    assert again.problems() == []


def back(run, to):
    with run.ledger.open() as ledger:
        later = [e for e in ledger.valid() if e.data.get("round", INITIAL) >= to]
        ledger.append("ROLLED_BACK", to=later[0].seq, round=to)


def model_of(run, round=0):
    return RunFolder(run.path).events(round)["TRAINED"].data["model"]


def test_a_model_of_other_labels_of_the_same_images_is_another_model(tmp_path):
    """What people answered is not known by the ids of the images: labels that are given anew must be learned anew."""
    run, _ = start(tmp_path)
    first = batch(run)
    give(run, lines(first, answer="red"), tmp_path)
    run, _ = start(tmp_path)
    wrong = model_of(run)
    back(run, INITIAL)
    run, _ = start(tmp_path)
    assert batch(run) == first
    give(run, lines(first, answer="blue"), tmp_path)
    run, _ = start(tmp_path)
    assert model_of(run)["key"] != wrong["key"] and not model_of(run)["hit"]
    back(run, INITIAL)
    run, _ = start(tmp_path)
    give(run, lines(first, answer="red"), tmp_path)
    run, _ = start(tmp_path)
    assert model_of(run)["key"] == wrong["key"] and model_of(run)["hit"]


def test_the_initial_batch_has_a_reserve_too_and_starts_from_the_images_of_a_simulated_run(tmp_path):
    run, _ = start(tmp_path, reserve=0.5)
    with Run(world(tmp_path / "s"), method="entropy", repeat=0, folder=tmp_path / "s/entropy/r0",
             say=lambda line: None) as one:  # fmt: skip
        one.advance(rounds=1)
    assert batch(run) == RunFolder(tmp_path / "s/entropy/r0").labelled(0)
    chosen, reserve = batch(run), batch(run, reserve=True)
    assert len(reserve) == 3 and not set(reserve) & set(chosen)
    give(run, lines(chosen[:2], status="skip"), tmp_path)
    give(run, lines([*chosen[2:], *reserve]), tmp_path)
    run, _ = start(tmp_path, reserve=0.5)
    assert run.labelled(0) == [*chosen[2:], *reserve[:2]] and run.position()[0] == 0


def test_nameless_answers_of_two_people_do_not_replace_each_other(tmp_path):
    run, _ = start(tmp_path)
    ids = batch(run)
    (tmp_path / "ben").mkdir()
    give(run, lines(ids[:4]), tmp_path)
    give(run, lines(ids[:5]), tmp_path)  # the same file has grown
    with pytest.raises(RunError, match=f"to 10 questions, the first of image {ids[0]},.*--replace"):
        give(run, lines(ids[:5], answer="blue"), tmp_path / "ben")
    assert {a for r in people.state(run, INITIAL).records for a in r["answers"]} == {"red"}
    give(run, lines(ids[:5], answer="blue"), tmp_path, name="bens.jsonl")
    assert {tuple(r["answers"]) for r in people.state(run, INITIAL).records} == {("red", "blue")}
    for _ in range(2):  # the second time it is known
        give(run, lines(ids[:5], answer="green"), tmp_path / "ben", replace=True)
        assert {tuple(r["answers"]) for r in people.state(run, INITIAL).records} == {("green", "blue")}
    give(run, lines(ids, answer="green"), tmp_path / "ben")  # the corrected file has grown
    give(run, lines(ids[:5]), tmp_path, replace=True)  # back to the first
    found = [r for r in people.state(run, INITIAL).records if r["image_id"] in ids[:5]]
    assert {tuple(sorted(r["answers"])) for r in found} == {("blue", "red")}
    assert RunFolder(run.path).problems() == []


def test_the_same_labels_under_another_name_and_a_named_correction_are_taken(tmp_path):
    run, _ = start(tmp_path)
    ids = batch(run)
    text = list(lines(ids[:4]))
    give(run, text, tmp_path)
    give(run, text, tmp_path, name="copy.jsonl")
    assert people.state(run, INITIAL).ids == ids[:4] and RunFolder(run.path).problems() == []

    def said(*answers):
        named = [{"answer": a, "annotator": "anna"} for a in answers]
        row = {"schema": "ccrl.labels/1", "image_id": ids[5], "qas": [{"question": "who?", "answers": named}]}
        return [json.dumps(row)]

    give(run, said("red", "blue"), tmp_path, name="anna.jsonl")
    give(run, said("red", "green"), tmp_path, name="anna.jsonl")  # anna#2 has corrected herself
    assert people.state(run, INITIAL).records[-1]["answers"] == ["red", "green"]
    swapped = [
        t.replace('"red"', '"x"').replace('"blue"', '"red"').replace('"x"', '"blue"')
        for t in said("red", "blue")
    ]
    nameless = [t.replace(', "annotator": "anna"', "") for t in said("red", "blue")]
    give(run, nameless, tmp_path, name="b.jsonl")
    give(
        run, [t.replace(', "annotator": "anna"', "") for t in swapped], tmp_path, name="b.jsonl"
    )  # other order


def test_labels_that_came_in_and_were_changed_are_not_taken(tmp_path):
    run, _ = start(tmp_path)
    give(run, lines(batch(run)[:3]), tmp_path)
    (kept,) = (run.folder(INITIAL) / "received").iterdir()
    kept.write_text(kept.read_text().replace("red", "rot"))
    assert str(kept) in RunFolder(run.path).problems()[0]
    with pytest.raises(RunError, match="import their files again"):
        people.state(run, INITIAL)
    give(run, lines(batch(run)[:3]), tmp_path)
    assert people.state(run, INITIAL).ids == batch(run)[:3] and RunFolder(run.path).problems() == []


def test_labels_that_were_lost_can_come_in_again_file_by_file(tmp_path):
    run, _ = start(tmp_path)
    texts = {"a.jsonl": list(lines(batch(run)[:3])), "b.jsonl": list(lines(batch(run)[3:5]))}
    for name, text in texts.items():
        give(run, text, tmp_path, name=name)
    for file in (run.folder(INITIAL) / "received").iterdir():
        file.unlink()
    for name, text in texts.items():
        give(run, text, tmp_path, name=name)
    assert people.state(run, INITIAL).ids == batch(run)[:5] and RunFolder(run.path).problems() == []


def test_labels_for_a_round_that_is_over_are_refused(tmp_path):
    run, _ = start(tmp_path)
    give(run, lines(batch(run)), tmp_path)
    run, _ = start(tmp_path)
    with run.ledger.open() as ledger, pytest.raises(RunError, match="no batch is waiting"):
        people.receive(run, ledger, INITIAL, tmp_path / "labels.jsonl")


def test_gold_images_come_back_as_a_judgement_of_annotators_and_never_as_labels(tmp_path):
    run, _ = start(tmp_path, gold=0.5)
    assert people.gold_of(run, INITIAL) == []  # nothing is known yet
    give(run, lines(batch(run)), tmp_path)
    run, _ = start(tmp_path, gold=0.5)
    gold, chosen = people.gold_of(run, 0), batch(run)
    assert len(gold) == 4 and set(gold) <= set(run.labelled())
    exported = [json.loads(x) for x in (run.folder(0) / "batch" / "batch.jsonl").read_text().splitlines()]
    assert {len(e["suggested"]) for e in exported} == {2}  # all have questions: they look alike
    known = {q["question"] for e in exported if e["image_id"] == gold[0] for q in e["suggested"]}
    assert known == {r["question"] for r in run.records() if r["image_id"] == gold[0]}
    (tmp_path / "bea.jsonl").write_text("\n".join([*lines(chosen), *lines(gold)]))
    with run.ledger.open() as ledger:
        people.receive(run, ledger, 0, tmp_path / "bea.jsonl")
    assert people.state(run, 0).ids == chosen
    judged = labelling.of_run(run)["annotators"]["bea"]
    assert judged["gold"] == 8 and judged["accuracy"] == 1.0
    run, _ = start(tmp_path, gold=0.5)
    assert len(run.labelled()) == 6 + len(chosen) and run.problems() == []


def test_a_batch_with_gold_images_needs_questions(tmp_path):
    run, _ = start(tmp_path, gold=0.5)
    give(run, lines(batch(run)), tmp_path)
    run, _ = start(tmp_path, gold=0.5)
    with pytest.raises(RunError, match="--no-suggest"):
        people.write_batch(
            run, 0, [batch(run)[0]], images=None, suggest=False, folder=tmp_path / "b", digest=str
        )


def test_of_images_with_equal_features_one_is_exported_and_the_others_are_never_asked_for(tmp_path):
    run, _ = start(tmp_path)
    give(run, lines(batch(run)), tmp_path)

    def same(shared):  # all features are those of image 7, the pictures differ
        of = shared.provider.of
        shared.provider = SimpleNamespace(
            of=lambda i: of(7), has=shared.provider.has, regions=6, width=8, digest="d"
        )
        return shared

    run, _ = start(tmp_path, change=same)
    chosen = batch(run)
    exported = [json.loads(x) for x in (run.folder(0) / "batch" / "batch.jsonl").read_text().splitlines()]
    assert [e["image_id"] for e in exported] == chosen[:1]
    assert set(people.state(run, 0).excluded) == {*chosen[1:], *batch(run, reserve=True)}


def test_a_spare_copy_of_a_spare_image_goes_back_into_the_pool(tmp_path):
    alike: set[int] = set()

    def look_alike(shared):
        of = shared.provider.of
        given = {name: getattr(shared.provider, name) for name in ("has", "regions", "width", "digest")}
        shared.provider = SimpleNamespace(of=lambda i: of(min(alike) if i in alike else i), **given)
        return shared

    for folder in (tmp_path / "before", tmp_path / "after"):
        folder.mkdir()
        run, _ = start(folder, reserve=1.0)
        give(run, lines(batch(run)), folder)
        run, _ = start(folder, reserve=1.0, change=look_alike)
        exported = [json.loads(x) for x in (run.folder(0) / "batch" / "batch.jsonl").read_text().splitlines()]
        assert len(exported) == len(run.selection(0)) - max(len(alike) - 1, 0)
        alike |= set(batch(run, reserve=True)[:3])
    assert people.state(run, 0).excluded == []
    bad = lines(batch(run)[:1], status="bad_image")
    used = min(alike & set(batch(run, reserve=True)), key=batch(run, reserve=True).index)
    give(run, [*bad, *lines([used])], folder)  # its labels count now, so nobody needs to see its copies
    assert set(people.state(run, 0).excluded) == {batch(run)[0], *alike} - {used}


def test_what_was_said_of_labels_is_forgotten_with_a_round_that_is_rolled_back(tmp_path):
    run, _ = start(tmp_path)
    give(run, lines(batch(run)), tmp_path)
    run, _ = start(tmp_path)
    give(run, lines(batch(run)), tmp_path)
    assert labelling.of_run(run)["questions"] == 12 + 14
    with run.ledger.open() as ledger:
        ledger.append("ROLLED_BACK", to=next(e.seq for e in ledger.valid() if e.data["round"] == 0), round=0)
    run, _ = start(tmp_path)
    assert labelling.of_run(run)["questions"] == 12


def test_a_file_that_comes_again_after_a_rollback_is_read_for_the_new_batch(tmp_path):
    run, _ = start(tmp_path)
    ids = batch(run)
    give(run, lines(ids), tmp_path)
    run, _ = start(tmp_path)
    more = [*lines(batch(run)), *lines(ids[:1])]  # one is not in this batch
    assert len(give(run, more, tmp_path, partial=True).problems) == 1
    kept = next((run.folder(0) / "received").glob("*.json"))
    kept.write_text(
        json.dumps({"records": [], "skipped": [], "bad_images": [], "gold": []})
    )  # as of another batch
    give(run, more, tmp_path, partial=True)
    assert len(people.state(run, 0).records) == 2 * len(batch(run))


def test_a_run_ends_where_people_left_everything_else_out(tmp_path):
    run, _ = start(tmp_path)
    give(run, lines(batch(run)), tmp_path)
    run, _ = start(tmp_path)
    give(run, lines(batch(run)[:1]), tmp_path)
    shared = world(tmp_path, simulated=False, budget=0.25)
    with Run(shared, method="entropy", repeat=0, folder=run.path, say=lambda line: None) as one:
        one.folder.free = lambda ids, round: ids[:0]  # as if all others were excluded
        assert one._over(0) == "no images left: all others are labelled or left out"


def test_questions_with_too_few_answers_do_not_count_yet(tmp_path):
    changed = lambda shared: replace(shared, options=replace(shared.options, min_answers=2))  # noqa: E731
    run, _ = start(tmp_path, change=changed)
    ids = batch(run)
    give(run, lines(ids), tmp_path)
    assert people.state(run, INITIAL).ids == []
    again = [
        row.replace('{"answer": "red"}', '{"answer": "red"}, {"answer": "blue"}') for row in lines(ids[:2])
    ]
    give(run, again, tmp_path)
    assert sorted(people.state(run, INITIAL).ids) == sorted(ids[:2])
