"""launch/main.py on an active-learning config and every command of launch/al.py, as users start them.

One real run (random and CCRL, two rounds, smallest models) is killed while it trains, goes on, and is then looked at.
"""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest
from active_world import world
from tiny_run import ROOT, launch, start

from jaxvl.active import people
from jaxvl.active.folder import INITIAL, RunFolder
from jaxvl.active.rounds import Run

pytestmark = pytest.mark.slow
SMALLEST = (
    "active.pool.images=40", "active.val.images=6", "active.scoring.block=16", "active.scoring.pairs=64",
    "stages.task.model.dropout=0.0", "stages.vqme.model.dropout=0.0", "stages.vaue.model.dropout=0.0",
    "stages.task.model.depth=1", "stages.task.batch_size=16", "stages.vaue.batch_size=16",
    "stages.vqme.batch_size=16", "stages.vqme.epochs=2",
)  # fmt: skip


def flags(workdir, *overrides, arg="random,ccrl"):
    config = f"--config={ROOT / 'configs/ccrl.py'}:{arg},scale=tiny"
    return [config, f"--workdir={workdir}", *(f"--config.{o}" for o in (*SMALLEST, *overrides))]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A workdir whose run was killed in the middle and started again: (workdir, output of the second start)."""
    workdir = tmp_path_factory.mktemp("active") / "run"
    first = start("launch/main.py", *flags(workdir))
    events = workdir / "ccrl" / "r0" / "events.jsonl"
    while first.poll() is None and not (events.exists() and "EVALUATED" in events.read_text()):
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    ended = launch("launch/main.py", *flags(workdir))
    assert ended.code == 0, ended.err
    return workdir, ended.out


def al(*args):
    return launch("launch/al.py", *map(str, args))


def test_a_killed_run_goes_on_and_ends_with_a_table_and_a_report(ran):
    workdir, out = ran
    assert "VQA accuracy (official metric)" in out and "ccrl" in out
    assert (workdir / "report" / "report.html").exists() and (workdir / "report" / "curves.png").exists()
    one = RunFolder(workdir / "ccrl" / "r0")
    assert [m["n_images"] for m in one.rounds] == [12, 24] and one.problems() == []
    assert one.selection(0)[0]["contributors"][0]["question"]
    first = RunFolder(workdir / "random" / "r0")
    assert first.labelled(0) == one.labelled(0) and len(set(first.labelled()) ^ set(one.labelled())) > 0


def test_another_config_in_the_workdir_is_refused_and_more_methods_are_not(ran):
    workdir, _ = ran
    refused = launch("launch/main.py", *flags(workdir, "active.init=0.2"))
    assert refused.code == 2 and "active.init" in refused.err
    with RunFolder(workdir / "random" / "r0").ledger.open():
        locked = launch("launch/main.py", *flags(workdir))
    assert locked.code == 3 and "works on this run" in locked.err and "Traceback" not in locked.err
    more = launch("launch/main.py", *flags(workdir, arg="entropy"))
    assert more.code == 0 and "kept" in more.out, more.err


def test_status_verify_report_and_compare(ran, tmp_path):
    workdir, _ = ran
    status = al("status", workdir)
    assert status.code == 0 and "finished: budget of 24 images" in status.out
    assert al("verify", workdir).code == 0
    assert al("compare", workdir, "--to", tmp_path / "report").code == 0
    assert (tmp_path / "report" / "curves.csv").exists()
    broken = shutil.copytree(workdir, tmp_path / "copy")
    (broken / "ccrl" / "r0" / "round_000" / "selection.jsonl").write_text("{}\n")
    model = next((broken / "models").glob("vqme-*/params.safetensors"))
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    next((broken / "models").glob("vaue-*/params.safetensors")).unlink()
    pool = broken / "random" / "r0" / "pool.json"
    pool.write_text(pool.read_text().replace("[", "[-1, ", 1))
    found = al("verify", broken)
    assert found.code == 2 and "selection.jsonl is not the file" in found.out
    assert f"{model} is not the model of event" in found.out and "it is missing" in found.out
    assert f"{pool} is not the pool that the run was begun with" in found.out


def test_a_model_of_the_whole_pool_gives_shares_and_a_dataset_map(ran, tmp_path):
    workdir = shutil.copytree(ran[0], tmp_path / "copy")
    trained = al("full", workdir / "ccrl" / "r0")
    assert trained.code == 0 and "40 images, 160 questions" in trained.out, trained.err
    assert sorted(p.name for p in (workdir / "full" / "r0").iterdir()) == [
        "evaluation.npz",
        "map.npz",
        "result.json",
    ]
    kept = launch("launch/main.py", *flags(workdir, "active.full=true"))
    assert kept.code == 0 and "whole pool, repeat 0: kept" in kept.out, kept.err
    text = (workdir / "report" / "report.html").read_text()
    assert "Dataset map of what was picked" in text and "n/a: no model of the whole pool" not in text


def test_score_says_what_any_image_would_get_and_changes_nothing(ran, tmp_path):
    workdir, _ = ran
    one = RunFolder(workdir / "ccrl" / "r0")
    before = (one.path / "events.jsonl").read_bytes()
    ids = [int(i) for i in one.pool()[:5]]
    (tmp_path / "ids.txt").write_text("\n".join(map(str, ids)))
    found = al("score", one.path, "--images", tmp_path / "ids.txt")
    assert found.code == 0, found.err
    rows = [json.loads(line) for line in found.out.splitlines()]
    assert sorted(r["image_id"] for r in rows) == ids and rows[0]["score"] >= rows[-1]["score"]
    assert (one.path / "events.jsonl").read_bytes() == before


def test_rollback_and_the_same_command_select_the_same(ran, tmp_path):
    workdir = shutil.copytree(ran[0], tmp_path / "copy")
    path = workdir / "random" / "r0"
    before = (path / "round_000" / "selection.jsonl").read_bytes()
    assert al("rollback", path, "--to", 0).code == 0
    assert len(RunFolder(path).labelled()) == 12
    assert launch("launch/main.py", *flags(workdir, arg="random")).code == 0
    assert (path / "round_000" / "selection.jsonl").read_bytes() == before
    assert al("rollback", path, "--to", 9).code == 2


def test_people_export_import_commit(tmp_path):
    """Without training: the initial images are drawn, labelled through files and committed."""
    shared, path = world(tmp_path, simulated=False), tmp_path / "entropy" / "r0"
    with Run(shared, method="entropy", repeat=0, folder=path, say=lambda line: None) as one:
        one.advance()
        locked = al("commit", path)
        assert locked.code == 3 and "works on this run" in locked.err
    ids = [row["image_id"] for row in RunFolder(path).selection(-1) if not row.get("reserve")]
    qas = [{"question": "what is it?", "answers": [{"answer": "a zeppelin"}]}]
    lines = [json.dumps({"schema": "ccrl.labels/1", "image_id": i, "status": "ok", "qas": qas}) for i in ids]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*lines, "{broken"]))
    refused = al("import", path, bad)
    assert refused.code == 2 and "line 7" in refused.err
    assert "0 of 6" in al("status", path).out
    good = tmp_path / "good.jsonl"
    good.write_text("\n".join(lines))
    taken = al("import", path, good)
    assert taken.code == 0 and "6 images" in taken.out, taken.err
    status = al("status", path).out
    assert (
        "good" in status
        and "answers that the model cannot give, to 6 of the questions: zeppelin (6)" in status
    )
    assert al("commit", path).code == 0
    assert len(RunFolder(path).labelled()) == 6
    other = tmp_path / "b" / "good.jsonl"
    other.parent.mkdir()
    other.write_text("\n".join(lines).replace("zeppelin", "blimp"))
    back = al("rollback", path, "--to", -1)
    assert (
        back.code == 0 and "the initial round with 0 labelled" in back.out and not RunFolder(path).labelled()
    )
    with Run(shared, method="entropy", repeat=0, folder=path, say=lambda line: None) as one:
        one.advance()
    waiting = RunFolder(path)
    with waiting.ledger.open() as ledger:
        people.receive(waiting, ledger, INITIAL, good)
    assert al("import", path, other, "--replace").code == 0


def test_a_run_with_people_starts_waiting_and_its_batch_can_be_exported_again(tmp_path):
    workdir = tmp_path / "run"
    ended = launch("launch/main.py", *flags(workdir, arg="random,variant=people"))
    assert ended.code == 0 and "waits for people: 0 of 12 images" in ended.out, ended.err
    run = workdir / "random" / "r0"
    assert (run / "initial" / "batch" / "gallery.html").exists()
    again = al("export", run, "--to", tmp_path / "batch", "--no-suggest")
    assert again.code == 0, again.err
    rows = [json.loads(line) for line in (tmp_path / "batch" / "batch.jsonl").read_text().splitlines()]
    assert [r["image_id"] for r in rows] == [r["image_id"] for r in RunFolder(run).selection(-1)]
    assert all((tmp_path / "batch" / r["file_name"]).exists() for r in rows)


def test_eval_scores_a_result_file(tmp_path):
    what = dict(answers=[dict(answer="red")] * 10, answer_type="other", question_type="what color")
    (tmp_path / "ann.json").write_text(
        json.dumps({"annotations": [dict(question_id=i, **what) for i in (1, 2)]})
    )
    given = [dict(question_id=1, answer="red"), dict(question_id=2, answer="blue")]
    (tmp_path / "pred.json").write_text(json.dumps(given))
    found = al("eval", "--pred", tmp_path / "pred.json", "--ann", tmp_path / "ann.json")
    assert found.code == 0 and "50.00" in found.out
    (tmp_path / "pred.json").write_text(json.dumps([dict(question_id=1, answer="red")]))
    refused = al("eval", "--pred", tmp_path / "pred.json", "--ann", tmp_path / "ann.json")
    assert refused.code == 2 and "1 question ids are missing" in refused.err


@pytest.mark.parametrize("command", ["status", "verify", "report"])
def test_a_folder_without_runs_is_named(tmp_path, command):
    found = al(command, tmp_path)
    assert found.code == 2 and str(tmp_path) in found.err
