"""launch/cache.py as its users start it: build, kill, build again, verify, answer; and what it refuses."""

from __future__ import annotations

import json
import signal
import time
import zipfile

import numpy as np
import pair_run
import pytest
from PIL import Image
from tiny_run import launch, start

import jaxvl
from jaxvl.cache import Store

pytestmark = pytest.mark.slow
COUNT = 24
QUESTIONS = [
    "is there a circle?",
    "what colour is the large square in the middle of the picture?",
    "how many?",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return pair_run.write(tmp_path_factory.mktemp("run"), "vqa")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of images, a zip of it, and JSON Lines of questions about them."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images/sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for i in range(COUNT):
            path = folder / "images" / ("sub" if i % 2 else ".") / f"{i:02d}.png"
            colour = rng.integers(0, 255, 3)  # noise would look alike
            Image.fromarray(np.full((40, 48, 3), colour, np.uint8)).save(path)
            archive.write(path, path.relative_to(folder / "images"))
    (folder / "images/notes.txt").write_text("no image")
    rows = [dict(image=name(i), question=QUESTIONS[i % 3], question_id=i) for i in range(COUNT)]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def name(i):
    return f"sub/{i:02d}.png" if i % 2 else f"{i:02d}.png"


def cache(command, root, store, *flags):
    where = [f"--workdir={root}"] if root else []
    return launch("launch/cache.py", command, *where, f"--store={store}", *flags)


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_killed_build_is_resumed_to_the_same_bytes_and_answers_as_the_model(root, pictures, tmp_path):
    flags = [f"--images={pictures / 'images'}", "--batch_size=4", "--shard_bytes=9000"]
    whole = cache("build", root, tmp_path / "whole", *flags)
    assert whole.code == 0, whole.err
    assert (
        f"{COUNT} new records, 0 were there, {COUNT} in all, {COUNT * 17 * 2 * 32 * 2:,} bytes" in whole.out
    )
    assert "records/s" in whole.out and f"{COUNT}/{COUNT} records" in whole.err
    process = start("launch/cache.py", "build", f"--workdir={root}", f"--store={tmp_path / 'cut'}", *flags)
    while process.poll() is None and not (tmp_path / "cut/shard-00001.bin").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < len(Store.open(tmp_path / "cut")) < COUNT
    resumed = cache("build", root, tmp_path / "cut", *flags)
    assert resumed.code == 0, resumed.err
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    again = cache("build", root, tmp_path / "cut", f"--images={pictures / 'images.zip'}")
    assert f"0 new records, {COUNT} were there" in again.out
    verified = cache("verify", root, tmp_path / "cut")
    assert f"{COUNT} records of images" in verified.out, verified.err
    answered = cache("answer", root, tmp_path / "cut", f"--questions={pictures / 'asked.jsonl'}")
    rows = [json.loads(line) for line in answered.out.splitlines()]
    model = jaxvl.load(root)
    shown = [pictures / "images" / name(i) for i in range(COUNT)]
    want = model.answer(shown, [QUESTIONS[i % 3] for i in range(COUNT)], top_k=2)
    spread = np.ptp([best.probability for best, _ in want[::3]])
    assert spread > 0.02, spread  # of one question about several images
    assert [row["question_id"] for row in rows] == list(range(COUNT))
    np.testing.assert_allclose(
        [row["probability"] for row in rows], [best.probability for best, _ in want], atol=5e-3
    )
    clear = [best.probability - second.probability > 1e-2 for best, second in want]
    assert any(clear)
    assert all(row["answer"] == best.text for row, (best, _), c in zip(rows, want, clear, strict=True) if c)


def test_texts_have_a_store_of_their_own_and_answers_go_to_a_file(root, pictures, tmp_path):
    asked = f"--questions={pictures / 'asked.jsonl'}"
    lines = ["--images=" + str(pictures / "asked.jsonl"), f"--root={pictures / 'images.zip'}", "--dtype=int8"]
    assert cache("build", root, tmp_path / "i", *lines).code == 0
    built = cache("build", root, tmp_path / "t", asked)
    assert "3 new records" in built.out, built.err
    flags = [asked, f"--text_store={tmp_path / 't'}", f"--output={tmp_path / 'out.jsonl'}", "--top_k=3"]
    assert cache("answer", root, tmp_path / "i", *flags).code == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (
        len(rows) == COUNT and len(rows[0]["answers"]) == 3 and rows[0]["answers"][0][0] == rows[0]["answer"]
    )
    one = cache("answer", root, tmp_path / "i", f"--image={name(1)}", f"--question={QUESTIONS[1]}")
    assert json.loads(one.out)["probability"] == pytest.approx(rows[1]["probability"], abs=5e-3)
    wrong = cache("answer", root, tmp_path / "t", asked)
    assert wrong.code == 2 and "is a store of texts, not of images" in wrong.err
    lost = cache("answer", root, tmp_path / "i", "--image=99.png", "--question=a")
    assert lost.code == 2 and "--image: '99.png' is not in" in lost.err


def test_a_row_without_its_second_image_is_named(pictures, tmp_path):
    root = pair_run.write(tmp_path / "pairs", "nlvr2")
    built = cache("build", root, tmp_path / "s", f"--images={pictures / 'images'}")
    assert built.code == 0, built.err
    rows = [dict(image=name(0), image2=name(1), sentence="a star"), dict(image=name(0), sentence="a star")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = cache("answer", root, tmp_path / "s", f"--questions={tmp_path / 'rows.jsonl'}")
    assert refused.code == 2 and "row 2, field 'image2': None is not in" in refused.err
    assert "Traceback" not in refused.err


def test_another_run_and_another_image_size_are_refused(root, pictures, tmp_path):
    (tmp_path / "few").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "few/a.png")
    (tmp_path / "few/b.png").write_bytes(b"no image")
    bad = cache("build", root, tmp_path / "s", f"--images={tmp_path / 'few'}")
    assert bad.code == 2 and "1 images could not be read" in bad.err and "b.png: cannot decode" in bad.err
    assert "1 new records" in bad.out  # the others are kept
    other = pair_run.write(tmp_path / "other", "vqa", seed=1)
    refused = cache("build", other, tmp_path / "s", f"--images={tmp_path / 'few'}")
    assert refused.code == 2 and "was made with other weights (sha256" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("make", [], "give one of build, verify, answer"),
        ("verify", ["--store=nowhere"], "nowhere: no store"),
        ("build", ["--store=s"], "give either --images or --questions"),
        ("build", ["--store=s", "--images=nowhere"], "nowhere: no such image folder or zip"),
        ("build", ["--store=s", "--questions={bad}"], "row 2, field 'question': is missing or empty"),
        ("answer", ["--store=s", "--questions={bad}"], "row 3, field '(row)': is not JSON"),
        ("answer", ["--store=s"], "give --questions, or --image and --question"),
        ("build", ["--store=s", "--images={here}", "--workdir=nowhere"], "nowhere"),
    ],
)
def test_bad_input_ends_with_one_error(tmp_path, command, flags, said):
    (tmp_path / "bad.jsonl").write_text('{"image": "a", "question": "b"}\n{"image": "a"}\n{"image"\n')
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    given = [flag.format(bad=tmp_path / "bad.jsonl", here=tmp_path) for flag in flags]
    ended = launch("launch/cache.py", command, *given)
    assert ended.code in (1, 2) and said in ended.err + ended.out and "Traceback" not in ended.err
