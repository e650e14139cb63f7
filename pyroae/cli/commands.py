"""The commands: a table of functions, whose signatures become options and whose docstrings become help."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Command:
    """A command: its function, and the text of its help besides the function's docstring."""

    function: str  # "module:name" inside pyroae, imported when called
    usage: str
    summary: str
    example: str
    shared: bool = False  # whether the processes of torchrun run it together

    def load(self) -> Any:
        """The function."""
        module, _, name = self.function.partition(":")
        return getattr(import_module(f"pyroae.{module}"), name)


COMMANDS = {
    "train": Command(
        "experiment.train:train",
        "[RECIPE]",
        "train, score and draw a model: a run folder",
        "pyroae train vae --data mnist --prior VampPrior --prior.components 100",
        shared=True,
    ),
    "evaluate": Command(
        "experiment.scoring:evaluate",
        "RUN",
        "all scores of a run's model on its test data",
        "pyroae evaluate runs/vae-digits-1 --particles 5000 --check 20",
        shared=True,
    ),
    "list": Command("experiment.listing:list_runs", "[FOLDER ...]", "the runs, their scores and what differs", "pyroae list runs"),
    "compare": Command(
        "experiment.ranking:rank",
        "RUN RUN ...",
        "rank runs by log p(x), with paired errors",
        "pyroae compare runs/vae-digits-1 runs/vae-digits-2 --particles 1000",
        shared=True,
    ),
    "sample": Command(
        "experiment.apply:sample",
        "RUN",
        "draw new rows, as CSV",
        "pyroae sample runs/vae-people-1 --n 1000 --out new.csv",
    ),
    "encode": Command(
        "experiment.apply:encode",
        "RUN --data FILE",
        "latent codes of rows, as CSV",
        "pyroae encode runs/vae-people-1 --data people.csv --out codes.csv",
    ),
    "impute": Command(
        "experiment.apply:impute",
        "RUN --data FILE",
        "fill in missing values, with intervals, as CSV",
        "pyroae impute runs/vae-people-1 --data holes.csv --out filled.csv",
    ),
    "export": Command(
        "experiment.apply:export",
        "RUN",
        "a run's encoder or decoder as ONNX",
        "pyroae export runs/vae-digits-1 --part decoder --out decoder.onnx",
    ),
    "report": Command(
        "experiment.report:report",
        "RUN",
        "one HTML page about a run and its latent space",
        "pyroae report runs/vae-digits-1",
    ),
    "parts": Command("cli.parts:parts", "[KIND] [NAME]", "list the parts that can be chosen by name", "pyroae parts prior VampPrior"),
    "completion": Command(
        "cli.completion:completion", "SHELL", "print a completion script for bash or zsh", "source <(pyroae completion bash)"
    ),
}

_USAGE = """usage: pyroae COMMAND ...

{commands}

Recipes: vae (the default), conditional, autoencoder, denoising, sparse,
sparse_kl, dictionary, contractive, rae, vq_vae.

  pyroae train                               # digits: runs/vae-digits-1
  pyroae train vae --data people.csv --labels income --prior VampPrior
  pyroae train --resume runs/vae-digits-1    # continue a run that was stopped
  pyroae parts prior VampPrior               # the arguments of a part

pyroae COMMAND --help tells more; --json prints JSON.
"""


def usage() -> str:
    """The help of all commands: one line per command, then examples."""
    return _USAGE.format(commands="\n".join(f"  {f'{name} {command.usage}':25}{command.summary}" for name, command in COMMANDS.items()))
