"""The command line: ``pyroae train``, ``pyroae report``. A command is a function; its options are built from its signature."""

import logging
import os
import re
import sys
from contextlib import nullcontext, suppress
from importlib.metadata import version
from typing import TextIO

from ..experiment.output import CommandOutput, Help, command
from .commands import COMMANDS, usage

_LABEL = re.compile(r"^([a-z][\w(), |]{13,14}) (?=\S)", re.M)  # what a line of a report is about


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0, or 2 and one readable message where the input is bad.

    >>> main(["parts", "penaltys"])
    2
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _main(argv)
    except OSError as error:  # such as a full disk, or a pager that was left
        if sys.stdout is sys.__stdout__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python does not fail again at exit
        if isinstance(error, BrokenPipeError):
            return 141
        _complain(f"the output cannot be written: {error}")
        return 2


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        return _say(usage().rstrip("\n"))
    if argv[0] == "--version":
        return _say(f"pyroae {version('pyroae')}")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a busy neighbour must not make every step wait for spinning threads
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of CUDA's compiler where there is no GPU
    if argv[0] not in COMMANDS:
        _complain(f"there is no command {argv[0]!r}; the commands are {', '.join(COMMANDS)} (see {command()} --help)")
        return 2
    try:
        answer, as_json = _answer(argv[0], argv[1:])
    except Help as asked:
        return _say(str(asked))
    except (ValueError, OSError) as error:
        _complain(str(error))
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        _complain(f"the memory does not hold what was asked for: {' '.join(str(error).split())[:200]}")
        return 2
    except KeyboardInterrupt as stopped:
        _complain(str(stopped) or "interrupted")
        return 130
    if not answer.text:  # one of several processes, of which another one speaks
        return 0
    labelled = argv[0] in ("train", "evaluate") and _in_colour(sys.stdout)
    return _say(answer.json if as_json else _LABEL.sub("\033[1m\\1\033[0m ", answer.text) if labelled else answer.text)


def _is_of_memory(error: Exception) -> bool:
    """Whether memory was refused; of that of a CPU torch has no error of its own."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error)


def _answer(name: str, argv: list[str]) -> tuple[CommandOutput, bool]:
    """A command's answer, and whether it is to be printed as JSON."""
    from ..training.distributed import distributed
    from .options import parse_call, parse_train, wants_json

    chosen = COMMANDS[name]
    with distributed() if chosen.shared else nullcontext():
        if name == "train":
            arguments = parse_train(argv)  # before the import of all that training needs
            return chosen.load()(*arguments), wants_json(argv)
        function = chosen.load()
        return function(**parse_call(name, function, chosen.usage, chosen.example, argv)), wants_json(argv)


def _say(text: str) -> int:
    print(text, flush=True)
    return 0


def _complain(message: str):
    colour, plain = ("\033[31m", "\033[0m") if _in_colour(sys.stderr) else ("", "")
    with suppress(OSError):  # the exit status says it too
        print(f"{colour}pyroae:{plain} {message}", file=sys.stderr, flush=True)


def _in_colour(stream: TextIO) -> bool:
    """On a terminal, unless the person wants none (https://no-color.org)."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
