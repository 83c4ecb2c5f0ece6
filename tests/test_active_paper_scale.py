"""Both protocols at paper scale, on stand-ins of VQA v2 files, 36 regions of 2,048, GloVe and the answer list.

Files have the official formats and the paper's widths; models are narrow, rounds are few.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_configs import EVERY

from jaxvl.active import evalai
from jaxvl.active.fitting import Fitted, Fitter
from jaxvl.active.folder import RunFolder
from jaxvl.config import override
from jaxvl.data.regions.store import StoreWriter
from jaxvl.run_active import run_active
from jaxvl.train import Trainer

pytestmark = pytest.mark.slow
ANSWERS = ("yes", "no", "2", "red")
ASKED = (("is it a dog?", "yes/no", 0), ("how many dogs?", "number", 2), ("what color is it?", "other", 3))


def vqa(folder, split, ids):
    """The two files of a split, two questions an image; of a split of test only the questions."""
    questions, annotations = [], []
    for i in ids:
        for k in range(2):
            text, kind, answer = ASKED[(i + k) % 3]
            said = [dict(answer=ANSWERS[answer], answer_confidence="yes", answer_id=n) for n in range(1, 11)]
            questions.append(dict(image_id=i, question=text, question_id=1000 * i + k))
            annotations.append(
                dict(image_id=i, question_id=1000 * i + k, answers=said, answer_type=kind, question_type=text[:6],
                     multiple_choice_answer=ANSWERS[answer])
            )  # fmt: skip
    for name, content in (("OpenEnded_", {"questions": questions}), ("", {"annotations": annotations})):
        what = "questions" if name else "annotations"
        content["data_subtype"] = split
        if what == "questions" or not split.startswith("test"):
            (folder / f"v2_{name}mscoco_{split}_{what}.json").write_text(json.dumps(content))


@pytest.fixture
def data(tmp_path):
    """A folder with everything that `scale=paper` asks for, for 16 + 4 images, and 3 of test."""
    root = tmp_path / "data"
    (root / "vqa_v2").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, ids in (("train2014", range(1, 17)), ("val2014", range(21, 25)), ("test2015", range(31, 34))):
        vqa(root / "vqa_v2", split, ids)
        with StoreWriter(
            root / "regions" / f"{split[:-4]}36", regions=36, width=2048, made_by={"detector": "x"}
        ) as store:
            for i in ids:
                corner = rng.random((36, 2)) * 0.5
                boxes = np.concatenate([corner, corner + 0.4], axis=1).astype(np.float32)
                store.add(i, features=rng.random((36, 2048), np.float32), boxes=boxes)
    words = sorted({w.strip("?") for text, _, _ in ASKED for w in text.split()})
    lines = [f"{w} " + " ".join(f"{x:.3f}" for x in rng.normal(size=300)) for w in words]
    (root / "glove.840B.300d.txt").write_text("\n".join(lines) + "\n")
    index = {a: n for n, a in enumerate(ANSWERS)}
    (root / "vqa_v2" / "answer_dict.json").write_text(
        json.dumps([index, {str(n): a for a, n in index.items()}])
    )
    return root


def small(arg):
    """The config at paper scale, its task model as narrow as can be."""
    config = EVERY["ccrl"].get_config(arg)
    narrow = dict(width=16, heads=2, mlp=16, depth=1, flat=16, flat_mlp=16, dropout=0.0)
    override(config, {f"stages.task.model.{k}": v for k, v in narrow.items()})
    override(config, {"active.init": 0.25, "active.step": 0.25, "active.budget": 0.5, "active.repeats": 1})
    quick = {"stages.task.epochs": 1, "stages.task.batch_size": 8, "sharding.mesh": dict(data=1, model=1)}
    return override(config, quick)


def test_rounds_run_from_vqa_v2_files_and_stores(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = run_active(small("random,scale=paper"), tmp_path / "run")
    assert found["random/r0"]["state"] == "finished"
    run = RunFolder(tmp_path / "run" / "random" / "r0")
    assert [(m["n_images"], m["n_qas"], m["n_answers"]) for m in run.rounds] == [(4, 8, 80), (8, 16, 160)]
    assert set(run.rounds[0]["acc"]) == {"overall", "yes/no", "number", "other"}
    assert "stands for" in (tmp_path / "run" / "report" / "report.html").read_text()  # without a picture
    assert "16 images in the pool" in capsys.readouterr().out


def test_the_protocol_test_pools_all_labels_and_answers_all_of_test2015(data, tmp_path, monkeypatch, capsys):
    """Nothing is trained, to save time: every answer is "no" if rows are what a model reads."""
    monkeypatch.chdir(tmp_path)

    def fit(self, name, source, *, seed, **kwargs):
        return Fitted({}, f"{seed:016x}", False, {"seconds": 0.0})

    def predict(self, params, name, source):
        if name == "vision":  # of images, to tell how many each selected one stands for
            return np.zeros((len(source), 2), np.float32)
        right = source[0]["regions"].shape == (36, 2048) and source[0]["text"].any()
        return {"index": np.full((len(source), 1), int(right))}

    monkeypatch.setattr(Fitter, "fit", fit)
    monkeypatch.setattr(Trainer, "predict", predict)
    found = run_active(small("random,variant=test,scale=paper"), tmp_path / "run")
    assert found["random/r0"] == {"state": "finished", "accuracy": None}
    run = RunFolder(tmp_path / "run" / "random" / "r0")
    assert [m["n_images"] for m in run.rounds] == [5, 10] and len(run.pool()) == 20
    questions = data / "vqa_v2" / "v2_OpenEnded_mscoco_test2015_questions.json"
    for number in run.results:
        path = run.folder(number) / evalai.RESULTS
        assert evalai.check_results(path, questions) == 6
        assert {row["answer"] for row in evalai.read_results(path)} == {"no"}
    assert "n/a" in capsys.readouterr().out
