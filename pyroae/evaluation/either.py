"""The guide for some examples of a block, a distribution fitted to p(z|x) for the others."""

import contextlib
from collections.abc import Iterator

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine import runtime
from torch import Tensor
from torch.distributions import constraints

from .density import Density
from .splitt import SplitStudentT, standard_noise


class Either(TorchDistribution):
    """u from the guide, for some examples from a fitted distribution.

    Noise is drawn for all examples, so that the draws of one do not depend on which others are fitted.

    Args:
        density: of all examples of the block.
        rows: indices of the fitted examples.
        fitted: their distribution.
    """

    arg_constraints = {}
    support = constraints.real_vector

    def __init__(self, density: Density, rows: Tensor, fitted: SplitStudentT):
        self.density, self.rows, self.fitted = density, rows, fitted
        super().__init__(torch.Size([density.n]), torch.Size([density.size]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        """Itself: it has a plate of its own size."""
        return self if torch.Size(batch_shape) == self.batch_shape else super().expand(batch_shape, _instance)

    def sample(self, sample_shape=torch.Size()) -> Tensor:
        """Draws ``(*sample_shape, B, size)``."""
        return self.sample_and_log_prob(sample_shape)[0]

    def sample_and_log_prob(self, sample_shape=torch.Size()) -> tuple[Tensor, Tensor]:
        """Draws, and their log-density ``(*sample_shape, B)``, for less than both apart."""
        k, n = torch.Size(sample_shape).numel(), self.density.n
        noise = standard_noise(k, self.fitted.loc[:, 0].new_empty(n, self.density.size), self.fitted.df)
        if len(self.rows) < n:
            noise = tuple(each[:, self.rows] for each in noise)
        u, log_q = self.fitted.placed_with_log_prob(*noise)
        log_q = log_q.double()
        if len(self.rows) < n:
            with _outside_handlers():
                every = self.density.draw(k)
                log_every = self.density.log_guide(every)
            every[:, self.rows], log_every[:, self.rows] = u, log_q
            u, log_q = every, log_every
        return u.reshape(*sample_shape, *u.shape[1:]), log_q.reshape(*sample_shape, n)

    def log_prob(self, value: Tensor) -> Tensor:
        """``(*sample_shape, B)``."""
        u = value.reshape(-1, *value.shape[-2:])
        log_q = self.fitted.log_prob(u[:, self.rows]).double()
        if len(self.rows) < self.density.n:
            with _outside_handlers():
                every = self.density.log_guide(u)
            every[:, self.rows] = log_q
            log_q = every
        return log_q.reshape(value.shape[:-1])


@contextlib.contextmanager
def _outside_handlers() -> Iterator[None]:
    """Run a program as if no handler and no plate were around it."""
    handlers, plates = runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack
    runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack = [], []
    try:
        yield
    finally:
        runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack = handlers, plates
