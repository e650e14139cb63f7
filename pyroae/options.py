"""Command-line options from signatures: recipes, data, parts, training."""

import inspect
import json
import re
from argparse import SUPPRESS, Action
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace
from pyro import infer
from torch import optim

from . import configs
from .data import load
from .data.named import NAMED
from .objectives import Objective
from .objectives.penalties import Penalty
from .output import CommandOutput
from .part import Part, did_you_mean, members
from .parts.conditions import Condition
from .parts.corruption import Corruption
from .parts.likelihoods import Likelihood
from .parts.networks import Network
from .parts.posteriors import Posterior
from .parts.priors import Prior
from .recipes import RECIPES
from .training.fit import fit

SWAPPABLE = {
    "prior": Prior,
    "likelihood": Likelihood,
    "posterior": Posterior,
    "encoder": Network,
    "decoder": Network,
    "condition": Condition,
    "corruption": Corruption,
    "objective": infer.ELBO,
}
ROLES = {
    "prior": "p(z)",
    "likelihood": "p(x|z)",
    "posterior": "q(z|x)",
    "encoder": "x to q's numbers",
    "decoder": "z to p's numbers",
    "condition": "known beside x",
    "corruption": "of the encoder's input, in training",
    "objective": "what is trained",
}
FIT_SKIPS = {"model", "data", "guide", "elbo", "callbacks", "validation", "progress", "run_dir", "resume"}


def choices() -> dict[str, dict[str, type]]:
    """The classes that can be named for each option."""
    pyros = {name: cls for name, cls in vars(infer).items() if isinstance(cls, type) and issubclass(cls, infer.ELBO)}
    unusable = (infer.ELBO, infer.TraceTailAdaptive_ELBO)  # abstract; without a loss
    elbos = {name: cls for name, cls in pyros.items() if cls not in unusable and not name.startswith("Jit")}
    named = {name: members(kind) for name, kind in SWAPPABLE.items() if name != "objective"}
    return named | {"objective": members(Objective) | elbos, "objective.penalty": members(Penalty)}


def parse_train(argv: list[str]) -> tuple[Callable, Namespace, dict]:
    """The recipe, the settings with their parts made, and the settings as JSON data.

    Raises:
        ValueError: an unknown recipe, option, part or argument (named with its near match), or a value of the wrong type.
    """
    resumed, argv = _resumed(argv)
    contents = configs.named(argv)
    name = argv[0] if argv and not argv[0].startswith("-") else _recipe_by_option(argv, contents) or "vae"
    if name not in RECIPES:
        as_data = name in NAMED or Path(name).exists()
        raise ValueError(
            f"train: there is no recipe {name!r}" + (f"; data are named by --data {name}" if as_data else did_you_mean(name, RECIPES))
        )
    for content in contents:
        configs.check(content, _known(), {token.rpartition("=")[2] for token in argv})
    parser = _parser(name)
    given = argv[1:] if argv and argv[0] == name else argv
    given = _spelled_out(given, _check_names(parser, given))
    _check_overridden(name, given)
    try:
        settings = parser.parse_args(given)
        if settings.recipe != name:
            raise ValueError(f"train: the recipe is {name!r} but the config is of {settings.recipe!r}; leave the recipe out")
        settings.resume = resumed
        return RECIPES[name], parser.instantiate(settings), json.loads(parser.dump(settings, format="json"))
    except ArgumentError as error:
        raise ValueError(f"train: {_readable(error)}") from error


def _resumed(argv: list[str]) -> tuple[str | None, list[str]]:
    """The run that ``--resume`` names, and the arguments with that run's settings first in its place."""
    spelled = [word for token in argv for word in (token.split("=", 1) if token.startswith("--resume=") else [token])]
    if "--resume" not in spelled:
        return None, argv
    at = spelled.index("--resume")
    run, rest = spelled[at + 1 : at + 2], spelled[:at] + spelled[at + 2 :]
    if not run or not (Path(run[0]) / "settings.json").is_file():
        raise ValueError(
            f"train: expected --resume RUN with the folder of a run, such as runs/vae-digits-1, got {' '.join(run) or 'nothing'}"
        )
    if "--out" in [token.partition("=")[0] for token in rest]:
        raise ValueError("train: a run goes on in its own folder; leave --out out")
    return run[0], ["--config", str(Path(run[0]) / "settings.json"), *rest]


def _known() -> list[type]:
    """The classes that a settings file may name: every part, and Pyro's ELBOs."""
    kinds = [cls for kind in Part.__subclasses__() for cls in members(kind).values()]
    return [*kinds, *choices()["objective"].values()]


def parse_call(function: Callable, argv: list[str]) -> dict[str, Any]:
    """The arguments of a command that is a function with a first argument of words, such as ``scoring.evaluate``.

    Raises:
        ValueError: an unknown option or a value of the wrong type.
    """
    name, (first, *_) = function.__name__, inspect.signature(function).parameters.values()
    parser = _empty(name, f"{first.name.upper()}{'' if first.annotation is str else ' ...'}", function)
    if first.annotation is str:
        parser.add_argument(first.name, type=str, help="the run folder, such as runs/vae-digits-1")
    else:
        parser.add_argument(first.name, type=str, nargs="+", help="the run folders")
    parser.add_function_arguments(function, as_group=False, skip={first.name})
    try:
        return parser.parse_args(argv).as_dict()
    except ArgumentError as error:
        raise ValueError(f"{name}: {_readable(error)}") from error


def help_for(usage: str, function: Callable) -> CommandOutput:
    """The help of a command without options."""
    said = (inspect.getdoc(function) or "").replace("`", "")
    text = f"usage: pyroae {usage}\n\n{said}\n\n{_example(function.__name__)}"
    return CommandOutput(text, {"help": text})


def options_of(recipe: str) -> list[str]:
    """The options of training a recipe, those of its parts' arguments apart."""
    given = [option.removeprefix("--") for action in _parser(recipe)._actions for option in action.option_strings]
    return [option for option in given if not option.startswith("-") and option[-1] != "+" and not option.endswith(".help")]


def arguments_of(function: Callable, settings: Namespace | dict[str, Any]) -> dict[str, Any]:
    """Those of the settings that are a function's options."""
    skipped = {load: set(), fit: FIT_SKIPS}.get(function, {"data"})
    return {name: settings[name] for name in inspect.signature(function).parameters if name in settings and name not in skipped}


EXAMPLES = {
    "train": "pyroae train vae --data mnist --likelihood Bernoulli --binarize dynamic --latent_dim 20 --hidden 400 --epochs 20",
    "evaluate": "pyroae evaluate runs/vae-digits-1 --particles 5000 --proposal Laplace",
    "compare": "pyroae compare runs/vae-digits-1 runs/vae-digits-2 --particles 1000",
    "report": "pyroae report runs/vae-digits-1",
    "parts": "pyroae parts prior",
    "completion": "source <(pyroae completion bash)",
}


_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list such as [300,100]"}
_CALLED = {"--optimizer": (optim, optim.Optimizer), "--scheduler": (optim.lr_scheduler, optim.lr_scheduler.LRScheduler)}


def _readable(error: ArgumentError) -> str:
    """What jsonargparse says of a value, in fewer words: the option, what it takes, what came."""
    said = " ".join(str(error).split())
    option, value = "--" + ".".join(re.findall(r'Parser key "([\w.]+)"', said)), said.rpartition("alue: ")[2]
    if missing := re.search(r"arguments are required: ([\w, ]+)", said):
        return f"{option} needs " + ", ".join(f"{option}.{name}" for name in missing[1].strip().split(", "))
    if option in _CALLED and "import path" in said:
        home, kind = _CALLED[option]
        known = [name for name, each in vars(home).items() if isinstance(each, type) and issubclass(each, kind)]
        return f"there is no {option[2:]} {value!r}" + did_you_mean(value, known)
    expected = said.partition("Given value type")[0]
    words = re.findall(r"Literal\[(.*?)\]", expected)[:1]
    kinds = words or [text for name, text in _KINDS.items() if f"<class '{name}'>" in expected or f"{name}[" in expected]
    return f"expected {option} as {' or '.join(kinds)}, got {value!r}" if kinds else re.sub(r'Parser key "([\w.]+)":', r"--\1:", said)


def _example(command: str) -> str:
    return f"example: {EXAMPLES[command]}\n(--json prints the answer for machines)"


def _first_line(function: Callable) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


class _Help(DefaultHelpFormatter):
    """Help without the classes' paths, which ``pyroae parts`` lists by name, and with examples that can be copied."""

    def _get_help_string(self, action: Action) -> str:
        text = " ".join((action.help or "").replace("`", "").removesuffix(".").split())
        silent = any(action.default is each for each in (None, False, SUPPRESS)) or not action.option_strings
        return text if silent or getattr(action, "_jsonargparse_preexpanded_help", False) else f"{text} [%(default)s]"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("example") else super()._fill_text(text.replace("`", ""), width, indent)


def _empty(command: str, usage: str, function: Callable, known: str = "") -> ArgumentParser:
    return ArgumentParser(
        prog=f"pyroae {command}",
        usage=f"pyroae {command} {usage} [options]",
        description=_first_line(function) + known,
        epilog=_example(command),
        formatter_class=_Help,
        exit_on_error=False,
        allow_abbrev=False,
    )


def _parser(recipe: str) -> ArgumentParser:
    parser = _empty("train", "[RECIPE]", RECIPES[recipe], f" This is {recipe}, of the recipes {', '.join(RECIPES)}.")
    parser.add_argument(
        "--data", type=str, default="digits", help="digits, mnist, fashion-mnist, binarized-mnist, omniglot, a file or a folder"
    )
    parser.add_argument(
        "--epochs", type=int | None, help="passes over the data; by default 20, or more where that makes fewer than 4,000 steps"
    )
    parser.add_argument("--particles", type=int, default=500, help="importance samples for each test datum's log p(x)")
    parser.add_argument(
        "--pretrain",
        type=int,
        default=0,
        help="epochs of greedy layer-wise training first, each layer with the corruption and the penalty of the whole",
    )
    parser.add_argument("--pictures", type=int, default=0, help="draw all pictures after every so many epochs too; 0: at the end only")
    parser.add_argument("--tensorboard", type=bool, default=False, help="log to the run folder for TensorBoard too")
    parser.add_argument("--resume", type=str | None, help="go on with the run in this folder, with its settings but for those named")
    parser.add_argument("--out", type=str | None, help="the run folder, new or empty; by default the next free one in runs/")
    parser.add_argument("--recipe", type=str, default=recipe, help="the recipe, where it is not named first")
    parser.add_argument("--config", action="config", help="settings as YAML or JSON, such as a run's settings.json")
    _add_section(parser, "size and weights", RECIPES[recipe], {"data"})
    parts = parser.add_argument_group(
        "parts", "instead of the recipe's own: pyroae parts KIND lists them, --prior.help VampPrior, say, what one can be told"
    )
    for name, kind in SWAPPABLE.items():
        parts.add_argument(f"--{name}", type=kind, help=ROLES[name])
    _add_section(parser, "how data are read", load, {"data"})
    _add_section(parser, "training", fit, FIT_SKIPS | {"epochs"})
    for action in parser._actions:
        if action.option_strings[-1].endswith(".help"):
            action.help = SUPPRESS
        elif "--print_config" in action.option_strings:
            action.help = "write all settings as YAML and stop"
        elif words := [word for each in get_args(getattr(action, "_typehint", None)) for word in get_args(each) if isinstance(word, str)]:
            action.metavar = f"{{{','.join(words)}}}"
    parser.set_defaults(seed=0)
    return parser


def _add_section(parser: ArgumentParser, title: str, function: Callable, skip: set[str]):
    parser.add_function_arguments(function, skip=skip)
    parser._action_groups[-1].title = title


def _recipe_by_option(argv: list[str], contents: list[dict]) -> str | None:
    """The recipe that --recipe or a settings file names."""
    options = [token.split("=", 1) for token in argv if "=" in token] + [*zip(argv, argv[1:])]
    said = [value for option, value in options if option == "--recipe"]
    return next(iter([*said, *(str(content["recipe"]) for content in contents if "recipe" in content)]), None)


def _spelled_out(argv: list[str], chosen: dict[str, type | None]) -> list[str]:
    """The arguments with ``--likelihood.df`` as the parser wants it where the class chosen takes any keyword."""
    spelled = []
    for token in argv:
        head, _, rest = token.removeprefix("--").partition(".")
        cls = chosen.get(head) if token.startswith("--") else None
        own = cls is None or rest.partition("=")[0].partition(".")[0] in {"", *inspect.signature(cls).parameters}
        spelled.append(token if own else f"--{head}.dict_kwargs.{rest}")
    return spelled


def _check_names(parser: ArgumentParser, argv: list[str]) -> dict[str, type | None]:
    """Name the nearest known option, part or argument where one is not known; returns the parts that were named."""
    options = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    chosen = {}
    for token, value in zip(argv, [*argv[1:], ""]):
        if not token.startswith("--"):
            continue
        name, equals, attached = token.removeprefix("--").partition("=")
        head, *rest = name.split(".")
        if rest[-1:] == ["help"]:
            continue
        if head not in options:
            raise ValueError(f"train: there is no option --{head}" + did_you_mean(head, options))
        if head not in SWAPPABLE:
            continue
        value = attached if equals else value
        if not rest and "." in value:
            chosen[head] = None  # a class of the user's own, by its path; jsonargparse finds it
        if not rest and value.isidentifier():
            chosen[head] = _chosen(head, value)
        if len(rest) == 1 and chosen.get(head):
            _check_argument(chosen[head], rest[0], head)
        if rest and head not in chosen and "--config" not in argv:
            raise ValueError(
                f"train: --{name} belongs to a part that is not named; write --{head} NAME before it (pyroae parts {head} lists them)"
            )
    return chosen


def _check_overridden(recipe: str, argv: list[str]):
    """Refuse a recipe's own option beside a part that takes its place."""
    given = {token.removeprefix("--").partition("=")[0] for token in argv if token.startswith("--")}
    for option, part in (("scale", "prior"), ("weight", "objective"), ("target", "objective")):
        if option in given and part in given and option in inspect.signature(RECIPES[recipe]).parameters:
            raise ValueError(
                f"train: --{option} sets the {recipe} recipe's own {part}, and --{part} replaces it; give --{part}'s arguments instead"
            )


def _check_argument(cls: type, name: str, head: str):
    known = inspect.signature(cls).parameters
    if name not in known and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        raise ValueError(f"train: {head} {cls.__name__} has no argument {name!r}" + did_you_mean(name, known))


def _chosen(option: str, name: str) -> type:
    known = choices()[option]
    if name not in known:
        raise ValueError(f"{option}: there is no {name!r}" + did_you_mean(name, known))
    return known[name]
