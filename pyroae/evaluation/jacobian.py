"""The encoder's Jacobian: its singular values, and saturated units."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .. import programs
from ..objectives.penalties import latent_mean
from ..programs import Program
from ..training.batches import Args
from .particles import as_data

_NUMBERS = 2**24  # of Jacobians held at once
_NEAR = 0.05  # distance to 0 or 1 below which an activation is saturated


@dataclass(frozen=True, repr=False, eq=False)
class Jacobian:
    r"""Of :math:`h(x) = E_q[z|x]`, for each example."""

    singular_values: Tensor  # (N, min(J, D)), largest first
    codes: Tensor  # (N, J)

    @property
    def norms(self) -> Tensor:
        r"""``(N,)`` Frobenius norms :math:`\|\partial h / \partial x\|_F`; the square is what ``pa.penalties.Contractive`` penalises."""
        return self.singular_values.square().sum(1).sqrt()

    @property
    def saturated(self) -> float:
        """Share of activations below 0.05 or above 0.95; meant for codes between 0 and 1."""
        return ((self.codes < _NEAR) | (self.codes > 1 - _NEAR)).double().mean().item()

    def __str__(self) -> str:
        first, share = self.singular_values[:, 0].mean().item(), self.singular_values.square().mean(0)
        directions = (share.sum() ** 2 / share.square().sum()).item()
        return (
            f"mean |J|_F {self.norms.mean().item():.3g}, mean largest singular value {first:.3g}, "
            f"{directions:.1f} directions, {self.saturated:.1%} of activations saturated"
        )

    __repr__ = __str__


def jacobian(model: Any, x: Any, guide: Program | None = None) -> Jacobian:
    r"""The encoder's sensitivity at each example: :math:`\partial h(x) / \partial x`, h the mean of q(z|x) (Rifai et al. 2011, section 4).

    Args:
        model: an Autoencoder, or any Pyro model of a batch whose guide has one latent site.
        x: a tensor ``(N, *event)``, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``; a hundred examples are enough.
        guide: the model's guide, where ``model`` is not an Autoencoder.

    >>> import pyroae as pa
    >>> digits = pa.data.load("digits")
    >>> jacobian(pa.recipes.contractive(digits), digits.test).norms.shape
    torch.Size([360])
    """
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=0):
        args = as_data(x, model, guide)
        width = _code(guide, tuple(column[:1] for column in args))[1].numel()
        rows = max(1, _NUMBERS // (width * args[getattr(guide, "encoded", 0)][0].numel()))
        parts = [_of_block(guide, tuple(column[start : start + rows] for column in args)) for start in range(0, len(args[0]), rows)]
    values, codes = (torch.cat(column).cpu() for column in zip(*parts))
    return Jacobian(values, codes)


def _of_block(guide: Program, args: Args) -> tuple[Tensor, Tensor]:
    x, h = _code(guide, args)
    directions = torch.eye(h.shape[1], dtype=h.dtype, device=h.device).unsqueeze(1).expand(-1, *h.shape)
    (rows,) = torch.autograd.grad(h, x, directions, is_grads_batched=True)  # (J, B, *event)
    return torch.linalg.svdvals(rows.transpose(0, 1).flatten(2).double()), h.detach().double()


def _code(guide: Program, args: Args) -> tuple[Tensor, Tensor]:
    """The encoder's input as a leaf, and the code computed from it."""
    place, args = getattr(guide, "encoded", 0), list(args)
    with torch.enable_grad():
        args[place] = x = args[place].detach().clone().requires_grad_()
        latent = programs.sites(poutine.trace(guide).get_trace(*args), observed=False)
        if len(latent) != 1:
            raise ValueError(f"jacobian: expected a guide with one latent site, got {' and '.join(latent) or 'none'}")
        return x, latent_mean(x, next(iter(latent.values()))["fn"])
