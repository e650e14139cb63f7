"""The settings of a run: which there are, their types and defaults, and reading them from a file."""

import inspect
import json
import re
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import schema, sizes, structure
from ..checks import did_you_mean, short
from ..data import load
from ..data.limits import LIMIT
from ..data.named import NAMED
from ..files import target_of
from ..recipes import RECIPES
from ..training.fit import fit
from ..training.options import Run, Step, Validation
from .plain_yaml import parse

ROLES = {
    "prior": "p(z)",
    "likelihood": "p(x|z)",
    "posterior": "q(z|x)",
    "encoder": "x to the parameters of q",
    "decoder": "z to the parameters of p",
    "condition": "what x is conditioned on, such as labels",
    "corruption": "of the encoder's input, in training",
    "objective": "what is maximised",
}
_EPOCHS = (
    "passes over the data; by default at most 20, or more where that makes fewer than 4,000 steps: training stops where the "
    "validation loss has not improved for a tenth of them, for which a tenth of the training data in your own file is held out"
)
_NO_SETTINGS = {  # arguments that are not settings of a run
    load: {"data", "schema"},
    fit: {"model", "data", "guide", "elbo", "epochs", "validation", "compile", "run", "progress", "callbacks"},
    Step: set(),
    Validation: {"data"},
    Run: {"folder", "resume"},
}


@dataclass(frozen=True)
class Setting:
    """One setting of a run."""

    name: str
    annotation: Any
    default: Any
    help: str
    section: str


_OWN = (
    Setting("data", str, "digits", f"{', '.join(NAMED)}, a file or a folder", "run"),
    Setting("epochs", int | None, None, _EPOCHS, "run"),
    Setting("particles", int, 500, "importance samples for each test example's log p(x)", "run"),
    Setting("pretrain", int, 0, "epochs of greedy layer-wise training first, with the model's own corruption and penalty", "run"),
    Setting("pictures", int, 0, "draw all pictures after every so many epochs too; 0: at the end only", "run"),
    Setting("tensorboard", bool, False, "log to the run folder for TensorBoard too", "run"),
    Setting("recipe", str, "vae", "the recipe, where it is not named first", "run"),
    Setting("out", str | None, None, "the run folder, new or empty; by default the next free one in runs/", "run"),
)


def settings_of(recipe: str) -> dict[str, Setting]:
    """Every setting of a run of that recipe, by name."""
    found = {setting.name: setting for setting in _OWN}
    found |= _of_function(RECIPES[recipe], {"data"}, "size and weights")
    for role, meaning in ROLES.items():
        found[role] = Setting(role, structure.FIELDS[role].annotation | None, None, meaning, "parts")
    found |= _of_function(load, _NO_SETTINGS[load], "how data are read")
    for function in (fit, Validation, Step, Run):
        found |= _of_function(function, _NO_SETTINGS[function], "training")
    found["recipe"] = Setting("recipe", str, recipe, found["recipe"].help, "run")
    found["seed"] = Setting("seed", int | None, 0, found["seed"].help, "training")
    return found


def _of_function(function: Callable, skip: Collection[str], section: str) -> dict[str, Setting]:
    hints, said = typing.get_type_hints(function), help_of(function)
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name not in skip}
    return {name: Setting(name, hints[name], p.default, said.get(name, ""), section) for name, p in parameters.items()}


def help_of(function: Callable) -> dict[str, str]:
    """What the docstring of a function says of each argument.

    >>> help_of(load)["binarize"].split()[:2]
    ['grey', 'levels']
    """
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.S | re.M)
    if section is None:
        return {}
    found = re.findall(r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", section[1], re.S | re.M)
    return {name.strip(): " ".join(said.split()) for names, said in found for name in names.split(",")}


def read_file(path: str | Path) -> dict[str, Any]:
    """The plain data of a settings file, YAML or JSON; nothing in it is checked yet but its size and kind.

    Raises:
        ValueError: no such file, one of more than a megabyte, or no mapping from names to values.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(sizes.SETTINGS_BYTES + 1)
        if len(content) > sizes.SETTINGS_BYTES:
            raise ValueError(f"expected at most {sizes.SETTINGS_BYTES:,} bytes")
        text = content.decode("utf-8")
        found = _json(text) if text.lstrip().startswith('{"') else parse(text)
        schema.check_size(found, "settings")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"the settings file {path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"the settings file {path}: expected names with values, such as epochs: 20, got a {type(found).__name__}")
    if isinstance(out := found.get("out"), str) and not _below_here(out):
        raise ValueError(f"the settings file {path} asks to write to {out}, outside this folder; if that is meant, say --out {out}")
    if isinstance(limit := found.get("limit"), (int, float)) and limit > LIMIT:
        raise ValueError(f"the settings file {path} asks for a limit of {limit:.3g} bytes; no file raises it, say --limit {limit:.3g}")
    return found


def _json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice in it")
        return dict(pairs)

    def refuse(constant: str):
        raise ValueError(f"{constant} is not a number in JSON")

    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def _below_here(out: str) -> bool:
    return target_of(out).is_relative_to(target_of(Path.cwd()))


def recipe_of(content: dict[str, Any]) -> str:
    """The recipe that settings name."""
    recipe = content.get("recipe", "vae")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise ValueError(f"there is no recipe {short(recipe)}" + did_you_mean(str(recipe), RECIPES))
    return recipe


def check(content: dict[str, Any]) -> dict[str, Any]:
    """Settings checked whole against their types; those left out have their defaults, parts are ``schema.Spec``.

    Raises:
        ValueError: an unknown setting, or a value of another type; says which, what was expected and what was given.
    """
    known = settings_of(recipe_of(content))
    for name in content:
        if name not in known:
            raise ValueError(f"there is no setting {name!r}" + did_you_mean(name, known))
    for name, value in content.items():
        if isinstance(value, int) and abs(value) > sizes.SETTING and name != "seed":
            raise ValueError(f"expected --{name} as a number of at most {sizes.SETTING:,}, got {short(value)}")
    checked = {name: schema.read(content.get(name, each.default), each.annotation, f"--{name}") for name, each in known.items()}
    if not checked["limit"] > 0:
        raise ValueError(f"expected --limit as a positive number of bytes, got {checked['limit']!r}")
    return checked


def merge(below: Any, above: Any) -> Any:
    """Settings with others on top; the arguments of a part are added to those of the same part below.

    >>> merge({"prior": "Laplace", "epochs": 3}, {"prior": {"scale": 0.5}})
    {'prior': {'class': 'Laplace', 'scale': 0.5}, 'epochs': 3}
    """
    if not isinstance(above, dict) or "class" in above:
        return above
    below = {"class": below} if isinstance(below, str) else below if isinstance(below, dict) else {}
    return below | {name: merge(below.get(name), value) for name, value in above.items()}


def arguments_of(function: Callable, settings: dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that are a function's options."""
    skip = _NO_SETTINGS.get(function, {"data"}) - {"epochs"} - ({"data"} if function is load else set())
    return {name: settings[name] for name in inspect.signature(function).parameters if name in settings and name not in skip}


def read_run(run: str | Path) -> dict[str, Any]:
    """The settings of a run from its folder, checked.

    Raises:
        ValueError: a folder that is none of a run, or settings that are none.
    """
    path = Path(run) / "settings.json"
    if not path.is_file():
        raise ValueError(f"expected a run folder such as runs/vae-digits-1, got {run} (it has no settings.json)")
    try:
        return check(read_file(path))
    except ValueError as error:
        raise ValueError(f"expected a run folder such as runs/vae-digits-1, got {run}: {error}") from error
