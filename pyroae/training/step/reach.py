"""What a program can read besides its arguments: the inputs and guards of its graph."""

from collections.abc import Iterable
from operator import getitem, is_
from typing import Any

import pyro
from torch import Tensor

from .arguments import PLAIN
from .guards import is_closed, process_state, same
from .walking import GLOBAL_HOOKS, MAX_ENTRIES, STORE, Walker


class Reach:
    """Tensors, numbers and settings that programs can read, as slots ``holder[key]``; found by a ``Walker``.

    ``tensors`` are inputs of a graph, read at every call, so they may be replaced. So are ``numbers``, those with a path in
    ``dynamic``. Everything else is fixed in a graph; ``intact`` is whether it is unchanged. Paths ``ignored`` are caches of
    libraries, which change on use. ``refused`` is the reason if the programs cannot be traced, for example because they
    read an iterator or a random number generator, whose changes cannot be noticed.

    Args:
        roots: programs and other objects to start from.
        names: entries of Pyro's parameter store.
        dynamic: paths of numbers that are inputs.
        ignored: paths of library caches.
    """

    def __init__(
        self,
        roots: Iterable[Any],
        names: Iterable[str] = (),
        dynamic: frozenset[str] = frozenset(),
        ignored: frozenset[str] = frozenset(),
    ):
        self.dynamic, self.ignored = dynamic, ignored
        self.fixed, self.values, self.fixed_paths = ([], []), [], []  # (holders, keys)
        self.tensor_slots, self.tensor_paths = ([], []), []
        self.number_slots, self.number_paths = ([], []), []
        self.own: set[str] = set()  # paths of what user objects hold
        self.sized: list[Any] = [pyro.poutine.runtime._PYRO_STACK, *GLOBAL_HOOKS]  # containers whose length is watched
        self.sized_paths: list[str] = [""] * len(self.sized)  # of user containers
        self.refused: str | None = None
        self.codes: list[Any] = []
        try:
            self._visited = Walker(self).run(roots, names)  # kept alive, because the signature contains ids
        except Exception as error:  # objects that a program holds may raise anything when their attributes are read
            self._visited = {}
            self.refuse(f"something that it holds cannot be read: {type(error).__name__}: {error}")
        self.sizes = list(map(len, self.sized))
        self.state = process_state()
        self.signature = self._signature()

    def tensors(self) -> list[Tensor]:
        """Current tensors."""
        return list(map(getitem, *self.tensor_slots))

    def numbers(self) -> list[int | float]:
        """Current numbers that are inputs."""
        return list(map(getitem, *self.number_slots))

    def intact(self) -> bool:
        """Whether everything that a graph fixes is unchanged."""
        try:
            values = list(map(getitem, *self.fixed))
            equal = all(map(is_, values, self.values)) or self._equal(values)
            return equal and list(map(len, self.sized)) == self.sizes and self.state == process_state()
        except (KeyError, IndexError, ValueError):
            return False

    def changed(self) -> list[str]:
        """Paths of fixed values that have changed."""
        paths = []
        for holder, key, value, path in zip(*self.fixed, self.values, self.fixed_paths):
            try:
                if not same(holder[key], value):
                    paths.append(path)
            except (KeyError, IndexError, ValueError):
                paths.append(path)
        return paths

    def resized(self) -> list[str]:
        """Paths of user containers whose length has changed."""
        return [path for path, container, size in zip(self.sized_paths, self.sized, self.sizes) if path and len(container) != size]

    def containers(self) -> list[Any]:
        """Lists, dictionaries and sets of user objects."""
        return [container for path, container in zip(self.sized_paths, self.sized) if path and len(container) <= MAX_ENTRIES]

    def restore(self):
        """Restore fixed values of user objects."""
        for holder, key, value, path in zip(*self.fixed, self.values, self.fixed_paths):
            if path in self.own and not same(holder[key], value):
                holder[key] = value

    def rewritten(self) -> set[str]:
        """Paths of values that libraries have replaced: caches."""
        return {path for path in self.changed() if path not in self.own and path != STORE}

    def refuse(self, reason: str):
        """Record the first reason against a graph."""
        self.refused = self.refused or reason

    def _equal(self, values: list[Any]) -> bool:
        if not all(map(same, values, self.values)):
            return False
        self.values = values
        return True

    def _signature(self) -> tuple:
        """Equal for walks of calls that can share a graph, apart from tensors."""
        plain = tuple(
            (path, type(value), value if isinstance(value, (*PLAIN, frozenset)) else id(value) if is_closed(value) else None)
            for path, value in zip(self.fixed_paths, self.values)
        )
        return plain, tuple(self.tensor_paths), tuple(self.number_paths), tuple(map(id, self.codes)), self.state
