"""The command line: ``pyroae train``, ``pyroae parts``. Options are built from the signatures of the functions they call."""

import inspect
import os
import sys

USAGE = """usage: pyroae COMMAND ...

  pyroae train [RECIPE] [options]    train a model, score it, draw it, write a run folder
  pyroae evaluate RUN [options]      all about a run's model on its test data; writes JSON and CSV
  pyroae compare RUN RUN ...         rank runs by log p(x) of the same test data, with paired errors
  pyroae parts [KIND]                list everything that can be swapped in by name

Recipes: vae (the default), autoencoder, denoising, sparse, sparse_kl, contractive.

  pyroae train
  pyroae train --data mnist --likelihood Bernoulli --binarize dynamic --code 20 --hidden 400
  pyroae train denoising --data mnist --corruption SaltPepper --corruption.fraction .3
  pyroae train vae --prior Laplace --prior.scale .5 --optimizer AdamW --scheduler StepLR --scheduler.step_size 5
  pyroae train sparse --help         every option of a recipe
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; 0, or 2 and one readable message where the input is bad."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a busy neighbour must not make every step wait for spinning threads
    commands = {"train": train, "evaluate": evaluate, "compare": compare, "parts": parts}
    if argv[0] not in commands:
        print(f"pyroae: there is no command {argv[0]!r}; the commands are {', '.join(commands)} (see pyroae --help)", file=sys.stderr)
        return 2
    try:
        commands[argv[0]](argv[1:])
    except (ValueError, OSError) as error:
        print(f"pyroae: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pyroae: interrupted", file=sys.stderr)
        return 130
    return 0


def parts(argv: list[str]):
    """List parts by kind, each with the first line of its documentation."""
    from .options import choices
    from .part import did_you_mean

    known = choices()
    for option in argv:
        if option not in known:
            raise ValueError(f"parts: there is no kind {option!r}" + did_you_mean(option, known))
    for option in argv or known:
        print(f"\n--{option}")
        for name, cls in sorted(known[option].items()):
            print(f"  {name:22} {(inspect.getdoc(cls) or '').strip().partition(chr(10))[0]}")


def train(argv: list[str]):
    """Train a recipe with the parts, data and settings asked for; write and print what came out."""
    from .options import parse_train
    from .runs import carry_out

    print(carry_out(*parse_train(argv)))


def evaluate(argv: list[str]):
    """Score a run's model on its test data."""
    from .options import parse_call
    from .scoring import evaluate

    print(evaluate(**parse_call(evaluate, argv)))


def compare(argv: list[str]):
    """Rank runs."""
    from .options import parse_call
    from .scoring import compare

    print(compare(**parse_call(compare, argv)))
