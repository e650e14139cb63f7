"""ELBOs with a weighted, floored or targeted KL."""

from collections.abc import Callable
from typing import Any

from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..checks import whole_number
from ..registry import register
from .base import _ElboWrapper, _PerExample
from .schedules import Schedule, Scheduled


@register("objectives")
class Tempered(_ElboWrapper):
    """The ELBO with its KL times ``beta``: beta-VAE (Higgins et al. 2017), or with a schedule a warm-up or cyclical annealing.

    Args:
        beta: KL weight: a number, or a function of the number of training steps, such as ``pa.schedules.Linear(1000)``.
            The attribute is a tensor; assigning a number or schedule updates it in place.
        elbo: the tempered ELBO; by default ``default_elbo`` of the guide.

    >>> import pyroae as pa
    >>> warm_up = Tempered(pa.schedules.Linear(10))
    >>> warm_up.advance(5)
    >>> warm_up.beta
    tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, beta: float | Schedule | Callable[[int], float] = 4.0, elbo: ELBO | None = None):
        super().__init__(elbo)
        if not self.has_kl:
            raise ValueError(f"Tempered: expected an ELBO with a KL to weigh, such as Trace_ELBO(), got {elbo}")
        self._beta = Scheduled("Tempered: expected beta", beta)

    @property
    def beta(self) -> Tensor:
        """The current KL weight."""
        return self._beta.tensor

    @beta.setter
    def beta(self, value: float | Callable[[int], float]):
        self._beta.set(value)

    def differentiable_loss(self, model, guide, *args, **kwargs):
        scaled = [_ScaleLatents(self.beta)(program) for program in (model, guide)]
        return self._wrapped(guide, args, kwargs).differentiable_loss(*scaled, *args, **kwargs)


class _ScaleLatents(Messenger):
    """Multiplies the scale of latent sites, except weights with a prior.

    In model and guide: Trace_ELBO reads both, TraceMeanField_ELBO only the guide's.
    """

    def __init__(self, beta: Tensor):
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: dict[str, Any]):
        if not msg["is_observed"] and not site_is_subsample(msg) and not msg["infer"].get("is_weight"):
            msg["plain_scale"] = msg["scale"]
            msg["scale"] = msg["scale"] * self.beta


class _TransformedKL(_PerExample):
    """An ELBO with a function of the KL; subclasses define ``_cost``. All sites are in one plate over the examples.

    KL in closed form for a guide with one latent site if Pyro has one, otherwise from the draws.
    """

    def __init__(self, particles: int = 1, max_plate_nesting: int | None = None):
        whole_number(type(self).__name__, particles=particles)
        super().__init__(particles, max_plate_nesting)

    def differentiable_loss(self, model, guide, *args, **kwargs):
        run = self._run(model, guide, args, kwargs)
        rows = run.scale.sum()
        return rows * self._cost(run.kl_per_unit() / rows) - run.reconstruction - run.log_weights_prior

    def _cost(self, kl: Tensor) -> Tensor:
        """Replacement of the KL, nats per example, from the batch's mean KL of each unit, ``(units,)``."""
        raise NotImplementedError


@register("objectives")
class FreeBits(_TransformedKL):
    r"""Free bits: :math:`E \log p(x|z) - \sum_j \max(\lambda, \bar{KL}_j)` (Kingma et al. 2016, eq. 15).

    :math:`\bar{KL}_j` is the mean KL of unit j over the batch; units below :math:`\lambda` nats have no KL gradient. If
    prior or posterior is not a product over latent dimensions, a unit is a latent site.

    Args:
        nats: lambda, nats per unit.
        particles: draws per example.
        max_plate_nesting: plate dimensions of the programs; by default inferred from the first run.

    >>> import torch, pyroae as pa
    >>> history = pa.fit(vae, torch.rand(64, 16).round(), elbo=FreeBits(0.5), epochs=1, progress=False)
    >>> history.objective
    'FreeBits'
    """

    def __init__(self, nats: float = 0.25, particles: int = 1, max_plate_nesting: int | None = None):
        if not nats >= 0.0:
            raise ValueError(f"FreeBits: expected nats of at least 0, got {nats!r}")
        super().__init__(particles, max_plate_nesting)
        self.nats = nats

    def _cost(self, kl):
        return kl.clamp(min=self.nats).sum()


@register("objectives")
class Capacity(_TransformedKL):
    r"""Capacity annealing: :math:`E \log p(x|z) - \gamma |\bar{KL} - C|`, C rising (Burgess et al. 2018, eq. 8).

    :math:`\bar{KL}` is the batch's mean: the latents are kept at C nats per example and learn one unit after another.

    Args:
        capacity: C in nats: a number, or a function of the number of training steps, such as ``pa.schedules.Linear(10000, end=25.0)``.
        weight: gamma.
        particles: draws per example.
        max_plate_nesting: plate dimensions of the programs; by default inferred from the first run.

    >>> import torch, pyroae as pa
    >>> history = pa.fit(vae, torch.rand(64, 16).round(), elbo=Capacity(2.0), epochs=1, progress=False)
    >>> history.objective
    'Capacity'
    """

    def __init__(
        self,
        capacity: float | Schedule | Callable[[int], float] = 25.0,
        weight: float = 100.0,
        particles: int = 1,
        max_plate_nesting: int | None = None,
    ):
        if not weight >= 0.0:
            raise ValueError(f"Capacity: expected a weight of at least 0, got {weight!r}")
        super().__init__(particles, max_plate_nesting)
        self._capacity, self.weight = Scheduled("Capacity: expected capacity", capacity), weight

    @property
    def capacity(self) -> Tensor:
        """The current C."""
        return self._capacity.tensor

    @capacity.setter
    def capacity(self, value: float | Callable[[int], float]):
        self._capacity.set(value)

    def _cost(self, kl):
        return self.weight * (kl.sum() - self.capacity).abs()
