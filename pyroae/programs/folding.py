"""Distributions and values over particles, from batches that repeat every example or from several runs."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Distribution, Independent


def padded(value: Tensor, dims: int) -> Tensor:
    """Add dimensions of size 1 on the left, up to ``dims`` dimensions."""
    return value.reshape((1,) * (dims - value.dim()) + value.shape)


@dataclass(frozen=True)
class Fold:
    """Map between shapes ``(*plates, *event)`` with ``k * n`` rows at plate ``dim`` and ``(k, *plates, *event)`` with ``n`` rows."""

    k: int
    n: int
    dim: int
    nesting: int  # number of plate dimensions, maximum over sites
    batch_dim: int  # number of batch dimensions of this site

    def shape(self, batch_shape: torch.Size) -> torch.Size:
        """The unfolded batch shape."""
        plates = [1] * (self.nesting - len(batch_shape)) + list(batch_shape)
        repeated = plates[self.dim] == self.k * self.n
        plates[self.dim] = self.n if repeated else plates[self.dim]
        return torch.Size([self.k if repeated else 1, *plates])

    def unfold(self, value: Tensor, event_dim: int) -> Tensor:
        """An unfolded value; a value shared by all rows is shared by all particles."""
        value, at = padded(value, self.nesting + event_dim), self.nesting + self.dim
        if value.shape[at] != self.k * self.n:
            return value[None]
        return value.unflatten(at, (self.k, self.n)).movedim(at, 0)

    def fold(self, value: Tensor, event_dim: int) -> Tensor:
        """The inverse of ``unfold``."""
        value, at = padded(value, self.nesting + 1 + event_dim), self.nesting + self.dim
        _, *shape = value.shape
        shape[at] = self.n
        value = value.expand(self.k, *shape).movedim(0, at).flatten(at, at + 1)
        return value.reshape(value.shape[self.nesting - self.batch_dim :])


class Unfolded(TorchDistribution):
    """View a distribution over ``k * n`` rows as ``k`` particles of ``n`` rows."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, base: TorchDistribution, fold: Fold):
        self.base, self.folding = base, fold
        self.drawn: tuple[Tensor | None, Tensor | None] = (None, None)  # the last draw, unfolded and folded
        super().__init__(fold.shape(base.batch_shape), base.event_shape, validate_args=False)

    has_rsample = property(lambda self: self.base.has_rsample)
    support = property(lambda self: self.base.support)
    mean = property(lambda self: self.folding.unfold(self.base.mean, self.event_dim))
    variance = property(lambda self: self.folding.unfold(self.base.variance, self.event_dim))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """Reparameterised draw."""
        return self._draw(self.base.rsample, sample_shape)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """A draw."""
        return self._draw(self.base.sample, sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, ``(k, *plates)``; passes on the last draw as drawn, because flows cache its inverse."""
        folded = self.drawn[1] if value is self.drawn[0] else self.folding.fold(value, self.event_dim)
        return self.folding.unfold(self.base.log_prob(folded), 0)

    def _draw(self, draw, sample_shape: torch.Size) -> Tensor:
        if len(sample_shape):
            raise NotImplementedError("Unfolded: expected an empty sample_shape")
        folded = draw()
        self.drawn = self.folding.unfold(folded, self.event_dim), folded
        return self.drawn[0]


class Stacked(TorchDistribution):
    """The distributions of one site in ``k`` runs, stacked over ``k`` particles."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, runs: list[TorchDistribution], drawn: list[Tensor], nesting: int):
        self.runs, self.nesting = runs, nesting
        plates = runs[0].batch_shape
        shape = torch.Size([len(runs), *[1] * (nesting - len(plates)), *plates])
        super().__init__(shape, runs[0].event_shape, validate_args=False)
        self.drawn = self._stack(drawn, self.event_dim), drawn

    has_rsample = property(lambda self: self.runs[0].has_rsample)
    support = property(lambda self: self.runs[0].support)
    mean = property(lambda self: self._stack([fn.mean for fn in self.runs], self.event_dim))
    variance = property(lambda self: self._stack([fn.variance for fn in self.runs], self.event_dim))

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """One reparameterised draw per run."""
        return self._stack([fn.rsample(sample_shape) for fn in self.runs], self.event_dim)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        """One draw per run."""
        return self._stack([fn.sample(sample_shape) for fn in self.runs], self.event_dim)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, ``(k, *plates)``; passes on the last draw as drawn, because flows cache its inverse."""
        values = self.drawn[1] if value is self.drawn[0] else self._unstack(value)
        return self._stack([fn.log_prob(value) for fn, value in zip(self.runs, values)], 0)

    def _unstack(self, value: Tensor) -> list[Tensor]:
        value = padded(value, self.nesting + 1 + self.event_dim)
        value = value.expand(len(self.runs), *value.shape[1:])
        return [one.reshape(one.shape[self.nesting - len(fn.batch_shape) :]) for one, fn in zip(value, self.runs)]

    def _stack(self, values: list[Tensor], event_dim: int) -> Tensor:
        return torch.stack([padded(value, self.nesting + event_dim) for value in values])


def unfolded(fn: TorchDistribution, fold: Fold) -> TorchDistribution:
    """An unfolded distribution: of the same family if each parameter is a scalar per row, otherwise wrapped."""
    if isinstance(fn, Independent):
        ndims = fn.reinterpreted_batch_ndims
        inner = replace(fold, dim=fold.dim - ndims, nesting=fold.nesting + ndims, batch_dim=fold.batch_dim + ndims)
        base = unfolded(fn.base_dist, inner)
        return Unfolded(fn, fold) if isinstance(base, Unfolded) else base.to_event(ndims)
    return _same_family([fn], lambda values: fold.unfold(values[0], 0)) or Unfolded(fn, fold)


def stacked(runs: list[TorchDistribution], drawn: list[Tensor], nesting: int) -> tuple[TorchDistribution, Tensor]:
    """Distributions and draws of one site in several runs, stacked over particles; same family if possible, otherwise wrapped."""
    if all(isinstance(fn, Independent) for fn in runs):
        ndims = runs[0].reinterpreted_batch_ndims
        base, value = stacked([fn.base_dist for fn in runs], drawn, nesting + ndims)
        if not isinstance(base, Stacked):
            return base.to_event(ndims), value
    else:
        base = _same_family(runs, lambda values: torch.stack([padded(value, nesting) for value in values]))
        if base is not None:
            return base, torch.stack([padded(value, nesting) for value in drawn])
    wrapped = Stacked(runs, drawn, nesting)
    return wrapped, wrapped.drawn[0]


def _same_family(fns: list[TorchDistribution], join: Callable[[list[Tensor]], Tensor]) -> TorchDistribution | None:
    """Distribution of the same family as ``fns`` with joined parameters; ``None`` unless each parameter is a scalar per row."""
    first = fns[0]
    names = [name for name, value in vars(first).items() if isinstance(value, (Tensor, Distribution))]
    is_library = type(first).__module__.startswith(("torch.distributions", "pyro.distributions"))
    if first.event_shape or not is_library or not names or not set(names) <= set(first.arg_constraints):
        return None
    params = {name: [vars(fn).get(name) for fn in fns] for name in names}
    if any(type(fn) is not type(first) for fn in fns):
        return None
    if any(not isinstance(value, Tensor) or value.shape != first.batch_shape for values in params.values() for value in values):
        return None
    new, joined = copy.copy(first), {name: join(values) for name, values in params.items()}
    new.__dict__.update(joined, _batch_shape=next(iter(joined.values())).shape)
    return new
