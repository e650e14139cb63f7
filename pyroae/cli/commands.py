"""The commands: a table of functions, whose signatures become options and whose docstrings become help."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


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
        "experiment.train:train",
        "[RECIPE]",
        "train a model, score it, draw it: a run folder",
        "pyroae train vae --data mnist --likelihood Bernoulli --binarize dynamic --latent_dim 20 --hidden 400 --epochs 20",
        shared=True,
    ),
    "evaluate": Command(
        "experiment.scoring:evaluate",
        "RUN",
        "all about a run's model on its test data",
        "pyroae evaluate runs/vae-digits-1 --particles 5000 --check 20",
        shared=True,
    ),
    "compare": Command(
        "experiment.ranking:rank",
        "RUN RUN ...",
        "rank runs by log p(x), with paired errors",
        "pyroae compare runs/vae-digits-1 runs/vae-digits-2 --particles 1000",
        shared=True,
    ),
    "sample": Command(
        "experiment.apply:sample", "RUN", "new rows from a run's model, as CSV", "pyroae sample runs/vae-people-1 --n 1000 --out new.csv"
    ),
    "encode": Command(
        "experiment.apply:encode",
        "RUN --data FILE",
        "rows as latent codes of a run's model, as CSV",
        "pyroae encode runs/vae-people-1 --data people.csv --out codes.csv",
    ),
    "impute": Command(
        "experiment.apply:impute",
        "RUN --data FILE",
        "missing values filled in, with intervals, as CSV",
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
    "parts": Command("cli.parts:parts", "[KIND] [NAME]", "everything that can be swapped in by name", "pyroae parts prior VampPrior"),
    "completion": Command(
        "cli.completion:completion", "SHELL", "a script that makes bash or zsh complete all this", "source <(pyroae completion bash)"
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
