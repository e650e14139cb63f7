"""Checks of arguments that several functions share."""

from typing import Any


def whole_number(owner: str, **arguments: Any):
    """``ValueError`` unless every argument is a whole number of at least 1."""
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{owner}: expected {name} as a whole number of at least 1, got {value!r}")
