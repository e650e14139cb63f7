"""The command line: ``pyroae train``, ``pyroae report``. A command is a function; its options are built from its signature."""

import logging
import os
import re
import sys
from contextlib import nullcontext, suppress
from importlib.metadata import version
from typing import TextIO

from ..checks import did_you_mean
from ..experiment.output import CommandOutput, Help, command
from .commands import COMMANDS, usage

_LABEL = re.compile(r"^([a-z][\w(), |]{13,14}) (?=\S)", re.M)  # the label at the beginning of a line


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, or 2 after printing one message about wrong input.

    >>> main(["parts", "penaltys"])
    2
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _main(argv)
    except OSError as error:  # such as a full disk or a closed pager
        if sys.stdout is sys.__stdout__:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail again at exit
        if isinstance(error, BrokenPipeError):
            return 141
        _print_error(f"the output cannot be written: {error}")
        return 2


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        return _print(usage().rstrip("\n"))
    if argv[0] == "--version":
        return _print(f"pyroae {version('pyroae')}")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads would slow down a shared machine
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns about a missing CUDA compiler
    if argv[0] not in COMMANDS:
        _print_error(f"there is no command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)} (see {command()} --help)")
        return 2
    try:
        output, as_json = _run(argv[0], argv[1:])
    except Help as help:
        return _print(str(help))
    except (ValueError, OSError) as error:
        _print_error(str(error))
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_memory_error(error):
            raise
        _print_error(f"out of memory: {' '.join(str(error).split())[:200]}")
        return 2
    except KeyboardInterrupt as stopped:
        _print_error(str(stopped) or "interrupted")
        return 130
    if not output.text:  # one of several processes, of which only the first prints
        return 0
    labelled = argv[0] in ("train", "evaluate") and _use_colour(sys.stdout)
    return _print(output.json if as_json else _LABEL.sub("\033[1m\\1\033[0m ", output.text) if labelled else output.text)


def _is_memory_error(error: Exception) -> bool:
    """Whether an allocation failed; torch has no class of its own for this on the CPU."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error)


def _run(name: str, argv: list[str]) -> tuple[CommandOutput, bool]:
    """The output of a command, and whether to print it as JSON."""
    from ..training.distributed import distributed
    from .options import parse_call, parse_train, wants_json

    chosen = COMMANDS[name]
    with distributed() if chosen.shared else nullcontext():
        if name == "train":
            arguments = parse_train(argv)  # before the slow imports of training
            return chosen.load()(*arguments), wants_json(argv)
        function = chosen.load()
        return function(**parse_call(name, function, chosen.usage, chosen.example, argv)), wants_json(argv)


def _print(text: str) -> int:
    print(text, flush=True)
    return 0


def _print_error(message: str):
    colour, plain = ("\033[31m", "\033[0m") if _use_colour(sys.stderr) else ("", "")
    with suppress(OSError):  # the exit status tells the same
        print(f"{colour}pyroae:{plain} {message}", file=sys.stderr, flush=True)


def _use_colour(stream: TextIO) -> bool:
    """Whether to print in colour: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
