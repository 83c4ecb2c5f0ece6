"""ALBEF's YAML configs (`Pretrain.yaml`, `VQA.yaml` of `salesforce/ALBEF`) as flags of `configs/hyper_albef.py`.

The flags belong to `scale=paper`. ALBEF's batch sizes are those of one GPU, jaxvl's those of the whole run. The peak
learning rate is `optimizer.lr`: ALBEF never reads `schedular.lr`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jaxvl.interop.files import PathLike, WeightsError, existing

STAGES = ("pretrain", "vqa", "vqa_blind")
Keys = Mapping[str, tuple[str, tuple[str, ...]]]  # YAML key -> kind of value, paths below `config`

SHARED: Keys = {
    "train_file": ("files", ("stages.{stage}.train.files",)),
    "image_res": ("whole", ("stages.{stage}.model.image_size",)),
    "vision_width": ("whole", ("model.vision.width",)),
    "embed_dim": ("whole", ("model.embed_dim",)),
    "alpha": ("number", ("stages.{stage}.task.distill.alpha",)),
    "momentum": ("number", ("stages.{stage}.task.momentum.decay",)),
    "optimizer.lr": ("number", ("stages.{stage}.optim.schedule.lr",)),
    "optimizer.weight_decay": ("number", ("stages.{stage}.optim.weight_decay",)),
    "schedular.epochs": ("whole", ("stages.{stage}.epochs",)),
    "schedular.min_lr": ("number", ("stages.{stage}.optim.schedule.min_lr",)),
    "schedular.warmup_lr": ("number", ("stages.{stage}.optim.schedule.warmup_lr",)),
    "schedular.warmup_epochs": ("whole", ("stages.{stage}.optim.schedule.warmup",)),
}
PRETRAIN: Keys = {
    "batch_size": ("per GPU", ("stages.{stage}.batch_size",)),
    "mlm_probability": ("number", ("stages.{stage}.task.mlm.prob",)),
    "queue_size": ("whole", ("stages.{stage}.task.queue_size",)),
}
VQA: Keys = {
    "test_file": ("files", ("stages.{stage}.val.files",)),
    "answer_list": ("text", ("stages.{stage}.answers.file",)),
    "vqa_root": ("text", ("stages.{stage}.train.vqa_root", "stages.{stage}.val.vqa_root")),
    "vg_root": ("text", ("stages.{stage}.train.vg_root", "stages.{stage}.val.vg_root")),
    "batch_size_train": ("per GPU", ("stages.{stage}.batch_size",)),
    "batch_size_test": ("per GPU", ("stages.{stage}.eval.batch_size",)),
    "k_test": ("whole", ("stages.{stage}.task.k_test",)),
    "distill": ("switch", ()),
    "warm_up": ("switch", ()),
}
FIXED: Mapping[str, Any] = {  # what jaxvl always does; another value is refused
    "temp": 0.07,
    "eos": "[SEP]",
    "optimizer.opt": "adamW",
    "schedular.sched": "cosine",
}
UNREAD = {
    "bert_config": "the sizes are config.model.width, heads, mlp, text_depth and fusion_depth, by default BERT-base's",
    "schedular.lr": "ALBEF takes the peak rate from optimizer.lr",
    "schedular.decay_rate": "it is for restarts, and there is one cycle",
    "schedular.cooldown_epochs": "ALBEF stops after schedular.epochs",
}
KINDS = {
    "whole": "a whole number",
    "per GPU": "a whole number",
    "number": "a number, e.g. 1e-4",
    "text": "a path",
    "files": "a path or a list of paths",
    "switch": "True or False",
}


@dataclass(frozen=True)
class Flags:
    """What a YAML file says in jaxvl's terms.

    Attributes:
      stage: whose flags these are.
      values: dotted path below `config` -> value.
      notes: for each key that became no flag, or not as it was, one line that says why.
    """

    stage: str
    values: dict[str, Any]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """`--config.a.b=value`, one for each value."""
        return [f"--config.{path}={_text(value)}" for path, value in self.values.items()]


def albef_flags(path: PathLike, *, stage: str | None = None, gpus: int = 8) -> Flags:
    """The flags that say what ALBEF's YAML file at `path` says.

    Args:
      path: a `Pretrain.yaml` or `VQA.yaml`; keys may be absent, which leaves jaxvl's default.
      stage: one of `STAGES`; None = "vqa" if the file has a key that only VQA has, else "pretrain".
      gpus: how many GPUs ALBEF ran on; its batch sizes are multiplied by that.

    Raises:
      FileNotFoundError: no such file.
      WeightsError: not YAML, an unknown key, a value that jaxvl cannot follow, `gpus` < 1; names file, key and fix.
    """
    if gpus < 1:
        raise WeightsError(f"--gpus {gpus}: give the number of GPUs that ALBEF ran on, 1 or more")
    given = dict(_flat(_load(Path(existing(path)))))
    stage = stage or ("vqa" if any(key in VQA for key in given) else "pretrain")
    keys = {**SHARED, **(PRETRAIN if stage == "pretrain" else VQA)}
    values: dict[str, Any] = {}
    notes: list[str] = []
    for key, raw in given.items():
        if key in UNREAD:
            notes.append(f"{key}: no flag, {UNREAD[key]}")
        elif key in FIXED:
            notes.append(_fixed(path, key, raw))
        elif key not in keys:
            raise _unknown(path, key, stage, {*keys, *FIXED, *UNREAD})
        else:
            kind, targets = keys[key]
            value = _value(path, key, kind, raw)
            if kind == "per GPU":
                notes.append(
                    f"{key}={value} is per GPU: {value} x {gpus} GPUs (--gpus) = {value * gpus} in all"
                )
                value *= gpus
            values |= {target.format(stage=stage): value for target in targets}
            given[key] = value
    _switch(given, stage, values, notes)
    return Flags(stage, values, tuple(notes))


def _switch(given: Mapping[str, Any], stage: str, values: dict[str, Any], notes: list[str]) -> None:
    """What VQA's `distill` and `warm_up` turn off or on."""
    task = f"stages.{stage}.task."
    if given.get("distill", True):
        if "warm_up" in given:  # alpha grows over the first epoch
            values[task + "distill.warmup_epochs"] = int(given["warm_up"])
        return
    for key in ("distill.alpha", "momentum.decay"):
        values.pop(task + key, None)
    values |= {task + "distill": None, task + "momentum": None}
    unread = [key for key in ("alpha", "momentum", "warm_up") if key in given]
    notes += [f"{key}: no flag, without distillation nothing reads it" for key in unread]


def _load(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise WeightsError(f"{path}: not a text file in UTF-8; give one of ALBEF's configs/*.yaml") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "damaged"
        raise WeightsError(f"{path}{where}: not YAML ({problem}); correct that line") from error
    if not isinstance(tree, dict) or not tree:
        raise WeightsError(f"{path}: holds no 'key: value' lines; give one of ALBEF's configs/*.yaml")
    return tree


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _fixed(path: PathLike, key: str, raw: Any) -> str:
    want = FIXED[key]
    if raw != want and _number(raw) != want:
        raise WeightsError(f"{path}: {key}={raw!r}: jaxvl has only {want!r}; set that, or remove the line")
    return f"{key}: no flag, jaxvl always has {want!r}"


def _unknown(path: PathLike, key: str, stage: str, known: set[str]) -> WeightsError:
    close = difflib.get_close_matches(key, known, n=1)
    of = [name for name, keys in (("pretrain", PRETRAIN), ("vqa", VQA)) if key in keys]
    hint = f"pass --stage {of[0]}, or remove" if of else f"write {close[0]}, or remove" if close else "remove"
    return WeightsError(
        f"{path}: unknown key {key!r} for stage {stage!r}; {hint} the line (read are Pretrain.yaml and VQA.yaml)"
    )


def _value(path: PathLike, key: str, kind: str, raw: Any) -> Any:
    readers: dict[str, Callable[[Any], Any]] = {
        "whole": _whole,
        "per GPU": _whole,
        "number": _number,
        "text": _line,
        "files": _files,
        "switch": lambda x: x if isinstance(x, bool) else None,
    }
    value = readers[kind](raw)
    if value is None:
        raise WeightsError(f"{path}: {key}={raw!r}: give {KINDS[kind]}")
    return value


def _number(raw: Any) -> float | None:
    """A number; `1e-4`, which YAML 1.1 takes for text, is one."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
        return None
    try:
        return float(raw)
    except ValueError:
        return None


def _whole(raw: Any) -> int | None:
    number = _number(raw)
    return int(number) if number is not None and number.is_integer() else None


def _line(raw: Any) -> str | None:
    return raw if isinstance(raw, str) and raw and raw.isprintable() else None


def _files(raw: Any) -> tuple[str, ...] | None:
    paths = [_line(item) for item in (raw if isinstance(raw, list) else [raw])]
    kept = tuple(path for path in paths if path is not None)
    return kept if kept and len(kept) == len(paths) else None


def _text(value: Any) -> str:
    """`value` as a flag takes it; a tuple has no spaces, so that a shell keeps it in one piece."""
    return f"({''.join(f'{item!r},' for item in value)})" if isinstance(value, tuple) else str(value)
