"""Data sets, their splits, and the binarization of grey levels."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..checks import InputError
from .rows import Rows
from .schema import Schema

if TYPE_CHECKING:
    import pandas as pd

Domain = Literal["binary", "unit", "real", "counts", "categories", "table"]
Binarize = Literal["threshold", "static", "dynamic"]

FEW = 1e8  # bytes up to which selected rows on disk are read into memory


@dataclass(frozen=True, repr=False, eq=False)
class Split:
    """Examples ``x`` of shape ``(N, *event)``, in memory or on disk, with optional labels and inputs of the encoder.

    >>> import pyroae as pa
    >>> pa.data.load("digits").test
    Split(360 of (64,) numbers, unit)
    >>> pa.data.load("digits").test[:100]
    Split(100 of (64,) numbers, unit)
    """

    x: Tensor | Rows
    labels: Tensor | None
    domain: Domain
    dynamic: bool = False  # binarized again whenever it is drawn
    schema: Schema = field(default_factory=Schema)
    inputs: "Split | None" = None  # what the encoder sees instead of x, a row for each of x

    def __post_init__(self):
        if isinstance(self.x, Tensor):
            object.__setattr__(self, "x", self.x.contiguous())  # a row's numbers side by side: batches are rows

    def draw(self, x: Tensor) -> Tensor:
        """A batch as the model sees it: with dynamic binarization a draw from Bernoulli(x), otherwise x."""
        return torch.bernoulli(x) if self.dynamic else x

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one x."""
        return self.x.shape[1:]

    @property
    def classes(self) -> Tensor | None:
        """The labels ``(N,)`` if they are classes, not covariates."""
        return self.labels if self.labels is not None and self.labels.dim() == 1 and not self.labels.is_floating_point() else None

    def frame(self) -> "pd.DataFrame":
        """x as a DataFrame in the data's units, with column names and categories."""
        return self.schema.frame(self.x[:])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> "Split":
        """A subset, ``split[:100]`` or by row numbers; rows on disk are sorted, and read into memory if they are few."""
        if not isinstance(rows, (slice, Tensor)):
            raise TypeError(f"Split: expected a slice, split[:100], or a tensor of row numbers, got {rows!r}; split.x[0] is one example")
        if self.on_disk:
            rows = torch.arange(len(self))[rows].sort().values
        x = self.x.chosen(rows) if isinstance(self.x, Rows) else self.x[rows]
        return replace(
            self,
            x=x[:] if isinstance(x, Rows) and x.nbytes <= FEW else x,
            labels=None if self.labels is None else self.labels[rows],
            inputs=None if self.inputs is None else self.inputs[rows],
        )

    def with_inputs(self, inputs: "Split") -> "Split":
        """The same examples with what the encoder sees instead of x; ``ValueError`` for another number of rows."""
        if len(inputs) != len(self):
            raise InputError(f"data: expected inputs with a row for each of {len(self):,} rows of x, got {len(inputs):,}")
        return replace(self, inputs=inputs, schema=self.schema.replace(inputs=inputs.schema))

    @property
    def on_disk(self) -> bool:
        """Whether some rows are on disk."""
        return isinstance(self.x, Rows) or (self.inputs is not None and self.inputs.on_disk)

    def __repr__(self) -> str:
        seen = "" if self.inputs is None else f", from inputs of {tuple(self.inputs.event_shape)} numbers"
        binarized = ", binarized afresh" if self.dynamic else ""
        return f"Split({len(self):,} of {tuple(self.event_shape)} numbers, {self.domain}{binarized}{seen})"


@dataclass(frozen=True, eq=False)
class DataSet:
    """The splits of a data set.

    >>> import pyroae as pa
    >>> pa.data.load("digits").domain
    'unit'
    """

    name: str
    train: Split
    test: Split
    validation: Split | None = None
    table: str = ""  # for a table: the kind of each column, as text
    note: str = ""  # a remark about the splits

    @property
    def domain(self) -> Domain:
        """The values that the entries of x take."""
        return self.train.domain

    @property
    def schema(self) -> Schema:
        """The columns of x, or its image shape."""
        return self.train.schema

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """``(C, H, W)`` or ``(H, W)`` if x is an image."""
        return self.schema.image_shape

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one x."""
        return self.train.event_shape

    @property
    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        return {name: split for name in ("train", "validation", "test") if (split := getattr(self, name)) is not None}

    def map(self, change) -> "DataSet":
        """The same data set with a function applied to every split."""
        return replace(self, **{name: change(split) for name, split in self.splits.items()})

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        seen = "" if self.train.inputs is None else f", from inputs of {tuple(self.train.inputs.event_shape)} numbers"
        note = f"; {self.note}" if self.note else ""
        return f"DataSet({self.name!r}: {sizes}; {tuple(self.event_shape)} numbers each, {self.domain}{seen}{note})"


def hold_out(split: Split, share: float) -> tuple[Split, Split]:
    """Divide a split at random, with a fixed seed."""
    held_out = max(1, round(share * len(split)))
    if held_out >= len(split):
        raise InputError(f"data: {len(split)} rows are too few to hold out a fraction of {share}")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return split[order[held_out:]], split[order[:held_out]]


def _threshold(x: Tensor) -> Tensor:
    return (x > 0.5).float()


def binarized(data: DataSet, how: Binarize) -> DataSet:
    """Grey levels as 0 or 1; ``ValueError`` for data that are not grey levels."""
    if how not in ("threshold", "static", "dynamic"):
        raise InputError(f"data: expected binarize as 'threshold', 'static' or 'dynamic', got {how!r}")
    if data.domain != "unit":
        raise InputError(
            f"data: binarize={how!r} needs grey levels from 0 to 1, but {data.name} is {data.domain}; "
            f"leave binarize out or rescale the data"
        )
    generator = torch.Generator().manual_seed(0)

    def fixed(split: Split) -> Split:
        if isinstance(split.x, Rows):
            if how != "threshold":
                raise InputError(
                    f"data: {data.name} is too large to be binarized once and kept; use binarize='threshold', "
                    "or 'dynamic' and hold out fewer rows"
                )
            return replace(split, x=split.x.then(_threshold), domain="binary")
        x = _threshold(split.x) if how == "threshold" else torch.bernoulli(split.x, generator=generator)
        return replace(split, x=x, domain="binary")

    train = replace(data.train, domain="binary", dynamic=True) if how == "dynamic" else fixed(data.train)
    return replace(data, train=train, test=fixed(data.test), validation=data.validation and fixed(data.validation))
