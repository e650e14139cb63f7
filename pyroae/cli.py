"""The command line: ``pyroae train``, ``pyroae report``. A command is a function; its options are built from its signature."""

import inspect
import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, TextIO

from .output import CommandOutput, Help, command


@dataclass(frozen=True)
class Command:
    """A command: where its function is, and what its help says beside the function's docstring."""

    function: str  # "module:name" inside pyroae, imported when it is called
    usage: str
    summary: str
    example: str
    shared: bool = False  # whether several processes of torchrun do it together

    def load(self) -> Any:
        """The function."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"pyroae.{module}"), name)


COMMANDS = {
    "train": Command(
        "runs:train",
        "[RECIPE]",
        "train a model, score it, draw it: a run folder",
        "pyroae train vae --data mnist --likelihood Bernoulli --binarize dynamic --latent_dim 20 --hidden 400 --epochs 20",
        shared=True,
    ),
    "evaluate": Command(
        "scoring:evaluate",
        "RUN",
        "all about a run's model on its test data",
        "pyroae evaluate runs/vae-digits-1 --particles 5000 --check 20",
        shared=True,
    ),
    "compare": Command(
        "scoring:compare",
        "RUN RUN ...",
        "rank runs by log p(x), with paired errors",
        "pyroae compare runs/vae-digits-1 runs/vae-digits-2 --particles 1000",
        shared=True,
    ),
    "sample": Command(
        "using:sample", "RUN", "new rows from a run's model, as CSV", "pyroae sample runs/vae-people-1 --n 1000 --out new.csv"
    ),
    "encode": Command(
        "using:encode",
        "RUN --data FILE",
        "rows as latent codes of a run's model, as CSV",
        "pyroae encode runs/vae-people-1 --data people.csv --out codes.csv",
    ),
    "impute": Command(
        "using:impute",
        "RUN --data FILE",
        "missing values filled in, with intervals, as CSV",
        "pyroae impute runs/vae-people-1 --data holes.csv --out filled.csv",
    ),
    "report": Command(
        "report:report",
        "RUN",
        "one HTML page about a run and its latent space",
        "pyroae report runs/vae-digits-1",
    ),
    "parts": Command("cli:parts", "[KIND] [NAME]", "everything that can be swapped in by name", "pyroae parts prior VampPrior"),
    "completion": Command(
        "completion:completion", "SHELL", "a script that makes bash or zsh complete all this", "source <(pyroae completion bash)"
    ),
}

_USAGE = """usage: pyroae COMMAND ...

{commands}

Recipes: vae (the default), conditional, autoencoder, denoising, sparse,
sparse_kl, contractive.

  pyroae train                               # digits: runs/vae-digits-1
  pyroae train vae --data people.csv --labels income --prior VampPrior
  pyroae train --resume runs/vae-digits-1    # go on with a run that was stopped
  pyroae parts prior VampPrior               # the arguments of a part

pyroae COMMAND --help says more; --json prints the answer for machines.
"""


def usage() -> str:
    """The help of all commands: a line for each, then examples."""
    return _USAGE.format(commands="\n".join(f"  {f'{name} {each.usage}':25}{each.summary}" for name, each in COMMANDS.items()))


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
    from .options import parse_call, parse_train, wants_json
    from .training.distributed import together

    chosen = COMMANDS[name]
    with together() if chosen.shared else nullcontext():
        if name == "train":
            arguments = parse_train(argv)  # before the import of all that training needs
            return chosen.load()(*arguments), wants_json(argv)
        function = chosen.load()
        return function(**parse_call(name, function, chosen.usage, chosen.example, argv)), wants_json(argv)


def parts(kind: Sequence[str] = ()) -> CommandOutput:
    """List what can be named for each option, with what it is; or, of one class of a kind, its arguments.

    Args:
        kind: prior, likelihood, posterior, encoder, decoder, condition, corruption, objective, optimizer, ...; then a name.
    """
    from .checks import did_you_mean
    from .options import part_choices

    known = part_choices()
    if len(kind) == 2 and kind[0] in known and kind[1] not in known:
        return _arguments(kind[0], kind[1])
    for option in kind:
        if option not in known:
            raise ValueError(f"parts: there is no kind {option!r}" + did_you_mean(option, known))
    found = {option: {name: _first_line(cls) for name, cls in sorted(known[option].items())} for option in kind or known}
    lines = [line for option in found for line in ("", f"--{option}", *(f"  {name:22} {said}" for name, said in found[option].items()))]
    return CommandOutput("\n".join(lines), found)


def _arguments(option: str, name: str) -> CommandOutput:
    """The arguments of a class, with their types and defaults."""
    from .checks import did_you_mean
    from .options import part_choices
    from .registry import parameters
    from .schema import words

    classes = part_choices()[option]
    if name not in classes:
        raise ValueError(f"parts: there is no {option} {name!r}" + did_you_mean(name, classes))
    cls = classes[name]
    found = {
        argument: {"type": words(p.annotation), "default": None if p.default is p.empty else p.default}
        for argument, p in parameters(cls).items()
    }
    lines = [f"--{option} {name}", "", (inspect.getdoc(cls) or "").partition("\n>>>")[0].replace("`", "").rstrip(), ""]
    lines += [f"  --{f'{option}.{argument}':32} {each['type']} [{each['default']}]" for argument, each in found.items()]
    return CommandOutput("\n".join(lines), {option: {name: {argument: str(each["type"]) for argument, each in found.items()}}})


def _first_line(cls: type) -> str:
    return _FORMULA.sub("", (inspect.getdoc(cls) or "").strip().partition("\n")[0]).replace("`", "")


_FORMULA = re.compile(r"[:,]?\s*:math:`[^`]*`")  # for a page, not for a terminal
_LABEL = re.compile(r"^([a-z][\w(), |]{13,14}) (?=\S)", re.M)  # what a line of a report is about


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
