"""Command line: `python -m jaxvl.interop convert IN OUT --from albef --to jaxvl`, `... show FILE`, `... config F`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvl.interop.albef import export_albef, import_albef, left_out
from jaxvl.interop.albef_yaml import STAGES, albef_flags
from jaxvl.interop.bert import import_bert
from jaxvl.interop.bridgetower import export_bridgetower, import_bridgetower
from jaxvl.interop.files import Tensors, WeightsError, load_params, save_params, save_safetensors
from jaxvl.interop.mcan import export_mcan, import_mcan
from jaxvl.interop.report import Imported, Report
from jaxvl.interop.torch_weights import read
from jaxvl.interop.tower_export import export_text_tower, export_vision_tower
from jaxvl.interop.towers import import_text_tower, import_vision_tower
from jaxvl.interop.vilt import export_vilt, import_vilt
from jaxvl.interop.vit import import_vit

IMPORTS: Mapping[str, Callable[[Tensors, argparse.Namespace], Imported]] = {
    "albef": lambda state, args: import_albef(state, text_layers=args.text_layers),
    "bert": lambda state, args: import_bert(
        state, text_layers=args.text_layers or 6, fusion_layers=args.fusion_layers
    ),
    "vit": lambda state, args: import_vit(state),
    "vilt": lambda state, args: import_vilt(state, grid=args.grid or 7, images=args.images, tied=args.tied),
    "bridgetower": lambda state, args: import_bridgetower(
        state, depth=args.depth, take=args.take, images=args.images, tied=bool(args.tied)
    ),
    "mcan": lambda state, args: import_mcan(state),
    "text_tower": lambda state, args: import_text_tower(state, layers=args.text_layers, tied=bool(args.tied)),
    "vision_tower": lambda state, args: import_vision_tower(state, grid=args.grid),
}
EXPORTS: Mapping[str, Callable[..., Tensors]] = {
    "vilt": export_vilt,
    "bridgetower": export_bridgetower,
    "mcan": export_mcan,
    "text_tower": export_text_tower,
    "vision_tower": export_vision_tower,
}
DIALECTS = ("vilt", "vision_tower")  # kinds with two sets of foreign names


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 1 with one line on stderr if a file cannot be used."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (WeightsError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `show FILE | head`
        sys.stderr.close()
    return 0


def show(args: argparse.Namespace) -> None:
    """Print name, shape and type of every tensor of a file."""
    tensors = read(args.file, level=args.level)
    width = max(map(len, tensors), default=0)
    for name, array in tensors.items():
        print(f"{name:<{width}}  {list(array.shape)!s:<20} {array.dtype}")
    total = sum(array.size for array in tensors.values())
    print(
        f"{len(tensors)} tensors, {total:,} numbers, {sum(a.nbytes for a in tensors.values()) / 1e6:,.1f} MB"
    )


def config(args: argparse.Namespace) -> None:
    """Print ALBEF's YAML file as flags of launch/main.py; on stderr what became no flag."""
    flags = albef_flags(args.file, stage=args.stage, gpus=args.gpus)
    for note in flags.notes:
        print(f"note: {note}", file=sys.stderr)
    print("\n".join(flags.lines()))


def convert(args: argparse.Namespace) -> None:
    """Convert one file into another, always `.safetensors`."""
    out = Path(args.out)
    if out.suffix != ".safetensors":
        raise WeightsError(f"{out}: name the output *.safetensors")
    imported = _imported(args)
    if args.source != "jaxvl":
        print(imported.report if args.report else imported.report.summary())
    if args.names is not None and args.to not in DIALECTS:
        raise WeightsError(
            f"--names={args.names}: only {' and '.join(DIALECTS)} have such a choice; leave it out"
        )
    if args.to in EXPORTS:
        more = {} if args.names is None else {"names": args.names}
        save_safetensors(out, EXPORTS[args.to](imported.params, **more))
    elif args.to == "albef":
        save_safetensors(out, export_albef(imported.params, imported.momentum, imported.queue))
        if dropped := left_out(imported.params):
            print(f"left out: {', '.join(dropped)} (ALBEF's VQA model has no heads of pre-training)")
    else:
        save_params(out, imported.params)
        _save_extra(args, imported)
    print(f"wrote {out}")


def _imported(args: argparse.Namespace) -> Imported:
    if args.source == "jaxvl":
        extra = load_params(args.extra) if args.extra else {}
        return Imported(load_params(args.file), extra.get("momentum"), extra.get("queue"), Report())
    state = read(args.file, level=args.level)
    try:
        return IMPORTS[args.source](state, args)
    except WeightsError as error:
        raise WeightsError(f"{args.file}: {error}") from error


def _save_extra(args: argparse.Namespace, imported: Imported) -> None:
    parts = {"momentum": imported.momentum, "queue": imported.queue}
    extra = {name: tree for name, tree in parts.items() if tree is not None}
    if extra and args.extra:
        save_params(args.extra, extra)
        print(f"wrote {args.extra}: {', '.join(extra)}")
    elif extra:
        print(f"left out: {', '.join(extra)} (fine-tuning does not need them; keep them with --extra FILE)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jaxvl.interop", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="convert|show|config")
    level: dict[str, Any] = dict(
        metavar="NAME", help="dictionary inside the file that holds the weights, if it has several"
    )

    shower = commands.add_parser("show", help="list names, shapes and types")
    shower.add_argument("file", metavar="FILE")
    shower.add_argument("--level", **level)
    shower.set_defaults(run=show)

    converter = commands.add_parser("convert", help="convert between foreign names and jaxvl's")
    converter.add_argument(
        "file", metavar="IN", help=".pth, .pt, .bin, .safetensors, *.index.json or a folder"
    )
    converter.add_argument("out", metavar="OUT", help="*.safetensors")
    converter.add_argument("--from", dest="source", required=True, choices=[*IMPORTS, "jaxvl"])
    converter.add_argument("--to", required=True, choices=["jaxvl", "albef", *EXPORTS])
    converter.add_argument("--report", action="store_true", help="print what became of every tensor")
    converter.add_argument(
        "--extra", metavar="FILE", help="momentum and queue: written, or read with --from jaxvl"
    )
    converter.add_argument("--text-layers", type=int, help="layers without images (bert: 6; albef: found)")
    converter.add_argument("--fusion-layers", type=int, default=6, help="layers of a BERT that follow them")
    _pair_options(converter)
    converter.add_argument("--level", **level)
    converter.set_defaults(run=convert)

    teller = commands.add_parser("config", help="ALBEF's YAML as flags of configs/hyper_albef.py:scale=paper")
    teller.add_argument("file", metavar="YAML", help="ALBEF's configs/Pretrain.yaml or configs/VQA.yaml")
    teller.add_argument("--stage", choices=STAGES, help="whose flags; found from the keys by default")
    teller.add_argument("--gpus", type=int, default=8, help="GPUs that ALBEF's batch size is for (8)")
    teller.set_defaults(run=config)
    return parser


def _pair_options(converter: argparse.ArgumentParser) -> None:
    """Options of ViLT, BridgeTower and single towers: what the file cannot tell about the model."""
    converter.add_argument("--grid", type=int, help="patches per side of a ViLT's images (7)")
    converter.add_argument("--images", type=int, choices=[1, 2], help="images of the model: 2 for NLVR2")
    converter.add_argument("--depth", type=int, default=3, help="bridgetower: cross-modal layers (3)")
    converter.add_argument(
        "--take", type=int, nargs="+", metavar="N", help="bridgetower: which of the file's cross-modal layers"
    )
    converter.add_argument(
        "--names",
        choices=["hf", "original"],
        help="with --to vilt or vision_tower: whose names are written (hf)",
    )
    converter.add_argument(
        "--tied",
        action=argparse.BooleanOptionalAction,
        help="whether the model's language-model head shares the word table (no; vilt: as in the file)",
    )


if __name__ == "__main__":
    sys.exit(main())
