"""pyroae: autoencoders as Pyro probabilistic programs.

Choose p(z), p(x|z), q(z|x) and an objective; train the Pyro program; know how good it is.
"""

import ast
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

_IMPORTS = [node for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body if isinstance(node, ast.ImportFrom)]
_HOME = {each.asname or each.name: (node.module, each.name) for node in _IMPORTS for each in node.names}  # public name -> module, name

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``pyroae --help`` does not wait for torch."""
    if name == "__version__":
        return version("pyroae")
    if name not in _HOME:
        raise AttributeError(f"module 'pyroae' has no attribute {name!r}")
    home, original = _HOME[name]
    if home is None:
        return import_module(f"pyroae.{original}")
    return getattr(__import__(f"pyroae.{home}", fromlist=[original]), original)


def __dir__() -> list[str]:
    return __all__
