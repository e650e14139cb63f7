"""Settings files: what they may name. They may come from somebody else, so they import nothing and write nowhere far."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

_PLAIN = {"data", "out", "recipe"}  # settings that hold text, not classes
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


def named(argv: list[str]) -> list[dict]:
    """What the files hold that ``--config`` names among the arguments; those that cannot be read are left for the parser to refuse."""
    options = [token.split("=", 1) for token in argv if "=" in token] + [*zip(argv, argv[1:])]
    try:
        contents = [yaml.safe_load(Path(file).read_text(encoding="utf-8")) for option, file in options if option == "--config"]
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return []
    return [content for content in contents if isinstance(content, dict)]


def check(content: dict, known: Iterable[type], trusted: Iterable[str]):
    """``ValueError`` for a settings file that would import a module, call a function, read another file or write outside this folder.

    Args:
        content: of the file.
        known: the classes that it may name, by their names or paths; torch's optimizers and schedulers are known too.
        trusted: paths that the command line names as well: classes of the user's own.
    """
    if "config" in content:
        raise ValueError("train: a settings file cannot name another one; give --config twice")
    if (out := Path(str(content.get("out") or "."))).is_absolute() or ".." in out.parts:
        raise ValueError(f"train: the settings file asks to write to {out}, outside this folder; if that is meant, say --out {out}")
    homes = {(cls.__name__, cls.__module__.partition(".")[0]) for cls in [*known, *_below(Optimizer), *_below(LRScheduler)]}
    names = {name for name, _ in homes}
    for path in _paths({key: value for key, value in content.items() if key not in _PLAIN}):
        home, _, name = path.partition(".")[0], *path.rpartition(".")[1:]
        if path in trusted or (name, home) in homes or ("." not in path and name in names):
            continue
        raise ValueError(
            f"train: the settings file names {path}, which is no part of pyroae's, Pyro's or torch's; settings files import nothing: "
            "if you trust it, name it on the command line as well, as in --prior my_parts.Mine"
        )


def _paths(value: Any, key: str = "") -> Iterator[str]:
    """Everything below a setting that names a class or could be taken for the path of one."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _paths(item, str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _paths(item)
    elif key.rpartition(".")[2] == "class_path" or (isinstance(value, str) and _DOTTED.fullmatch(value.strip())):
        yield str(value).strip()


def _below(cls: type) -> Iterator[type]:
    for each in cls.__subclasses__():
        yield each
        yield from _below(each)
