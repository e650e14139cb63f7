"""Priors on weights: the MAP view of weight decay and of an L1 penalty on them."""

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from .. import programs
from ..checks import whole_number
from ..programs import Program
from ..training.batches import check_data, takes_labels


def with_weight_prior(
    model: Any, prior: dist.Distribution, num_data: int, guide: Program | None = None
) -> tuple["WeighedModel", "WeighedGuide"]:
    r"""The same (model, guide), with a prior on the networks' weights, which the guide sets to the points they are.

    Every parameter called ``weight`` with two or more dimensions (the matrices of linear layers, the kernels of
    convolutions) becomes a sample site: ``prior`` in the model, a ``Delta`` in the guide. So any ELBO's loss is
    :math:`-\log p(x, z | w) - \frac{B}{N} \log p(w)` for a batch of B of N data: over an epoch the prior counts once,
    not once a batch. A Normal prior of scale s is weight decay of :math:`B / (N s^2)` beside the batch's summed loss,
    a Laplace one of scale b is an L1 penalty of :math:`B / (N b)`.

    The weights stay where they are: training these programs trains the networks given, and scores of the original
    pair are of the trained one.

    Args:
        model: an Autoencoder, or a Pyro model that is a module, with ``guide``.
        prior: of one weight, such as ``pyro.distributions.Normal(0., 1.)``.
        num_data: N, the number of examples in the training set.
        guide: the model's guide, a module, where ``model`` is not an Autoencoder.

    Returns:
        Model and guide for ``fit(model, data, guide=guide)``, for ``pyro.infer.SVI``, and for any ELBO.

    Raises:
        ValueError: programs that are no modules, no weights, or a prior over more than one number.

    >>> import pyroae as pa
    >>> ae = pa.recipes.autoencoder(pa.data.load("digits"))
    >>> model, guide = with_weight_prior(ae, dist.Laplace(0.0, 0.1), num_data=1437)
    >>> sorted(programs.sites(poutine.trace(guide).get_trace(torch.zeros(5, 64)), observed=False))[0]
    'guide.encoder.0.weight'
    """
    whole_number("with_weight_prior", num_data=num_data)
    both = programs.pair(model, guide)
    if len(programs.modules(*both)) < 2:
        raise ValueError("with_weight_prior: expected a model and a guide that are modules, so that their weights can be found")
    if not isinstance(prior, dist.Distribution) or prior.batch_shape or prior.event_shape or not prior.arg_constraints:
        raise ValueError(f"with_weight_prior: expected the prior of one weight, such as Normal(0., 1.), got {prior!r}")
    made = WeighedModel(*both, prior, num_data), WeighedGuide(*both, prior, num_data)
    made[0].objective = getattr(model, "objective", None)
    if not made[0].weights():
        raise ValueError("with_weight_prior: the programs have no parameter called weight with two or more dimensions")
    return made


_INFER: Any = {"is_weight": True}  # no code, so that Tempered leaves it alone


class _Weighed(nn.Module):
    """A program that samples the weights of both, once for a data set, before it runs."""

    def __init__(self, model: nn.Module, guide: nn.Module, prior: dist.Distribution, num_data: int):
        super().__init__()
        self.pair = nn.ModuleList([model, guide])
        self.family, self.num_data = type(prior), num_data
        for name in prior.arg_constraints:  # as buffers, so that they move to the weights' device
            self.register_buffer(name, torch.as_tensor(getattr(prior, name)).detach().clone(), persistent=False)
        self.names = list(prior.arg_constraints)

    def weights(self) -> dict[str, Tensor]:
        """Each weight once, however many layers share it, by where it is."""
        roles = zip(("model", "guide"), self.pair)
        both = {id(p): (f"{role}.{name}", p) for role, module in roles for name, p in module.named_parameters()}
        return {name: p for name, p in both.values() if name.endswith(".weight") and p.dim() > 1}

    def _draw(self, x: Tensor):
        with poutine.scale(scale=len(x) / self.num_data):
            for name, weight in self.weights().items():
                pyro.sample(name, self._weight(weight), infer=_INFER)

    def _weight(self, weight: Tensor) -> dist.Distribution:
        raise NotImplementedError


class WeighedModel(_Weighed):
    """p(w) p(z) p(x|z, w), at the weights that the guide's points are."""

    objective: ELBO | None = None  # the Autoencoder's own

    def forward(self, x: Tensor, *args, **kwargs) -> Any:
        """Sample the weights from their prior, then run the model."""
        self._draw(x)
        return self.pair[0](x, *args, **kwargs)

    def check_data(self, *args: Tensor):
        """As the model given does."""
        check_data(self.pair[0], args)

    @property
    def takes_labels(self) -> bool:
        """As the model given."""
        return takes_labels(self.pair[0])

    def _weight(self, weight):
        prior = self.family(**{name: getattr(self, name) for name in self.names})
        return prior.expand(weight.shape).to_event(weight.dim())


class WeighedGuide(_Weighed):
    """q(z|x), and the weights at the points they are."""

    def forward(self, x: Tensor, *args, **kwargs) -> Any:
        """Sample the weights, then run the guide."""
        self._draw(x)
        return self.pair[1](x, *args, **kwargs)

    def _weight(self, weight):
        return dist.Delta(weight, event_dim=weight.dim())
