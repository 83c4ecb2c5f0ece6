"""Region features of images: bring published ones into a store, look a store through, or extract features.

    python launch/regions.py convert trainval_36.tsv --out data/regions/train36 --questions train_questions.json
    python launch/regions.py convert features/train2014 features/val2014 --out data/regions/grid --regions 100
    python launch/regions.py check   data/regions/train36 [--questions train_questions.json]
    python launch/regions.py extract --images val2014.zip --weights lite0.npz --out data/regions/grid36 --grid 6

`convert` reads folders of .npz (openvqa), .tsv (bottom-up attention, LXMERT), .hdf5 and LMDB. A command that was
stopped goes on when it is given again. Exit codes: 0 done, 2 bad input, 3 another process writes to the store, 4
interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SHOWN = 5


def main(argv: Sequence[str] | None = None) -> int:
    logging.getLogger("jax").setLevel(logging.WARNING)  # a machine without TPU need not be told so
    from jaxvl.data.regions.files import StoreLocked

    args = parser().parse_args(argv)
    try:
        return int(args.do(args) or 0)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is not there yet", file=sys.stderr)
        return 4
    except (ValueError, OSError) as error:
        if os.environ.get("JAXVL_TRACEBACK"):
            raise
        print(f"{type(error).__name__}: {error}\n(set JAXVL_TRACEBACK=1 for the traceback)", file=sys.stderr)
        return 3 if isinstance(error, StoreLocked) else 2


def parser() -> argparse.ArgumentParser:
    """The commands and their arguments."""
    from jaxvl.data.regions import REGION_LAYOUTS
    from jaxvl.data.regions.files import DTYPES
    from jaxvl.data.regions.rerank import METHODS
    from jaxvl.extract.command import add_extract

    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = out.add_subparsers(required=True, metavar="command")
    one = commands.add_parser("convert", help="Bring files of region features into a store.")
    one.set_defaults(do=convert)
    one.add_argument("files", type=Path, nargs="+", help="files or folders, of one layout and one detector")
    one.add_argument("--out", type=Path, required=True, help="folder of the store, new or begun")
    one.add_argument("--layout", default="auto", help=f"auto (default), {', '.join(REGION_LAYOUTS)}")
    one.add_argument("--regions", type=int, default=36, help="most regions of an image that are kept")
    one.add_argument("--width", type=int, default=2048, help="numbers a region")
    one.add_argument("--rerank", default="onepass", choices=METHODS, help="which of more regions are kept")
    one.add_argument(
        "--questions", type=Path, nargs="+", help="take only the images of these questions, and all"
    )
    one.add_argument("--index", type=Path, help="hdf5: which image is where; default: beside the file")
    one.add_argument("--classes", type=Path, help="LXMERT: keep what regions show; a class name a line")
    one.add_argument("--detector", help="a note of what made the features; others are not mixed with them")
    one.add_argument("--dtype", default=DTYPES[0], choices=DTYPES, help="of the features in a new store")
    one.add_argument(
        "--shard-bytes", type=int, default=2**28, help="what a command that is killed loses at most"
    )
    one.add_argument(
        "--allow-legacy-pickle",
        action="store_true",
        help="read pickles too (only plain values and arrays): LMDB, index of HDF5, confidences of .npz",
    )
    look = commands.add_parser("check", help="Read a whole store: checksums, values, images of questions.")
    look.set_defaults(do=check)
    look.add_argument("stores", type=Path, nargs="+", help="folders of stores that are used together")
    look.add_argument("--questions", type=Path, nargs="+", help="whose images must be there")
    add_extract(commands)
    return out


def convert(args: argparse.Namespace) -> None:
    """Add images to a store; those that cannot be used, or were not found, are named at the end, with exit code 2."""
    from jaxvl.data.records import DataError
    from jaxvl.data.regions.convert import ConvertOptions
    from jaxvl.data.regions.convert import convert as run
    from jaxvl.data.regions.layouts import ReadOptions
    from jaxvl.data.regions.store import RegionStore, listed
    from jaxvl.data.regions.verify import image_ids

    read = ReadOptions(width=args.width, legacy_pickle=args.allow_legacy_pickle, index=args.index)
    names = None if args.classes is None else args.classes.read_text(encoding="utf-8").splitlines()
    options = ConvertOptions(
        classes=None if names is None else tuple(names),
        regions=args.regions, method=args.rerank, layout=args.layout, read=read, detector=args.detector,
        dtype=args.dtype, shard_bytes=args.shard_bytes,
    )  # fmt: skip
    wanted = None if args.questions is None else image_ids(args.questions)
    started = time.monotonic()
    done = run(args.files, args.out, options=options, wanted=wanted, progress=Ticker())
    seconds, store = time.monotonic() - started, RegionStore(args.out)
    print(
        f"{args.out}: {done.written} images written, {done.present} were there, {done.unwanted} not asked for; "
        f"{len(store)} in all, {store.nbytes:,} bytes; {done.written / seconds:.1f} images/s in {seconds:.1f} s"
    )
    wrong = []
    if done.failed:
        lines = "".join(f"\n- {why}" for why in list(done.failed.values())[:SHOWN])
        more = f"\n  ... and {len(done.failed) - SHOWN} more" if len(done.failed) > SHOWN else ""
        wrong.append(f"{len(done.failed)} images could not be used and are left out:{lines}{more}")
    if done.missing:
        wrong.append(
            f"{len(done.missing)} of {len(wanted or ())} images of --questions are in none of the files: image_id "
            f"{listed(done.missing)}; give the files that have them too"
        )
    if wrong:
        raise DataError("\n".join(wrong))


def check(args: argparse.Namespace) -> None:
    """Read stores and say what is in them; everything that is wrong is listed, with exit code 2."""
    from jaxvl.data.regions import RegionStore
    from jaxvl.data.regions.verify import image_ids, verify

    store = RegionStore(args.stores)
    found = verify(store, progress=Ticker())
    fewest, mean, most = found.regions
    print(
        f"{', '.join(map(str, args.stores))}: {found.images} images in {found.shards} shards, {found.bytes:,} bytes; "
        f"{fewest} to {most} regions (mean {mean:.1f}) of {store.width}; {found.with_conf} with confidences; all "
        "there, checksums right, values finite"
    )
    print(f"made by: {store.made_by}; digest {store.digest}")
    if args.questions is not None:
        wanted = image_ids(args.questions)
        store.require(wanted, wanted_by=", ".join(map(str, args.questions)))
        print(f"all {len(wanted)} images of the questions are there, and {found.images - len(wanted)} others")


class Ticker:
    """Prints images so far and the time left to the standard error, at most once in a while."""

    def __init__(self, every: float = 5.0) -> None:
        self.every, self.started, self.last = every, time.monotonic(), time.monotonic()

    def __call__(self, done: int, share: float) -> None:
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last = now
        spent = now - self.started
        left = f", about {spent * (1 - share) / share:.0f} s left" if share > 0 else ""
        print(f"{done} images, {done / spent:.1f}/s, {share:.1%}{left}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
