"""The settings of a run: their names, types and defaults, and reading them from a file."""

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
from ..model.priors import Prior
from ..recipes import RECIPES
from ..training.fit import fit
from ..training.options import Run, Step, Validation
from .plain_yaml import parse

ROLES = {
    "prior": "p(z)",
    "likelihood": "p(x|z)",
    "posterior": "q(z|x)",
    "encoder": "maps x to the parameters of q(z|x)",
    "decoder": "maps z to the parameters of p(x|z)",
    "condition": "what x is conditioned on, such as labels",
    "corruption": "of the encoder's input, during training",
    "objective": "what is maximised",
}
_EPOCHS = (
    "passes over the data; by default 20, or as many as 4,000 steps take if that is more; with validation data, which are a tenth of the "
    "training data in your own file, training stops when their loss has not improved for a tenth of the passes"
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
    Setting("particles", int, 500, "importance samples per test example for log p(x)", "run"),
    Setting("pretrain", int, 0, "epochs of greedy layer-wise training first, with the model's own corruption and penalty", "run"),
    Setting("fit_prior", Prior | None, None, "p(z) fitted to the codes after training, such as GaussianMixture", "run"),
    Setting("figures_every", int, 0, "epochs between figures during training; 0: at the end only", "run"),
    Setting("tensorboard", bool, False, "also log to the run folder for TensorBoard", "run"),
    Setting("recipe", str, "vae", "the recipe, if it is not the first argument", "run"),
    Setting("out", str | None, None, "the run folder, new or empty; by default a new one in runs/", "run"),
)


def settings_of(recipe: str) -> dict[str, Setting]:
    """All settings of a run of a recipe, by name."""
    settings = {setting.name: setting for setting in _OWN}
    settings |= _of_function(RECIPES[recipe], {"data"}, "size and weights")
    for role, meaning in ROLES.items():
        settings[role] = Setting(role, structure.FIELDS[role].annotation | None, None, meaning, "parts")
    settings |= _of_function(load, _NO_SETTINGS[load], "how data are read")
    for function in (fit, Validation, Step, Run):
        settings |= _of_function(function, _NO_SETTINGS[function], "training")
    settings["recipe"] = Setting("recipe", str, recipe, settings["recipe"].help, "run")
    settings["seed"] = Setting("seed", int | None, 0, settings["seed"].help, "training")
    return settings


def _of_function(function: Callable, skip: Collection[str], section: str) -> dict[str, Setting]:
    hints, helps = typing.get_type_hints(function), help_of(function)
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name not in skip}
    return {name: Setting(name, hints[name], p.default, helps.get(name, ""), section) for name, p in parameters.items()}


def help_of(function: Callable) -> dict[str, str]:
    """The descriptions of a function's arguments in its docstring.

    >>> help_of(load)["binarize"].split()[:2]
    ['grey', 'levels']
    """
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.S | re.M)
    if section is None:
        return {}
    entries = re.findall(r"^    (\w[\w, ]*): (.*?)(?=^    \w|\Z)", section[1], re.S | re.M)
    return {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}


def read_file(path: str | Path) -> dict[str, Any]:
    """Read a settings file, YAML or JSON, as plain data; only its size and syntax are checked.

    Raises:
        ValueError: no such file, a file of more than a megabyte, or not a mapping from names to values.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(sizes.SETTINGS_BYTES + 1)
        if len(content) > sizes.SETTINGS_BYTES:
            raise ValueError(f"expected at most {sizes.SETTINGS_BYTES:,} bytes")
        text = content.decode("utf-8")
        settings = _json(text) if text.lstrip().startswith('{"') else parse(text)
        schema.check_size(settings, "settings")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"the settings file {path} cannot be read: {error}") from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise ValueError(f"the settings file {path}: expected names with values, such as epochs: 20, got a {type(settings).__name__}")
    if isinstance(out := settings.get("out"), str) and not _below_here(out):
        raise ValueError(f"the settings file {path} writes to {out}, outside the current folder; if that is intended, add --out {out}")
    if isinstance(limit := settings.get("limit"), (int, float)) and limit > LIMIT:
        raise ValueError(f"the settings file {path} sets a limit of {limit:.3g} bytes; no file can raise it, add --limit {limit:.3g}")
    return settings


def _json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice")
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
    """Check settings against their types. Missing ones get their defaults; parts are ``schema.Spec``.

    Raises:
        ValueError: an unknown setting, or a value of the wrong type.
    """
    known = settings_of(recipe_of(content))
    for name in content:
        if name not in known:
            raise ValueError(f"there is no setting {name!r}" + did_you_mean(name, known))
    for name, value in content.items():
        if isinstance(value, int) and abs(value) > sizes.SETTING and name != "seed":
            raise ValueError(f"expected --{name} as a number of at most {sizes.SETTING:,}, got {short(value)}")
    checked = {name: schema.read(content.get(name, setting.default), setting.annotation, f"--{name}") for name, setting in known.items()}
    if not checked["limit"] > 0:
        raise ValueError(f"expected --limit as a positive number of bytes, got {checked['limit']!r}")
    return checked


def merge(below: Any, above: Any) -> Any:
    """Merge settings; ``above`` takes precedence, and the arguments of a part are merged likewise.

    >>> merge({"prior": "Laplace", "epochs": 3}, {"prior": {"scale": 0.5}})
    {'prior': {'class': 'Laplace', 'scale': 0.5}, 'epochs': 3}
    """
    if not isinstance(above, dict) or "class" in above:
        return above
    below = {"class": below} if isinstance(below, str) else below if isinstance(below, dict) else {}
    return below | {name: merge(below.get(name), value) for name, value in above.items()}


def arguments_of(function: Callable, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are arguments of a function."""
    skip = _NO_SETTINGS.get(function, {"data"}) - {"epochs"} - ({"data"} if function is load else set())
    return {name: settings[name] for name in inspect.signature(function).parameters if name in settings and name not in skip}


def read_run(run: str | Path) -> dict[str, Any]:
    """The checked settings of a run, from its folder.

    Raises:
        ValueError: not a run folder, or invalid settings.
    """
    path = Path(run) / "settings.json"
    if not path.is_file():
        raise ValueError(f"expected a run folder such as runs/vae-digits-1, got {run} (it has no settings.json)")
    try:
        return check(read_file(path))
    except ValueError as error:
        raise ValueError(f"expected a run folder such as runs/vae-digits-1, got {run}: {error}") from error
