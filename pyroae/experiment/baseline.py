"""A baseline for tables: the likelihood under independent columns."""

from dataclasses import dataclass

import torch
from pyro import distributions as dist
from torch import Tensor

from ..data import Split

_REMEDY = "it does not generalise to new rows; more rows, or a smaller model (--hidden 16) may help"


@dataclass(frozen=True)
class Gain:
    """The difference between a model's log p(x) of test rows and that of independent columns, nats per example.

    Args:
        independent: mean log p(x) of independent columns.
        gain: mean difference.
        se: sampling standard error of the difference, paired by row.
    """

    independent: float
    gain: float
    se: float

    def __str__(self) -> str:
        """Both scores in words, with advice if the model is significantly worse."""
        how = f"{abs(self.gain):.2f} (s.e. {self.se:.2g}) {'better' if self.gain >= 0 else 'worse'}"
        remedy = f": {_REMEDY}" if self.gain < -2.0 * self.se else ""
        return f"{self.independent:.2f} nats/example with independent columns; the model is {how}{remedy}"


def gain(train: Split, test: Split, log_likelihood: Tensor, rows: Tensor | slice = slice(None)) -> Gain | None:
    """Compare a model's log p(x) ``(n,)`` of some rows of ``test`` with that of independent columns fitted to ``train``.

    ``None`` for data that are not a table.

    >>> import pandas as pd, pyroae as pa
    >>> data = pa.data.load(pd.DataFrame({"a": torch.randn(100, generator=torch.Generator().manual_seed(0)).numpy()}))
    >>> gain(data.train, data.test, torch.zeros(20)).gain > 1.0
    True
    """
    if not train.schema.columns or not isinstance(train.x, Tensor) or not isinstance(test.x, Tensor):
        return None
    expected = log_prob(train, test.x[rows])
    difference = log_likelihood.double().cpu() - expected
    return Gain(expected.mean().item(), difference.mean().item(), (difference.std(correction=0) / len(difference) ** 0.5).item())


def log_prob(train: Split, x: Tensor) -> Tensor:
    """log p of rows x ``(N, columns)`` with independent columns, fitted to ``train``, missing values left out.

    Normal for real numbers, LogNormal for positive ones, NegativeBinomial for counts, Bernoulli, Categorical.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    x_train = train.x[:]
    for i, column in enumerate(train.schema.columns or ()):
        kind = "binary" if train.domain == "binary" else {"unit": "real"}.get(column.kind, column.kind)
        groups.setdefault((kind, column.size), []).append(i)
    return sum((_terms(kind, size, x_train[:, at].double(), x[:, at].double()) for (kind, size), at in groups.items()), torch.zeros(len(x)))


def _terms(kind: str, size: int, train: Tensor, x: Tensor) -> Tensor:
    observed = x.isfinite()
    if kind == "category":
        terms = torch.stack([_frequencies(train[:, i], size)[x[:, i].nan_to_num(0.0).long()] for i in range(x.shape[1])], 1)
    else:
        terms = _fitted(kind, train).log_prob(torch.where(observed, x, torch.ones_like(x)))
    return torch.where(observed, terms, 0.0).sum(1)


def _fitted(kind: str, train: Tensor) -> dist.TorchDistribution:
    """A distribution with the columns' moments; each variance is smoothed by one observation with the median variance."""
    train = train.log() if kind == "positive" else train
    n, mean = (~train.isnan()).sum(0), train.nanmean(0).nan_to_num(0.0)
    squares = (train - mean).square().nansum(0)
    variance = (squares + (squares / n.clamp(min=1)).median().clamp(min=1e-12)) / (n + 1)
    if kind == "binary":
        return dist.Bernoulli((mean * n + 0.5) / (n + 1), validate_args=False)
    if kind == "count":
        mean = (mean * n + 0.5) / (n + 1)
        total = (mean.square() / (variance - mean).clamp(min=1e-12)).clamp(max=1e6)  # Poisson in the limit
        return dist.NegativeBinomial(total, logits=(mean / total).log(), validate_args=False)
    return (dist.LogNormal if kind == "positive" else dist.Normal)(mean, variance.sqrt(), validate_args=False)


def _frequencies(train: Tensor, size: int) -> Tensor:
    """Log frequencies of the categories, each with half an observation added."""
    counts = torch.bincount(train[train.isfinite()].long(), minlength=size) + 0.5
    return (counts / counts.sum()).log()
