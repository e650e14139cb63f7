"""Drawing what is missing from what was seen."""

from typing import Any

import torch
from torch import Tensor

from .. import programs
from ..checks import whole_number
from ..programs import Program
from .particles import as_data, passes


def impute(
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    draws: int = 1,
    particles: int = 1000,
    seed: int | None = 0,
) -> Tensor:
    r"""Draws from p(missing | seen) for every datum, ``(draws, N, *event)``: what was seen is kept, NaN is filled in.

    By importance resampling (Mattei & Frellsen 2019, section 3.2): of ``particles`` codes from the guide, each drawn
    with probability proportional to p(seen, z) / q(z|seen); then x from p(x|z). Exact as the particles grow.

    Args:
        model: an Autoencoder whose likelihood is ``pa.likelihoods.Missing``, or any Pyro model of a batch ``x`` whose
            site ``x`` takes NaN for missing, with ``guide``.
        x: a tensor ``(N, *event)`` with NaN where entries are missing, a tuple ``(x, y)`` of it, or a split of
            ``pa.data.load(..., missing=True)``.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        draws: how many for each datum.
        particles: codes that the draws are chosen from, for each datum.
        seed: of the draws; ``None`` goes on with the caller's random state.

    >>> import pyroae as pa
    >>> likelihood = pa.likelihoods.Missing(pa.likelihoods.Normal(3))
    >>> vae = pa.Autoencoder(pa.priors.Normal(2), likelihood, pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    >>> bool(impute(vae, torch.tensor([[1.0, torch.nan, 2.0]]), draws=5).isnan().any())
    False
    """
    whole_number("impute", draws=draws, particles=particles)
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        args = as_data(x, model, guide)
        x = args[0]
        best = torch.full((draws, len(x)), -torch.inf, dtype=torch.float64, device=x.device)
        chosen = x.expand(draws, *x.shape).clone()
        for each in passes(model, guide, args, particles):
            keys, drawn = _race(each, draws)
            rows = each.rows
            wins = keys > best[:, rows]
            best[:, rows] = torch.where(wins, keys, best[:, rows])
            chosen[:, rows] = torch.where(wins.reshape(*wins.shape, *[1] * (x.dim() - 1)), drawn, chosen[:, rows])
    return torch.where(x.isnan(), chosen, x)


def _race(each, draws: int) -> tuple[Tensor, Tensor]:
    """The winner of a pass for every draw and datum, and its key.

    A particle's key is its log-weight plus Gumbel noise: the largest over all passes is a draw in proportion to the weights.
    """
    log_w = each.log_weights()  # (particles, data)
    gumbel = -torch.empty(draws, *log_w.shape, dtype=log_w.dtype, device=log_w.device).exponential_().log()
    keys, winner = (log_w + gumbel).max(1)  # (draws, data)
    values = each.model.nodes["x"]["fn"].sample()  # (particles, data, *event)
    data = torch.arange(log_w.shape[1], device=log_w.device).expand_as(winner)
    return keys, values[winner, data]
