"""Closures and classes as holders: what they hold is read and written like an entry of a dictionary."""


class Cell:
    """A closure's cell as a holder."""

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
    """A class's attributes as a holder."""

    def __init__(self, cls: type):
        self.cls = cls

    def __getitem__(self, name):
        return vars(self.cls)[name]

    def __setitem__(self, name, value):
        setattr(self.cls, name, value)
