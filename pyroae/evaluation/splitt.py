"""A mixture of split Student's t distributions, whose tails are matched on each side of each axis."""

import math

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class SplitStudentT(TorchDistribution):
    r"""A mixture of multivariate Student's t, each scaled differently on the two sides of each of its axes (Geweke 1989, section 4).

    A component is :math:`u = m + L (s \odot e)` with e of a standard t with ``df`` degrees of freedom, L lower triangular and
    :math:`s_i = s_i^+` where :math:`e_i > 0` and :math:`s_i^-` elsewhere.

    Args:
        logits: log-weights of the components, ``(B, K)``; -inf for one that is absent, which the first never is.
        loc: m, ``(B, K, D)``.
        scale_tril: L, ``(B, K, D, D)``.
        scales: s for the positive and the negative side, ``(B, K, 2, D)``.
        df: degrees of freedom.

    >>> eye, one = torch.eye(2).expand(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    >>> q = SplitStudentT(torch.zeros(3, 1), torch.zeros(3, 1, 2), eye, one)
    >>> q.log_prob(q.sample((5,))).shape
    torch.Size([5, 3])
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, logits: Tensor, loc: Tensor, scale_tril: Tensor, scales: Tensor, df: float = 10.0):
        self.logits, self.loc, self.scale_tril, self.scales, self.df = logits.log_softmax(-1), loc, scale_tril, scales, df
        eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        self.inverse = torch.linalg.solve_triangular(scale_tril, eye.expand_as(scale_tril), upper=False)
        self.log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (B, K)
        several = (self.logits[:, 1:] > -math.inf).any(1).nonzero()[:, 0]
        self.several = several if len(several) else None  # the rows of more than one component
        super().__init__(loc.shape[:1], loc.shape[-1:], validate_args=False)

    def extended(self, rows: Tensor, loc: Tensor, scale_tril: Tensor, share: float) -> "SplitStudentT":
        """The mixture with one more component ``(R, D)``, ``(R, D, D)`` of weight ``share`` for some rows."""
        b, _, d = self.loc.shape
        weight, at, sides = self.loc.new_full((b, 1), -math.inf), self.loc.new_zeros(b, 1, d), self.loc.new_ones(b, 1, 2, d)
        tril = torch.eye(d, dtype=self.loc.dtype, device=self.loc.device).repeat(b, 1, 1, 1)
        weight[rows], at[rows, 0], tril[rows, 0] = math.log(share / (1 - share)), loc, scale_tril
        parts = (self.logits, weight), (self.loc, at), (self.scale_tril, tril), (self.scales, sides)
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
        return self.loc[rows, k] + torch.einsum("bij,nbj->nbi", self.scale_tril[rows, k], scaled)

    def of(self, rows: Tensor) -> "SplitStudentT":
        """The distribution of some of the rows."""
        return SplitStudentT(self.logits[rows], self.loc[rows], self.scale_tril[rows], self.scales[rows], self.df)

    def log_prob(self, value: Tensor) -> Tensor:
        """``(*sample_shape, B)``."""
        log_q = self.logits[:, 0] + self._log_t(0, slice(None), value)
        if self.several is None:
            return log_q
        terms = [
            self.logits[self.several, k] + self._log_t(k, self.several, value[..., self.several, :]) for k in range(1, self.logits.shape[1])
        ]
        log_q[..., self.several] = torch.stack([log_q[..., self.several], *terms]).logsumexp(0)
        return log_q

    def _log_t(self, k: int, rows: Tensor | slice, value: Tensor) -> Tensor:
        """The log-density of one component of some rows."""
        d, df, scales = self.loc.shape[-1], self.df, self.scales[rows, k]
        e = torch.einsum("bij,...bj->...bi", self.inverse[rows, k], value - self.loc[rows, k])
        e = e / torch.where(e > 0, *scales.unbind(1))
        constant = math.lgamma((df + d) / 2) - math.lgamma(df / 2) - d / 2 * math.log(df * math.pi)
        return constant - (df + d) / 2 * torch.log1p(e.square().sum(-1) / df) - scales.mean(1).log().sum(-1) - self.log_det[rows, k]


def standard_noise(n: int, like: Tensor, df: float = 10.0) -> tuple[Tensor, Tensor, Tensor]:
    """The noise of n draws of ``SplitStudentT.placed`` for each row of ``like`` ``(B, D)``: uniform, Student's t with ``df``, uniform."""
    (b, d), kind = like.shape, {"dtype": like.dtype, "device": like.device}
    chi2 = torch._standard_gamma(torch.full((n, b, 1), df / 2, **kind)) * 2
    return torch.rand(n, b, **kind), torch.randn(n, b, d, **kind) * (df / chi2).sqrt(), torch.rand(n, b, d, **kind)


def _split(e: Tensor, side: Tensor, scales: Tensor) -> Tensor:
    """Symmetric draws ``(n, B, D)`` with scales ``(..., 2, D)`` for the two sides, each chosen in proportion to its scale."""
    above, below = scales.unbind(-2)
    return torch.where(side * (above + below) < above, e.abs() * above, -e.abs() * below)
