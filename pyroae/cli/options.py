"""Command-line options: built from the settings of a run and the signatures of commands and parts, parsed by ``argparse``."""

import argparse
import difflib
import inspect
import textwrap
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from .. import registry, schema, sizes
from ..bounded import build_for_training
from ..checks import did_you_mean
from ..data.named import NAMED
from ..experiment import settings
from ..experiment.output import Help
from ..experiment.settings import ROLES, Setting
from ..files import refuse_links
from ..recipes import RECIPES
from .commands import COMMANDS
from .values import OptionError, class_of, metavar, value_of

_SYNONYMS = {  # names of options in other programs
    "batchsize": "batch_size",
    "beta": "objective.beta",
    "components": "prior.components",
    "dataset": "data",
    "dim": "latent_dim",
    "gpu": "device",
    "layers": "hidden",
    "learning_rate": "lr",
    "loss": "objective",
    "name": "out",
    "units": "hidden",
    "z": "latent_dim",
    "z_dim": "latent_dim",
}
_REPLACED = (("scale", "prior"), ("weight", "objective"), ("target", "objective"))  # an option of a recipe, and the part that it configures


class Parser(argparse.ArgumentParser):
    """Raises ``ValueError`` instead of exiting and ``Help`` instead of printing."""

    def __init__(self, command: str, **more):
        super().__init__(
            prog=f"pyroae {command}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            exit_on_error=False,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
            **more,
        )
        self.add_argument("--json", action="store_true", help="print JSON")

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog.partition(' ')[2]}: {message}")

    def print_help(self, file: Any = None) -> NoReturn:
        raise Help(self.format_help().rstrip("\n"))

    def read(self, argv: list[str]) -> tuple[dict[str, Any], list[str]]:
        """The parsed values, and the arguments that are not known."""
        try:
            given, rest = self.parse_known_args(argv)
        except OptionError as error:
            self.error(str(error))
        except argparse.ArgumentError as error:
            self.error(f"{error.argument_name or 'argument'}: {error.message}")
        return vars(given), rest


def parse_train(argv: list[str]) -> tuple[dict[str, Any], dict[str, Any], str | None, bool]:
    """The arguments of ``train``: checked settings with their parts made; the same as plain data; the run to resume; whether to print only.

    Raises:
        ValueError: an unknown recipe, option, part or argument (names the closest match), or a value of the wrong type.
    """
    first, rest = _first(argv)
    for module in first.get("use", ()):
        registry.use(module)
    resumed = first.get("resume")
    content = _from_files(resumed, first)
    named = argv[0] if argv and not argv[0].startswith("-") else None
    recipe = _recipe(named or first.get("recipe"), content)
    given = _read_options(recipe, argv, content)
    _check_replaced(recipe, given)
    print_only = given.pop("print_config", False)
    plain = settings.merge(content, _nested(given) | {"recipe": recipe})
    if resumed is not None:
        plain.pop("out", None)
    try:
        checked = settings.check(plain)
    except ValueError as error:
        raise ValueError(f"train: {error}") from error
    written = {name: plain.get(name, each.default) for name, each in settings.settings_of(recipe).items()}
    return build_for_training(lambda: schema.made(checked), checked["limit"]), written, resumed, print_only


def parse_call(command: str, function: Callable, usage: str, example: str, argv: list[str]) -> dict[str, Any]:
    """The arguments of a command's function.

    A parameter without a default, or with the default ``()``, is positional; a keyword-only one without a default is required.

    Raises:
        ValueError: an unknown option or a value of the wrong type.
    """
    parser = Parser(command, **_help(command, usage, function, example))
    add_call(parser, function)
    given, rest = parser.read(argv)
    if rest:
        parser.error(_unknown(rest[0], [f"--{name}" for name in inspect.signature(function).parameters]))
    given.pop("json", None)
    for module in given.pop("use", ()):
        registry.use(module)
    return given


def wants_json(argv: list[str]) -> bool:
    """Whether the command line asks for JSON."""
    return Parser("", add_help=False).read(argv)[0].get("json", False)


def add_call(parser: argparse.ArgumentParser, function: Callable) -> list[argparse.Action]:
    """Add an option for each of a function's parameters."""
    hints, helps, actions = typing.get_type_hints(function), settings.help_of(function), []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY and parameter.default in (parameter.empty, ()):
            several = None if hints[name] is str else "+" if parameter.default is parameter.empty else "*"
            actions.append(parser.add_argument(name, help=helps.get(name), nargs=several))
        else:
            actions.append(_add(parser, Setting(name, hints[name], parameter.default, helps.get(name, ""), "")))
    if {"run", "runs", "kind"} & hints.keys():
        _add_use(parser)
    return actions


def train_parser(recipe: str, **more) -> Parser:
    """The options for training a recipe, without those for the arguments of its parts."""
    parser = Parser("train", **more)
    parser.add_argument("recipe_word", nargs="?", metavar="RECIPE", help=", ".join(RECIPES))
    groups: dict[str, Any] = {}
    for setting in settings.settings_of(recipe).values():
        title = f"{setting.section}; pyroae parts KIND lists them" if setting.section == "parts" else setting.section
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], setting)
    files = parser.add_argument_group("files")
    files.add_argument("--config", action="append", metavar="FILE", help="settings as YAML or JSON, such as a run's settings.json")
    files.add_argument("--resume", metavar="RUN", help="continue the run in this folder, with its settings except those given")
    files.add_argument("--print_config", action="store_true", help="print all settings as YAML and exit")
    _add_use(files)
    return parser


def part_choices() -> dict[str, dict[str, type]]:
    """The classes that can be chosen for each option, by name."""
    kinds = {role: schema.kinds_in(settings.settings_of("vae")[role].annotation)[0][0] for role in (*ROLES, "optimizer", "scheduler")}
    kinds |= {"fit_prior": "priors", "objective.penalty": "penalties", "objective.beta": "schedules"}
    return {role: registry.members(kind) for role, kind in kinds.items()}


def _first(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The arguments that determine which other options there are: files, modules to import, the recipe."""
    parser = Parser("train", add_help=False)
    for option in ("--use", "--config"):
        parser.add_argument(option, action="append")
    for option in ("--resume", "--recipe", "--out"):
        parser.add_argument(option)
    return parser.read(argv)


def _from_files(resumed: str | None, first: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if resumed is not None:
        if not (Path(resumed) / "settings.json").is_file():
            raise ValueError(f"train: expected --resume RUN with the folder of a run, such as runs/vae-digits-1, got {resumed}")
        if "out" in first:
            raise ValueError("train: --resume continues in the run's own folder; remove --out")
        refuse_links(Path(resumed))
    for file in [*([Path(resumed) / "settings.json"] if resumed else []), *first.get("config", ())]:
        try:
            content = settings.merge(content, settings.read_file(file))
        except ValueError as error:
            raise ValueError(f"train: {error}") from error
    return content


def _recipe(named: str | None, content: dict[str, Any]) -> str:
    if named is not None and named not in RECIPES:
        as_data = named in NAMED or Path(named).exists()
        hint = f"; data are named by --data {named}" if as_data else did_you_mean(named, RECIPES)
        raise ValueError(f"train: there is no recipe {named!r}{hint}")
    try:
        of_files = settings.recipe_of(content)
    except ValueError as error:
        raise ValueError(f"train: {error}") from error
    if named is not None and "recipe" in content and named != of_files:
        raise ValueError(f"train: the recipe is {named!r} but the config is of {of_files!r}; leave the recipe out")
    return named or of_files


def _read_options(recipe: str, argv: list[str], content: dict[str, Any]) -> dict[str, Any]:
    """The options on the command line by dotted name. The options of a part depend on the part, so they are parsed level by level."""
    known: dict[str, Setting] = {}
    for _ in range(sizes.PART_LEVELS):
        given, rest = _parser_with(recipe, known, add_help=False).read(argv)
        more = _arguments_of_parts(recipe, given, content, rest) if rest else {}
        if more.keys() <= known.keys():
            break
        known |= more
    about = _help(
        "train", "[RECIPE]", RECIPES[recipe], COMMANDS["train"].example, f" This is {recipe}, of the recipes {', '.join(RECIPES)}."
    )
    parser = _parser_with(recipe, known, **about)
    given, rest = parser.read(argv)
    if rest:
        options = [f"--{name}" for name in (*settings.settings_of(recipe), "config", "resume", "print_config", "use")]
        parser.error(_unknown_of_part(rest[0], recipe, given, content) or _unknown(rest[0], options))
    given.pop("recipe_word", None)
    return {name: value for name, value in given.items() if name not in ("config", "resume", "use", "recipe", "json")}


def _parser_with(recipe: str, known: dict[str, Setting], **more) -> Parser:
    parser = train_parser(recipe, **more)
    for setting in known.values():
        _add(parser, setting)
    return parser


def _arguments_of_parts(recipe: str, given: dict[str, Any], content: dict[str, Any], rest: list[str]) -> dict[str, Setting]:
    """Options for the arguments of every part that is named on the command line or in files."""
    options: dict[str, Setting] = {}
    merged = settings.merge(content, _nested(given))
    left = [(name, setting.annotation, merged.get(name)) for name, setting in settings.settings_of(recipe).items()]
    while left:
        path, annotation, value = left.pop()
        name = value.get("class") if isinstance(value, dict) else value
        kinds = schema.kinds_in(annotation)
        if not kinds or not isinstance(name, str):
            continue
        cls = class_of(name, kinds)
        if cls is None:
            continue
        for argument, parameter in registry.parameters(cls).items():
            if typing.get_origin(parameter.annotation) is dict:  # parts by name, such as the columns of a Product
                inner = value.get(argument) if isinstance(value, dict) else None
                for key in _names_below(f"--{path}.{argument}.", rest, inner):
                    name = f"{path}.{argument}.{key}"
                    options[name] = Setting(name, typing.get_args(parameter.annotation)[1], None, "", "")
                    left.append((name, options[name].annotation, inner.get(key) if isinstance(inner, dict) else None))
            named = [argument]
            if parameter.kind is parameter.VAR_KEYWORD:
                named = [word.removeprefix(f"--{path}.").partition("=")[0] for word in rest if word.startswith(f"--{path}.")]
            for key in named:
                if key.isidentifier():
                    options[f"{path}.{key}"] = Setting(f"{path}.{key}", parameter.annotation, None, "", "")
            left.append((f"{path}.{argument}", parameter.annotation, value.get(argument) if isinstance(value, dict) else None))
    return options


def _names_below(prefix: str, rest: list[str], known: Any) -> list[str]:
    """The next component of the options that begin with a dotted name, and the names already known."""
    words = [word.removeprefix(prefix).partition("=")[0].partition(".")[0] for word in rest if word.startswith(prefix)]
    return list(dict.fromkeys([*words, *(known if isinstance(known, dict) else ())]))


def _nested(given: dict[str, Any]) -> dict[str, Any]:
    """Dotted names as nested mappings: ``prior`` and ``prior.scale`` as ``{"prior": {"class": ..., "scale": ...}}``."""
    nested: dict[str, Any] = {}
    for name in sorted(given):
        *path, last = name.split(".")
        mapping = nested
        for key in path:
            inner = mapping.get(key)
            mapping[key] = mapping = {"class": inner} if isinstance(inner, str) else inner if isinstance(inner, dict) else {}
        mapping[last] = given[name]
    return nested


def _add(parser: Any, setting: Setting) -> argparse.Action:
    text = " ".join(setting.help.replace("`", "").replace("%", "%%").removesuffix(".").split())
    show_default = setting.default not in (None, False, inspect.Parameter.empty) and setting.section != ""
    return parser.add_argument(
        f"--{setting.name}",
        type=partial(value_of, setting.annotation, f"--{setting.name}"),
        metavar=metavar(setting.annotation),
        help=f"{text} [{setting.default}]" if show_default else text,
        required=setting.default is inspect.Parameter.empty,
    )


def _add_use(parser: Any):
    parser.add_argument("--use", action="append", metavar="MODULE", help="import a module with your own parts, also from this folder")


def _check_replaced(recipe: str, given: dict[str, Any]):
    """``ValueError`` for an option of a recipe together with a part that replaces the one it configures."""
    for option, part in _REPLACED:
        if option in given and part in given and option in inspect.signature(RECIPES[recipe]).parameters:
            raise ValueError(
                f"train: --{option} sets the {recipe} recipe's own {part}, and --{part} replaces it; give --{part}'s arguments instead"
            )


def _unknown_of_part(word: str, recipe: str, given: dict[str, Any], content: dict[str, Any]) -> str | None:
    """The error message for an unknown option of a part; ``None`` if it is not one of a part."""
    option = word.partition("=")[0].removeprefix("--")
    path, _, argument = option.rpartition(".")
    role = option.partition(".")[0]
    if not path or role not in settings.settings_of(recipe):
        return None
    value: Any = settings.merge(content, _nested(given))
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    name = value.get("class") if isinstance(value, dict) else value
    annotation = settings.settings_of(recipe)[role].annotation
    cls = class_of(name, schema.kinds_in(annotation)) if isinstance(name, str) and path == role else None
    if isinstance(name, str) and path == role and cls is None:
        for kind, _ in schema.kinds_in(annotation):
            registry.find(kind, name)
    if cls is not None:
        return f"--{role}: {cls.__name__} has no argument {argument!r}" + did_you_mean(argument, registry.parameters(cls))
    return f"--{option} belongs to a part that is not chosen; add --{path} NAME (pyroae parts {role} lists them)"


def _unknown(word: str, options: list[str]) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}"
    name = word.partition("=")[0]
    known = [option.removeprefix("--") for option in options]
    synonym = _SYNONYMS.get(name.strip("-").replace("-", "_"))
    near = synonym if synonym in known else next(iter(difflib.get_close_matches(name.strip("-"), known, 1, cutoff=0.6)), None)
    if near is None and synonym is not None:
        return f"there is no option {name}; see --{synonym}"
    return f"there is no option {name}; " + (f"did you mean '--{near}'?" if near else "--help lists them")


def _help(command: str, usage: str, function: Callable, example: str, more: str = "") -> dict[str, str]:
    summary = (inspect.getdoc(function) or "").partition("\n")[0].replace("`", "")
    return {
        "usage": f"pyroae {command} {usage} [options]",
        "description": textwrap.fill((summary + more).replace("%", "%%"), 79),
        "epilog": f"example: {example}",
    }
