"""What tasks whose only state is their parameters have in common."""

from __future__ import annotations

from jaxvl.types import Key, PyTree


class Stateless:
    """A task without a momentum copy, queue or counter; one that has some of it overrides what it changes."""

    def start(self, params: PyTree, rng: Key) -> PyTree:
        """Nothing but the parameters changes."""
        return {}

    def prepare(self, params: PyTree, extra: PyTree) -> PyTree:
        """`extra` as it is."""
        return extra

    def finish(self, extra: PyTree, aux: PyTree) -> PyTree:
        """`extra` as it is."""
        return extra
