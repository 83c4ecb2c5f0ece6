"""Strategies of installed packages: found by name, and errors that say which package is at fault."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from jaxvl.active.strategies import STRATEGIES, load_strategies
from jaxvl.active.strategies.base import Strategy
from jaxvl.active.strategies.classics import Entropy
from jaxvl.active.strategies.entry_points import GROUP, PlugInError, load


def point(name, value):
    return EntryPoint(name, value, GROUP)


def test_a_strategy_of_another_package_joins_the_built_in_ones():
    found = load(STRATEGIES, [point("mine", "jaxvl.active.strategies.classics:Entropy")])
    assert found["mine"] is Entropy and set(found) == {*STRATEGIES, "mine"}
    assert "mine" not in STRATEGIES


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mine", "no_such_package:X", "cannot be loaded.*ModuleNotFoundError.*no_such_package"),
        ("mine", "jaxvl.types:NoSuchClass", "cannot be loaded.*AttributeError"),
        ("mine", "jaxvl.active.strategies.base:top", "expected a subclass of"),
        ("mine", "collections:OrderedDict", "expected a subclass of"),
        ("random", "jaxvl.active.strategies.classics:Entropy", "'random' of .* is there already"),
    ],
)
def test_what_cannot_be_used_is_named(name, value, message):
    with pytest.raises(PlugInError, match=message):
        load(STRATEGIES, [point(name, value)])


def test_two_packages_cannot_share_a_name():
    twice = [point("mine", "jaxvl.active.strategies.classics:Entropy")] * 2
    with pytest.raises(PlugInError, match="'mine' of .* is there already"):
        load(STRATEGIES, twice)


def test_an_installed_package_is_found(tmp_path, monkeypatch):
    (tmp_path / "odd_choice.py").write_text(
        "from jaxvl.active.strategies.base import Strategy\nclass Odd(Strategy):\n    pass\n"
    )
    info = tmp_path / "odd_choice-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-choice\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jaxvl.strategies]\nodd = odd_choice:Odd\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = load_strategies()["odd"]
    assert issubclass(found, Strategy) and found.__module__ == "odd_choice"
    (tmp_path / "odd_choice.py").write_text("1 / 0\n")
    sys.modules.pop("odd_choice")
    with pytest.raises(PlugInError, match="'odd' of odd-choice cannot be loaded .ZeroDivisionError"):
        load_strategies()
    sys.modules.pop("odd_choice", None)
