"""Shell completion of commands, options and names of parts."""

import argparse

import shtab

from ..checks import did_you_mean
from ..experiment import settings
from ..experiment.output import CommandOutput
from ..experiment.scoring import PROPOSALS
from ..recipes import RECIPES
from ..registry import parameters
from .commands import COMMANDS
from .options import add_call, part_choices

_FILES = {"config": shtab.FILE, "data": shtab.FILE, "out": shtab.DIRECTORY, "resume": shtab.DIRECTORY, "run": shtab.DIRECTORY}
_FILES |= {"runs": shtab.DIRECTORY}


def completion(shell: str) -> CommandOutput:
    """Print a script for the shell: ``source <(pyroae completion bash)``.

    Args:
        shell: bash, zsh or tcsh.
    """
    text = script(shell)
    return CommandOutput(text, {"shell": shell, "script": text})


def script(shell: str) -> str:
    """The completion script for ``bash``, ``zsh`` or ``tcsh``.

    Raises:
        ValueError: an unknown shell.

    >>> "RelaxedBernoulli" in script("bash")
    True
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ValueError(f"completion: there is no shell {shell!r}" + did_you_mean(shell, shtab.SUPPORTED_SHELLS))
    parser = argparse.ArgumentParser("pyroae")
    commands = parser.add_subparsers()
    offered = {"kind": [*part_choices()], "shell": shtab.SUPPORTED_SHELLS, "proposal": [*PROPOSALS]}
    for name, each in COMMANDS.items():
        command = commands.add_parser(name, help=each.summary)
        actions = _training(command) if name == "train" else add_call(command, each.load())
        for action in actions:
            action.choices = action.choices or offered.get(action.dest)
            if action.dest in _FILES:
                vars(action)["complete"] = _FILES[action.dest]  # read by shtab
        command.add_argument("--json", action="store_true", help="print JSON")
    return shtab.complete(parser, shell)


def _training(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """All options of ``pyroae train``: of every recipe, and of the arguments of every part."""
    known = part_choices()
    actions = [command.add_argument("recipe_word", nargs="?", choices=[*RECIPES])]
    names = {name for recipe in RECIPES for name in settings.settings_of(recipe)} | {"config", "resume", "use", "print_config"}
    for option, classes in known.items():
        names |= {f"{option}.{argument}" for cls in classes.values() for argument in parameters(cls)} - {f"{option}.event_shape"}
    for name in sorted(names):
        actions.append(command.add_argument(f"--{name}", choices=sorted(known[name]) if name in known else None))
    return actions
