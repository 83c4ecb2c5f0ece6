"""Configs as data: a tree of plain values with stages, an argument grammar and strict overrides.

A config file returns `build(base, arg, ablations=..., scales=...)`, so that
`--config=configs/x.py:vqa,ablation=no_hyper,scale=tiny` reads: stages to run, then `key=value` choices.
Later layers win: base <- scale <- variant <- ablation. Every path must exist already.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxvl.atomic import write_file

Values = Mapping[str, Any]  # dotted path -> new value


class ConfigError(ValueError):
    """A config, its argument or an override names something that does not exist."""


def unknown(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for an unknown `name`, with the closest known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(names)}"
    return ConfigError(f"unknown {kind} {name!r}: {hint}")


def base(**sections: Any) -> ConfigDict:
    """A config with the given top-level keys over the defaults that every system shares."""
    shared: dict[str, Any] = dict(
        hint="",
        seed=0,
        scale="small",
        run=(),
        sharding=dict(mesh=dict(data=-1, model=1), rules="dp"),
        precision=dict(compute="float32", remat=None, layers="auto"),
        loader=dict(workers=0, buffer=2),
        checkpoint=dict(every_seconds=300.0, every_steps=None, keep=2),
        log=dict(every_steps=20),
    )
    return ConfigDict(_apart({**shared, **sections}), type_safe=False)


def _apart(value: Any) -> Any:
    """The same with a dict of its own in every place: else a flag that sets one section would set another, too."""
    return {k: _apart(v) for k, v in value.items()} if isinstance(value, dict) else value


def stage(**values: Any) -> dict[str, Any]:
    """A stage with the keys that every stage has; `values` give what has no default, and replace what has."""
    shared: dict[str, Any] = dict(
        init_from=None,
        model={},
        teacher=None,
        val=None,
        answers=None,
        accumulate=1,
        epochs=1,
        steps=None,
        eval=dict(every_epochs=None, batch_size=64, examples=None, best=None),
    )
    return {**shared, **values}


class OrNone(flags.ArgumentParser):
    """The parser of a type, except that `None` is always a value: it removes a part."""

    def __init__(self, parse: Callable[[str], Any]):
        self._parse = parse

    def parse(self, argument: Any) -> Any:
        """`argument` is the text of a flag, or a default, which passes."""
        if not isinstance(argument, str):
            return argument
        return None if argument == "None" else self._parse(argument)


def literal(text: str) -> Any:
    """A Python literal; any other text is itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def section(text: str) -> ConfigDict:
    """A section from the text of a dict."""
    value = literal(text)
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is not a section: give None, a dict, or one of its keys by a dotted path")
    return ConfigDict(value, type_safe=False)


def allow_none() -> None:
    """Let `--config.a.b=None` remove a part, and `--config.a.b=value` set one that is None."""
    parsers: dict[Any, Callable[[str], Any]] = {
        int: flags.IntegerParser().parse,
        float: flags.FloatParser().parse,
        str: str,
        ConfigDict: section,
        list: literal,  # "['a', 'b']", or one item alone
        type(None): literal,
    }
    for kind, parse in parsers.items():
        config_flags.register_flag_parser_for_type(kind, OrNone(parse))


def parse_arg(arg: str | None, *, stages: Iterable[str], keys: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Parse `"vqa,ablation=a+b,scale=tiny"` into `{"stages": [...], "ablation": "a+b", "scale": "tiny"}`.

    Args:
      arg: what stands after the colon of `--config=file.py:arg`; may be empty.
      stages: names that may stand alone.
      keys: allowed `key=value` keys with their allowed values.

    Raises:
      ConfigError: an unknown stage, key or value; the message suggests the closest. A key that occurs twice.
    """
    out: dict[str, Any] = {"stages": []}
    stages = list(stages)
    for item in split_items(arg or ""):
        key, sep, value = item.partition("=")
        if not sep:
            if item not in stages:
                raise unknown("stage", item, [*stages, *(f"{k}=" for k in keys)])
            out["stages"].append(item)
            continue
        if key not in keys:
            raise unknown("config argument", key, keys)
        for part in value.split("+"):
            if part not in keys[key]:
                raise unknown(f"{key}", part, keys[key])
        if key in out:
            raise ConfigError(
                f"{key}= is given twice; join what is to hold at once: {key}={out[key]}+{value}"
            )
        out[key] = value
    return out


def split_items(arg: str) -> list[str]:
    """Split at commas, except that `layers=1,3` keeps the digits after its comma."""
    items: list[str] = []
    for piece in filter(None, (p.strip() for p in arg.split(","))):
        if items and piece[0].isdigit():
            items[-1] += "," + piece
        else:
            items.append(piece)
    return items


def override(config: ConfigDict, values: Values) -> ConfigDict:
    """Set dotted paths in place and return `config`.

    Raises:
      ConfigError: a path does not exist; names the closest key at that level.
    """
    for path, value in values.items():
        *parents, leaf = path.split(".")
        node: Any = config
        for depth, name in enumerate(parents):
            if not isinstance(node, ConfigDict) or name not in node:
                known = node.keys() if isinstance(node, ConfigDict) else ()
                raise unknown(f"config key at {'.'.join(parents[:depth]) or 'top level'}:", name, known)
            node = node[name]
        if not isinstance(node, ConfigDict) or leaf not in node:
            known = node.keys() if isinstance(node, ConfigDict) else ()
            raise unknown(f"config key in {'.'.join(parents) or 'top level'}:", leaf, known)
        with node.ignore_type():
            node[leaf] = ConfigDict(value, type_safe=False) if isinstance(value, Mapping) else value
    return config


def build(
    config: ConfigDict,
    arg: str | None,
    *,
    order: Sequence[str],
    variants: Mapping[str, Values],
    ablations: Mapping[str, Values],
    scales: Mapping[str, Values],
    chains: Mapping[str, Sequence[str]] | None = None,
) -> ConfigDict:
    """Apply the argument of a config file: the shared tail of every `get_config`.

    Args:
      config: from `base`.
      arg: text after the colon, e.g. `"vqa,ablation=no_hyper,scale=paper"`.
      order: names of all stages in the order of running (a ConfigDict sorts its keys).
      variants: `variant=` choices as dotted overrides.
      ablations: `ablation=` choices, each a row of a table of the paper.
      scales: `scale=` choices; `small` is the default.
      chains: names that stand for several stages; "" is what runs if none is named (default: all stages).

    Returns:
      The config with `run` set to the stages asked for (all of them if none is named). A choice that changes
      nothing, because the scale is like that already, is noted on stderr.

    Raises:
      ConfigError: an unknown choice.
    """
    chains = {"": order, **{name: (name,) for name in order}, **(chains or {})}
    parsed = parse_arg(
        arg,
        stages=filter(None, chains),
        keys={"variant": variants, "ablation": ablations, "scale": scales},
    )
    scale = parsed.get("scale", "small")
    if scale not in scales:
        raise ConfigError(f"scale={scale}: there is one scale at a time; {', '.join(scales)}")
    # The scale sets sizes below the ablation's choice, so that `no_hyper` stays off at any scale.
    override(config, scales[scale])
    for key, table in (("variant", variants), ("ablation", ablations)):
        for name in filter(None, parsed.get(key, "").split("+")):
            before = config.to_json(sort_keys=True)
            now = override(config, table[name]).to_json(sort_keys=True)
            if now == before and table[name]:  # one that says nothing is the default's name
                print(f"note: {key}={name} changes nothing, scale={scale} is like that", file=sys.stderr)
    config.scale = scale
    asked = {stage for name in parsed["stages"] or [""] for stage in chains[name]}
    config.run = tuple(name for name in order if name in asked)
    return config


def under(stages: Iterable[str], values: Values) -> dict[str, Any]:
    """Dotted overrides `values` below each of these stages."""
    return {f"stages.{stage}.{path}": value for stage in stages for path, value in values.items()}


def choices(path: str, values: Iterable[str]) -> dict[str, Values]:
    """One ablation `key=value` for each value of `path`; as `+` joins ablations, it becomes `_and_` in names.

    Args:
      path: dotted; a part like "a|b" stands for both.
      values: of the key.
    """
    paths = [".".join(parts) for parts in itertools.product(*(part.split("|") for part in path.split(".")))]
    key = path.rsplit(".", 1)[-1]
    return {f"{key}={value.replace('+', '_and_')}": dict.fromkeys(paths, value) for value in values}


def to_dict(config: Any) -> Any:
    """Plain dicts, lists and scalars, as JSON stores them."""
    if isinstance(config, (ConfigDict, Mapping)):
        return {k: to_dict(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    return config


def save(config: ConfigDict, path: Path) -> None:
    """Write the resolved config as JSON: whole or not at all, and not again if it is there, as jobs share folders."""
    text = json.dumps(to_dict(config), indent=1) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_file(path, lambda p: p.write_text(text, encoding="utf-8"))


def load(path: Path) -> ConfigDict:
    """Read a config written by `save`.

    Raises:
      ConfigError: the file is missing or not JSON; names the file and the fix.
    """
    if not path.exists():
        raise ConfigError(
            f"{path} not found: {path.parent} is not a workdir of jaxvl (train one with launch/main.py)"
        )
    try:
        return ConfigDict(json.loads(path.read_text(encoding="utf-8")), type_safe=False)
    except json.JSONDecodeError as e:
        raise ConfigError(f"{path}, line {e.lineno}: not valid JSON ({e.msg}); restore it or retrain") from e


def make(
    registry: Mapping[str, Callable[..., Any]], kind: str, section: Mapping[str, Any], **extra: Any
) -> Any:
    """`registry[section["name"]](**rest, **extra)`, with errors that name the section and the key."""
    kwargs = {k: plain(v) for k, v in section.items()}
    name = kwargs.pop("name", None)
    if name not in registry:
        raise unknown(kind, str(name), registry)
    try:
        return registry[name](**kwargs, **extra)
    except TypeError as e:
        raise ConfigError(f"{kind} {name!r}: {e}") from e


def plain(value: Any) -> Any:
    """`ConfigDict` -> dict and list -> tuple, recursively: what constructors take."""
    if isinstance(value, (ConfigDict, Mapping)):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(plain(v) for v in value)
    return value


def load_list(path: Path) -> list[str]:
    """A JSON list of strings."""
    return list(json.loads(path.read_text(encoding="utf-8")))
