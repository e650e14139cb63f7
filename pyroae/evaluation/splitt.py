"""A mixture of split Student's t distributions, whose tails are matched on each side of each axis."""

import functools
import math
from dataclasses import dataclass

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
        super().__init__(loc.shape[:1], loc.shape[-1:], validate_args=False)

    @functools.cached_property
    def first(self) -> "_Components":
        """The first component of every row."""
        return self._components(slice(None), 0)

    @functools.cached_property
    def others(self) -> "_Components | None":
        """The other components, one after another, of the rows that have them."""
        rows, k = (self.logits[:, 1:] > -math.inf).nonzero(as_tuple=True)
        return self._components(rows, k + 1) if len(rows) else None

    @functools.cached_property
    def first_of_several(self) -> "_Components":
        """The first component of the rows that have others."""
        return self._components(self.others.rows.unique(), 0)

    def _components(self, rows: Tensor | slice, k: Tensor | int) -> "_Components":
        weights = self.logits.exp()
        parts = weights.cumsum(1) - weights, self.logits, self.loc, self.axes, self.scales, self.highest
        return _Components(rows, *(part[rows, k] for part in parts), self.df)

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
        log_q = self.first.log_weight + self.first.highest + self.first.log_fall(e)
        if self.others is not None:
            rows = self.first_of_several.rows
            log_q[:, rows] = self.first_of_several.log_prob(u[:, rows])
        return u, self._with_others(log_q, u)

    def placed(self, which: Tensor, e: Tensor, side: Tensor) -> Tensor:
        """Draws ``(n, B, D)`` from standard noise of B rows, or of one row that all share."""
        u = self.first.placed(e, side)
        if self.others is not None:
            rows, before, weight = self.others.rows, self.others.before, self.others.log_weight.exp()
            which, e, side = (each if each.shape[1] == 1 else each[:, rows] for each in (which, e, side))
            draw, component = ((which >= before) & (which < before + weight)).nonzero(as_tuple=True)
            u[draw, rows[component]] = self.others.placed(e, side)[draw, component]
        return u

    def of(self, rows: Tensor) -> "SplitStudentT":
        """The distribution of some of the rows."""
        return SplitStudentT(self.logits[rows], self.loc[rows], self.axes[rows], self.scales[rows], self.df)

    def log_prob(self, value: Tensor) -> Tensor:
        """``(*sample_shape, B)``."""
        return self._with_others(self.first.log_prob(value), value)

    def _with_others(self, log_q: Tensor, value: Tensor) -> Tensor:
        """The log-density, given that of the first components."""
        if self.others is None:
            return log_q
        rows = self.others.rows
        terms = self.others.log_prob(value[..., rows, :])
        highest = log_q.scatter_reduce(-1, rows.expand_as(terms), terms, "amax")
        return highest + (log_q - highest).exp().index_add(-1, rows, (terms - highest[..., rows]).exp()).log()


@dataclass
class _Components:
    """R components: of which row each is, and what those before it weigh."""

    rows: Tensor | slice
    before: Tensor  # (R,)
    log_weight: Tensor  # (R,)
    loc: Tensor  # (R, D)
    axes: Tensor  # (R, D, D)
    scales: Tensor  # (R, 2, D)
    highest: Tensor  # (R,) its log-density at its location
    df: float

    @functools.cached_property
    def inverse(self) -> Tensor:
        """``(R, D, D)`` the inverse of the axes."""
        return torch.linalg.inv(self.axes.double()).to(self.loc.dtype)

    def placed(self, e: Tensor, side: Tensor) -> Tensor:
        """Draws ``(n, R, D)`` from standard noise."""
        return self.loc + torch.einsum("bij,nbj->nbi", self.axes, _split(e, side, self.scales))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density times the weight, ``(..., R)``."""
        e = torch.einsum("bij,...bj->...bi", self.inverse, value - self.loc)
        return self.log_weight + self.highest + self.log_fall(e / torch.where(e > 0, *self.scales.unbind(1)))

    def log_fall(self, e: Tensor) -> Tensor:
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
    return torch.where(side < above / (above + below), above, -below) * e.abs()
