"""Checks of arguments that several functions share."""

import difflib
from collections.abc import Iterable
from typing import Any


def whole_number(owner: str, **arguments: Any):
    """``ValueError`` unless every argument is a whole number of at least 1."""
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{owner}: expected {name} as a whole number of at least 1, got {value!r}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the nearest known name, or ``"; known: ..."``.

    >>> did_you_mean("Laplac", ["Laplace", "Normal"])
    "; did you mean 'Laplace'?"
    """
    known = list(known)
    near = difflib.get_close_matches("Normal" if name == "Gaussian" and "Normal" in known else name, known, 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
