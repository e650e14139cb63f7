"""Likelihoods made of others: standardised, of data with holes, of several columns side by side."""

from collections.abc import Sequence

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from ...checks import did_you_mean
from ...data.schema import Column
from ...registry import register
from .. import distributions
from ..conditional import of_one_entry
from .base import Likelihood
from .plain import OptimalNormal


@register("likelihoods")
class Standardised(Likelihood):
    r"""Another likelihood on standardised data: its density of x stays one of x in the data's own units.

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
        nn.Module.__init__(self)
        if not isinstance(of, Likelihood) or isinstance(of, OptimalNormal) or not _MEASURABLE & getattr(of, "limits", {}).keys():
            raise ValueError(
                "Standardised: expected a likelihood with location and scale or one of counts, such as Normal(64), LogNormal(64) "
                f"or NegativeBinomial(64), got {of!r}; Missing goes around it: Missing(Standardised(Normal(64)))"
            )
        self.of, self.event_shape, self.size, self.widths = of, of.event_shape, of.size, of.widths
        self.counts, self.logs = "loc" not in of.limits, of.family is dist.LogNormal
        shape = () if of.event_shape is None else tuple(of.event_shape)
        self.register_buffer("shift", torch.zeros(shape))
        self.register_buffer("factor", torch.ones(shape))
        self.register_buffer("is_measured", torch.zeros((), dtype=torch.bool))

    def __repr__(self) -> str:
        return f"Standardised({self.of!r})"

    @property
    def measured(self):
        """Whether mean and scale were taken from data."""
        return bool(self.is_measured)

    def sized(self, event_shape):
        """This likelihood for events of that shape."""
        return self if self.event_shape == event_shape else Standardised(self.of.sized(event_shape))

    @torch.no_grad()
    def measure(self, x: Tensor):
        """Take mean and standard deviation of every entry from ``(N, *event)``; NaN is passed over, a constant gets scale 1."""
        x = x.double().log() if self.logs else x.double()
        seen = ~x.isnan()
        n = seen.sum(0).clamp(min=1)
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

    def shown(self, x):
        """Standardised x; of counts, what ``of`` shows."""
        x = self.of.shown(x) if self.counts else ((x.log() if self.logs else x) - self.shift) / self.factor
        return x * min(1.0, _WIDE / self.event_shape.numel())

    def picture(self, p):
        """What ``of`` shows."""
        return self.of.picture(p)


@register("likelihoods")
class LibrarySize(Likelihood):
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
        nn.Module.__init__(self)
        counts = isinstance(of, Likelihood) and {"rate", "logits", "total_count"} & getattr(of, "limits", {}).keys()
        if not counts or of.family in (dist.Binomial, distributions.Bernoulli) or of.event_shape is None or len(of.event_shape) != 1:
            raise ValueError(f"LibrarySize: expected a likelihood of counts of one row, such as NegativeBinomial(2000), got {of!r}")
        self.of, self.event_shape, self.size, self.widths = of, of.event_shape, of.size + 1, [1, *of.widths]
        self.register_buffer("total", torch.tensor([0.0, 1.0]))  # mean and standard deviation of its log
        self.register_buffer("log_shares", torch.zeros(of.event_shape))
        self.register_buffer("is_measured", torch.zeros((), dtype=torch.bool))

    def __repr__(self) -> str:
        return f"LibrarySize({self.of!r})"

    @property
    def measured(self):
        """Whether totals and shares were taken from data."""
        return bool(self.is_measured)

    @property
    def input_shape(self):
        """One number more, the total."""
        return torch.Size([self.event_shape[0] + 1])

    def sized(self, event_shape):
        """This likelihood for events of that shape."""
        return self if self.event_shape == event_shape else LibrarySize(self.of.sized(event_shape))

    @torch.no_grad()
    def measure(self, x: Tensor):
        """Take totals and shares from counts ``(N, D)``; NaN is passed over."""
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

    def shown(self, x):
        """What ``of`` shows, and the standardised log of the total."""
        counts = self.of.shown(x) * min(1.0, _WIDE / self.event_shape.numel())
        return torch.cat([counts, ((self._log_total(x) - self.total[0]) / self.total[1])[..., None]], -1)

    def picture(self, p):
        """What ``of`` shows."""
        return self.of.picture(p)

    def _log_total(self, x: Tensor) -> Tensor:
        """The log of the rows' totals; of rows with holes, of what the mean of the others makes it."""
        return (x.nanmean(-1) * x.shape[-1]).clamp(min=0.5).log()


_WIDE = 1000
_MEASURABLE = {"loc", "rate", "logits"}


@register("likelihoods")
class Missing(Likelihood):
    """Another likelihood, for data some of whose entries are missing: NaN. They count for nothing in p(x|z).

    The encoder is given 0 in their place, and, with ``mask``, which entries were seen beside them: twice as many numbers.
    ``pa.impute`` draws what is missing (Mattei & Frellsen 2019).

    >>> import pyroae as pa
    >>> Missing(pa.likelihoods.Normal(3, scale=1.0))(torch.zeros(3)).log_prob(torch.tensor([0.0, torch.nan, torch.nan])).round(decimals=4)
    tensor(-0.9189)
    """

    def __init__(self, of: Likelihood, mask: bool = False):
        nn.Module.__init__(self)
        if not isinstance(of, Likelihood) or isinstance(of, (Product, Missing, OptimalNormal)):
            raise ValueError(f"Missing: expected a likelihood such as Normal(64) (in a Product, wrap its columns), got {of!r}")
        self.of, self.mask, self.has_holes, self.fill = of, mask, True, None
        self.event_shape, self.size, self.widths = of.event_shape, of.size, of.widths

    def __repr__(self) -> str:
        return f"Missing({self.of!r}{', mask=True' * self.mask})"

    @property
    def input_shape(self):
        """As the likelihood of complete data."""
        return self.of.input_shape

    @property
    def measured(self):
        """As the likelihood of complete data."""
        return self.of.measured

    def measure(self, x):
        """As the likelihood of complete data does, from the entries that are there."""
        self.of.measure(x)

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
            candidates = torch.tensor([0.0, 0.5, 1.0], device=like.device)
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

    x has the columns one after another, or in the ``order`` given; a refusal names the column.

    Of likelihoods without ``event_shape`` it stands for some columns of a model's table, by name or by names with commas between:
    ``vae.replace(likelihood=Product({"income": StudentT()}))`` models income so, and the other columns as before.

    Args:
        columns: likelihoods of vectors, by name.
        order: the places in x of the columns' entries, where they do not stand one after another.

    >>> import pyroae as pa
    >>> table = Product({"age": pa.likelihoods.Normal(1), "visits": pa.likelihoods.Poisson(1), "town": pa.likelihoods.Categorical(1, 7)})
    >>> table.event_shape, table.size
    (torch.Size([3]), 9)
    """

    def __init__(self, columns: dict[str, Likelihood], order: list[int] | None = None):
        nn.Module.__init__(self)
        for name, column in columns.items():
            if not isinstance(column, Likelihood) or (column.event_shape is not None and len(column.event_shape) != 1):
                raise ValueError(f"Product: expected column {name!r} as a likelihood of its width, such as Normal(1), got {column!r}")
        self.names, self.columns, self.event_shape = list(columns), nn.ModuleList(columns.values()), None
        if any(column.event_shape is None for column in self.columns):
            return  # until ``with_columns`` knows the table
        self.has_holes = any(column.has_holes for column in self.columns)
        self.mask = any(column.mask for column in self.columns)
        self.lengths = [column.event_shape[0] for column in self.columns]
        self.widths = [column.size for column in self.columns]
        self.event_shape, self.size = torch.Size([sum(self.lengths)]), sum(self.widths)
        if order is not None and sorted(order) != list(range(sum(self.lengths))):
            raise ValueError(f"Product: expected order as the places 0 to {sum(self.lengths) - 1}, each once, got {order!r}")
        places = None if order is None else torch.tensor(order)
        self.register_buffer("order", places, persistent=False)
        self.register_buffer("back", None if places is None else places.argsort(), persistent=False)

    def __repr__(self) -> str:
        return "\n".join(["Product(", *(f"  {name}: {column!r}" for name, column in zip(self.names, self.columns)), ")"])

    @property
    def input_shape(self):
        """The columns' side by side."""
        return torch.Size([sum(column.input_shape[0] for column in self.columns)])

    @property
    def measured(self):
        """Whether every column is."""
        return all(column.measured for column in self.columns)

    def measure(self, x):
        """Column by column."""
        for column, part in self._parts(x):
            column.measure(part)

    def forward(self, h: Tensor) -> dist.Distribution:
        """The joint distribution of the columns, independent given z."""
        pieces = h.split(self.widths, -1)
        return distributions.Joint([column(piece) for column, piece in zip(self.columns, pieces)], self.order, self.back)

    def shown(self, x):
        """Each column as its own likelihood has it."""
        return torch.cat([column.shown(part) for column, part in self._parts(x)], -1)

    def picture(self, p):
        """Each column's own picture."""
        return p.together([column.picture(part) for column, part in zip(self.columns, p.parts)])

    def check(self, x):
        """As every likelihood's, column by column."""
        self.check_shape(x)
        for name, (column, part) in zip(self.names, self._parts(x)):
            try:
                column.check(part)
            except ValueError as error:
                raise ValueError(f"column {name!r}: {error}") from None

    def _parts(self, x: Tensor) -> list[tuple[Likelihood, Tensor]]:
        x = x if self.order is None else x.index_select(-1, self.order)
        return list(zip(self.columns, x.split(self.lengths, -1)))


def with_columns(likelihood: Likelihood, changed: Product, columns: Sequence[Column]) -> Product:
    """A table's likelihood with the columns that ``changed`` names modelled as it says, and the others as before.

    Raises:
        ValueError: a name that no column has, or that occurs twice.
    """
    places = {column.name: i for i, column in enumerate(columns)}
    parts, order = {}, []
    for name, part in zip(changed.names, changed.columns):
        names = [name] if name in places else [each.strip() for each in name.split(",")]
        for each in names:
            if each not in places:
                raise ValueError(f"Product: there is no column {each!r}" + did_you_mean(each, places))
        at = [places[each] for each in names]
        part = part if part.event_shape == torch.Size([len(at)]) else part.sized(torch.Size([len(at)]))
        parts[name] = with_holes(part) if any(columns[i].missing for i in at) else part
        order += at
    if len(set(order)) < len(order):
        raise ValueError(f"Product: expected every column once, got {', '.join(changed.names)}")
    for part, at in _places(likelihood):
        if rest := [i for i in at if i not in order]:
            name = named([columns[i].name for i in rest])
            parts[name] = part if rest == at else part.sized(torch.Size([len(rest)]))
            order += rest
    return Product(parts, None if order == sorted(order) else order)


def _places(likelihood: Likelihood) -> list[tuple[Likelihood, list[int]]]:
    """The parts of a table's likelihood, and the places in x of each one's entries."""
    if not isinstance(likelihood, Product):
        return [(likelihood, list(range(likelihood.event_shape[0])))]
    order = torch.arange(sum(likelihood.lengths)) if likelihood.order is None else likelihood.order
    return [(part, at.tolist()) for part, at in zip(likelihood.columns, order.split(likelihood.lengths))]


def named(columns: list[str]) -> str:
    """What columns are called together.

    >>> named(["age", "income", "height", "weight"])
    'age, income, ... (4 columns)'
    """
    return ", ".join(columns if len(columns) <= 3 else [*columns[:2], f"... ({len(columns)} columns)"])


def with_holes(likelihood: Likelihood) -> Likelihood:
    """The same likelihood for data in which any entry may be missing."""
    if isinstance(likelihood, Product):
        columns = [with_holes(column) for column in likelihood.columns]
        same = all(new is old for new, old in zip(columns, likelihood.columns))
        order = None if likelihood.order is None else likelihood.order.tolist()
        return likelihood if same else Product(dict(zip(likelihood.names, columns)), order)
    return likelihood if likelihood.has_holes else Missing(likelihood)
