"""The bench of cached answers times forms of one function, and writes what launch/reproduce.py reads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from jaxvl.reproduce.speed import read_speed

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import cached_inference


def test_all_modes_of_the_student_give_the_same_logits():
    pairs = cached_inference.Pairs("tiny", task="nlvr2", batch=2, tokens=6)
    logits = {mode: np.asarray(call()) for mode, call in pairs.calls.items()}
    teacher, plain = logits.pop("ViLT"), logits["cold, plain"]
    assert len(logits) == 7 and np.abs(teacher - plain).max() > 1e-3
    for mode, found in logits.items():
        np.testing.assert_allclose(found, plain, atol=1e-5, err_msg=mode)


def test_operations_at_base_size_are_those_of_the_specification():
    """ViLT over the cached pair: 3.02 whole, 3.80 for the class tokens, 4.10 with the first layer's share kept."""
    flops = cached_inference.count("base", tokens=40)
    assert flops["ViLT"] / 1e9 == pytest.approx(15.83, rel=0.01)
    ratios = [flops["ViLT"] / flops[name] for name in ("plain", "class tokens", "primed, class tokens")]
    assert ratios == pytest.approx([3.02, 3.80, 4.10], rel=0.03)


def test_what_it_writes_is_what_the_table_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(
        cached_inference, "use_processors", lambda threads: None
    )  # the other tests want theirs
    out = tmp_path / "cached_inference.json"
    flags = ["--size", "tiny", "--batch", "2", "--rounds", "2", "--text_tokens", "6", "--records", "4"]
    cached_inference.main([*flags, "--mode", "both cached", "--out", str(out)])
    found = read_speed(out)
    assert [row["mode"] for row in found["rows"]] == ["both cached, plain", "both cached, class tokens"]
    assert all(0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in found["rows"])
    assert found["store"][0]["read_pairs_per_s"] > 0
