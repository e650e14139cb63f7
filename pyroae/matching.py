"""The likelihood of data: chosen by their domain, or by the kinds of a table's columns."""

import os
from collections.abc import Sequence
from typing import Any

import torch

from . import data as datasets
from .data import Column, DataSet, Split, inputs
from .model.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    LibrarySize,
    Likelihood,
    LogNormal,
    Missing,
    NegativeBinomial,
    Normal,
    Product,
    Standardised,
)
from .model.likelihoods.combined import named

Data = DataSet | Split | Any  # or what ``pa.data.load`` takes: names, files, arrays, tensors, DataFrames, Datasets, DataLoaders
_GENES = 64  # least number of columns of counts for which a row's total is modelled
_KINDS = {"binary": "binary", "unit": "unit", "real": "real", "counts": "count", "categories": "category"}


def likelihood_of(data: Data, squared: bool = False) -> Likelihood:
    """A likelihood for data: chosen by their domain, or a ``Product`` over a table's columns; ``Missing`` if values may be missing.

    Real columns are ``Standardised`` with the mean and scale of the training data; columns of the same kind share a part;
    64 or more columns of counts, such as of genes, have a ``LibrarySize``.

    Args:
        data: as for ``vae``.
        squared: whether numbers have squared error, a Normal of scale 1 (in standard deviations for standardised columns).

    >>> import pandas as pd
    >>> flowers = pd.DataFrame({"petal": [1.4, 4.7, 1.3, 4.5] * 5, "species": ["setosa", "versicolor"] * 10})
    >>> likelihood_of(flowers).names
    ['petal', 'species']
    """
    data = split_of(data)
    x, columns = data.x[: inputs.rows_to_look_at(data.x)], data.schema.columns
    if columns is None:
        missing, size = bool(x.isnan().any()), _categories(x) if data.domain == "categories" else 0
        likelihood = _of_kind(_KINDS[data.domain], tuple(data.event_shape), squared, missing, size)
    else:
        groups = _grouped(columns, binarized=data.domain == "binary")
        parts = {
            named([columns[i].name for i in indices]): _of_kind(kind, (len(indices),), squared, missing, size)
            for (kind, size, missing), indices in groups.items()
        }
        order = [i for indices in groups.values() for i in indices]
        likelihood = Product(parts, None if order == sorted(order) else order) if len(parts) > 1 else next(iter(parts.values()))
    likelihood.measure(x)
    return likelihood


def inputs_of(data: Data) -> Likelihood | None:
    """What the encoder sees instead of x, for data with inputs; otherwise ``None``.

    >>> import pyroae as pa
    >>> inputs_of(pa.data.load(torch.rand(20, 16), inputs=torch.rand(20, 3) - 0.5))
    Standardised(Normal(event_shape=(3,), scale=1.0))
    """
    data = split_of(data)
    return None if data.inputs is None else likelihood_of(data.inputs, squared=True)


def _grouped(columns: tuple[Column, ...], binarized: bool) -> dict[tuple, list[int]]:
    """Indices of the columns by kind of distribution; binarized grey levels are binary."""
    groups: dict[tuple, list[int]] = {}
    for i, column in enumerate(columns):
        kind = "binary" if binarized and column.kind == "unit" else column.kind
        groups.setdefault((kind, column.size, column.missing), []).append(i)
    return groups


def _categories(x: torch.Tensor) -> int:
    return int(x[~x.isnan()].max()) + 1


def _of_kind(kind: str, shape: tuple[int, ...], squared: bool, missing: bool, size: int = 0) -> Likelihood:
    scale = 1.0 if squared else "per_dimension"
    likelihood = {
        "binary": lambda: Bernoulli(shape),
        "unit": lambda: Normal(shape, scale=1.0) if squared else ContinuousBernoulli(shape),
        "real": lambda: Standardised(Normal(shape, scale=scale)),
        "positive": lambda: Standardised(LogNormal(shape, scale=scale)),
        "count": lambda: (LibrarySize if _many(shape) else Standardised)(NegativeBinomial(shape, total_count="per_dimension")),
        "category": lambda: Categorical(shape, categories=size),
    }[kind]()
    return Missing(likelihood) if missing else likelihood


def _many(shape: Sequence[int]) -> bool:
    """Whether there are enough columns of counts to model a row's total."""
    return len(shape) == 1 and shape[0] >= _GENES


def split_of(data: Data) -> Split:
    """The training split of a data set, a named one or a file; all rows of other data that ``pa.data.load`` takes."""
    if isinstance(data, (str, os.PathLike)):
        data = datasets.load(data)
    if isinstance(data, DataSet):
        return data.train
    return data if isinstance(data, Split) else datasets.whole(data)
