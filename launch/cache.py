"""Encode images or texts once, keep their states in a store, and answer from it.

    python launch/cache.py build  --workdir=runs/demo --store=stores/coco --images=coco.zip
    python launch/cache.py build  --workdir=runs/demo --store=stores/asked --questions=questions.jsonl
    python launch/cache.py verify --store=stores/coco [--workdir=runs/demo]
    python launch/cache.py answer --workdir=runs/demo --store=stores/coco --questions=questions.jsonl --output=out.jsonl
    python launch/cache.py answer --workdir=runs/demo --store=stores/coco --image=dogs/1.jpg --question="is it awake?"

A build that was stopped goes on with the same command. Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags

COMMANDS = ("build", "verify", "answer")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SHOWN = 5

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
STAGE = flags.DEFINE_string(
    "stage", None, "Stage to use; the default is the first finished one that answers."
)
STORE = flags.DEFINE_string("store", None, "Folder of the store.")
TEXT_STORE = flags.DEFINE_string(
    "text_store", None, "answer: folder of a store of the questions, if there is one."
)
IMAGES = flags.DEFINE_string(
    "images", None, "build: folder or zip of images, or JSON Lines with a key 'image'."
)
ROOT = flags.DEFINE_string("root", None, "build: folder or zip of the images that the JSON Lines name.")
QUESTIONS = flags.DEFINE_string(
    "questions",
    None,
    "JSON Lines with 'image' ('image2') and 'question' or 'sentence'; build: texts to encode.",
)
IMAGE = flags.DEFINE_string("image", None, "answer: key of one image in the store.")
IMAGE2 = flags.DEFINE_string("image2", None, "answer: key of a second image, for models that read two.")
QUESTION = flags.DEFINE_string("question", None, "answer: one question about it.")
OUTPUT = flags.DEFINE_string(
    "output", None, "answer: file of the answers; the default is the standard output."
)
DTYPE = flags.DEFINE_string("dtype", "float16", "build: float16, float32, bfloat16 or int8, of a new store.")
BATCH = flags.DEFINE_integer("batch_size", 32, "Rows of a call of the model.", lower_bound=1)
WORKERS = flags.DEFINE_integer("workers", 4, "build: threads that read images.", lower_bound=1)
TOP_K = flags.DEFINE_integer("top_k", 1, "answer: answers to write for each question.", lower_bound=1)
SHARD_BYTES = flags.DEFINE_integer(
    "shard_bytes", 2**28, "build: bytes of a shard of a new store.", lower_bound=1
)


class InputError(ValueError):
    """A flag, a file or a row that cannot be used."""


def main(argv: list[str]) -> None:
    if len(argv) != 2 or argv[1] not in COMMANDS:
        raise app.UsageError(
            f"give one of {', '.join(COMMANDS)}, then flags; not {' '.join(argv[1:]) or 'nothing'}"
        )
    logging.getLogger("jax").setLevel(logging.WARNING)  # a machine without TPU need not be told so
    try:
        dict(build=build, verify=verify, answer=answer)[argv[1]]()
    except (ValueError, OSError, KeyError) as e:
        if os.environ.get("JAXVL_TRACEBACK"):
            raise
        message = e.args[0] if isinstance(e, KeyError) and e.args else e
        print(f"{type(e).__name__}: {message}\n(set JAXVL_TRACEBACK=1 for the traceback)", file=sys.stderr)
        sys.exit(2)


def build() -> None:
    """Encode what the store lacks; images that cannot be decoded are named at the end, and exit with code 2."""
    store = required("store", STORE.value)
    if (IMAGES.value is None) == (QUESTIONS.value is None):
        raise InputError("build: give either --images or --questions")
    images = None if IMAGES.value is None else readers(IMAGES.value, ROOT.value)
    texts = [text for _, text in rows(QUESTIONS.value)] if QUESTIONS.value is not None else []
    model = opened()
    started, tick = time.monotonic(), Ticker()
    how: dict[str, Any] = dict(progress=tick, workers=WORKERS.value)
    if not (Path(store) / "manifest.json").exists() or flags.FLAGS["dtype"].present:
        how["dtype"] = DTYPE.value
    how["shard_bytes"] = SHARD_BYTES.value
    if images is not None:
        built = model.cache(images, store, **how)
        kept = model.asker.stores["image"]
    else:
        built = model.cache_texts(texts, store, **how)
        kept = model.asker.stores["text"]
    seconds = time.monotonic() - started
    print(
        f"{store}: {built.written} new records, {built.present} were there, {len(kept)} in all, {kept.nbytes:,} bytes "
        f"({kept.dtype}); {built.written / seconds:.1f} records/s in {seconds:.1f} s"
    )
    for note in kept.notes:
        print(f"note: {note}")
    if built.failed:
        shown = "".join(f"\n- {reason}" for reason in list(built.failed.values())[:SHOWN])
        more = f"\n  ... and {len(built.failed) - SHOWN} more" if len(built.failed) > SHOWN else ""
        raise InputError(
            f"{IMAGES.value}: {len(built.failed)} images could not be read and are left out; replace or remove them "
            f"and run the same command again:{shown}{more}"
        )


def verify() -> None:
    """Read the whole store; with --workdir, also whether that run made it."""
    from jaxvl.cache import Store

    store = Store.open(required("store", STORE.value))
    if WORKDIR.value is not None:
        opened().asker.use(store.layout.modality, STORE.value)
    found = store.verify()
    print(
        f"{STORE.value}: {found.records} records of {store.layout.modality}s in {found.shards} shards, {found.bytes:,} "
        f"bytes ({store.dtype}): all there, checksums right, finite"
        + (f"; {store.duplicates} duplicate keys were dropped" if store.duplicates else "")
    )


def answer() -> None:
    """Answer from the store; every image must be in it."""
    store = required("store", STORE.value)
    if QUESTIONS.value is not None:
        asked = rows(QUESTIONS.value, image=True)
    elif IMAGE.value is not None and QUESTION.value is not None:
        pair = dict(image=IMAGE.value, question=QUESTION.value)
        asked = [(pair | ({"image2": IMAGE2.value} if IMAGE2.value else {}), QUESTION.value)]
    else:
        raise InputError("answer: give --questions, or --image and --question")
    model = opened()
    kept = model.asker.use("image", store)
    if TEXT_STORE.value is not None:
        model.asker.use("text", TEXT_STORE.value)
    names = ("image", "image2")[: model.images]
    for number, (row, _) in enumerate(asked, start=1):
        for name in names:
            if not isinstance(row.get(name), str) or row[name] not in kept:
                where = f"{QUESTIONS.value}, row {number}, field {name!r}" if QUESTIONS.value else f"--{name}"
                raise InputError(
                    f"{where}: {row.get(name)!r} is not in {store} (a key there: {next(iter(kept.keys()), None)!r}); "
                    "build the store with it, or correct the key"
                )
    started = time.monotonic()
    columns = [[row[name] for row, _ in asked] for name in names]
    second = dict(image2=columns[1]) if len(columns) > 1 else {}
    found = model.classify(columns[0], [text for _, text in asked], top_k=TOP_K.value, **second)
    seconds = time.monotonic() - started
    lines = []
    for (row, _), best in zip(asked, found, strict=True):
        more = {"answers": [[a.text, a.probability] for a in best]} if TOP_K.value > 1 else {}
        lines.append(json.dumps({**row, "answer": best[0].text, "probability": best[0].probability, **more}))
    if OUTPUT.value is None:
        print("\n".join(lines))
    else:
        path = Path(OUTPUT.value)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(path)
    print(f"{len(lines)} answers, {len(lines) / seconds:.1f}/s with compilation", file=sys.stderr)


def required(name: str, value: str | None) -> str:
    """The value of a flag; InputError if it is not given."""
    if value is None:
        raise InputError(f"--{name} is missing")
    return value


def opened() -> Any:
    """The classifier of the run."""
    import jaxvl
    from jaxvl.serve import Classifier, load

    del jaxvl
    model = load(required("workdir", WORKDIR.value), stage=STAGE.value, batch_size=BATCH.value)
    if not isinstance(model, Classifier):
        raise InputError(
            f"{WORKDIR.value}: this stage generates answers; states are kept of classifiers only"
        )
    return model


def readers(images: str, root: str | None) -> dict[str, Any]:
    """Functions that read images, by key: a path below the folder or in the zip, or as the JSON Lines have it."""
    from jaxvl.data.images import ImageStore

    path = Path(images).expanduser()
    if path.suffix in (".jsonl", ".json"):
        source = ImageStore(root)
        keys = [
            row[name]
            for row, _ in rows(images, text=False, image=True)
            for name in ("image", "image2")
            if name in row
        ]
    else:
        if root is not None:
            raise InputError(f"--root is for JSON Lines; {images} is not one")
        source = ImageStore(path)
        keys = [key for key in names(path) if key.lower().endswith(SUFFIXES)]
        if not keys:
            raise InputError(f"{images}: no image ({', '.join(SUFFIXES)}) in there")
    return {key: (lambda key=key: source.image(key)) for key in keys}


def names(path: Path) -> list[str]:
    """Sorted paths of the files in a folder or a zip."""
    import zipfile

    if path.is_dir():
        return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    with zipfile.ZipFile(path) as archive:
        return sorted(member.filename for member in archive.infolist() if not member.is_dir())


def rows(file: str, *, text: bool = True, image: bool = False) -> list[tuple[dict[str, Any], str]]:
    """(row, its question or sentence) of JSON Lines; all unusable rows are reported in one error."""
    from jaxvl.data.records import NotJson, Problem, read_rows, summary

    good, problems, count = [], [], 0
    for number, row in read_rows(file):
        count += 1
        given = row if isinstance(row, dict) else {}
        said = given.get("question", given.get("sentence"))
        if isinstance(row, NotJson):
            problems.append(Problem(file, number, "(row)", row.what, row.fix))
        elif not given:
            problems.append(
                Problem(file, number, "(row)", "is not an object", "Write one {...} object a line.")
            )
        elif text and not (isinstance(said, str) and said.strip()):
            problems.append(
                Problem(file, number, "question", "is missing or empty", "Add 'question' or 'sentence'.")
            )
        elif image and not isinstance(given.get("image"), str):
            problems.append(
                Problem(file, number, "image", "is missing or no string", "Add the key of the image.")
            )
        else:
            good.append((given, said or ""))
    if problems:
        raise InputError(summary(problems, count))
    if not good:
        raise InputError(f"{file}: no rows")
    return good


class Ticker:
    """Prints progress to the standard error, at most once in a while."""

    def __init__(self, every: float = 5.0):
        self.every, self.started, self.last, self.first = every, time.monotonic(), time.monotonic(), -1

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.first < 0:
            self.first = done
        if now - self.last < self.every and done < total:
            return
        self.last = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        speed = f", {rate:.1f}/s" if rate else ""
        left = f", about {(total - done) / rate:.0f} s left" if rate and done < total else ""
        print(f"{done}/{total} records{speed}{left}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    app.run(main)
