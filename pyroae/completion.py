"""Scripts that make a shell complete ``pyroae``'s commands, options and the names of parts."""

import inspect
from argparse import Action, ArgumentParser

import shtab

from .options import choices, options_of
from .part import did_you_mean
from .recipes import RECIPES
from .report import report
from .scoring import PROPOSALS, compare, evaluate


def script(shell: str) -> str:
    """The script for ``bash``, ``zsh`` or ``tcsh``, to be read by the shell when it starts.

    Raises:
        ValueError: another shell.

    >>> "RelaxedBernoulli" in script("bash")
    True
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(f"completion: there is no shell {shell!r}" + did_you_mean(shell, shtab.SUPPORTED_SHELLS))
    parser = ArgumentParser("pyroae")
    commands = parser.add_subparsers()
    _add_training(commands.add_parser("train", help="train a model"))
    for function in (evaluate, compare, report):
        command = commands.add_parser(function.__name__, help=f"{function.__name__} runs")
        first, *options = inspect.signature(function).parameters
        _offer(command.add_argument(first, nargs="+"), shtab.DIRECTORY)
        for option in options:
            command.add_argument(f"--{option}", choices=[*PROPOSALS] if option == "proposal" else None)
    commands.add_parser("parts", help="list parts").add_argument("kind", nargs="?", choices=[*choices()])
    commands.add_parser("completion", help="print this script").add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print JSON")
    return shtab.complete(parser, shell)


def _add_training(command: ArgumentParser):
    command.add_argument("recipe", nargs="?", choices=[*RECIPES])
    known = choices()
    for option in sorted({option for recipe in RECIPES for option in options_of(recipe)} - {"help"}):
        action = command.add_argument(f"--{option}", choices=sorted(known[option]) if option in known else None)
        if option in ("config", "data", "out"):
            _offer(action, shtab.DIRECTORY if option == "out" else shtab.FILE)
    for option, classes in known.items():
        of_parts = {argument for cls in classes.values() for argument in inspect.signature(cls).parameters}
        for argument in sorted(of_parts - {"args", "kwargs", "event_shape"}):
            name = f"{option}.{argument}"
            if f"--{name}" not in command._option_string_actions:
                command.add_argument(f"--{name}", choices=sorted(known[name]) if name in known else None)


def _offer(action: Action, what: dict):
    vars(action)["complete"] = what  # where shtab looks
