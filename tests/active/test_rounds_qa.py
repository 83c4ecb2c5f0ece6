"""Rounds whose items are questions: the budget counts them, resuming selects the same, answers stay hidden."""

from __future__ import annotations

import pytest
from active_world import world
from test_rounds import run, selections

from jaxvl.active.folder import INITIAL, PHASES, RunFolder
from jaxvl.active.rounds import Run
from jaxvl.active.vocabulary import Scope
from jaxvl.atomic import read_jsonl

HIDDEN = {"answers", "answer", "answer_type", "targets", "question_type", "level"}


def made(folder, **kwargs):
    return world(folder, images=25, unit="qa", **kwargs)  # 50 questions


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, shared=made(folder)).why == "budget of 25 questions reached"
    return folder


def test_the_budget_counts_questions_and_each_is_labelled_once(whole):
    one = RunFolder(whole / "entropy" / "r0")
    assert [m["n_qas"] for m in one.rounds] == [6, 13, 19, 25] and one.rounds[-1]["fraction"] == 0.5
    images = {r["image_id"] for r in one.records()}
    assert one.rounds[-1]["n_images"] == one.rounds[-1]["cost"]["images"] == len(images) < 25
    ids = one.labelled()
    assert sorted(ids) == sorted(r["question_id"] for r in one.records()) and len(set(ids)) == 25
    assert set(ids) <= set(one.pool().tolist()) and one.problems() == []


def test_files_name_the_question_and_its_image(whole):
    one = RunFolder(whole / "entropy" / "r0")
    row, labels = one.selection(0)[0], read_jsonl(one.folder(0) / "labels.jsonl")
    assert list(row)[:4] == ["rank", "question_id", "image_id", "question"]
    (mine,) = [r for r in labels if r["question_id"] == row["question_id"]]
    assert (mine["image_id"], mine["question"]) == (row["image_id"], row["question"])
    assert one.protocol["unit"] == "qa" and one.protocol["proposer"] == "own"


@pytest.mark.parametrize("phase", PHASES)
def test_stopped_after_any_phase_and_resumed_the_same_questions_are_selected(tmp_path, whole, phase):
    while run(tmp_path, until=phase, shared=made(tmp_path)).state != "finished":
        pass
    assert selections(tmp_path) == selections(whole)


def test_answers_of_unlabelled_questions_are_never_read(tmp_path):
    read = set()

    class Secret(dict):
        def __getitem__(self, name):
            if name in HIDDEN:
                read.add(self["question_id"])
            return super().__getitem__(name)

        def get(self, name, default=None):
            return self[name] if name in self else default  # noqa: SIM401  the trap is in [...]

    shared = made(tmp_path, wrap=lambda records: [Secret(r) for r in records])
    path = tmp_path / "entropy" / "r0"
    with Run(shared, method="entropy", repeat=0, folder=path, say=lambda line: None) as one:
        one.advance(rounds=2)
        known = set(one.folder.labelled())
        assert read == known and len(known) == 19  # what was labelled was read: the trap works
        pool = one.pool(2)
    assert read == known and not known & set(pool.ids.tolist()) and len(pool) == 31
    assert not {"records", "questions", "truth", "answers"} & set(dir(pool))
    assert set(pool.annotation(0)) == {"image_id"} and not HIDDEN & set(pool[0])


def test_each_row_is_the_image_with_its_own_question(tmp_path):
    shared = made(tmp_path)
    with Run(shared, method="random", repeat=0, folder=tmp_path / "r", say=lambda line: None) as one:
        one.advance(rounds=1)
        pool, labelled = one.pool(1), one.labelled(1)
    of = {int(i): n for n, i in enumerate(shared.questions.ids)}
    for source in (pool, labelled):
        for i in range(len(source)):
            at, row = of[int(source.ids[i])], source[i]
            assert row["image_id"] == shared.questions.image_ids[at] and row["asked"].shape == (1, 14)
            assert row["text"].tolist() == shared.words.ids(shared.questions.texts[at]).tolist()
    kinds = {r["question_id"]: r["answer_type"] for r in labelled.records}
    names = ("yes/no", "number", "other")
    assert [names[k] for k in labelled.asked("asked_kind")[:, 0]] == [kinds[i] for i in labelled.ids.tolist()]
    assert labelled.subset([1]).image_ids == labelled.image_ids[1]


def test_methods_start_from_the_same_questions(tmp_path):
    shared = made(tmp_path)
    for method in ("random", "entropy"):
        run(tmp_path, method=method, shared=shared, rounds=1)
    first = [RunFolder(tmp_path / m / "r0").questions(INITIAL) for m in ("random", "entropy")]
    assert first[0] == first[1] and len(first[0]) == 6


def test_questions_have_words_of_the_labels_and_models_of_their_own(tmp_path):
    options = dict(vocabulary=Scope("strict", "strict", min_count=4), share_task_model="never")
    shared = made(tmp_path, **options)
    shared.fitter.stages["sampler"] = shared.fitter.stages["task"]
    shared.rebuild = keeping_sampler(shared.rebuild)
    assert run(tmp_path, shared=shared).state == "finished"
    one = RunFolder(tmp_path / "entropy" / "r0")
    sizes = [m["vocabulary"]["words"] for m in one.rounds]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] < len(shared.words)
    assert one.rounds[-1]["proposer"] == {"name": "own", "asked": 1}
    assert one.protocol["share_task_model"] == "never"


def keeping_sampler(rebuild):
    def again(words, answers):
        made = rebuild(words, answers)
        made.fitter.stages["sampler"] = made.fitter.stages["task"]
        return made

    return again
