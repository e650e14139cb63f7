"""Likelihoods p(x|z): conditionals that know which data they are for."""

import itertools

import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import constraints

from ..registry import Part, register, register_base
from . import distributions
from .conditional import Conditional, Parameter, Shape, in_words, of_one_entry, pyro_family


@register_base("likelihoods")
class Likelihood(Conditional, Part):
    """A distribution over one x given the decoder's output; refuses data outside its support.

    >>> import pyroae as pa
    >>> isinstance(pa.likelihoods.Gamma(64), Likelihood)
    True
    """

    remedy = "choose a likelihood whose support holds these data"
    has_holes = False  # whether NaN in x stands for what was not seen
    mask = False  # whether the encoder is told what was seen

    def support(self, like: Tensor) -> constraints.Constraint:
        """What values x may take, as a constraint that can check tensors like that one."""
        return self(torch.zeros(self.size, dtype=like.dtype, device=like.device)).support

    def _beside(self, x: Tensor) -> Tensor:
        """``x`` where this part's own tensors are."""
        own = next(itertools.chain(self.parameters(), self.buffers()), x)
        return x.to(own.device)

    @property
    def bounded(self) -> bool:
        """Whether x lies between 0 and 1."""
        limit = of_one_entry(self.support(torch.zeros(())))
        return limit in (constraints.boolean, constraints.unit_interval) or isinstance(limit, distributions.InUnitInterval)

    def picture(self, p: dist.Distribution) -> Tensor:
        """What to show of p(x|z): its mean, or its mode where it has no mean."""
        mean = p.mean
        try:
            return torch.where(mean.isfinite(), mean, p.mode)
        except (NotImplementedError, AttributeError):
            return mean

    def shown(self, x: Tensor) -> Tensor:
        """x as the encoder is given it: as it is, unless its size would upset a network."""
        return x

    def check_shape(self, x: Tensor):
        """``ValueError`` unless ``x`` is a floating-point tensor of shape ``(B, *event_shape)``. Looks at no value."""
        owner, shape = type(self).__name__, ", ".join(map(str, self.event_shape))
        if not isinstance(x, Tensor):
            raise ValueError(f"{owner}: expected x as a torch.Tensor of shape (B, {shape}), got {type(x).__name__}; use torch.as_tensor(x)")
        if not x.is_floating_point():
            raise ValueError(f"{owner}: expected x in floating point, got {x.dtype}; use x.float(), or x.float() / 255 for 8-bit images")
        if x.shape[1:] != self.event_shape or x.dim() == 0:
            same = x.dim() > 0 and x.shape[1:].numel() == self.event_shape.numel()
            hint = f"x.reshape(-1, {shape})" if same else f"a likelihood and a decoder for events of shape {tuple(x.shape[1:])}"
            raise ValueError(f"{owner}: expected x of shape (B, {shape}), got {tuple(x.shape)}; use {hint}")

    def check(self, x: Tensor):
        """``ValueError`` unless ``x`` has the right shape, at least one row, no NaN, and every entry is in the support."""
        self.check_shape(x)
        x, owner = self._beside(x), type(self).__name__
        if len(x) == 0:
            raise ValueError(f"{owner}: expected at least one datum, got x of shape {tuple(x.shape)}")
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
            raise ValueError(f"{owner}: expected finite numbers, got NaN or infinity in {bad} of {len(x)} rows; drop or fill them")
        support = self.support(x)
        inside = support.check(x)
        if not bool(inside.all()):
            outside = 1 - inside.double().mean().item()
            raise ValueError(
                f"{owner}: expected every entry of x to be {in_words(support)}, "
                f"got entries from {x.min().item():.4g} to {x.max().item():.4g}, "
                f"{outside:.1%} of the data outside; {self.remedy}"
            )


@register("likelihoods")
class Bernoulli(Likelihood):
    r"""Binary x: cross-entropy from logits; nothing is clamped.

    :math:`\log p(x|z) = \sum_d x_d l_d - \log(1 + e^{l_d})` for the decoder's numbers ``l``.

    >>> Bernoulli(2)(torch.tensor([40.0, 0.0])).log_prob(torch.tensor([0.0, 1.0]))
    tensor(-40.6931)
    """

    remedy = "binarize the data (binarize='threshold', 'static' or 'dynamic') or use ContinuousBernoulli for grey levels"

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(distributions.Bernoulli, event_shape)


@register("likelihoods")
class ContinuousBernoulli(Likelihood):
    """x between 0 and 1: cross-entropy plus the normaliser that makes it a density.

    Loaiza-Ganem & Cunningham 2019, eq. 5.

    >>> ContinuousBernoulli(64).size
    64
    """

    remedy = "rescale the data to the range 0 to 1 or use Normal"

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(distributions.ContinuousBernoulli, event_shape)


@register("likelihoods")
class Normal(Likelihood):
    r"""Real x: squared error, with a scale that is fixed, learned or the decoder's.

    :math:`\log p(x|z) = -\sum_d \frac{(x_d - \mu_d)^2}{2 s_d^2} + \log s_d + \tfrac12 \log 2\pi`.
    ``scale`` is a number (1.0: squared error), ``"learned"`` (one for all), ``"per_dimension"`` (learned, one for each)
    or ``None`` (from the decoder, for each datum and dimension).

    >>> Normal(64, scale=0.5).size
    64
    """

    def __init__(self, event_shape: Shape | None = None, scale: Parameter | None = "learned"):
        super().__init__(dist.Normal, event_shape, scale=scale)


@register("likelihoods")
class OptimalNormal(Likelihood):
    r"""Real x: squared error with the one scale that is best for each batch (the sigma-VAE of Rybkin et al. 2021, eq. 5).

    In training :math:`s^2 = \frac{1}{BD} \sum (x - \mu)^2`, with nothing to tune or to learn; a running mean of it is the scale
    afterwards, so that p(x|z) of one datum does not depend on others.

    >>> OptimalNormal(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Normal, event_shape, scale=1.0)
        self.register_buffer("batches", torch.zeros(()))

    def make(self, loc, scale):
        """The distribution of single entries."""
        return distributions.ProfiledNormal(loc, scale, self._remember) if self.training else dist.Normal(loc, scale)

    @torch.no_grad()
    def _remember(self, scale: Tensor):
        share = self.batches.add_(1.0).reciprocal().clamp(min=0.05)  # of the first batch all, of the hundredth a twentieth
        self.scale.copy_(self.scale.square().lerp(scale.square(), share).sqrt())


@register("likelihoods")
class Laplace(Likelihood):
    """Real x: absolute error; the scale as in Normal.

    >>> Laplace(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None, scale: Parameter | None = "learned"):
        super().__init__(dist.Laplace, event_shape, scale=scale)


@register("likelihoods")
class StudentT(Likelihood):
    """Real x with heavy tails, so that outliers cost little; the scale as in Normal.

    >>> StudentT(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None, df: Parameter | None = 4.0, scale: Parameter | None = "learned"):
        super().__init__(dist.StudentT, event_shape, df=df, scale=scale)


@register("likelihoods")
class LogNormal(Likelihood):
    """Positive x whose logarithm is Normal; the scale as in Normal.

    >>> LogNormal(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None, scale: Parameter | None = "learned"):
        super().__init__(dist.LogNormal, event_shape, scale=scale)


@register("likelihoods")
class Gamma(Likelihood):
    """Positive x: concentration and rate from the decoder, unless given.

    >>> Gamma(64).size
    128
    """

    def __init__(self, event_shape: Shape | None = None, concentration: Parameter | None = None, rate: Parameter | None = None):
        super().__init__(dist.Gamma, event_shape, concentration=concentration, rate=rate)


@register("likelihoods")
class Beta(Likelihood):
    """x strictly between 0 and 1: both concentrations from the decoder.

    >>> Beta(64).size
    128
    """

    remedy = "the ends 0 and 1 have no density here: use ContinuousBernoulli, or squeeze the data away from them"

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Beta, event_shape)

    def support(self, like):
        """Without the ends, where the density is infinite or 0."""
        return constraints.independent(distributions.open_unit_interval, len(self.event_shape))


class _Counts(Likelihood):
    """A distribution of counts."""

    def shown(self, x):
        """The encoder is given asinh(x), about log(2x) for large counts (as usual for genes in cells; Lopez et al. 2018)."""
        return x.asinh()


@register("likelihoods")
class Poisson(_Counts):
    """Counts: the rate from the decoder. The encoder is given asinh(x).

    >>> Poisson(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None):
        super().__init__(dist.Poisson, event_shape)


@register("likelihoods")
class NegativeBinomial(_Counts):
    """Counts more spread than Poisson's: logits from the decoder, the number of failures learned unless given.

    >>> NegativeBinomial(64).size
    64
    """

    def __init__(self, event_shape: Shape | None = None, total_count: Parameter | None = "learned"):
        super().__init__(dist.NegativeBinomial, event_shape, limits=_counted("logits"), total_count=total_count)


@register("likelihoods")
class ZeroInflatedNegativeBinomial(_Counts):
    """Counts with extra zeros, as of genes in cells: gate and logits from the decoder, the number of failures learned unless given.

    >>> ZeroInflatedNegativeBinomial(64).size
    128
    """

    def __init__(self, event_shape: Shape | None = None, total_count: Parameter | None = "learned"):
        limits = _counted("logits", "gate_logits")
        super().__init__(dist.ZeroInflatedNegativeBinomial, event_shape, limits=limits, total_count=total_count)


@register("likelihoods")
class Categorical(Likelihood):
    """Categories: every entry of x is one of the whole numbers 0 to categories - 1.

    >>> Categorical(64, categories=5).size
    320
    """

    def __init__(self, event_shape: Shape | None = None, categories: int = 2):
        super().__init__(distributions.Categorical, event_shape, length=categories)

    def picture(self, p):
        """What to show of p(x|z): the likeliest category (categories have no mean)."""
        return p.base_dist.logits.argmax(-1).to(p.base_dist.logits.dtype)


@register("likelihoods")
class GreyLevels(Likelihood):
    """Grey levels 0 to 1 in equal steps, each with a probability of its own: a Categorical that knows its levels.

    >>> GreyLevels(64).size
    16384
    """

    remedy = "8-bit images divided by 255 have 256 levels; say levels=... for others"

    def __init__(self, event_shape: Shape | None = None, levels: int = 256):
        super().__init__(distributions.GreyCategorical, event_shape, limits={"logits": constraints.real_vector}, length=levels)


@register("likelihoods")
class DiscretizedLogistic(Likelihood):
    """Grey levels 0 to 1 in equal steps: the probability of a level is the Logistic's mass around it; the scale as in Normal.

    Kingma et al. 2016, section 4 of the appendix; Salimans et al. 2017, section 2.1. The probabilities sum to 1.

    >>> DiscretizedLogistic(64).size
    128
    """

    remedy = GreyLevels.remedy

    def __init__(self, event_shape: Shape | None = None, scale: Parameter | None = None, levels: int = 256):
        super().__init__(distributions.DiscretizedLogistic, event_shape, scale=scale)
        self.levels = levels

    def make(self, **parameters):
        """The distribution of single entries."""
        return self.family(**parameters, levels=self.levels)


@register("likelihoods")
class LogisticMixture(DiscretizedLogistic):
    """Grey levels by a mixture of discretized Logistics, its weights, means and scales from the decoder (Salimans et al. 2017).

    >>> LogisticMixture(64, components=3).size
    576
    """

    def __init__(self, event_shape: Shape | None = None, components: int = 5, levels: int = 256):
        limits = {name: constraints.independent(limit, 1) for name, limit in _MIXED.items()}
        Conditional.__init__(self, distributions.DiscretizedLogistic, event_shape, limits=limits, length=components)
        self.levels = levels

    def make(self, logits, loc, scale):
        """The distribution of single entries."""
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), super().make(loc=loc, scale=scale))


_MIXED = {"logits": constraints.real, "loc": constraints.real, "scale": constraints.positive}


@register("likelihoods")
class Missing(Likelihood):
    """Another likelihood, for data some of whose entries are missing: NaN. They count for nothing in p(x|z).

    The encoder is given 0 in their place, and, with ``mask``, which entries were seen beside them: twice as many numbers.
    ``pa.impute`` draws what is missing (Mattei & Frellsen 2019).

    >>> Missing(Normal(3, scale=1.0))(torch.zeros(3)).log_prob(torch.tensor([0.0, torch.nan, torch.nan])).round(decimals=4)
    tensor(-0.9189)
    """

    def __init__(self, of: Likelihood, mask: bool = False):
        nn.Module.__init__(self)
        if not isinstance(of, Likelihood) or isinstance(of, (Product, Missing, OptimalNormal)):
            raise ValueError(f"Missing: expected a likelihood such as Normal(64) (in a Product, wrap its columns), got {of!r}")
        self.of, self.mask, self.has_holes, self.fill = of, mask, True, None
        self.event_shape, self.size, self.widths = of.event_shape, of.size, of.widths

    @property
    def bounded(self):
        """As the likelihood of complete data."""
        return self.of.bounded

    def sized(self, event_shape):
        """This likelihood for events of that shape."""
        return self if self.event_shape == event_shape else Missing(self.of.sized(event_shape), self.mask)

    def forward(self, h: Tensor) -> dist.Distribution:
        """The distribution of the entries that were seen, given the decoder's output."""
        return distributions.MaskedIndependent(self.of(h).base_dist, len(self.event_shape), self._fill(h))

    def _fill(self, like: Tensor) -> float:
        """A value inside the support, found once."""
        if self.fill is None:
            support = of_one_entry(self.of.support(like))
            candidates = torch.tensor([0.0, 0.5, 1.0])
            self.fill = candidates[support.check(candidates)][0].item()
        return self.fill

    def shown(self, x):
        """As the likelihood of complete data has it."""
        return self.of.shown(x)

    def picture(self, p):
        """What the likelihood of complete data shows."""
        return self.of.picture(p.entries.to_event(len(self.event_shape)))

    def check(self, x):
        """As the likelihood of complete data does, on the entries that are there."""
        self.check_shape(x)
        self.of.check(x.masked_fill(x.isnan(), self._fill(x.new_zeros(()))))


@register("likelihoods")
class Product(Likelihood):
    """Columns of different kinds side by side, by name: real, count, binary, category.

    x has the columns one after another; a refusal names the column.

    >>> table = Product({"age": Normal(1), "visits": Poisson(1), "smokes": Bernoulli(1), "town": Categorical(1, categories=7)})
    >>> table.event_shape, table.size
    (torch.Size([4]), 10)
    """

    def __init__(self, columns: dict[str, Likelihood]):
        nn.Module.__init__(self)
        for name, column in columns.items():
            if not isinstance(column, Likelihood) or column.event_shape is None or len(column.event_shape) != 1:
                raise ValueError(f"Product: expected column {name!r} as a likelihood of its width, such as Normal(1), got {column!r}")
        self.columns = nn.ModuleDict(columns)
        self.has_holes = any(column.has_holes for column in columns.values())
        self.mask = any(column.mask for column in columns.values())
        self.lengths = [column.event_shape[0] for column in columns.values()]
        self.widths = [column.size for column in columns.values()]
        self.event_shape, self.size = torch.Size([sum(self.lengths)]), sum(self.widths)

    def forward(self, h: Tensor) -> dist.Distribution:
        """The joint distribution of the columns, independent given z."""
        pieces = h.split(self.widths, -1)
        return distributions.Joint([column(piece) for column, piece in zip(self.columns.values(), pieces)])

    def shown(self, x):
        """Each column as its own likelihood has it."""
        return torch.cat([column.shown(part) for column, part in zip(self.columns.values(), x.split(self.lengths, -1))], -1)

    def picture(self, p):
        """Each column's own picture."""
        return torch.cat([column.picture(part) for column, part in zip(self.columns.values(), p.parts)], -1)

    def check(self, x):
        """As every likelihood's, column by column."""
        self.check_shape(x)
        for (name, column), part in zip(self.columns.items(), x.split(self.lengths, -1)):
            try:
                column.check(part)
            except ValueError as error:
                raise ValueError(f"column {name!r}: {error}") from None


@register("likelihoods")
class FromPyro(Likelihood):
    """Any Pyro distribution by name; what is not given as a keyword comes from the decoder.

    >>> FromPyro("StudentT", 64, df=3.0).size
    128
    """

    def __init__(self, family: str | type, event_shape: Shape | None = None, **parameters):
        super().__init__(pyro_family(family, "FromPyro"), event_shape, **parameters)


def _counted(*logits: str) -> dict[str, constraints.Constraint]:
    """Constraints of a distribution of counts; the number of failures is positive rather than whole."""
    return {"total_count": constraints.positive} | dict.fromkeys(logits, constraints.real)


BY_DOMAIN = {"binary": Bernoulli, "unit": ContinuousBernoulli, "real": Normal, "counts": NegativeBinomial}
