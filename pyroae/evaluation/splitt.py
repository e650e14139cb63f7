"""A mixture of split Student's t distributions, whose tails are matched on each side of each axis."""

import functools
import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class SplitStudentT(TorchDistribution):
    r"""A mixture of multivariate Student's t, each scaled differently on the two sides of each of its axes (Geweke 1989, section 4).

    A component is :math:`u = m + A (s \odot e)` with e of a standard t with ``df`` degrees of freedom, the columns of A its axes and
    :math:`s_i = s_i^+` where :math:`e_i > 0` and :math:`s_i^-` elsewhere.

    Args:
        logits: log-weights of the components, ``(B, K)``; -inf for one that is absent, which the first never is.
        loc: m, ``(B, K, D)``.
        axes: A, ``(B, K, D, D)``.
        scales: s for the positive and the negative side, ``(B, K, 2, D)``.
        df: degrees of freedom.

    >>> eye, one = torch.eye(2).expand(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    >>> q = SplitStudentT(torch.zeros(3, 1), torch.zeros(3, 1, 2), eye, one)
    >>> q.log_prob(q.sample((5,))).shape
    torch.Size([5, 3])
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, logits: Tensor, loc: Tensor, axes: Tensor, scales: Tensor, df: float = 10.0):
        self.logits, self.loc, self.axes, self.scales, self.df = logits.log_softmax(-1), loc, axes, scales, df
        volume = torch.linalg.slogdet(axes.double()).logabsdet + scales.double().mean(-2).log().sum(-1)
        constant = math.lgamma((df + loc.shape[-1]) / 2) - math.lgamma(df / 2) - loc.shape[-1] / 2 * math.log(df * math.pi)
        self.highest = (constant - volume).to(loc.dtype)  # (B, K) log-density of each component at its location
        several = (self.logits[:, 1:] > -math.inf).any(1).nonzero()[:, 0]
        self.several = several if len(several) else None  # the rows of more than one component
        super().__init__(loc.shape[:1], loc.shape[-1:], validate_args=False)

    @functools.cached_property
    def inverse(self) -> Tensor:
        """``(B, K, D, D)`` the inverse of the axes."""
        return torch.linalg.inv(self.axes.double()).to(self.loc.dtype)

    def extended(self, rows: Tensor, loc: Tensor, axes: Tensor, share: float) -> "SplitStudentT":
        """The mixture with one more component ``(R, D)``, ``(R, D, D)`` of weight ``share`` for some rows."""
        b, _, d = self.loc.shape
        weight, at, sides = self.loc.new_full((b, 1), -math.inf), self.loc.new_zeros(b, 1, d), self.loc.new_ones(b, 1, 2, d)
        own = torch.eye(d, dtype=self.loc.dtype, device=self.loc.device).repeat(b, 1, 1, 1)
        weight[rows], at[rows, 0], own[rows, 0] = math.log(share / (1 - share)), loc, axes
        parts = (self.logits, weight), (self.loc, at), (self.axes, own), (self.scales, sides)
        return SplitStudentT(*(torch.cat(part, 1) for part in parts), df=self.df)

    def expand(self, batch_shape, _instance=None):
        """Itself: it has a plate of its own size."""
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        return super().expand(batch_shape, _instance)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws ``(*sample_shape, B, D)``."""
        shape = torch.Size(sample_shape)
        return self.placed(*standard_noise(shape.numel(), self.loc[:, 0], self.df)).reshape(*shape, *self.loc[:, 0].shape)

    def placed_with_log_prob(self, which: Tensor, e: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """``placed`` and the log-density there ``(n, B)``, which follows from the noise for rows of one component."""
        u = self.placed(which, e, side)
        log_q = self.highest[:, 0] + self.logits[:, 0] + self._log_fall(e)
        if self.several is not None:
            log_q[:, self.several] = self._log_mixture(self.several, u[:, self.several])
        return u, log_q

    def placed(self, which: Tensor, e: Tensor, side: Tensor) -> Tensor:
        """Draws ``(n, B, D)`` from standard noise of B rows, or of one row that all share."""
        u = self._component(0, slice(None), e, side)
        if self.several is None:
            return u
        cumulative = self.logits[self.several].exp().cumsum(-1)  # (R, K)
        among = [noise if noise.shape[1] == 1 else noise[:, self.several] for noise in (which, e, side)]
        some = u[:, self.several]
        for k in range(1, self.logits.shape[1]):
            chosen = among[0] >= cumulative[:, k - 1]
            some = torch.where(chosen[..., None], self._component(k, self.several, *among[1:]), some)
        u[:, self.several] = some
        return u

    def _component(self, k: int, rows: Tensor | slice, e: Tensor, side: Tensor) -> Tensor:
        """Draws of one component of some rows."""
        scaled = _split(e, side, self.scales[rows, k])
        return self.loc[rows, k] + torch.einsum("bij,nbj->nbi", self.axes[rows, k], scaled)

    def of(self, rows: Tensor) -> "SplitStudentT":
        """The distribution of some of the rows."""
        return SplitStudentT(self.logits[rows], self.loc[rows], self.axes[rows], self.scales[rows], self.df)

    def log_prob(self, value: Tensor) -> Tensor:
        """``(*sample_shape, B)``."""
        log_q = self.logits[:, 0] + self._log_t(0, slice(None), value)
        if self.several is not None:
            log_q[..., self.several] = self._log_mixture(self.several, value[..., self.several, :])
        return log_q

    def _log_mixture(self, rows: Tensor, value: Tensor) -> Tensor:
        """The log-density of some rows."""
        return torch.stack([self.logits[rows, k] + self._log_t(k, rows, value) for k in range(self.logits.shape[1])]).logsumexp(0)

    def _log_t(self, k: int, rows: Tensor | slice, value: Tensor) -> Tensor:
        """The log-density of one component of some rows."""
        e = torch.einsum("bij,...bj->...bi", self.inverse[rows, k], value - self.loc[rows, k])
        return self.highest[rows, k] + self._log_fall(e / torch.where(e > 0, *self.scales[rows, k].unbind(1)))

    def _log_fall(self, e: Tensor) -> Tensor:
        """The log-density of a standard t less that at 0."""
        return -(self.df + e.shape[-1]) / 2 * torch.log1p(e.square().sum(-1) / self.df)


def standard_noise(n: int, like: Tensor, df: float = 10.0) -> tuple[Tensor, Tensor, Tensor]:
    """The noise of n draws of ``SplitStudentT.placed`` for each row of ``like`` ``(B, D)``: uniform, Student's t with ``df``, uniform."""
    (b, d), kind = like.shape, {"dtype": like.dtype, "device": like.device}
    chi2 = torch._standard_gamma(torch.full((n, b, 1), df / 2, **kind)) * 2
    return torch.rand(n, b, **kind), torch.randn(n, b, d, **kind) * (df / chi2).sqrt(), torch.rand(n, b, d, **kind)


def _split(e: Tensor, side: Tensor, scales: Tensor) -> Tensor:
    """Symmetric draws ``(n, B, D)`` with scales ``(..., 2, D)`` for the two sides, each chosen in proportion to its scale."""
    above, below = scales.unbind(-2)
    return torch.where(side * (above + below) < above, e.abs() * above, -e.abs() * below)
