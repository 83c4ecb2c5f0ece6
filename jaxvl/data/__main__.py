"""Command line of the data package.

`python -m jaxvl.data check FILE ... --images DIR_OR_ZIP` inspects data;
`python -m jaxvl.data answers FILE ... --output LIST` writes the answer classes of VQA v2;
`python -m jaxvl.data vocabulary FILE ... --output vocab.txt` learns word pieces from texts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxvl.data.answers import vqa_v2_answers
from jaxvl.data.arrow import COLUMNS as KINDS
from jaxvl.data.check import FORMATS, Layout, check
from jaxvl.data.records import read_json
from jaxvl.data.text import SETTINGS, configured_lowercase
from jaxvl.data.word_pieces import FIELDS, learn, texts


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 0 if nothing is wrong, 1 if there are errors, 2 for a wrong call."""
    args = _parser().parse_args(argv)
    if args.command == "answers":
        return _answers(args)
    if args.command == "vocabulary":
        return _vocabulary(args)
    layout = Layout(
        format=None if args.format == "auto" else args.format,
        images=args.images,
        vg_images=args.vg_images,
        questions=args.questions,
        annotations=args.annotations,
        image_template=args.image_template,
        fields=dict(pair.split("=", 1) for pair in args.field) or None,
        answer_separator=args.answer_separator,
        permutations=args.permutations,
        label_order=args.label_order,
        kind=args.kind,
    )
    decode = None if args.decode == "all" else int(args.decode)
    try:
        report = check(args.files, layout, answers=args.answers, against=args.against, decode=decode)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.to_json() if args.json else report)
    return 0 if report.ok else 1


def _answers(args: argparse.Namespace) -> int:
    expect = None if args.expect == "all" else int(args.expect)
    try:
        answers = vqa_v2_answers(args.files, min_count=args.min_count, expect=expect)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    Path(args.output).write_text(json.dumps(answers, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{args.output}: {len(answers)} answers")
    return 0


def _vocabulary(args: argparse.Namespace) -> int:
    try:
        settings = _settings(Path(args.output), lowercase=not args.cased)
        pieces = learn(texts(args.files, fields=args.field), size=args.size, lowercase=not args.cased)
        Path(args.output).write_text("\n".join(pieces) + "\n", encoding="utf-8")
        Path(args.output).with_name(SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {len(pieces)} pieces")
    return 0


def _settings(vocabulary: Path, *, lowercase: bool) -> dict[str, Any]:
    """What the folder's `tokenizer_config.json` will say: what it says, and whether case is kept.

    Raises:
      ValueError: it says otherwise of the vocabularies that are there.
    """
    path = vocabulary.with_name(SETTINGS)
    there = read_json(path) if path.exists() else {}
    if path.exists() and configured_lowercase(path) != lowercase:
        case = "keep" if lowercase else "fold"
        raise ValueError(f"{path}: vocabularies of this folder {case} case; give --output in another folder")
    return {**there, "do_lower_case": lowercase}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jaxvl.data", description="Tools for data files.")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("check", help="inspect annotation files and their images").add_argument
    add("files", nargs="+", metavar="FILE", help="annotation files, read as one")
    add("--images", nargs="+", metavar="DIR|ZIP", help="where the images are")
    add(
        "--vg-images",
        nargs="+",
        metavar="DIR|ZIP",
        help="where the Visual Genome images of an ALBEF file are",
    )
    add("--format", choices=("auto", *FORMATS), default="auto")
    add("--questions", nargs="+", metavar="FILE", help="VQA v2 question files, if FILE holds annotations")
    add("--annotations", nargs="+", metavar="FILE", help="VQA v2 annotation files, if FILE holds questions")
    add("--answers", metavar="FILE", help="list of candidate answers whose coverage is reported")
    add("--against", metavar="FILE", help="another split, which should share no image with this one")
    add("--decode", type=_count, default="100", metavar="all|N", help="images to decode (default 100)")
    add("--image-template", metavar="TEXT", help="file name of an integer image_id, e.g. %%012d.jpg")
    add(
        "--field",
        nargs="+",
        action="extend",
        default=[],
        type=_pair,
        metavar="NAME=KEY",
        help="other field names",
    )
    add("--answer-separator", metavar="CHAR", help="joins words within an answer, e.g. _")
    add("--permutations", type=int, default=1, metavar="N", help="examples of a row, {k} in --image-template")
    add("--label-order", nargs=3, metavar="NAME", help="what the labels 0, 1, 2 of entailment mean")
    add("--kind", choices=KINDS, help="what an Arrow table holds, if its columns do not tell")
    add("--json", action="store_true", help="print the report as JSON")
    add = commands.add_parser("answers", help="write the answer classes of VQA v2").add_argument
    add("files", nargs="+", metavar="FILE", help="official annotation files: train, then val")
    add("--output", required=True, metavar="FILE", help="JSON list to write")
    add("--min-count", type=int, default=9, metavar="N", help="questions an answer must answer (default 9)")
    add("--expect", type=_count, default="3129", metavar="all|N", help="classes there must be (default 3129)")
    add = commands.add_parser("vocabulary", help="learn word pieces from texts").add_argument
    add(
        "files",
        nargs="+",
        metavar="FILE",
        help=".jsonl or .json, whose --field are read, or text with a line each",
    )
    add("--output", required=True, metavar="FILE", help="vocab.txt to write, for config.text.vocab")
    add("--size", type=int, default=8000, metavar="N", help="pieces at most (default 8000)")
    add("--field", nargs="+", default=FIELDS, metavar="NAME", help=f"default: {' '.join(FIELDS)}")
    add("--cased", action="store_true", help="keep case and accents")
    return parser


def _count(text: str) -> str:
    if text != "all" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'all' nor a number")
    return text


def _pair(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=KEY, e.g. question=q")
    return text


if __name__ == "__main__":
    sys.exit(main())
