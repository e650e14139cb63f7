"""How sparse codes are, and how much of the data they explain."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import programs
from ..programs import Program
from .codes import codes_and_means
from .particles import on_blocks, prepared

_BLOCK = 1024


@dataclass(frozen=True, repr=False, eq=False)
class Sparsity:
    """Of the codes of a data set."""

    l0: float  # mean number of units that are not 0
    explained: float  # share of the variance of x that the reconstructions explain
    frequency: Tensor  # (latent_dim,) share of the examples for which a unit is not 0

    @property
    def dead(self) -> float:
        """Share of the units that are 0 for every example."""
        return (self.frequency == 0).double().mean().item()

    def __str__(self) -> str:
        return f"{self.l0:.1f} of {len(self.frequency)} units active, {self.explained:.1%} of the variance explained, {self.dead:.1%} dead"

    __repr__ = __str__


def sparsity(model: Any, x: Any, guide: Program | None = None) -> Sparsity:
    r"""Active units, explained variance and dead units of a dictionary, on held-out data.

    The explained variance is :math:`1 - \sum_n |x_n - \hat x_n|^2 / \sum_n |x_n - \bar x|^2`, with the mean of p(x|z) at z = E[z|x].

    Args:
        model: an Autoencoder, or any Pyro model of a batch.
        x: data, as for ``codes``; a split may be on disk.
        guide: the model's guide, where ``model`` is not an Autoencoder.

    >>> import pyroae as pa
    >>> import torch
    >>> data = pa.data.load(torch.randn(200, 16))
    >>> sparsity(pa.recipes.dictionary(data, latent_dim=32, k=4), data.test).l0 <= 4
    True
    """
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=0):
        model, guide, args = prepared(x, model, guide, stream=True)

        def sums(_, part: tuple) -> tuple[Tensor, ...]:
            rows, (codes, mean) = part[0].flatten(1).double(), codes_and_means(model, guide, part)
            error = (mean.flatten(1).double() - rows).square().sum()
            return (codes != 0).double().sum(0).cpu(), error.cpu(), rows.sum(0).cpu(), rows.square().sum().cpu()

        active, error, total, square = (sum(column) for column in zip(*on_blocks(sums, model, args, _BLOCK)))
    n = len(args[0])
    return Sparsity(active.sum().item() / n, 1 - (error / (square - total.square().sum() / n)).item(), active / n)
