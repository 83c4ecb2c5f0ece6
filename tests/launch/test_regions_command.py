"""launch/regions.py as its users start it: convert, stop, convert again, check; and what it refuses."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys

import numpy as np
import pytest
import region_files as files
from tiny_run import ROOT, environment

from jaxvl.data.regions import RegionStore, StoreWriter

SCRIPT = str(ROOT / "launch/regions.py")
MAIN = runpy.run_path(SCRIPT)["main"]
COUNT = 200
SMALL = ("--width", "8", "--regions", "4")
# The command, which sends itself a signal when it adds its 100th image.
SIGNALLED = """
import os, runpy, sys
from jaxvl.data.regions.store import StoreWriter
plain, number = StoreWriter.add, int(sys.argv.pop())
def add(self, image_id, **arrays):
    plain(self, image_id, **arrays)
    if len(self) == 100:
        os.kill(os.getpid(), number)
StoreWriter.add = add
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "train.tsv"
    return files.tsv(path, [files.lxmert_row(files.made_up(i)) for i in range(COUNT)])


@pytest.fixture
def run(capsys):
    """Runs a command in this process: argv and the exit code it must have -> its two outputs."""

    def command(*argv: object, code: int = 0):
        assert MAIN([*map(str, argv)]) == code
        return capsys.readouterr()

    return command


def test_convert_then_check(run, table, tmp_path):
    questions = tmp_path / "q.json"
    questions.write_text(json.dumps({"questions": [{"image_id": i} for i in range(0, COUNT, 2)]}))
    said = run("convert", table, "--out", tmp_path / "s", *SMALL, "--questions", questions).out
    assert f"{COUNT // 2} images written, 0 were there, {COUNT // 2} not asked for" in said
    said = run("check", tmp_path / "s", "--questions", questions).out
    assert f"{COUNT // 2} images in 1 shards" in said and "4 to 4 regions (mean 4.0) of 8" in said
    assert f"all {COUNT // 2} images of the questions are there, and 0 others" in said


def test_names_of_classes_are_kept_with_what_regions_show(run, table, tmp_path):
    names = tmp_path / "objects_vocab.txt"
    names.write_text("".join(f"thing {i}\n" for i in range(7)))
    run("convert", table, "--out", tmp_path / "s", *SMALL, "--classes", names)
    store = RegionStore(tmp_path / "s")
    assert store.classes == tuple(f"thing {i}" for i in range(7)) and len(store.shown(5)) == 4


def test_check_lists_images_that_questions_need(run, table, tmp_path):
    run("convert", table, "--out", tmp_path / "s", *SMALL)
    (tmp_path / "ids.txt").write_text(f"0\n{COUNT}\n{COUNT + 7}\n")
    said = run("check", tmp_path / "s", "--questions", tmp_path / "ids.txt", code=2).err
    assert "no regions of 2 of 3 images" in said and f"image_id {COUNT}, {COUNT + 7}." in said


def test_a_killed_conversion_goes_on_with_what_is_not_there(run, table, tmp_path):
    size = 30 * (4 * 4 * 4 + 4 * 4 + 4 * 8 * 2)  # bytes of a shard of 30 images
    command = ("convert", table, "--out", tmp_path / "s", *SMALL, "--shard-bytes", size)
    argv = [sys.executable, "-c", SIGNALLED, SCRIPT, *map(str, command), str(int(signal.SIGKILL))]
    killed = subprocess.run(argv, capture_output=True, env=environment(), timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL and len(RegionStore(tmp_path / "s")) == 90
    assert f"{COUNT - 90} images written, 90 were there" in run(*command).out
    run("check", tmp_path / "s")
    got, want = RegionStore(tmp_path / "s").of(117), files.made_up(117)
    assert all((want.features == row).all(-1).any() for row in got.features)


def test_an_interrupted_conversion_keeps_all_it_has(run, table, tmp_path, monkeypatch):
    plain = StoreWriter.add

    def add(self, image_id, **arrays):
        plain(self, image_id, **arrays)
        if len(self) == 100:
            raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "add", add)
    said = run("convert", table, "--out", tmp_path / "s", *SMALL, code=4).err
    assert "the same command goes on" in said and len(RegionStore(tmp_path / "s")) == 100


def test_what_cannot_be_converted_is_one_message(run, table, tmp_path):
    for argv, message in (
        ((tmp_path / "none.tsv",), "none.tsv: no such file or folder"),
        ((table,), "line 1: features [5, 8] are not 2048 wide; say --width"),
        ((table, *SMALL, "--layout", "csv"), "layout='csv': expected one of auto, openvqa_npz"),
        ((table, "--width", 8, "--regions", 0), "regions=0"),
    ):
        said = run("convert", *argv, "--out", tmp_path / "s", code=2).err
        assert message in said and "Traceback" not in said
        assert not (tmp_path / "s").exists()


def test_a_store_that_another_process_writes_to_is_told_apart(run, table, tmp_path):
    made_by = dict(kind="converted", layout="lxmert_tsv", rerank="onepass", detector=None)
    with StoreWriter(tmp_path / "s", regions=4, width=8, made_by=made_by):
        assert "wait for it" in run("convert", table, "--out", tmp_path / "s", *SMALL, code=3).err


def test_images_that_cannot_be_used_or_found_are_named_at_the_end(run, tmp_path):
    images = [files.made_up(i) for i in range(10)]
    images[6] = images[6]._replace(features=images[6].features * np.inf)
    path = files.tsv(tmp_path / "a.tsv", [files.lxmert_row(i) for i in images])
    (tmp_path / "ids.txt").write_text("5\n6\n77\n")
    command = ("convert", path, "--out", tmp_path / "s", *SMALL, "--questions", tmp_path / "ids.txt")
    said = run(*command, code=2)
    assert "1 images written" in said.out
    assert "a.tsv, line 7: image_id 6: features that are not finite" in said.err
    assert "2 of 3 images of --questions are in none of the files: image_id 6, 77" in said.err
