"""Objectives of this project: Pyro ELBOs, usable wherever Pyro's own are."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from ..part import Part
from .penalties import Penalty
from .programs import Program, sites


def default_elbo(latent: Iterable[dict] = ({},)) -> ELBO:
    """The ELBO for a guide with these latent sites, one by default.

    ``TraceMeanField_ELBO`` for one: the KL in closed form where Pyro knows one, by Monte Carlo elsewhere. ``Trace_ELBO``
    for several: one may depend on another, and then the closed form of each would be wrong. ``TraceEnum_ELBO`` where a
    site asks to be summed out.
    """
    if any(site.get("infer", {}).get("enumerate") for site in latent):
        return TraceEnum_ELBO(max_plate_nesting=1)
    return TraceMeanField_ELBO() if len(list(latent)) == 1 else Trace_ELBO()


class Objective(Part, ELBO):
    """A Pyro ELBO of ours: a subclass writes ``differentiable_loss``, in nats summed over the batch."""

    def differentiable_loss(self, model: Program, guide: Program, *args, **kwargs) -> Tensor:
        """The loss to differentiate."""
        raise NotImplementedError

    def _get_trace(self, model, guide, args, kwargs):
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def loss(self, model: Program, guide: Program, *args, **kwargs) -> float:
        """The loss as a number."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Program, guide: Program, *args, **kwargs) -> float:
        """The loss as a number, its gradient added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()


class Penalised(Objective):
    """An ELBO plus a penalty on the code: ``elbo + sum over the data of penalty(x, z, q)``.

    The guide runs once; the penalty sees its first latent site, so p(x, z) and every evaluation stay free of it.

    Args:
        penalty: a part such as ``Contractive``, or any function of x, z and q giving nats a datum.
        elbo: the ELBO penalised; by default ``TraceMeanField_ELBO``.
    """

    def __init__(self, penalty: Penalty | Callable[[Tensor, Tensor, Any], Tensor], elbo: ELBO | None = None):
        super().__init__()
        if not callable(penalty):
            raise ValueError(
                f"Penalised: expected a penalty such as pa.penalties.Contractive(.1) or a function of (x, z, q), got {penalty!r}"
            )
        self.penalty, self.elbo = penalty, elbo or default_elbo()

    def differentiable_loss(self, model, guide, *args, **kwargs):
        penalties = []

        def tapped(x, *args, **kwargs):
            if not getattr(self.penalty, "differentiates", False):
                result, penalty = self._run(guide, x, *args, **kwargs)
            else:
                with torch.enable_grad():
                    result, penalty = self._run(guide, x.detach().requires_grad_(), *args, **kwargs)
            penalties.append(penalty)
            return result

        return self.elbo.differentiable_loss(model, tapped, *args, **kwargs) + sum(penalties) / len(penalties)

    def _run(self, guide, x, *args, **kwargs):
        with poutine.trace() as tape:
            result = guide(x, *args, **kwargs)
        site = next(iter(sites(tape.trace, observed=False).values()))
        return result, len(x) * site["scale"] * self.penalty(x, site["value"], site["fn"])
