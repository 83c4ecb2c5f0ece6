"""Draw the embedded world: a contact sheet, or with `--one` a single picture whose questions are printed.

python -m jaxvl.data.scenes sheet.png --task vqa
python -m jaxvl.data.scenes scene.png --one
"""

from __future__ import annotations

import argparse
from typing import Any

from PIL import Image

from .readers import SceneQuestions
from .sheet import TASKS, save_sheet
from .world import SPLITS

ASKED = 4  # questions about a single picture


def main() -> None:
    """Parse the command line and write the image."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxvl.data.scenes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", help="image file to write, such as sheet.png")
    parser.add_argument("--one", action="store_true", help="one picture like the demo's, not a sheet")
    parser.add_argument("--task", choices=sorted(TASKS), default="captions", help="of the sheet")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=24, help="number of examples on the sheet")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other pictures")
    parser.add_argument("--image-size", type=int, default=64, help="pixels a side, before enlarging")
    args = parser.parse_args()
    world: dict[str, Any] = dict(split=args.split, seed=args.seed, image_size=args.image_size)
    if args.one:
        save_one(args.out, **world)
        return
    save_sheet(args.out, args.task, count=args.count, **world)
    print(f"{args.count} examples of {args.task} ({args.split}) -> {args.out}")


def save_one(out: str, **world: Any) -> None:
    """Write the first picture of a world of one or two things, print questions about it and their answers."""
    questions = SceneQuestions(size=ASKED, questions_per_scene=ASKED, objects=(1, 2), **world)
    Image.fromarray(questions.image(0)).save(out)
    print(f"a scene ({questions.split}) -> {out}")
    for asked in map(questions.annotation, range(ASKED)):
        print(f"  {asked['question']}  {asked['answer']}")


if __name__ == "__main__":
    main()
