"""What an objective is: a Pyro ELBO; and which one is used by default."""

import difflib
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import torch_item
from torch import Tensor

from .. import programs, registry
from ..programs import Program, recorded
from ..programs.particles import on_particles
from ..programs.scales import ScaleFactors
from ..programs.terms import TraceTerms, check_reparameterised, is_point, origin, reparameterised
from ..programs.trial import Particles, try_particles
from ..registry import Part
from .schedules import Scheduled


def default_elbo(latent: Iterable[dict] = ({},)) -> ELBO:
    """The ELBO for a guide with these latent sites, one by default.

    ``TraceMeanField_ELBO`` for one: the KL in closed form where Pyro knows one, by Monte Carlo elsewhere. ``Trace_ELBO``
    for several: one may depend on another, and then the closed form of each would be wrong. ``TraceEnum_ELBO`` where a
    site asks to be summed out, ``TraceGraph_ELBO`` where one cannot be reparameterised and takes the score function.
    Points (``Delta``) do not count: there is nothing to draw.

    >>> type(default_elbo()).__name__
    'TraceMeanField_ELBO'
    """
    latent = [site for site in latent if not is_point(site)]
    if any(site.get("infer", {}).get("enumerate") for site in latent):
        return TraceEnum_ELBO(max_plate_nesting=1)
    if not all(reparameterised(site) for site in latent):
        return TraceGraph_ELBO()
    return TraceMeanField_ELBO() if len(latent) < 2 else Trace_ELBO()


def check_elbo(elbo: ELBO, latent: Iterable[dict], model_latent: Iterable[dict] = ()):
    """``ValueError`` for what is no usable ELBO, or one that would train this guide wrongly without a word.

    Warns, as Pyro's SVI does, where ``TraceMeanField_ELBO`` meets latents that model and guide draw in different orders: one
    may then depend on another in the guide and the other way round in the model, and a KL in closed form is wrong.

    Args:
        elbo: the ELBO.
        latent: the guide's latent sites, in the order in which it draws them.
        model_latent: the model's.
    """
    latent = list(latent)
    if not isinstance(elbo, ELBO):
        raise ValueError(f"fit: expected elbo as a Pyro ELBO such as pyro.infer.Trace_ELBO(), got {elbo!r}; {_objectives(elbo)}")
    if elbo.num_particles < 1:
        raise ValueError(f"fit: expected num_particles of the ELBO as at least 1, got {elbo.num_particles!r}")
    if isinstance(elbo, TraceTailAdaptive_ELBO):
        raise ValueError("fit: TraceTailAdaptive_ELBO reports no loss; use it in pyro.infer.SVI, or pa.objectives.IWAE here")
    stuck = [site["name"] for site in latent if not reparameterised(site) and not site["infer"].get("enumerate")]
    if stuck and isinstance(elbo, TraceMeanField_ELBO):
        raise ValueError(
            f"fit: TraceMeanField_ELBO needs reparameterised draws, which the guide's site {stuck[0]!r} lacks; use TraceGraph_ELBO"
        )
    _check_order(elbo, [site["name"] for site in latent], [site["name"] for site in model_latent])


def _objectives(elbo: Any) -> str:
    """What there is in place of a name or a class, and how to write it."""
    ours, pyros = ([], [])
    for name, cls in registry.members("objectives").items():
        if "." not in name:
            (ours if cls.__module__.startswith("pyroae.") else pyros).append(name)
    name = elbo if isinstance(elbo, str) else getattr(elbo, "__name__", "")
    near = next(iter(difflib.get_close_matches(name, [*ours, *pyros], 1, 0.6)), None)
    made = f"{'pa.objectives' if near in ours else 'pyro.infer'}.{near}(...)" if near else "one"
    return f"make {made}: pa.objectives has {', '.join(sorted(ours))}, and pyro.infer {', '.join(sorted(pyros))}"


def _check_order(elbo: ELBO, guide: list[str], model: list[str]):
    inner = getattr(elbo, "elbo", None)
    shared = [[name for name in names if name in guide and name in model] for names in (guide, model)]
    if isinstance(elbo, TraceMeanField_ELBO) and shared[0] != shared[1]:
        warnings.warn(
            f"TraceMeanField_ELBO: the guide draws {', '.join(shared[0])} in this order, the model {', '.join(shared[1])}; the KL is "
            "wrong where a site depends on another in the guide and the other way round in the model: use Trace_ELBO",
            stacklevel=2,
        )
    elif isinstance(inner, ELBO):
        _check_order(inner, guide, model)


class Objective(Part, ELBO):
    """A Pyro ELBO of ours: a subclass writes ``differentiable_loss``, in nats summed over the batch.

    Numbers with a schedule go on by one with every training step: ``fit`` and ``pyro.infer.SVI.step`` see to it, and
    who steps an optimizer of their own calls ``advance()`` after it, as one does with a torch scheduler.

    >>> import pyroae as pa
    >>> isinstance(pa.objectives.IWAE(5), Objective)
    True
    """

    tempers = False  # whether it has a KL for ``Tempered`` to weigh

    def differentiable_loss(self, model: Program, guide: Program, *args, **kwargs) -> Tensor:
        """The loss to differentiate."""
        raise NotImplementedError(f"{type(self).__name__} must implement differentiable_loss(model, guide, *args, **kwargs)")

    def _get_trace(self, model, guide, args, kwargs):
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def loss(self, model: Program, guide: Program, *args, **kwargs) -> float:
        """The loss as a number."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args, **kwargs) -> float:
        """The loss as a number, its gradient added to the parameters'; counts as a training step."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        self.advance()
        return torch_item(loss)

    @torch.no_grad()
    def terms(self, model: Program, guide: Program, *args, **kwargs) -> dict[str, Tensor]:
        """What the loss is made of, nats per example, left on the device: ``loss``, ``reconstruction`` (E log p(x|z)) and ``kl``.

        The last two are those of the plain ELBO at the same draws, whatever the objective makes of them.
        """
        models, guides = [], []
        totals = self._parts(recorded(model, models), recorded(guide, guides), args, kwargs)
        runs = [TraceTerms(*traces) for traces in zip(models, guides)]
        totals |= {name: sum(getattr(run, name) for run in runs) / len(runs) for name in ("reconstruction", "kl")}
        return {name: (total / runs[0].examples).detach() for name, total in totals.items()}

    def _parts(self, model, guide, args, kwargs) -> dict[str, Tensor]:
        """The loss summed over the batch, and what a subclass adds to an ELBO."""
        return {"loss": self.differentiable_loss(model, guide, *args, **kwargs)}

    def settle(self, latent: Iterable[dict]):
        """Choose what was left to be chosen by the guide, whose latent sites these are."""

    def advance(self, steps: int = 1):
        """Go on by so many training steps: whatever has a schedule takes its next value."""
        for part in self._moving().values():
            part.advance(steps)

    def to(self, device: torch.device) -> "Objective":
        """Keep what has a schedule on that device."""
        for part in self._moving().values():
            part.to(device)
        return self

    def values(self) -> list[float]:
        """Today's value of everything that has a schedule; losses under other values are of another objective."""
        return [value for part in self._moving().values() for value in part.values()]

    def state_dict(self) -> dict:
        """Where everything that has a schedule is."""
        return {name: part.state_dict() for name, part in self._moving().items()}

    def load_state_dict(self, state: dict):
        """Go on where ``state_dict`` was."""
        for name, part in self._moving().items():
            part.load_state_dict(state[name])

    def _moving(self) -> dict[str, Any]:
        return {name: part for name, part in vars(self).items() if isinstance(part, Scheduled | Objective)}


class _PerExample(Objective):
    """An objective made of terms per example and particle, all particles drawn at once; every site in one plate over the examples."""

    def __init__(self, particles: int, max_plate_nesting: int | None):
        super().__init__(num_particles=particles, vectorize_particles=True, max_plate_nesting=max_plate_nesting or math.inf)
        self._tried: tuple[tuple, Particles] | None = None  # the programs last run, and how they take particles

    def _run(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> TraceTerms:
        """One run of guide and model on all particles, from draws that pass gradients."""
        models: list[poutine.Trace] = []
        on_model, on_guide = self._on_particles(model, guide, args, kwargs)
        traces = self._get_trace(recorded(on_model, models), on_guide, args, kwargs)
        run = TraceTerms(*traces, draws=models[-1])
        check_reparameterised(type(self).__name__, run.latent)
        return run

    def _on_particles(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> list[Program]:
        """The two programs on all particles; how they take them is tried once."""
        pair = [model, guide]
        if self.num_particles > 1:
            key = tuple(_identity(origin(program)) for program in pair)
            if self._tried is None or self._tried[0] != key:
                self._tried = key, try_particles(model, guide, args, kwargs)
            how = self._tried[1]
            nesting = how.nesting if self.max_plate_nesting == math.inf else self.max_plate_nesting - 1
            pair = [on_particles(program, self.num_particles, nesting, way, how.dim) for program, way in zip(pair, (how.model, how.guide))]
        return [ScaleFactors()(program) for program in pair]


def _identity(program: Program) -> tuple[int, ...]:
    """By what a program is known again; a bound method is another object at every look."""
    bound = getattr(program, "__self__", None), getattr(program, "__func__", None)
    return tuple(id(part) for part in (bound if None not in bound else (program,)))


class _Around(Objective):
    """An objective around another ELBO: by default the one that ``default_elbo`` gives for the guide that is met."""

    def __init__(self, elbo: ELBO | None):
        super().__init__()
        if elbo is not None and not hasattr(elbo, "differentiable_loss"):
            name = type(self).__name__
            raise ValueError(f"{name}: expected an ELBO with a differentiable_loss, such as Trace_ELBO, got {type(elbo).__name__}")
        self.elbo = elbo

    @property
    def tempers(self) -> bool:
        """Whether the ELBO inside has a KL for ``Tempered`` to weigh."""
        inner = self.__dict__["elbo"]
        return not isinstance(inner, Objective) or inner.tempers

    def settle(self, latent):
        """Choose the ELBO, unless it was given."""
        latent = list(latent)
        if self.arguments.get("elbo") is None:
            chosen = default_elbo(latent)
            self.__dict__["elbo"] = chosen if hasattr(chosen, "differentiable_loss") else Trace_ELBO()  # Pyro's TraceGraph_ELBO has none
        elif isinstance(self.elbo, Objective):
            self.elbo.settle(latent)

    def _inner(self, guide: Program, args: tuple, kwargs: dict) -> ELBO:
        """The ELBO, chosen on first use by a look at the guide where ``fit`` has not done so."""
        if self.__dict__["elbo"] is None:
            with torch.no_grad(), programs.seeded(0, programs.device_of(guide)), poutine.block():
                self.settle(programs.sites(poutine.trace(guide).get_trace(*args, **kwargs), observed=False).values())
        return self.elbo
