"""The ELBO of each example and its two terms."""

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from .. import programs
from ..checks import whole_number
from ..programs import Program
from ..programs.terms import guide_mask
from ..training import distributed
from .importance import observed_entries
from .particles import Pass, Proposal, Shared, passes, prepared

_ROWS = 10_000  # whose observed entries are counted at once


@dataclass(frozen=True, repr=False, eq=False)
class Terms:
    """ELBO = reconstruction - KL, nats, one value per example."""

    reconstruction: Tensor  # (N,) E_q[log p(x|z)]
    kl: Tensor  # (N,) KL(q(z|x) || p(z)); -log p(z) for a Delta posterior
    dimensions: float = math.nan  # mean number of observed entries per example

    @property
    def elbo(self) -> Tensor:
        """``(N,)``; for a Delta posterior this is log p(x, z)."""
        return self.reconstruction - self.kl

    @property
    def bits_per_dim(self) -> float:
        """Minus the mean ELBO in bits, for each observed entry of x: for discrete codes a bound on the code length."""
        return -self.elbo.mean().item() / (self.dimensions * math.log(2))

    def __str__(self) -> str:
        elbo, reconstruction, kl = (term.mean().item() for term in (self.elbo, self.reconstruction, self.kl))
        return f"ELBO = {elbo:.2f} nats/example (reconstruction {reconstruction:.2f} - KL {kl:.2f})"

    __repr__ = __str__


def elbo_terms(
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    particles: int = 10,
    seed: int | None = 0,
    proposal: Proposal | None = None,
) -> Terms:
    r""":math:`E_q[\log p(x|z)]` and :math:`KL(q(z|x)\,\|\,p(z))` of each example, without changing the model.

    The KL is in closed form where Pyro knows one, otherwise the mean of log q - log p over the same draws. Latents that the
    model masks out are left out of p and q; ``poutine.scale`` is ignored; plates that draw a subsample take all rows.

    Args:
        model: an Autoencoder, or any Pyro model of a batch, ``model(x)`` or ``model(x, y)``, with ``guide``.
        x: a tensor ``(N, *event)``, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        particles: draws for each example.
        seed: of the draws.
        proposal: makes q instead of the guide, such as ``pa.proposals.Optimised()``.

    Raises:
        ValueError: a program whose log p(x) does not split into examples, or data outside the support of their distribution.

    >>> terms = elbo_terms(vae, torch.rand(10, 16).round())
    >>> bool((terms.kl >= 0).all()), terms.elbo.shape
    (True, torch.Size([10]))
    """
    whole_number("elbo_terms", particles=particles)
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        model, guide, args = prepared(x, model, guide, stream=True)
        reconstruction = torch.zeros(len(args[0]), dtype=torch.float64, device=args[0].device)
        kl = torch.zeros_like(reconstruction)
        for each in passes(model, guide, args, particles, proposal=proposal, shared=Shared(seed)):
            reconstruction[each.rows] += each.log_likelihood().sum(0)
            kl[each.rows] += _kl(each).sum(0)
        reconstruction, kl = distributed.all_reduce(reconstruction, kl)
        dimensions = sum(observed_entries(args[0][i : i + _ROWS]).sum().item() for i in range(0, len(args[0]), _ROWS)) / len(args[0])
    return Terms((reconstruction / particles).cpu(), (kl / particles).cpu(), dimensions)


def _kl(each: Pass) -> Tensor:
    """KL(q || p) of all latent sites, ``(particles, data)``: in closed form for one site where Pyro knows it."""
    if len(programs.sites(each.guide, observed=False)) == 1:
        q, p = (trace.nodes[each.latents[0]] for trace in (each.guide, each.model))
        with contextlib.suppress(NotImplementedError):
            return each.log_prob({**q, "unscaled_log_prob": kl_divergence(q["fn"], p["fn"]), "mask": guide_mask(q, p)})
    return each.log_guide() - each.log_prior()
