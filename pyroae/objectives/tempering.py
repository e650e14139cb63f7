"""The ELBO with its KL weighed, floored or steered."""

from collections.abc import Callable
from typing import Any

from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..checks import whole_number
from ..registry import register
from .base import _Around, _PerExample
from .schedules import Schedule, Scheduled


@register("objectives")
class Tempered(_Around):
    """The ELBO with its KL times ``beta``: beta-VAE (Higgins et al. 2017), or with a schedule a warm-up or cyclical annealing.

    Args:
        beta: weight of the KL: a number, or a function of the training steps so far, such as ``pa.schedules.Linear(1000)``.
            The attribute is a tensor; setting it to another number or schedule changes it in place at any time.
        elbo: the ELBO tempered; by default what ``default_elbo`` gives for the guide.

    >>> import pyroae as pa
    >>> warm_up = Tempered(pa.schedules.Linear(10))
    >>> warm_up.advance(5)
    >>> warm_up.beta
    tensor(0.5000, dtype=torch.float64)
    """

    def __init__(self, beta: float | Schedule | Callable[[int], float] = 4.0, elbo: ELBO | None = None):
        super().__init__(elbo)
        if not self.tempers:
            raise ValueError(f"Tempered: expected an ELBO with a KL to weigh, such as Trace_ELBO(), got {elbo}")
        self._beta = Scheduled("Tempered: expected beta", beta)

    @property
    def beta(self) -> Tensor:
        """The weight of the KL now."""
        return self._beta.tensor

    @beta.setter
    def beta(self, value: float | Callable[[int], float]):
        self._beta.set(value)

    def differentiable_loss(self, model, guide, *args, **kwargs):
        scaled = [_ScaleLatents(self.beta)(program) for program in (model, guide)]
        return self._inner(guide, args, kwargs).differentiable_loss(*scaled, *args, **kwargs)


class _ScaleLatents(Messenger):
    """Multiplies the scale of latent sites, but for weights with a prior: there is no code in them.

    Model and guide both: Trace_ELBO reads the two, TraceMeanField_ELBO the guide's alone.
    """

    def __init__(self, beta: Tensor):
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: dict[str, Any]):
        if not msg["is_observed"] and not site_is_subsample(msg) and not msg["infer"].get("is_weight"):
            msg["plain_scale"] = msg["scale"]
            msg["scale"] = msg["scale"] * self.beta


class _Steered(_PerExample):
    """An ELBO whose KL is put through a function: a subclass writes ``_cost``. Every site in one plate over the examples.

    The KL is in closed form for a guide with one latent site where Pyro knows one, otherwise from the draws.
    """

    def __init__(self, particles: int = 1, max_plate_nesting: int | None = None):
        whole_number(type(self).__name__, particles=particles)
        super().__init__(particles, max_plate_nesting)

    def differentiable_loss(self, model, guide, *args, **kwargs):
        run = self._run(model, guide, args, kwargs)
        rows = run.scale.sum()
        return rows * self._cost(run.units() / rows) - run.reconstruction - run.log_weights_prior

    def _cost(self, kl: Tensor) -> Tensor:
        """What takes the place of the KL, nats per example, from the batch's mean KL of each unit, ``(units,)``."""
        raise NotImplementedError


@register("objectives")
class FreeBits(_Steered):
    r"""Free bits: :math:`E \log p(x|z) - \sum_j \max(\lambda, \bar{KL}_j)` (Kingma et al. 2016, eq. 15).

    :math:`\bar{KL}_j` is the mean KL of unit j over the batch. A unit that carries less than :math:`\lambda` nats is not
    pressed to carry less still. Where prior or posterior is not a product over the units, a whole latent site is one.

    Args:
        nats: lambda, nats for each unit.
        particles: draws for each example.
        max_plate_nesting: how many dimensions the programs' plates take; by default as they do in the first run.

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
class Capacity(_Steered):
    r"""Capacity annealing: :math:`E \log p(x|z) - \gamma |\bar{KL} - C|`, C rising (Burgess et al. 2018, eq. 8).

    :math:`\bar{KL}` is the batch's mean, so that the code is held to C nats per example, and learns its units one by one.

    Args:
        capacity: C in nats: a number, or a function of the training steps so far, such as ``pa.schedules.Linear(10000, end=25.0)``.
        weight: gamma.
        particles: draws for each example.
        max_plate_nesting: how many dimensions the programs' plates take; by default as they do in the first run.

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
        """C now."""
        return self._capacity.tensor

    @capacity.setter
    def capacity(self, value: float | Callable[[int], float]):
        self._capacity.set(value)

    def _cost(self, kl):
        return self.weight * (kl.sum() - self.capacity).abs()
