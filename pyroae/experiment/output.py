"""What a command returns: text and data."""

import json
import math
import os
from dataclasses import dataclass
from typing import Any


class Help(Exception):
    """Raised instead of printing help; holds the text."""


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
        """The data as JSON; NaN and infinities are ``null``."""
        return as_json(self.data)

    def __str__(self) -> str:
        return self.text


def as_json(data: dict[str, Any]) -> str:
    """JSON with ``null`` for NaN and infinities."""
    return json.dumps(_finite(data), indent=2, allow_nan=False)


def command() -> str:
    """How to call ``pyroae`` from this shell: with ``uv run`` if this process was started so.

    >>> command() in ("pyroae", "uv run pyroae")
    True
    """
    return "uv run pyroae" if "UV" in os.environ else "pyroae"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
