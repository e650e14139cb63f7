"""Results as DataFrames, with the index of the DataFrame that was given."""

from typing import Any

import pandas as pd
from torch import Tensor

from .schema import Schema


def is_frame(data: Any) -> bool:
    """Whether data are a DataFrame of pandas or polars.

    >>> is_frame(pd.DataFrame({"age": [31.0]})), is_frame([31.0])
    (True, False)
    """
    return isinstance(data, pd.DataFrame) or (hasattr(data, "to_pandas") and hasattr(data, "columns"))


def of_rows(x: Tensor, given: Any, schema: Schema | None) -> Tensor | pd.DataFrame:
    """x ``(N, columns)`` as a DataFrame in the data's units if ``given`` is a DataFrame, otherwise unchanged.

    >>> from pyroae.data import Column
    >>> import torch
    >>> people = pd.DataFrame({"age": [31.0]}, index=["Ann"])
    >>> of_rows(torch.tensor([[30.0]]), people, Schema([Column("age", "real")])).loc["Ann", "age"].item()
    30.0
    """
    if not is_frame(given) or schema is None or schema.columns is None:
        return x
    return schema.frame(x).set_index(_index(given))


def of_draws(x: Tensor, given: Any, schema: Schema | None) -> Tensor | pd.DataFrame:
    """x ``(draws, N, columns)`` likewise, with an index of draw and row."""
    if not is_frame(given) or schema is None or schema.columns is None:
        return x
    index = _index(given)
    return pd.concat({draw: schema.frame(rows).set_index(index) for draw, rows in enumerate(x)}, names=["draw", index.name or "row"])


def of_codes(z: Tensor, given: Any) -> Tensor | pd.DataFrame:
    """z ``(N, D)`` likewise, with columns z1, z2, ..."""
    return pd.DataFrame(z.numpy(), index=_index(given), columns=[f"z{i + 1}" for i in range(z.shape[1])]) if is_frame(given) else z


def _index(given: Any) -> pd.Index:
    return given.index if isinstance(given, pd.DataFrame) else pd.RangeIndex(len(given))
