"""An ELBO less a penalty on the latents."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from ..programs import Program, Wrapper, record_traces, sites, wrapped
from ..programs.scales import ScaleFactors, common_scale
from ..programs.terms import data_plate, is_point
from ..registry import register
from .base import _ElboWrapper
from .penalties import Penalty


@register("objectives")
class Penalised(_ElboWrapper):
    r"""An ELBO less a penalty on the latents: the loss is :math:`-\mathrm{ELBO} + \sum_n \mathrm{penalty}(x_n, z_n, q_n)`, in nats.

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
        needs_input_grad = getattr(self.penalty, "needs_input_grad", False)
        recorded = record_traces(model, models), _WithInputs(record_traces(guide, guides), inputs, needs_input_grad)
        pair = [_Scaled(program) for program in recorded]
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


class _Scaled(Wrapper):
    """A program whose sites have their scale factors; unlike one in a handler's call it is seen to be a wrapper."""

    def __call__(self, *args, **kwargs):
        with ScaleFactors():
            return super().__call__(*args, **kwargs)


class _WithInputs(Wrapper):
    """A guide; each run appends the encoder's input to ``inputs``, as a leaf of the graph if the penalty differentiates by it."""

    def __init__(self, program: Program, inputs: list[Tensor], needs_grad: bool):
        super().__init__(program)
        self.inputs, self.needs_grad = inputs, needs_grad
        self.place = getattr([*wrapped(program)][-1], "encoded", 0)  # of the encoder's input among the arguments

    def __call__(self, *args, **kwargs):
        arguments, x = list(args), args[self.place]
        arguments[self.place] = x.detach().requires_grad_() if self.needs_grad else x
        self.inputs.append(arguments[self.place])
        return super().__call__(*arguments, **kwargs)


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
