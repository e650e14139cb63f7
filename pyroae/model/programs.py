"""``Model`` and ``Guide``: the two Pyro programs of an Autoencoder."""

import copy

import pyro
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..data.schema import Schema
from . import conditions, networks
from .conditions import Condition
from .corruption import Corruption
from .likelihoods import Likelihood
from .posteriors import Posterior
from .priors import Prior


class Model(PyroModule):
    """The generative program p(z) p(x|z): sites ``z`` and ``x`` in the plate ``data``."""

    examples_are_independent = True  # and networks accept further batch dimensions: scoring may split the data into blocks

    def __init__(
        self,
        prior: Prior,
        likelihood: Likelihood,
        decoder: nn.Module,
        condition: Condition | None,
        schema: Schema | None = None,
        inputs: Likelihood | None = None,
    ):
        super().__init__()
        self.prior, self.likelihood, self.decoder, self.condition, self.schema = prior, likelihood, decoder, condition, schema
        self.inputs = inputs

    def forward(self, x: Tensor | None = None, y: Tensor | None = None, u: Tensor | None = None, *, n: int | None = None) -> Tensor:
        """Observe ``x`` of shape ``(B, *event)``, or draw ``n`` examples if it is ``None``; returns x.

        ``y`` is for the condition, ``u`` the encoder's inputs, on which p(x) does not depend; without a condition u follows x.
        """
        if x is not None:
            self.likelihood.check_shape(x)
        y, u = self.named(y, u)
        lengths = [len(column) for column in (x, y, u) if column is not None]
        n = lengths[0] if lengths else n or 1
        c = conditions.encode(self.condition, y, n)
        with pyro.plate("data", n):
            p = self.conditional(self.prior.draw(c), c)
            if self.training and x is not None:
                self.likelihood.track(x, p)
            return pyro.sample("x", p, obs=x)

    def conditional(self, z: Tensor, c: Tensor | None = None) -> dist.Distribution:
        """p(x|z) for the decoder's input ``(..., *code_shape)`` and the condition's vectors."""
        return self.likelihood(networks.apply(self.decoder, z, len(self.prior.code_shape), conditions.for_networks(self.condition, c)))

    def frozen(self) -> "Model":
        """The same program while no parameter changes; what does not depend on x or z is computed now, see ``Prior.frozen``."""
        prior = self.prior.frozen()
        if prior is self.prior:
            return self
        new = copy.copy(self)
        new._modules = self._modules | {"prior": prior.train(self.training)}
        return new

    @property
    def takes_labels(self) -> bool:
        """Whether it is called with labels or covariates y too."""
        return self.condition is not None

    @property
    def takes_inputs(self) -> bool:
        """Whether it is called with the encoder's inputs u too, at the end."""
        return self.inputs is not None

    def named(self, y: Tensor | None, u: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """y and u of arguments in their order: of a model without a condition, the second one is u."""
        return (None, y) if self.takes_inputs and not self.takes_labels and u is None else (y, u)

    def check_data(self, x: Tensor, y: Tensor | None = None, u: Tensor | None = None):
        """``ValueError`` unless x and u are in the supports of their likelihoods, and y is valid for the condition."""
        self.likelihood.check(x)
        y, u = self.named(y, u)
        if self.inputs is not None:
            try:
                self.inputs.check(u)
            except ValueError as error:
                raise ValueError(f"inputs: {error}") from None
        if conditions.encode(self.condition, y, len(x)) is not None:
            self.condition.check(y)


class Guide(PyroModule):
    """The inference program q(z|x): site ``z`` in the plate ``data``. In training mode x is corrupted first.

    With ``inputs`` it is q(z|u) instead, and u, the last argument, takes the place of x.
    """

    examples_are_independent = True

    def __init__(
        self,
        posterior: Posterior,
        encoder: nn.Module,
        corruption: Corruption | None,
        condition: Condition | None,
        seen: Likelihood,
        takes_inputs: bool = False,
    ):
        super().__init__()
        self.posterior, self.encoder, self.corruption, self.condition = posterior, encoder, corruption, condition
        self.event_shape, self.takes_inputs = torch.Size(seen.event_shape or ()), takes_inputs
        self.x_dim, self.allows_missing, self.mask = len(seen.event_shape), seen.allows_missing, seen.mask
        self.preprocess = seen.preprocess

    @property
    def encoded(self) -> int:
        """The position of the encoder's input among the arguments."""
        return -1 if self.takes_inputs else 0

    def forward(self, x: Tensor, y: Tensor | None = None, u: Tensor | None = None, *, n: int | None = None) -> Tensor:
        """Sample z given ``x`` of shape ``(B, *event)``, ``y`` for the condition and ``u`` for ``inputs``, as in the model."""
        target = x
        if self.takes_inputs:
            y, u = (None, y) if self.condition is None and u is None else (y, u)
            if u is None:
                raise ValueError("this model's encoder sees inputs u instead of x, which are its last argument; got none")
            x = u
        if self.training and self.corruption is not None:
            x = self.corruption(x)
        c = conditions.encode(self.condition, y, len(x))
        with pyro.plate("data", len(x)):
            return self.posterior.draw(self.params(x, c), c, target)

    def conditional(self, x: Tensor, c: Tensor | None = None) -> dist.Distribution:
        """q(z|x) for ``x`` of shape ``(..., *event)``, without corruption."""
        return self.posterior(self.params(x, c))

    def params(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The encoder's output, ``(..., size)``, for x preprocessed by the likelihood; missing entries are 0, ``mask`` adds their mask."""
        mask = ~x.isnan() if self.mask else None
        x = self.preprocess(x)
        if self.allows_missing:
            x = x.masked_fill(x.isnan(), 0.0)
        if mask is not None:
            x = torch.cat([x, mask.to(x.dtype)], -self.x_dim)
        return networks.apply(self.encoder, x, self.x_dim, conditions.for_networks(self.condition, c))
