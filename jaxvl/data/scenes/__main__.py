"""Draw a contact sheet of the embedded world: `python -m jaxvl.data.scenes OUT.png --task vqa`."""

from __future__ import annotations

import argparse

from .sheet import TASKS, save_sheet
from .world import SPLITS


def main() -> None:
    """Parse the command line and write the sheet."""
    parser = argparse.ArgumentParser(prog="python -m jaxvl.data.scenes", description=__doc__)
    parser.add_argument("out", help="image file to write, such as sheet.png")
    parser.add_argument("--task", choices=sorted(TASKS), default="captions")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=24, help="number of examples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=64, help="pixels a side, before enlarging")
    args = parser.parse_args()
    save_sheet(
        args.out, args.task, count=args.count, split=args.split, seed=args.seed, image_size=args.image_size
    )
    print(f"{args.count} examples of {args.task} ({args.split}) -> {args.out}")


if __name__ == "__main__":
    main()
