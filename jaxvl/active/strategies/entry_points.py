"""Strategies of other packages: entry points of the group "jaxvl.strategies", `name = package.module:Class`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points

from jaxvl.active.strategies.base import Strategy

GROUP = "jaxvl.strategies"


class PlugInError(ValueError):
    """An installed strategy cannot be used; the message names the package and the way out."""


def load(built_in: Mapping[str, type], found: Iterable[EntryPoint] | None = None) -> dict[str, type]:
    """The built-in strategies and those of installed packages.

    Args:
      built_in: name -> class.
      found: entry points; None = the installed ones.

    Raises:
      PlugInError: one cannot be imported, is no subclass of `Strategy`, or takes a name that is there already.
    """
    out = dict(built_in)
    for point in entry_points(group=GROUP) if found is None else found:
        package = point.dist.name if point.dist is not None else point.value
        if point.name in out:
            raise PlugInError(
                f"strategy {point.name!r} of {package} is there already: rename or uninstall it"
            )
        try:
            kind = point.load()
        except Exception as error:
            raise PlugInError(
                f"strategy {point.name!r} of {package} cannot be loaded ({type(error).__name__}: {error}): mend or "
                "uninstall that package"
            ) from error
        if not (isinstance(kind, type) and issubclass(kind, Strategy)):
            raise PlugInError(
                f"strategy {point.name!r} of {package} is {kind!r}: expected a subclass of "
                "jaxvl.active.strategies.base.Strategy"
            )
        out[point.name] = kind
    return out
