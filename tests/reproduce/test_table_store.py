"""A workdir belongs to one scale, one kind of data and one state of the code."""

from __future__ import annotations

import json

import pytest
from fake_world import TABLE, FakeRuns, options

from jaxvl.config import ConfigError
from jaxvl.reproduce import reproduce
from jaxvl.reproduce.store import Store, code, commit


@pytest.fixture
def filled(tmp_path):
    o = options(tmp_path, seeds=(0,), only="pre")
    reproduce(TABLE, o, execute=FakeRuns(tmp_path))
    return tmp_path


def test_another_scale_is_refused_with_the_fix(filled):
    with pytest.raises(
        ConfigError, match=r"holds cells of --scale=small, not tiny: give another --workdir.*w_tiny"
    ):
        reproduce(TABLE, options(filled, scale="tiny"), execute=FakeRuns(filled))


def test_a_workdir_without_cells_takes_any_scale(tmp_path):
    with pytest.raises(ConfigError, match="no row"):
        reproduce(TABLE, options(tmp_path, only="nothing"))
    Store(tmp_path / "w", tmp_path).begin(scale="small", data="scenes")
    Store(tmp_path / "w", tmp_path).begin(scale="tiny", data="scenes")
    assert json.loads((tmp_path / "w/workdir.json").read_text())["scale"] == "tiny"


def test_other_code_is_refused_unless_asked_for_and_may_be_reported(filled):
    o = options(filled)
    (filled / "jaxvl/a.py").write_text("x = 2\n")
    with pytest.raises(ConfigError, match="--mix_commits"):
        Store(o.workdir, filled).begin(scale="small", data="scenes")
    Store(o.workdir, filled).check(scale="small", data="scenes")
    Store(o.workdir, filled).begin(scale="small", data="scenes", mix=True)
    Store(o.workdir, filled).begin(scale="small", data="scenes")  # it belongs to the new code now


def test_documentation_and_this_package_do_not_change_the_code(filled):
    before = code(filled)
    (filled / "README.md").write_text("x")
    (filled / "jaxvl/reproduce").mkdir()
    (filled / "jaxvl/reproduce/b.py").write_text("x")
    assert code(filled) == before
    (filled / "launch/main.py").write_text("x")
    assert code(filled) != before


def test_commit_outside_of_git_is_unknown(tmp_path):
    assert commit(tmp_path) == "unknown"


def test_damaged_result_names_the_file(filled):
    path = next((filled / "w").glob("stages/vqa-*/vqa/result.json"))
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"result.json, line 1: not valid JSON"):
        reproduce(TABLE, options(filled, seeds=(0,), report_only=True))
