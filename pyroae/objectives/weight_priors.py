"""Priors on weights: weight decay and L1 penalties as MAP estimation."""

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
from ..training.batches import check_data, takes_inputs, takes_labels


def with_weight_prior(
    model: Any, prior: dist.Distribution, num_data: int, guide: Program | None = None
) -> tuple["WeightPriorModel", "WeightPriorGuide"]:
    r"""The (model, guide) with a prior on the networks' weights; the guide is a ``Delta`` at their current values.

    Every parameter called ``weight`` with two or more dimensions (matrices of linear layers, kernels of convolutions)
    becomes a sample site: ``prior`` in the model, a ``Delta`` in the guide. The loss of any ELBO becomes
    :math:`-\log p(x, z | w) - \frac{B}{N} \log p(w)` for a batch of B of N examples: the prior counts once per epoch. A
    Normal prior of scale s is weight decay of :math:`B / (N s^2)` for the batch's summed loss, a Laplace prior of scale b
    is an L1 penalty of :math:`B / (N b)`.

    The parameters are not copied: training the returned pair trains the original one.

    Args:
        model: an Autoencoder, or a Pyro model that is a module, with ``guide``.
        prior: prior of a scalar weight, such as ``pyro.distributions.Normal(0., 1.)``.
        num_data: N, the number of examples in the training set.
        guide: the model's guide, a module, unless ``model`` is an Autoencoder.

    Returns:
        Model and guide, for ``fit(model, data, guide=guide)``, ``pyro.infer.SVI`` and any ELBO.

    Raises:
        ValueError: programs that are not modules, no weights, or a prior that is not over a scalar.

    >>> import pyroae as pa
    >>> ae = pa.recipes.autoencoder(pa.data.load("digits"))
    >>> model, guide = with_weight_prior(ae, dist.Laplace(0.0, 0.1), num_data=1437)
    >>> sorted(programs.sites(poutine.trace(guide).get_trace(torch.zeros(5, 64)), observed=False))[0]
    'guide.encoder.0.weight'
    """
    whole_number("with_weight_prior", num_data=num_data)
    pair = programs.pair(model, guide)
    if len(programs.modules(*pair)) < 2:
        raise ValueError("with_weight_prior: expected a model and a guide that are modules, so that their weights can be found")
    if not isinstance(prior, dist.Distribution) or prior.batch_shape or prior.event_shape or not prior.arg_constraints:
        raise ValueError(f"with_weight_prior: expected the prior of one weight, such as Normal(0., 1.), got {prior!r}")
    new_pair = WeightPriorModel(*pair, prior, num_data), WeightPriorGuide(*pair, prior, num_data)
    new_pair[0].objective = getattr(model, "objective", None)
    if not new_pair[0].weights():
        raise ValueError("with_weight_prior: the programs have no parameter called weight with two or more dimensions")
    return new_pair


_INFER: Any = {"is_weight": True}  # excluded from the KL by Tempered


class _WithWeightPrior(nn.Module):
    """A program that first samples the weights of model and guide."""

    def __init__(self, model: nn.Module, guide: nn.Module, prior: dist.Distribution, num_data: int):
        super().__init__()
        self.pair = nn.ModuleList([model, guide])
        self.family, self.num_data = type(prior), num_data
        for name in prior.arg_constraints:  # buffers, so that they move to the weights' device
            self.register_buffer(name, torch.as_tensor(getattr(prior, name)).detach().clone(), persistent=False)
        self.param_names = list(prior.arg_constraints)

    def weights(self) -> dict[str, Tensor]:
        """Weights by qualified name, without duplicates."""
        roles = zip(("model", "guide"), self.pair)
        by_id = {id(p): (f"{role}.{name}", p) for role, module in roles for name, p in module.named_parameters()}
        return {name: p for name, p in by_id.values() if name.endswith(".weight") and p.dim() > 1}

    def _sample_weights(self, x: Tensor):
        with poutine.scale(scale=len(x) / self.num_data):
            for name, weight in self.weights().items():
                pyro.sample(name, self._distribution(weight), infer=_INFER)

    def _distribution(self, weight: Tensor) -> dist.Distribution:
        raise NotImplementedError


class WeightPriorModel(_WithWeightPrior):
    """p(w) p(z) p(x|z, w)."""

    objective: ELBO | None = None  # the Autoencoder's own

    def forward(self, x: Tensor, *args, **kwargs) -> Any:
        """Sample the weights from their prior, then run the model."""
        self._sample_weights(x)
        return self.pair[0](x, *args, **kwargs)

    def check_data(self, *args: Tensor):
        """Check data with the wrapped model."""
        check_data(self.pair[0], args)

    @property
    def takes_labels(self) -> bool:
        """Whether the wrapped model takes labels."""
        return takes_labels(self.pair[0])

    @property
    def takes_inputs(self) -> bool:
        """Whether the wrapped model's encoder sees inputs instead of x."""
        return takes_inputs(self.pair[0])

    def _distribution(self, weight):
        prior = self.family(**{name: getattr(self, name) for name in self.param_names})
        return prior.expand(weight.shape).to_event(weight.dim())


class WeightPriorGuide(_WithWeightPrior):
    """q(z|x) and a ``Delta`` at the weights."""

    def forward(self, x: Tensor, *args, **kwargs) -> Any:
        """Sample the weights, then run the guide."""
        self._sample_weights(x)
        return self.pair[1](x, *args, **kwargs)

    def _distribution(self, weight):
        return dist.Delta(weight, event_dim=weight.dim())
