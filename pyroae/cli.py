"""The command line: ``pyroae train``, ``pyroae report``. Options are built from the signatures of the functions they call."""

import inspect
import logging
import os
import re
import sys
from typing import TextIO

from .output import CommandOutput, command

USAGE = """usage: pyroae COMMAND ...

  train [RECIPE] [options]  train a model, score it, draw it: a run folder
  evaluate RUN [options]    all about a run's model on its test data
  compare RUN RUN ...       rank runs by log p(x), with paired errors
  report RUN                one HTML page about a run, its codes to explore
  parts [KIND]              everything that can be swapped in by name
  completion SHELL          a script that makes bash or zsh complete all this

Recipes: vae (the default), conditional, autoencoder, denoising, sparse,
sparse_kl, contractive.

  pyroae train                               # digits: runs/vae-digits-1
  pyroae train vae --prior VampPrior --prior.components 50
  pyroae train denoising --corruption SaltPepper --corruption.fraction .3
  pyroae train --prior.help VampPrior        # what a part can be told
  pyroae train --resume runs/vae-digits-1    # go on with a run that was stopped
  pyroae evaluate runs/vae-digits-1 --particles 5000
  pyroae compare runs/vae-digits-1 runs/vae-digits-2
  pyroae report runs/vae-digits-1
  pyroae parts prior

pyroae COMMAND --help says more; --json prints the answer for machines.
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0, or 2 and one readable message where the input is bad.

    >>> main(["parts", "penaltys"])
    2
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a busy neighbour must not make every step wait for spinning threads
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of CUDA's compiler where there is no GPU
    if argv[0] not in COMMANDS:
        _complain(f"there is no command {argv[0]!r}; the commands are {', '.join(COMMANDS)} (see {command()} --help)")
        return 2
    try:
        answer = COMMANDS[argv[0]]([token for token in argv[1:] if token != "--json"])
    except (ValueError, OSError) as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt as stopped:
        _complain(str(stopped) or "interrupted")
        return 130
    if not answer.text:  # one of several processes, of which another one speaks
        return 0
    labelled = argv[0] in ("train", "evaluate") and _in_colour(sys.stdout)
    print(answer.json if "--json" in argv else _LABEL.sub("\033[1m\\1\033[0m ", answer.text) if labelled else answer.text)
    return 0


def parts(argv: list[str]) -> CommandOutput:
    """List parts by kind, each with what it is: prior, likelihood, posterior, encoder, decoder, condition, corruption, objective.

    What one can be told, its help says: pyroae train --prior.help VampPrior, say.
    """
    from .options import choices, help_for
    from .part import did_you_mean

    if "--help" in argv or "-h" in argv:
        return help_for("parts [KIND ...]", parts)
    known = choices()
    for option in argv:
        if option not in known:
            raise ValueError(f"parts: there is no kind {option!r}" + did_you_mean(option, known))
    say = lambda cls: _FORMULA.sub("", (inspect.getdoc(cls) or "").strip().partition("\n")[0]).replace("`", "")  # noqa: E731
    found = {option: {name: say(cls) for name, cls in sorted(known[option].items())} for option in argv or known}
    lines = [line for option in found for line in ("", f"--{option}", *(f"  {name:22} {said}" for name, said in found[option].items()))]
    return CommandOutput("\n".join(lines), found)


def train(argv: list[str]) -> CommandOutput:
    """Train a recipe with the parts, data and settings asked for; write and print what came out."""
    from .options import parse_train
    from .runs import carry_out
    from .training.distributed import together

    with together():
        return carry_out(*parse_train(argv))


def evaluate(argv: list[str]) -> CommandOutput:
    """Score a run's model on its test data."""
    from .options import parse_call
    from .scoring import evaluate
    from .training.distributed import together

    with together():
        return evaluate(**parse_call(evaluate, argv))


def compare(argv: list[str]) -> CommandOutput:
    """Rank runs."""
    from .options import parse_call
    from .scoring import compare
    from .training.distributed import together

    with together():
        return compare(**parse_call(compare, argv))


def report(argv: list[str]) -> CommandOutput:
    """Write a page about a run."""
    from .options import parse_call
    from .report import report

    return report(**parse_call(report, argv))


def completion(argv: list[str]) -> CommandOutput:
    """Print a script for the shell: ``source <(pyroae completion bash)``."""
    from .completion import script
    from .options import help_for

    if len(argv) != 1 or argv[0].startswith("-"):
        return help_for("completion SHELL", completion)
    text = script(argv[0])
    return CommandOutput(text, {"shell": argv[0], "script": text})


_FORMULA = re.compile(r"[:,]?\s*:math:`[^`]*`")  # for a page, not for a terminal
_LABEL = re.compile(r"^([a-z][\w(), |]{13,14}) (?=\S)", re.M)  # what a line of a report is about
COMMANDS = {command.__name__: command for command in (train, evaluate, compare, report, parts, completion)}


def _complain(message: str):
    colour, plain = ("\033[31m", "\033[0m") if _in_colour(sys.stderr) else ("", "")
    print(f"{colour}pyroae:{plain} {message}", file=sys.stderr)


def _in_colour(stream: TextIO) -> bool:
    """On a terminal, unless the person wants none (https://no-color.org)."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
