"""Tables of times are read from the bench's file, which must be of the schema."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_world import options

from jaxvl.config import ConfigError
from jaxvl.reproduce import TABLES, reproduce
from jaxvl.reproduce.speed import FILE, SCHEMA, faster, read_speed, speed_lines

TABLE = TABLES["bridge_tower/9"]
ROW = dict(
    task="vqa", batch=64, mode="both cached", teacher_seconds=1.5, student_seconds=0.5, ratio=3.0, ratio_low=2.9,
    ratio_high=3.1,
)  # fmt: skip


def write(path: Path, **changes) -> Path:
    found = dict(
        schema=SCHEMA,
        device="two cores",
        commit="abc",
        command="python bench/x.py",
        sizes={"width": 4},
        rows=[ROW],
    )
    path.write_text(json.dumps(found | changes))
    return path


def test_timed_rows_stand_beside_the_papers_and_others_are_missing(tmp_path):
    found = speed_lines(TABLE, read_speed(write(tmp_path / FILE)))
    assert found[0] == ["NLVR2", "-", "-", "-", "-", "-", "-", "160.5", "57.3", "2.8"]
    assert found[2][:7] == ["VQAv2", "both cached", "64", "1.5", "0.5", "3.00 [2.90, 3.10]", "shown"]


@pytest.mark.parametrize(
    ("low", "high", "said"), [(1.1, 2, "shown"), (0.9, 1.1, "not shown"), (0.5, 0.9, "reversed")]
)
def test_the_student_is_faster_only_if_the_whole_interval_says_so(low, high, said):
    assert faster({"ratio_low": low, "ratio_high": high}) == said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(schema="other"), "schema 'other', expected 'jaxvl.speed/1'"),
        (dict(rows=[{k: v for k, v in ROW.items() if k != "ratio_low"}]), "row 0: ratio_low missing"),
        (dict(rows=[ROW, {**ROW, "task": 3}]), "row 1: task missing"),
    ],
)
def test_file_of_another_form_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        read_speed(write(tmp_path / FILE, **changes))


def test_report_says_how_to_get_the_file_and_on_what_it_was_measured(tmp_path):
    o = replace(options(tmp_path), report_only=True)
    assert "write it with `python bench/cached_inference.py --out " in reproduce(TABLE, o).read_text()
    write(o.workdir / FILE)
    text = reproduce(TABLE, o).read_text()
    assert (
        "ours: two cores, commit abc, `python bench/x.py`; sizes: width 4" in text
        and "not comparable" in text
    )
    head, *lines = (o.workdir / "bridge_tower_9.csv").read_text().splitlines()
    assert head.startswith("task,ours: mode") and lines[2].startswith("VQAv2,both cached,64,1.5,0.5,")


@pytest.mark.parametrize(
    "table, script", [("bridge_tower/9", "cached_inference.py"), ("ccrl/2", "pool_scoring.py")]
)
def test_a_file_that_is_not_there_is_measured_by_the_bench_once(tmp_path, table, script):
    o = options(tmp_path)
    (o.root / "bench").mkdir(parents=True, exist_ok=True)
    bench = o.root / "bench" / script
    bench.write_text("import sys; sys.exit(3)")
    with pytest.raises(ConfigError, match=f"bench/{script} failed"):
        reproduce(TABLES[table], o)
    asked = tmp_path / "asked.txt"
    bench.write_text(f"import sys; open({str(asked)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))")
    reproduce(TABLES[table], replace(o, report_only=True))
    assert not asked.exists()
    reproduce(TABLES[table], o)
    (said,) = asked.read_text().splitlines()
    assert f"--out={o.workdir}" in said and (
        "--task=nlvr2" in said if table == "bridge_tower/9" else "--strategies" in said
    )
