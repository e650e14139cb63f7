"""log p(x) = ELBO + KL(q || p(z|x)), the rate split by the aggregate posterior, and active units."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import programs
from ..programs import Program
from .codes import code_means
from .density import Density
from .importance import Estimate, Source, check_weighable, log_likelihood
from .particles import Proposal, blocks, prepared
from .proposals import Optimised
from .terms import Terms, elbo_terms

_BLOCK = 256  # examples whose posteriors are compared at once
_NUMBERS = 2_000_000  # values of z in a comparison
_DRAWS = 2  # of z per example: the fewest that give an error


@dataclass(frozen=True, repr=False, eq=False)
class Decomposition:
    """log p(x) = ELBO + KL(q || p(z|x)), and that KL in two; nats, one value per example."""

    log_p: Estimate
    terms: Terms  # of the guide
    best: Terms  # of the Normal optimised for each example

    @property
    def kl_to_posterior(self) -> Tensor:
        """``(N,)`` KL(q(z|x) || p(z|x)) = log p(x) - ELBO: the inference gap."""
        return self.log_p.values - self.terms.elbo

    @property
    def approximation(self) -> Tensor:
        """``(N,)`` log p(x) less the ELBO of the best Normal for the example."""
        return self.log_p.values - self.best.elbo

    @property
    def amortization(self) -> Tensor:
        """``(N,)`` the ELBO of the best Normal less that of the guide; below 0 where the guide's family is richer."""
        return self.best.elbo - self.terms.elbo

    @property
    def rate(self) -> float:
        """E KL(q(z|x) || p(z)), nats/example."""
        return self.terms.kl.mean().item()

    @property
    def distortion(self) -> float:
        """-E log p(x|z), nats/example."""
        return -self.terms.reconstruction.mean().item()

    def __str__(self) -> str:
        mean, mark = (lambda values: f"{values.mean().item():.2f}"), self.log_p.verdict.mark  # what depends on log p(x) is as uncertain
        return (
            f"log p(x) {mean(self.log_p.values)}{mark} = ELBO {mean(self.terms.elbo)} + KL(q || p(z|x)) {mean(self.kl_to_posterior)}{mark} "
            f"nats/example\nELBO = -distortion {self.distortion:.2f} - rate {self.rate:.2f}; "
            f"KL(q || p(z|x)) = approximation {mean(self.approximation)}{mark} + amortization {mean(self.amortization)}"
        )

    __repr__ = __str__


def decompose(
    model: Any,
    x: Any,
    guide: Program | None = None,
    *,
    particles: int = 5000,
    draws: int = 100,
    best: Proposal | None = None,
    proposal: Source = "auto",
    seed: int | None = 0,
) -> Decomposition:
    """log p(x) split into ELBO and inference gap, the gap into approximation and amortization (Cremer et al. 2018, eq. 5).

    Args:
        model: an Autoencoder, or any Pyro model of a batch with real-valued latents.
        x: a tensor ``(N, *event)``, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        particles: importance samples of log p(x).
        draws: for the ELBOs.
        best: makes q optimal for each example; ``pa.proposals.Optimised()`` by default, a diagonal Normal.
            ``Optimised(full=True)`` goes with a guide with a full covariance.
        proposal: where the importance samples come from, as for ``pa.log_likelihood``.
        seed: of the draws.

    >>> decompose(vae, x, particles=30, draws=10).kl_to_posterior.shape
    torch.Size([20])
    """
    best = best or Optimised()
    log_p = log_likelihood(model, x, guide, particles=particles, proposal=proposal, seed=seed)
    terms = elbo_terms(model, x, guide, particles=draws, seed=seed)
    return Decomposition(log_p, terms, elbo_terms(model, x, guide, particles=draws, proposal=best, seed=seed))


@dataclass(frozen=True, repr=False, eq=False)
class Aggregate:
    """The rate split by the aggregate posterior q(z) = mean of q(z|x) over the data, nats/example."""

    mutual_information: float  # I(x; z) under q: the part of the rate that depends on x
    marginal_kl: float  # KL(q(z) || p(z)): the mismatch of prior and aggregate posterior
    mutual_information_se: float  # Monte-Carlo standard errors, over draws of z for the same examples
    marginal_kl_se: float
    data: int

    @property
    def rate(self) -> float:
        """E KL(q(z|x) || p(z)) = mutual information + marginal KL (Hoffman & Johnson 2016), by Monte Carlo."""
        return self.mutual_information + self.marginal_kl

    def __str__(self) -> str:
        text = (
            f"rate {self.rate:.2f} nats/example = mutual information {self.mutual_information:.2f} (s.e. {self.mutual_information_se:.2g})"
        )
        text += f" + marginal KL {self.marginal_kl:.2f} (s.e. {self.marginal_kl_se:.2g})"
        full = self.mutual_information > 0.95 * math.log(self.data)
        return text + (f"; the information is at its limit for {self.data:,} examples, log N = {math.log(self.data):.2f}" if full else "")

    __repr__ = __str__


def aggregate(model: Any, x: Any, guide: Program | None = None, *, seed: int | None = 0) -> Aggregate:
    r"""Mutual information and marginal KL of the aggregate posterior :math:`q(z) = \frac1N \sum_n q(z|x_n)` over these data.

    Two z are drawn for each example, and their density under every example's posterior computed: 2 N^2 densities, in bounded memory.
    The two draws of an example give the Monte-Carlo error. The information of N examples is at most log N.

    Args:
        model: an Autoencoder, or any Pyro model of a batch with real-valued latents.
        x: a tensor ``(N, *event)``, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        seed: of the draws.

    Raises:
        ValueError: a guide without a density, latents that are not real-valued.

    >>> aggregate(vae, x).data
    20
    """
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        model, guide, args = prepared(x, model, guide)
        densities = [(rows, Density(model, guide, part)) for rows, part in blocks(model, args, _BLOCK)]
        check_weighable("aggregate", *densities[0][1].traces)
        codes = [density.draw(_DRAWS) for _, density in densities]  # (_DRAWS, B, size) each
        own = torch.cat([density.log_guide(u) for (_, density), u in zip(densities, codes)], 1)
        prior = torch.cat([density.log_prior(u) for (_, density), u in zip(densities, codes)], 1)
        u = torch.cat(codes, 1)
        mixture = _log_mixture([density for _, density in densities], u.flatten(0, 1)).reshape(own.shape) - math.log(u.shape[1])
    information, divergence = own - mixture, mixture - prior  # (_DRAWS, N)
    return Aggregate(information.mean().item(), divergence.mean().item(), _draws_se(information), _draws_se(divergence), u.shape[1])


def _log_mixture(densities: list[Density], u: Tensor) -> Tensor:
    """log sum_n q(u|x_n) for rows of u ``(M, size)``."""
    mixture = torch.full((len(u),), -math.inf, dtype=torch.float64, device=u.device)
    for density in densities:
        step = max(1, _NUMBERS // (density.n * density.size))
        rows = [density.log_guide(part[:, None].expand(-1, density.n, -1)).logsumexp(1) for part in u.split(step)]
        mixture = torch.logaddexp(mixture, torch.cat(rows))
    return mixture


def _draws_se(values: Tensor) -> float:
    """Standard error of the mean of ``(draws, N)``, over draws for the same examples."""
    return (values.var(0).sum() / len(values)).sqrt().item() / values.shape[1]


@dataclass(frozen=True, repr=False, eq=False)
class Units:
    """Which latent dimensions change with x."""

    variance: Tensor  # (dimensions,) Var_x E[z|x], not below 0
    threshold: float

    @property
    def active(self) -> Tensor:
        """``(dimensions,)`` whether each is active."""
        return self.variance > self.threshold

    @property
    def warning(self) -> str | None:
        """A warning where the posterior has collapsed in all or most dimensions."""
        share = self.active.double().mean().item()
        if share == 0:
            return "posterior collapse: no latent dimension depends on x; try a smaller weight of the KL at first, or a weaker decoder"
        return f"posterior collapse in {1 - share:.0%} of the units: latent_dim is larger than needed" if share < 0.5 else None

    def __str__(self) -> str:
        idle = (~self.active).nonzero().flatten().tolist()
        text = f"{int(self.active.sum())} of {len(self.variance)} units are active (Var E[z|x] > {self.threshold:g})"
        text += f"; not {', '.join(map(str, idle[:12]))}{', ...' if len(idle) > 12 else ''}" if idle else ""
        return text + (f"\n{self.warning}" if self.warning else "")

    __repr__ = __str__


def active_units(model: Any, x: Any, guide: Program | None = None, *, threshold: float = 0.01, seed: int | None = 0) -> Units:
    """The variance over the examples of each latent dimension's posterior mean (Burda et al. 2016, section 5).

    Where the mean has no closed form it is estimated twice from independent draws, and the variance by the covariance of the two
    estimates, which the noise of the draws does not bias.

    Args:
        model: an Autoencoder, or any Pyro model of a batch.
        x: a tensor ``(N, *event)`` of at least 2 rows, a tuple ``(x, y)`` or a split of ``pa.data.load(...)``.
        guide: the model's guide, where ``model`` is not an Autoencoder.
        threshold: variance above which a unit counts as active.
        seed: of the draws, where the posterior's mean has no closed form.

    >>> active_units(vae, x).variance.shape
    torch.Size([2])
    """
    model, guide = programs.pair(model, guide)
    with programs.eval_mode(model, guide, seed=seed):
        model, guide, args = prepared(x, model, guide)
        first, second = (code_means(model, guide, args) for _ in range(2))
    if len(first) < 2:
        raise ValueError("active_units: expected at least 2 examples, got 1")
    covariance = ((first - first.mean(0)) * (second - second.mean(0))).sum(0) / (len(first) - 1)
    return Units(covariance.clamp(min=0).cpu(), threshold)
