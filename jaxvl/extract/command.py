"""`extract`: from images to a region store. A sub-command of `launch/regions.py`, which says what else there is."""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxvl.data import SOURCES
from jaxvl.data.records import DataError
from jaxvl.data.regions import StoreWriter
from jaxvl.data.regions.store import SHARD_BYTES
from jaxvl.extract import EXTRACTORS
from jaxvl.extract.base import Extractor
from jaxvl.extract.images import find_images
from jaxvl.extract.loop import extract

OPTIONS = ("weights", "grid", "size", "norm")  # of extractors; None = not given
SHOWN = 5
EVERY = 5.0  # seconds between two lines of progress


def add_extract(
    subparsers: Any, *, extractors: Mapping[str, Callable[..., Extractor]] = EXTRACTORS
) -> argparse.ArgumentParser:
    """Add the sub-command to what `ArgumentParser.add_subparsers` gave; its `do(args)` does the work."""
    out: argparse.ArgumentParser = subparsers.add_parser("extract", help="Extract features of images.")
    out.add_argument(
        "--images",
        required=True,
        help='folder or zip whose file names end with ids; or a reader as JSON: {"name": "jsonl_vqa", ...}',
    )
    out.add_argument("--out", required=True, type=Path, help="folder of the store, new or begun")
    out.add_argument("--weights", type=Path, help="file of the extractor's weights")
    out.add_argument("--extractor", default="efficientnet_grid", help=f"one of {', '.join(extractors)}")
    out.add_argument("--grid", type=int, help="regions a side: 6 makes 36 regions (default 6)")
    out.add_argument("--size", type=int, help="pixels a side that the network sees (default 224)")
    out.add_argument("--norm", help='"none" (default), or "l2" for regions of length 1')
    out.add_argument("--dtype", default="float16", help="float16 or float32, of the store")
    out.add_argument(
        "--shard-bytes",
        type=_positive,
        default=SHARD_BYTES,
        help="what a command that is killed loses at most",
    )
    out.add_argument("--batch-size", type=_positive, default=32, help="images a call of the network")
    out.add_argument("--workers", type=_positive, default=2, help="threads that read images")
    out.set_defaults(do=lambda args: run_extract(args, extractors=extractors))
    return out


def run_extract(
    args: argparse.Namespace, *, extractors: Mapping[str, Callable[..., Extractor]] = EXTRACTORS
) -> None:
    """Extract what the store lacks; the same command goes on after a kill.

    Raises:
      DataError: bad images or options; or images that could not be used, when all others are in the store.
      FileNotFoundError, ValueError: bad weights or options.
      StoreError: the store has other features.
    """
    images = find_images(args.images, SOURCES)
    extractor = make_extractor(args, extractors)
    started = time.monotonic()
    sizes: dict[str, Any] = dict(regions=extractor.regions, width=extractor.width)
    form: dict[str, Any] = dict(dtype=args.dtype, shard_bytes=args.shard_bytes)
    with StoreWriter(args.out, made_by=extractor.made_by, **sizes, **form) as writer:
        row = {"images": args.images}
        if row not in writer.sources:
            writer.sources.append(row)
        done = extract(
            extractor, images, writer, batch_size=args.batch_size, workers=args.workers, progress=Ticker()
        )
        total = len(writer)
    seconds = time.monotonic() - started
    print(
        f"{args.out}: {done.written} images written, {done.present} were there, {total} in all; {extractor.regions} "
        f"regions of {extractor.width} ({args.dtype}); {done.written / seconds:.1f} images/s in {seconds:.1f} s"
    )
    if done.failed:
        names = dict(zip(images.ids.tolist(), images.names, strict=True))
        lines = [f"\n- image_id {i} ({names[i]}): {why}" for i, why in sorted(done.failed.items())[:SHOWN]]
        more = f"\n  ... and {len(done.failed) - SHOWN} more" if len(done.failed) > SHOWN else ""
        raise DataError(
            f"--images: {len(done.failed)} images could not be used and are left out; replace or remove them and run "
            f"the same command again:{''.join(lines)}{more}"
        )


def make_extractor(
    args: argparse.Namespace, extractors: Mapping[str, Callable[..., Extractor]] = EXTRACTORS
) -> Extractor:
    """The extractor of `--extractor`, with those of its options that are given.

    Raises:
      DataError: no such extractor, or an option that it lacks or needs.
    """
    if args.extractor not in extractors:
        raise DataError(f"--extractor {args.extractor!r}: expected one of {', '.join(extractors)}")
    make = extractors[args.extractor]
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    try:
        inspect.signature(make).bind(**given)
    except TypeError as error:
        raise DataError(f"--extractor {args.extractor}: {error}; its options are {_flags(make)}") from error
    return make(**given)


def _flags(make: Callable[..., Extractor]) -> str:
    known = inspect.signature(make).parameters
    return ", ".join(f"--{name}" for name in OPTIONS if name in known) or "none"


class Ticker:
    """Prints progress to the standard error, at most once in a while."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last < EVERY:
            return
        self.last = now
        rate = done / max(now - self.started, 1e-9)
        left = f"{rate:.1f}/s, about {(total - done) / rate:.0f} s left" if rate else ""
        print(f"{done}/{total} images, {left}", file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value
