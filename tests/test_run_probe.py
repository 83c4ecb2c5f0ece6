"""Probes from a config: a file for each row and seed, never made twice; what is missing or stale is named."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
from test_configs import EVERY

from jaxvl import run_probe
from jaxvl.active.fitting import Fitter
from jaxvl.config import ConfigError, override

FEW = {"probe.epochs": 1, "probe.lrs": (0.01,), "active.pool.images": 20, "active.val.images": 4}


def config(**values):
    c = EVERY["ccrl"].get_config("ccrl,scale=tiny")
    return override(c, FEW | {"sharding.mesh": dict(data=1, model=1)} | values)


@pytest.fixture(scope="module")
def prober(tmp_path_factory):
    return run_probe.Prober(config(), tmp_path_factory.mktemp("probes"))


def test_a_row_is_trained_once_and_its_file_says_of_what(prober, monkeypatch, capsys):
    first = prober.result("language", 0, note={"commit": "abc"})
    monkeypatch.setattr(Fitter, "fit", lambda *args, **kwargs: pytest.fail("trained again"))
    (again,) = run_probe.fill(prober, ["language", "resnet_g"], [0])
    assert again == first and (first["examples"], first["held"]) == (80, 16)
    assert first["words"].startswith("no GloVe") and 0 <= first["accuracy"]["overall"] <= 100
    said = capsys.readouterr().out
    assert "resnet_g: not available: needs" in said and "resnet.npz" in said and "kept" in said


def test_a_result_of_other_options_is_refused(prober):
    path = run_probe.path_of(prober.root, "fr_g", 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": "0" * 16}))
    with pytest.raises(ConfigError, match=r"fr_g-s3.json is of other options"):
        prober.result("fr_g", 3)


def test_features_of_a_file_are_beside_mean_words_and_belong_to_the_key(prober):
    ids = np.unique([*prober.train.image_ids, *prober.held.image_ids])
    path = run_probe.file_of(prober.root, "resnet")
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = []
    for value in (1.0, 2.0):
        np.savez(path, image_id=ids, features=np.full((len(ids), 3), value))
        keys.append(prober.key("resnet_g", 0))
    train, held = prober.features("resnet_g", 0)
    assert (train.width, len(train), len(held)) == (3 + 64, 80, 16) and keys[0] != keys[1]
    assert (train.rows(np.arange(80))[:, :3] == 2).all()
    path.unlink()


def test_the_row_of_ccrl_has_both_states_of_a_matcher_that_saw_all_pairs(prober, monkeypatch):
    seen = {}

    def predict(params, name, source):
        seen[name] = set(source[0])
        return np.full((len(source), 2), len(seen), np.float32)

    def fit(name, source, **kwargs):
        seen["fit"] = (name, len(source), kwargs["data"]["labelled"])
        return types.SimpleNamespace(params={})

    monkeypatch.setattr(prober.world.fitter, "fit", fit)
    monkeypatch.setattr(prober.world.fitter.stages["vqme"].trainer, "predict", predict)
    train, held = prober.features("ccrl", 0)
    assert seen["fit"] == ("vqme", 80, "all") and train.width == 4 and len(held) == 16
    assert "regions" in seen["image_state"] and seen["text_state"] == {"text", "text_mask"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"probe.fusion": "sum"}, "config.probe: probe.fusion='sum'"),
        ({"active.protocol": "test"}, "need the answers"),
        ({"active.oracle.name": "people"}, "need the answers"),
    ],
)
def test_bad_input_is_named_before_any_work(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        run_probe.Prober(config(**values), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_belongs_to_one_config(tmp_path):
    run_probe.begin(config(), tmp_path)
    run_probe.begin(config(), tmp_path)
    with pytest.raises(ConfigError, match=r"another config \(probe\)"):
        run_probe.begin(config(**{"probe.epochs": 2}), tmp_path)
