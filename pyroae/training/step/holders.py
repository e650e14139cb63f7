"""Holders: access by ``holder[key]`` to closure cells, class attributes, slots, and contents of sets and arrays."""

from typing import Any

import numpy as np


class Cell:
    """The content of a closure's cell."""

    def __init__(self, cell):
        self.cell = cell

    @property
    def filled(self) -> bool:
        try:
            return self.cell.cell_contents is not self
        except ValueError:
            return False

    def __getitem__(self, key):
        return self.cell.cell_contents

    def __setitem__(self, key, value):
        self.cell.cell_contents = value


class ClassView:
    """Attributes of a class."""

    def __init__(self, cls: type):
        self.cls = cls

    def __getitem__(self, name):
        return vars(self.cls)[name]

    def __setitem__(self, name, value):
        setattr(self.cls, name, value)


class Slots:
    """Attributes of an object in slots; of an empty one the class ``Slots`` itself."""

    def __init__(self, owner: Any):
        self.owner = owner

    def __getitem__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self.owner, name)
        except AttributeError:
            return Slots

    def __setitem__(self, name: str, value: Any):
        if value is Slots:
            object.__delattr__(self.owner, name)
        else:
            object.__setattr__(self.owner, name, value)


class Contents:
    """Contents of a set or an array as one comparable value."""

    def __init__(self, holder: set | bytearray | np.ndarray):
        self.holder = holder

    def __getitem__(self, key) -> Any:
        if isinstance(self.holder, np.ndarray):
            return f"{self.holder.dtype.str} {self.holder.shape} ".encode() + self.holder.tobytes()
        return bytes(self.holder) if isinstance(self.holder, bytearray) else frozenset(self.holder)

    def __setitem__(self, key, value):
        """Restore a set's contents; arrays are not restored."""
        if isinstance(self.holder, set):
            self.holder.clear()
            self.holder.update(value)
