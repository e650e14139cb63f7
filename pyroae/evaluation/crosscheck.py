"""A score compared with annealed importance sampling from the prior on a few examples, to detect missed modes."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import whole_number
from ..programs import Program, eval_mode, pair
from .annealed import ais
from .importance import Estimate
from .particles import as_data
from .proposals import prior

_EXCESS = 0.35  # nats: half the error, log 2, of missing a mode of equal weight
_SURE = 4.0  # standard errors


@dataclass(frozen=True, eq=False)
class CrossCheck:
    """log p(x) by annealing less the score, on some examples."""

    rows: Tensor  # (n,) indices of the examples
    differences: Tensor  # (n,) nats
    errors: Tensor  # (n,) standard errors of the differences
    total: int  # examples in the score

    @property
    def exceeds(self) -> Tensor:
        """``(n,)`` whether annealing is higher by at least .35 nats and by 4 standard errors."""
        return (self.differences > _EXCESS) & (self.differences > _SURE * self.errors)

    @property
    def missed(self) -> int:
        """The number of such examples."""
        return int(self.exceeds.sum())

    @property
    def low_by(self) -> float:
        """By how much the mean is too low, judged by these examples, nats/example."""
        return self.differences[self.exceeds].sum().item() / len(self.rows)

    def __str__(self) -> str:
        text = f"annealing from the prior, on {len(self.rows)} of {self.total:,} examples, "
        if self.missed:
            text += f"finds {self.differences[self.exceeds].mean():.2f} nats more on {self.missed} of them: modes of p(z|x) are missed"
            return text + f", and the mean is too low by about {self.low_by:.2g}"
        return text + f"differs by {self.differences.mean():+.2f} on average and finds no missed mode"


def cross_check(
    score: Estimate,
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    examples: int = 20,
    chains: int = 16,
    temperatures: int = 400,
    seed: int | None = 0,
) -> Estimate:
    """The score with its verdict revised by annealed importance sampling from the prior on a few of its examples.

    The weights of a proposal, and so k-hat, do not show the modes of p(z|x) that it misses. Annealing from the prior starts everywhere and
    is a lower bound in expectation: where it is clearly above the score, the score is too low. It reaches most modes in a few
    dimensions and misses many in 20.

    Args:
        score: of ``pa.log_likelihood`` on all of x.
        model, x, guide: as they were scored.
        examples: number of examples to compare, evenly spaced.
        chains, temperatures: of annealing.
        seed: of the draws.

    >>> import pyroae as pa
    >>> cross_check(pa.log_likelihood(vae, x, particles=50), vae, x, examples=3, temperatures=5).check.rows
    tensor([ 0, 10, 19])
    """
    whole_number("cross_check", examples=examples)
    with eval_mode(*pair(model, guide), seed=seed):
        args = as_data(x, *pair(model, guide))
    if len(args[0]) != len(score.values):
        raise ValueError(f"cross_check: expected the {len(score.values)} examples of the score, got {len(args[0])}")
    rows = torch.linspace(0, len(score.values) - 1, min(examples, len(score.values))).round().long()
    some = tuple(column[rows.to(column.device)] for column in args)
    annealed = ais(model, some, guide, proposal=prior, chains=chains, temperatures=temperatures, seed=seed)
    errors = (annealed.errors.square() + score.errors[rows].square()).sqrt()
    return dataclasses.replace(score, check=CrossCheck(rows, annealed.values - score.values[rows], errors, len(score.values)))
