"""What a command returns: text for a person, data for a machine."""

import json
import math
import os
from dataclasses import dataclass
from typing import Any


class Help(Exception):
    """Help was asked for on the command line; holds its text."""


@dataclass(frozen=True)
class CommandOutput:
    """The output of a command, as text and as data.

    >>> print(CommandOutput("loss  3.14 nats", {"loss": 3.14, "sampling error": float("nan")}).json)
    {
      "loss": 3.14,
      "sampling error": null
    }
    """

    text: str
    data: dict[str, Any]

    @property
    def json(self) -> str:
        """The data as JSON; ``null`` for numbers that do not exist."""
        return as_json(self.data)

    def __str__(self) -> str:
        return self.text


def as_json(data: dict[str, Any]) -> str:
    """JSON, with ``null`` for numbers that do not exist."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def command() -> str:
    """How a person calls ``pyroae`` again: as now, by ``uv run`` or without.

    >>> command() in ("pyroae", "uv run pyroae")
    True
    """
    return "uv run pyroae" if "UV" in os.environ else "pyroae"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
