"""Importance weights in a stream: their sum, effective sample size and Pareto tail, for many data at once."""

import math

import torch
from torch import Tensor

LEAST_FOR_KHAT = 25  # particles: the largest fifth gives 5 exceedances
_AT_ONCE = 2**20  # weights


class Weights:
    """Log-weights of ``n`` examples, added chunk by chunk; keeps sums and the ``3 sqrt(particles)`` largest of each example."""

    def __init__(self, n: int, particles: int, device: torch.device):
        self.particles = particles
        self.tail = math.ceil(min(particles / 5, 3 * particles**0.5))
        self._log_sum = torch.full((n,), -math.inf, dtype=torch.float64, device=device)
        self._log_square_sum = self._log_sum.clone()
        self._largest = torch.empty((0, n), dtype=torch.float64, device=device)
        self._waiting: list[Tensor] = []  # chunks that are in none of these yet: a few particles at a time would be slow
        self._at_once = max(1, min(4 * self.tail, _AT_ONCE // max(1, n)))

    def add(self, log_w: Tensor):
        """Add log-weights ``(particles, n)``."""
        self._waiting.append(log_w)
        if sum(map(len, self._waiting)) >= self._at_once:
            self._include()

    def _include(self):
        if not self._waiting:
            return
        log_w, self._waiting = torch.cat(self._waiting), []
        self._log_sum = torch.logaddexp(self._log_sum, log_w.logsumexp(0))
        self._log_square_sum = torch.logaddexp(self._log_square_sum, (2 * log_w).logsumexp(0))
        together = torch.cat([self._largest, log_w])
        self._largest = together.topk(min(self.tail + 1, len(together)), dim=0).values

    @property
    def log_sum(self) -> Tensor:
        """log sum w, ``(n,)``."""
        self._include()
        return self._log_sum

    @property
    def log_square_sum(self) -> Tensor:
        """log sum w^2, ``(n,)``."""
        self._include()
        return self._log_square_sum

    @property
    def largest(self) -> Tensor:
        """The largest log-weights ``(tail + 1, n)``, the largest first."""
        self._include()
        return self._largest

    def columns(self) -> Tensor:
        """``log_mean``, ``standard_error``, ``ess`` and ``khat``, ``(4, n)``."""
        return torch.stack([self.log_mean(), self.standard_error(), self.ess(), self.khat()])

    def log_mean(self) -> Tensor:
        """log (1/K sum w), ``(n,)``."""
        return self.log_sum - math.log(self.particles)

    def ess(self) -> Tensor:
        """Effective sample size (sum w)^2 / sum w^2, ``(n,)``, between 1 and K."""
        return (2 * self.log_sum - self.log_square_sum).exp()

    def standard_error(self) -> Tensor:
        """Monte-Carlo standard error of ``log_mean`` by the delta method, ``(n,)``; NaN for a single particle."""
        k = self.particles
        relative_variance = (1 / self.ess() - 1 / k).clamp(min=0) * k / (k - 1) if k > 1 else torch.full_like(self.log_sum, math.nan)
        return relative_variance.sqrt()

    def khat(self) -> Tensor:
        """Shape of the generalised Pareto distribution fitted to the largest weights, ``(n,)``; NaN below 25 particles.

        Above 0.7 the estimate is unreliable (Vehtari et al. 2024). The value is ArviZ's (``psislw``), except that it is 0
        where the largest weights are equal but for rounding: no tail.
        """
        if self.particles < LEAST_FOR_KHAT:
            return torch.full_like(self.log_sum, math.nan)
        largest = self.largest
        log_w = largest - largest[0]  # (tail + 1, n), largest first
        cutoff = log_w[-1].clamp(min=math.log(torch.finfo(log_w.dtype).tiny))
        exceedances = (log_w[:-1].exp() - cutoff.exp()).flip(0)  # ascending
        lengths = (log_w[:-1] > cutoff).sum(0)  # fewer than the tail where weights are equal, or too small for double precision
        noise = 32 * torch.finfo(torch.float32).eps * largest[0].abs().clamp(min=1)  # programs run in float32
        khat = torch.full_like(self.log_sum, math.inf)
        for length in lengths.unique().tolist():
            if length > 4:
                alike = lengths == length
                khat[alike] = pareto_shape(exceedances[-length:, alike])
        khat = torch.where(khat.isnan(), math.inf, khat)
        return torch.where(-log_w[-1] < noise, 0.0, khat)


def pareto_shape(x: Tensor) -> Tensor:
    """Shape of a generalised Pareto distribution for each column of ascending, positive ``x`` ``(M, n)``.

    The empirical-Bayes estimate of Zhang & Stephens (2009), shrunk to 0.5 with the weight of 10 observations (Vehtari
    et al. 2024, appendix C).
    """
    m = len(x)
    grid = 30 + int(m**0.5)
    steps = torch.arange(1, grid + 1, dtype=x.dtype, device=x.device)[:, None] - 0.5
    quartile = x[int(m / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - (grid / steps).sqrt()) / (3 * quartile)  # (grid, n)
    shape = torch.stack([torch.log1p(-row * x).mean(0) for row in theta])
    profile = m * ((-theta / shape).log() - shape - 1)
    posterior = torch.softmax(profile, 0)
    posterior = torch.where(posterior < 10 * torch.finfo(x.dtype).eps, 0.0, posterior)
    theta_hat = (posterior / posterior.sum(0) * theta).sum(0)
    k = torch.log1p(-theta_hat * x).mean(0)
    return (m * k + 10 * 0.5) / (m + 10)
