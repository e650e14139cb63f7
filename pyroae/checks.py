"""Checks of arguments and parts of error messages."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """An error in data or in a file; its message is complete: it names the file, what was expected and what was found."""


def whole_number(owner: str, **arguments: Any):
    """``ValueError`` unless every argument is an integer of at least 1."""
    for name, value in arguments.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{owner}: expected {name} as a whole number of at least 1, got {value!r}")


def short(value: Any) -> str:
    """A value for a message, truncated to 80 characters; of a tensor the dtype and shape.

    >>> import torch
    >>> short("ab"), short([1] * 1000), short({"w": torch.zeros(2, 3)})
    ("'ab'", '[1, 1, 1, 1, 1, 1, ...]', "{'w': a torch.float32 tensor of shape (2, 3)}")
    """
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_LISTED = 40  # at most so many names are listed in a message


class _Short(reprlib.Repr):
    def repr_Tensor(self, value: Any, level: int) -> str:
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 80


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the nearest known name, or ``"; known: ..."``.

    >>> did_you_mean("Laplac", ["Laplace", "Normal"])
    "; did you mean 'Laplace'?"
    """
    known = list(known)
    near = difflib.get_close_matches("Normal" if name == "Gaussian" and "Normal" in known else name, known, 1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known)[:_LISTED])}{', ...' * (len(known) > _LISTED)}"
