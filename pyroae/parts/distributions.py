"""Distributions that Pyro lacks, or whose tails it cuts off."""

import torch
from pyro import distributions as dist


class ContinuousBernoulli(dist.ContinuousBernoulli):
    r"""Continuous Bernoulli whose log-normaliser is computed from the logits, so that no probability is ever clamped.

    :math:`\log C(l) = \log\frac{l}{\tanh(l / 2)}` with a Taylor series around ``l = 0``
    (Loaiza-Ganem & Cunningham 2019, eq. 5-6, rewritten for the logit ``l``).

    >>> ContinuousBernoulli(logits=torch.tensor(40.0)).log_prob(torch.tensor(0.0)).round(decimals=3)
    tensor(-36.3110)
    """

    def _cont_bern_log_norm(self) -> torch.Tensor:
        size = self.logits.abs()
        small = size < 0.1
        safe = torch.where(small, torch.ones_like(size), size)
        exact = safe.log() - (safe / 2).tanh().log()
        series = 0.6931471805599453 + size**2 / 12 - 7 * size**4 / 1440
        return torch.where(small, series, exact)
