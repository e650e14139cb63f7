"""Likelihoods made of others: for data with missing entries, for tables of several kinds of columns."""

import torch
from pyro import distributions as dist
from torch import Tensor, nn

from ...checks import did_you_mean
from ...data.schema import Schema
from ...nested import copied
from ...registry import register
from .. import distributions
from ..building import Context
from ..conditional import entry_constraint
from .base import Likelihood
from .plain import OptimalNormal


@register("likelihoods")
class Missing(Likelihood):
    """Another likelihood, for data with missing entries: NaN, which p(x|z) ignores.

    In the encoder's input they are 0; with ``mask`` the mask of observed entries is concatenated to it.
    ``pa.impute`` draws missing entries (Mattei & Frellsen 2019).

    >>> import pyroae as pa
    >>> Missing(pa.likelihoods.Normal(3, scale=1.0))(torch.zeros(3)).log_prob(torch.tensor([0.0, torch.nan, torch.nan])).round(decimals=4)
    tensor(-0.9189)
    """

    def __init__(self, of: Likelihood, mask: bool = False):
        super().__init__()
        if not isinstance(of, Likelihood) or isinstance(of, (Product, Missing, OptimalNormal)):
            raise ValueError(f"Missing: expected a likelihood such as Normal(64) (in a Product, wrap its columns), got {of!r}")
        self.of, self.mask, self.allows_missing, self.fill = of, mask, True, None
        self.event_shape, self.size, self.param_sizes = of.event_shape, of.size, of.param_sizes

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
        """As the likelihood of complete data, from the observed entries."""
        self.of.measure(x)

    @property
    def bounded(self):
        """As the likelihood of complete data."""
        return self.of.bounded

    def build(self, context):
        """As the likelihood of complete data."""
        same = context.event_shape in (None, self.event_shape)
        return copied(self) if same else Missing(self.of.build(context), self.mask)

    def forward(self, h: Tensor) -> dist.Distribution:
        """The distribution of the observed entries, given the decoder's output."""
        return distributions.MaskedIndependent(self.of(h).base_dist, len(self.event_shape), self._fill(h))

    def _fill(self, like: Tensor) -> float:
        """A value inside the support."""
        if self.fill is None:
            support = entry_constraint(self.of.support(like))
            candidates = torch.tensor([0.0, 0.5, 1.0], device=like.device)
            self.fill = candidates[support.check(candidates)][0].item()
        return self.fill

    def preprocess(self, x):
        """As the likelihood of complete data."""
        return self.of.preprocess(x)

    def mean_or_mode(self, p):
        """As the likelihood of complete data."""
        return self.of.mean_or_mode(p.entries.to_event(len(self.event_shape)))

    def check(self, x):
        """As the likelihood of complete data, on the observed entries."""
        self.check_shape(x)
        self.of.check(x.masked_fill(x.isnan(), self._fill(x.new_zeros(()))))


@register("likelihoods")
class Product(Likelihood):
    """Columns of different kinds, by name: real, count, binary, category; independent given z.

    x is the concatenation of the columns, or has them in the given ``order``; an error names the column.

    With likelihoods without ``event_shape`` it changes some columns of a model's table, by name or by names separated by commas:
    ``vae.replace(likelihood=Product({"income": StudentT()}))`` keeps the likelihoods of the other columns.

    Args:
        columns: likelihoods of vectors, by name.
        order: the indices in x of the columns' entries, if these are not concatenated.

    >>> import pyroae as pa
    >>> table = Product({"age": pa.likelihoods.Normal(1), "visits": pa.likelihoods.Poisson(1), "town": pa.likelihoods.Categorical(1, 7)})
    >>> table.event_shape, table.size
    (torch.Size([3]), 9)
    """

    def __init__(self, columns: dict[str, Likelihood], order: list[int] | None = None):
        super().__init__()
        for name, column in columns.items():
            if not isinstance(column, Likelihood) or (column.event_shape is not None and len(column.event_shape) != 1):
                raise ValueError(f"Product: expected column {name!r} as a likelihood of its width, such as Normal(1), got {column!r}")
        self.names, self.columns, self.event_shape = list(columns), nn.ModuleList(columns.values()), None
        if any(column.event_shape is None for column in self.columns):
            return  # built by ``with_columns``
        self.allows_missing = any(column.allows_missing for column in self.columns)
        self.mask = any(column.mask for column in self.columns)
        self.lengths = [column.event_shape[0] for column in self.columns]
        self.param_sizes = [column.size for column in self.columns]
        self.event_shape, self.size = torch.Size([sum(self.lengths)]), sum(self.param_sizes)
        if order is not None and sorted(order) != list(range(sum(self.lengths))):
            raise ValueError(f"Product: expected order as the places 0 to {sum(self.lengths) - 1}, each once, got {order!r}")
        places = None if order is None else torch.tensor(order)
        self.register_buffer("order", places, persistent=False)
        self.register_buffer("back", None if places is None else places.argsort(), persistent=False)
        owners = torch.repeat_interleave(torch.tensor(self.lengths))
        self.register_buffer("owners", owners if self.back is None else owners[self.back], persistent=False)  # (D,) part of each entry

    def __repr__(self) -> str:
        return "\n".join(["Product(", *(f"  {name}: {column!r}" for name, column in zip(self.names, self.columns)), ")"])

    @property
    def input_shape(self):
        """Of the concatenated inputs of the columns."""
        return torch.Size([sum(column.input_shape[0] for column in self.columns)])

    @property
    def measured(self):
        """Whether every column is measured."""
        return all(column.measured for column in self.columns)

    def track(self, x, p):
        """Column by column."""
        for (column, part), distribution in zip(self._parts(x), p.parts):
            column.track(part, distribution)

    def measure(self, x):
        """Column by column."""
        for column, part in self._parts(x):
            column.measure(part)

    def forward(self, h: Tensor) -> dist.Distribution:
        """The joint distribution of the columns, independent given z."""
        pieces = h.split(self.param_sizes, -1)
        return distributions.Joint([column(piece) for column, piece in zip(self.columns, pieces)], self.order, self.back, self.names)

    def preprocess(self, x):
        """Each column as by its own likelihood."""
        return torch.cat([column.preprocess(part) for column, part in self._parts(x)], -1)

    def mean_or_mode(self, p):
        """Each column's own mean or mode."""
        return p.join([column.mean_or_mode(part) for column, part in zip(self.columns, p.parts)])

    def check(self, x):
        """As for every likelihood, column by column."""
        self.check_shape(x)
        for name, (column, part) in zip(self.names, self._parts(x)):
            try:
                column.check(part)
            except ValueError as error:
                raise ValueError(f"column {name!r}: {error}") from None

    def _parts(self, x: Tensor) -> list[tuple[Likelihood, Tensor]]:
        x = x if self.order is None else x.index_select(-1, self.order)
        return list(zip(self.columns, x.split(self.lengths, -1)))


def with_columns(likelihood: Likelihood, changed: Product, schema: Schema | None) -> Product:
    """A table's likelihood with the columns named in ``changed`` replaced.

    Raises:
        ValueError: the model is not of a table, or a column is unknown or occurs twice.
    """
    if schema is None or schema.columns is None:
        raise ValueError("replace: expected a model of a table for a Product of columns by name; give each its width, Normal(1)")
    columns = schema.columns
    places = {column.name: i for i, column in enumerate(columns)}
    parts, order = {}, []
    for name, part in zip(changed.names, changed.columns):
        names = [name] if name in places else [part_of.strip() for part_of in name.split(",")]
        for column in names:
            if column not in places:
                raise ValueError(f"Product: there is no column {column!r}" + did_you_mean(column, places))
        at = [places[column] for column in names]
        part = part.build(Context(torch.Size([len(at)])))
        parts[name] = with_missing(part) if any(columns[i].missing for i in at) else part
        order += at
    if len(set(order)) < len(order):
        raise ValueError(f"Product: expected every column once, got {', '.join(changed.names)}")
    for part, at in _places(likelihood):
        if rest := [i for i in at if i not in order]:
            name = named([columns[i].name for i in rest])
            parts[name] = part.build(Context(torch.Size([len(rest)])))
            order += rest
    return Product(parts, None if order == sorted(order) else order)


def _places(likelihood: Likelihood) -> list[tuple[Likelihood, list[int]]]:
    """The parts of a table's likelihood, and the indices in x of their entries."""
    if not isinstance(likelihood, Product):
        return [(likelihood, list(range(likelihood.event_shape[0])))]
    order = torch.arange(sum(likelihood.lengths)) if likelihood.order is None else likelihood.order
    return [(part, at.tolist()) for part, at in zip(likelihood.columns, order.split(likelihood.lengths))]


def named(columns: list[str]) -> str:
    """A name for several columns.

    >>> named(["age", "income", "height", "weight"])
    'age, income, ... (4 columns)'
    """
    return ", ".join(columns if len(columns) <= 3 else [*columns[:2], f"... ({len(columns)} columns)"])


def with_missing(likelihood: Likelihood, mask: bool = False) -> Likelihood:
    """The same likelihood for data in which any entry may be missing; with ``mask`` their mask is an input of the encoder."""
    if isinstance(likelihood, Product):
        columns = [with_missing(column, mask) for column in likelihood.columns]
        same = all(new is old for new, old in zip(columns, likelihood.columns))
        order = None if likelihood.order is None else likelihood.order.tolist()
        return likelihood if same else Product(dict(zip(likelihood.names, columns)), order)
    if not likelihood.allows_missing:
        return Missing(likelihood, mask)
    return Missing(likelihood.of, mask) if mask and not likelihood.mask else likelihood
