"""An ELBO plus a penalty on the latents."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from ..programs import Program, record_traces, sites, wrapped
from ..programs.scales import ScaleFactors, common_scale
from ..programs.terms import data_plate, is_point
from ..registry import register
from .base import _ElboWrapper
from .penalties import Penalty


@register("objectives")
class Penalised(_ElboWrapper):
    """An ELBO plus a penalty on the latents: ``elbo + sum over the data of penalty(x, z, q)``.

    The guide runs once; the penalty gets its first latent site. p(x, z) and all evaluations exclude the penalty.

    Args:
        penalty: a part such as ``Contractive``, or a function of x, z and q in nats per example: one value per example, or their mean.
        elbo: the penalised ELBO; by default ``default_elbo`` of the guide.

    >>> import pyroae as pa
    >>> history = pa.fit(vae, torch.rand(64, 16).round(), elbo=Penalised(pa.penalties.L2(0.1)), epochs=1, progress=False)
    >>> history.objective
    'Penalised'
    """

    def __init__(self, penalty: Penalty | Callable[[Tensor, Tensor, Any], Tensor], elbo: ELBO | None = None):
        super().__init__(elbo)
        if not callable(penalty) or not _takes(penalty, 3 + len(getattr(penalty, "needs", ()))):
            raise ValueError(
                f"Penalised: expected a penalty such as pa.penalties.Contractive(.1) or a function of (x, z, q), got {penalty!r}"
            )
        self.penalty = penalty

    def differentiable_loss(self, model, guide, *args, **kwargs):
        return self._loss_terms(model, guide, args, kwargs)["loss"]

    def _loss_terms(self, model, guide, args, kwargs):
        inputs, models, guides = [], [], []
        encoded = getattr([*wrapped(guide)][-1], "encoded", 0)  # the position of the encoder's input
        recording_guide, needs_input_grad = record_traces(guide, guides), getattr(self.penalty, "needs_input_grad", False)

        def guide_with_inputs(*args, **kwargs):
            args, place = list(args), encoded
            inputs.append(args[place].detach().requires_grad_() if needs_input_grad else args[place])
            args[place] = inputs[-1]
            return recording_guide(*args, **kwargs)

        pair = [ScaleFactors()(program) for program in (record_traces(model, models), guide_with_inputs)]
        elbo = self._wrapped(guide, args, kwargs)
        with torch.set_grad_enabled(needs_input_grad or torch.is_grad_enabled()):
            loss = elbo.differentiable_loss(*pair, *args, **kwargs)
            decode = functools.partial(_decoded, model, args, kwargs)
            runs = [self._penalty(*run, decode) for run in zip(inputs, models, guides)]
        penalty = sum(runs) / len(runs)
        return {"loss": loss + penalty, "penalty": penalty}

    def _penalty(self, x: Tensor, model: poutine.Trace, guide: poutine.Trace, decode: Callable) -> Tensor:
        observed, latent = sites(model, observed=True), sites(guide, observed=False)
        plate = data_plate(dict([next(iter(observed.items()))]))
        latent = {name: site for name, site in latent.items() if plate.contains(site) or not is_point(site)}
        name, site = next(iter(latent.items()))
        further = {
            "prior": lambda: model.nodes[name]["fn"],
            "likelihood": lambda: next(iter(observed.values()))["fn"],
            "weights": lambda: [p["value"] for p in model.nodes.values() if p["type"] == "param" and p["value"].dim() > 1],
            "decoder": lambda: functools.partial(decode, name, next(iter(observed))),
        }
        penalty = self.penalty(x, site["value"], site["fn"], *(further[each]() for each in getattr(self.penalty, "needs", ())))
        if not isinstance(penalty, Tensor) or penalty.dim() > 0 and penalty.shape[-1] != len(x):
            got = f"shape {tuple(penalty.shape)}" if isinstance(penalty, Tensor) else type(penalty).__name__
            raise ValueError(f"Penalised: expected the penalty as a number or one for each of the {len(x)} examples, got {got}")
        return (plate.scale * common_scale([*observed.values(), *latent.values()], plate.dim) * penalty.mean()).sum() * len(x)


def _decoded(model: Program, args: tuple, kwargs: dict, name: str, observed: str, z: Tensor) -> Any:
    """p(x|z): the distribution of the observed site for another value of the latent site."""
    with poutine.block():
        return poutine.trace(poutine.condition(model, data={name: z})).get_trace(*args, **kwargs).nodes[observed]["fn"]


def _takes(function: Callable, arguments: int) -> bool:
    """Whether a function can be called with so many arguments; some built-in ones do not say."""
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:
        return True
    return True
