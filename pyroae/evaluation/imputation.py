"""Draws of missing entries given the observed ones."""

from typing import Any

import torch

from .. import programs
from ..checks import whole_number
from ..data import frames
from ..programs import Program
from .particles import prepared
from .resampling import resampled


def impute(
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    draws: int = 1,
    particles: int = 1000,
    seed: int | None = 0,
) -> Any:
    r"""Draws from p(missing | observed) for every example, ``(draws, N, *event)``: observed entries are kept, NaN is filled in.

    By importance resampling (Mattei & Frellsen 2019, section 3.2): of ``particles`` codes from the guide, each draw chooses one
    with probability proportional to p(observed, z) / q(z|observed), then draws x from p(x|z). Exact in the limit of many particles.

    Args:
        model: an Autoencoder, or any Pyro model of a batch ``x`` whose site ``x`` takes NaN for missing, with ``guide``.
        x: an array or tensor ``(N, *event)`` with NaN where entries are missing, a tuple ``(x, y)`` of it, a split of ``pa.data.load``,
            or a DataFrame with the columns that the model was trained on.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        draws: imputations of each example.
        particles: draws of z per example, from which ``draws`` are resampled.
        seed: of the draws; ``None`` goes on with the caller's random state.

    Returns:
        The draws; for a DataFrame a DataFrame in the data's units, the draws below one another under an index of draw and row.

    >>> import pyroae as pa
    >>> likelihood = pa.likelihoods.Missing(pa.likelihoods.Normal(3))
    >>> vae = pa.Autoencoder(pa.priors.Normal(2), likelihood, pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    >>> bool(impute(vae, torch.tensor([[1.0, torch.nan, 2.0]]), draws=5).isnan().any())
    False
    """
    whole_number("impute", draws=draws, particles=particles)
    original, model = x, model.with_missing() if hasattr(model, "with_missing") else model
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        model, guide, args = prepared(x, model, guide)
        x = args[0]
        filled = torch.empty(draws, *x.shape, dtype=x.dtype, device=x.device)
        for each in resampled(model, guide, args, draws, particles):
            filled[:, each.rows] = each.x()
    return frames.of_draws(torch.where(x.isnan(), filled, x), original, getattr(model, "schema", None))
