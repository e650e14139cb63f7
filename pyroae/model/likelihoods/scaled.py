"""Likelihoods in the data's units: standardised by mean and scale, or counts scaled by the total of a row."""

import torch
from pyro import distributions as dist
from torch import Tensor

from ...nested import copied
from ...registry import register
from .. import distributions
from .base import Likelihood
from .plain import OptimalNormal

_WIDE = 1000
_MEASURABLE = {"loc", "rate", "logits"}


class _Scaled(Likelihood):
    """Another likelihood with units that ``measure`` takes from the data."""

    def __init__(self, of: Likelihood):
        super().__init__()
        self.of, self.event_shape, self.size, self.param_sizes = of, of.event_shape, of.size, of.param_sizes
        self.register_buffer("is_measured", torch.zeros((), dtype=torch.bool))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.of!r})"

    @property
    def measured(self):
        """Whether ``measure`` was called."""
        return bool(self.is_measured)

    def build(self, context):
        """As for every likelihood; one of another shape is not measured yet."""
        same = context.event_shape in (None, self.event_shape)
        return copied(self) if same else type(self)(self.of.build(context))

    def mean_or_mode(self, p):
        """As by ``of``."""
        return self.of.mean_or_mode(p)


@register("likelihoods")
class Standardised(_Scaled):
    r"""Another likelihood on standardised data; its density is that of x in the data's own units.

    Of a family with location and scale, such as Normal or StudentT: :math:`\log p(x|z) = \log p_0(\frac{x - m}{s} | z) - \sum_d \log s_d`
    with mean m and standard deviation s of every entry, taken from the training data by ``fit``, the recipes or ``measure``, and saved
    with the model. Of LogNormal, m and s are of log x. Of counts (Poisson, NegativeBinomial), the mean m multiplies the rate. The
    encoder sees :math:`(x - m) / s`, of counts log(1 + x); of events of more than 1,000 numbers less in proportion, so that a step of Adam,
    which changes all weights of a unit alike, changes its sum no more than for 1,000.

    >>> import pyroae as pa
    >>> income = Standardised(pa.likelihoods.Normal(1, scale=1.0))
    >>> income.measure(torch.tensor([[20_000.0], [40_000.0]]))
    >>> p = income(torch.zeros(1))
    >>> p.mean, p.log_prob(torch.tensor([30_000.0]))  # -0.9189 - log(10,000)
    (tensor([30000.]), tensor(-10.1293))
    """

    def __init__(self, of: Likelihood):
        if not isinstance(of, Likelihood) or isinstance(of, OptimalNormal) or of.length or not _MEASURABLE & of.limits.keys():
            raise ValueError(
                "Standardised: expected a likelihood with location and scale or one of counts, such as Normal(64), LogNormal(64) "
                f"or NegativeBinomial(64), got {of!r}; Missing goes around it: Missing(Standardised(Normal(64)))"
            )
        super().__init__(of)
        self.counts, self.logs = "loc" not in of.limits, of.family is dist.LogNormal
        shape = () if of.event_shape is None else tuple(of.event_shape)
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("factor", torch.ones(shape))

    @torch.no_grad()
    def measure(self, x: Tensor):
        """Take mean and standard deviation of every entry from ``(N, *event)``; NaN is ignored, a constant gets scale 1."""
        x = x.double().log() if self.logs else x.double()
        n = (~x.isnan()).sum(0).clamp(min=1)
        mean = x.nan_to_num(0.0).sum(0) / n
        scale = ((x - mean).nan_to_num(0.0).square().sum(0) / n).sqrt()
        if self.counts:
            mean, scale = torch.zeros_like(mean), mean
        self.shift.copy_(mean)
        self.factor.copy_(torch.where(scale > 1e-12 * mean.abs(), scale, torch.ones_like(scale)))
        self.is_measured.fill_(True)

    def forward(self, h: Tensor) -> dist.Distribution:
        """The distribution of x, in the data's units, given the decoder's output."""
        values = self.of.values(h)
        if not self.counts:
            values |= {"loc": self.shift + self.factor * values["loc"], "scale": self.factor * values["scale"]}
        elif "rate" in values:
            values["rate"] = self.factor * values["rate"]
        else:
            values["logits"] = self.factor.log() + values["logits"]
        return self.of.shaped(self.of.make(**values))

    def preprocess(self, x):
        """Standardised x; counts as by ``of``."""
        x = self.of.preprocess(x) if self.counts else ((x.log() if self.logs else x) - self.shift) / self.factor
        return x * min(1.0, _WIDE / self.event_shape.numel())


@register("likelihoods")
class LibrarySize(_Scaled):
    r"""Counts with a total of each row, such as the library size of a cell: a rate of the row times the shares of the columns.

    Rates are :math:`l(z) \rho_d(z)` with :math:`\log l = m + s h_0` and :math:`\rho = \mathrm{softmax}(\log \bar\rho + h)` for the
    decoder's numbers :math:`h_0, h`. Mean m and standard deviation s of the log of the rows' totals, and the columns' shares
    :math:`\bar\rho` of all counts, are taken from the training data by ``fit``, the recipes or ``measure``, and saved with the model.
    Shares times a size are scVI's (Lopez et al. 2018); here the size is decoded from z, so that log p(x) is of the counts alone, given
    nothing. The encoder sees log(1 + x) and, beside them, the standardised log of the total.

    >>> import pyroae as pa
    >>> genes = LibrarySize(pa.likelihoods.Poisson(2))
    >>> genes.measure(torch.tensor([[30.0, 10.0], [60.0, 20.0]]))
    >>> genes(torch.zeros(3)).mean.round(decimals=2)  # of the geometric mean of the totals, 56.57, three quarters and one quarter
    tensor([42.4300, 14.1400])
    """

    def __init__(self, of: Likelihood):
        counts = isinstance(of, Likelihood) and {"rate", "logits", "total_count"} & of.limits.keys()
        if not counts or of.family in (dist.Binomial, distributions.Bernoulli) or of.event_shape is None or len(of.event_shape) != 1:
            raise ValueError(f"LibrarySize: expected a likelihood of counts of one row, such as NegativeBinomial(2000), got {of!r}")
        super().__init__(of)
        self.size, self.param_sizes = of.size + 1, [1, *of.param_sizes]
        self.register_buffer("total", torch.tensor([0.0, 1.0]))  # mean and standard deviation of its log
        self.register_buffer("log_shares", torch.zeros(of.event_shape))

    @property
    def input_shape(self):
        """One entry more, the total."""
        return torch.Size([self.event_shape[0] + 1])

    @torch.no_grad()
    def measure(self, x: Tensor):
        """Take totals and shares from counts ``(N, D)``; NaN is ignored."""
        totals, columns = self._log_total(x.double()), x.double().nanmean(0).clamp(min=0.5 / len(x))
        self.total.copy_(torch.stack([totals.mean(), totals.std(correction=0).clamp(min=0.1)]))
        self.log_shares.copy_(columns.log().log_softmax(0))
        self.is_measured.fill_(True)

    def forward(self, h: Tensor) -> dist.Distribution:
        """The distribution of the counts given the decoder's output."""
        first, rest = h[..., :1], h[..., 1:]
        values = self.of.values(rest)
        name = "rate" if "rate" in values else "logits"
        free = values[name].log() if name == "rate" else values[name]
        log_rate = self.total[0] + self.total[1] * first + (self.log_shares + free).log_softmax(-1)
        values[name] = log_rate.exp() if name == "rate" else log_rate - values["total_count"].log()
        return self.of.shaped(self.of.make(**values))

    def preprocess(self, x):
        """x as by ``of``, and the standardised log of the total."""
        counts = self.of.preprocess(x) * min(1.0, _WIDE / self.event_shape.numel())
        return torch.cat([counts, ((self._log_total(x) - self.total[0]) / self.total[1])[..., None]], -1)

    def _log_total(self, x: Tensor) -> Tensor:
        """The log of the rows' totals; missing entries count as the mean of the row."""
        return (x.nanmean(-1) * x.shape[-1]).clamp(min=0.5).log()
