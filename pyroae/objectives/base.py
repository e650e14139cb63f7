"""The base class of objectives, a Pyro ELBO, and the default ELBO of a guide."""

import difflib
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceTailAdaptive_ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import torch_item
from torch import Tensor

from .. import programs, registry
from ..programs import Program, record_traces, wrapped
from ..programs.particles import on_particles
from ..programs.probing import Particles, probe_particles
from ..programs.scales import ScaleFactors
from ..programs.terms import TraceTerms, check_reparameterised, is_point, is_reparameterised
from ..registry import Part
from .schedules import Scheduled


def default_elbo(latent: Iterable[dict] = ({},)) -> ELBO:
    """The default ELBO for a guide with these latent sites, by default one.

    ``TraceMeanField_ELBO`` for one site: KL in closed form if Pyro has one, otherwise by Monte Carlo. ``Trace_ELBO`` for
    several, which may depend on each other, so that a KL in closed form per site would be wrong. ``TraceEnum_ELBO`` if a
    site is enumerated, ``TraceGraph_ELBO`` (score function) if one is not reparameterised. ``Delta`` sites are ignored.

    >>> type(default_elbo()).__name__
    'TraceMeanField_ELBO'
    """
    latent = [site for site in latent if not is_point(site)]
    if any(site.get("infer", {}).get("enumerate") for site in latent):
        return TraceEnum_ELBO(max_plate_nesting=1)
    if not all(is_reparameterised(site) for site in latent):
        return TraceGraph_ELBO()
    return TraceMeanField_ELBO() if len(latent) < 2 else Trace_ELBO()


def check_elbo(elbo: ELBO, latent: Iterable[dict], model_latent: Iterable[dict] = ()):
    """``ValueError`` for an invalid ELBO or one that is wrong for this guide.

    Warns, as Pyro's SVI does, if ``TraceMeanField_ELBO`` is used with latents that model and guide draw in different orders:
    their dependence may be reversed, and then a KL in closed form is wrong.

    Args:
        elbo: the ELBO.
        latent: the guide's latent sites, in order.
        model_latent: the model's latent sites, in order.
    """
    latent = list(latent)
    if not isinstance(elbo, ELBO):
        raise ValueError(f"fit: expected elbo as a Pyro ELBO such as pyro.infer.Trace_ELBO(), got {elbo!r}; {_objectives(elbo)}")
    if elbo.num_particles < 1:
        raise ValueError(f"fit: expected num_particles of the ELBO as at least 1, got {elbo.num_particles!r}")
    if isinstance(elbo, TraceTailAdaptive_ELBO):
        raise ValueError("fit: TraceTailAdaptive_ELBO reports no loss; use it in pyro.infer.SVI, or pa.objectives.IWAE here")
    stuck = [site["name"] for site in latent if not is_reparameterised(site) and not site["infer"].get("enumerate")]
    if stuck and isinstance(elbo, TraceMeanField_ELBO):
        raise ValueError(
            f"fit: TraceMeanField_ELBO needs reparameterised draws, which the guide's site {stuck[0]!r} lacks; use TraceGraph_ELBO"
        )
    _check_order(elbo, [site["name"] for site in latent], [site["name"] for site in model_latent])


def _objectives(elbo: Any) -> str:
    """Available objectives, and how to construct the one with the closest name."""
    ours, pyros = ([], [])
    for name, cls in registry.members("objectives").items():
        if "." not in name:
            (ours if cls.__module__.startswith("pyroae.") else pyros).append(name)
    name = elbo if isinstance(elbo, str) else getattr(elbo, "__name__", "")
    match = next(iter(difflib.get_close_matches(name, [*ours, *pyros], 1, 0.6)), None)
    call = f"{'pa.objectives' if match in ours else 'pyro.infer'}.{match}(...)" if match else "one"
    return f"make {call}: pa.objectives has {', '.join(sorted(ours))}, and pyro.infer {', '.join(sorted(pyros))}"


def _check_order(elbo: ELBO, guide: list[str], model: list[str]):
    inner = getattr(elbo, "elbo", None)
    shared = [[name for name in names if name in guide and name in model] for names in (guide, model)]
    if isinstance(elbo, TraceMeanField_ELBO) and shared[0] != shared[1]:
        warnings.warn(
            f"TraceMeanField_ELBO: the guide draws {', '.join(shared[0])} in this order, the model {', '.join(shared[1])}; the KL is "
            "wrong if the dependence of two sites is reversed in the guide: use Trace_ELBO",
            stacklevel=2,
        )
    elif isinstance(inner, ELBO):
        _check_order(inner, guide, model)


class Objective(Part, ELBO):
    """A Pyro ELBO; subclasses define ``differentiable_loss``, in nats summed over the batch.

    Values with a schedule advance with every training step: ``fit`` and ``pyro.infer.SVI.step`` do this; in a training
    loop with a torch optimizer call ``advance()`` after each step, like ``step()`` of a torch scheduler.

    >>> import pyroae as pa
    >>> isinstance(pa.objectives.IWAE(5), Objective)
    True
    """

    has_kl = False  # whether ``Tempered`` can weight its KL

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
        """The loss as a number; adds its gradients to the parameters' and counts as a training step."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        self.advance()
        return torch_item(loss)

    @torch.no_grad()
    def terms(self, model: Program, guide: Program, *args, **kwargs) -> dict[str, Tensor]:
        """Terms of the loss, nats per example, on the device: ``loss``, ``reconstruction`` (E log p(x|z)) and ``kl``.

        ``reconstruction`` and ``kl`` are those of the plain ELBO at the same draws, for every objective.
        """
        models, guides = [], []
        totals = self._loss_terms(record_traces(model, models), record_traces(guide, guides), args, kwargs)
        runs = [TraceTerms(*traces) for traces in zip(models, guides)]
        totals |= {"reconstruction": sum(run.reconstruction for run in runs) / len(runs), "kl": sum(run.kl for run in runs) / len(runs)}
        return {name: (total / runs[0].examples).detach() for name, total in totals.items()}

    def _loss_terms(self, model, guide, args, kwargs) -> dict[str, Tensor]:
        """The loss summed over the batch, and terms that a subclass adds to the ELBO."""
        return {"loss": self.differentiable_loss(model, guide, *args, **kwargs)}

    def finalize(self, latent: Iterable[dict]):
        """Choose defaults that depend on the guide's latent sites."""

    def advance(self, steps: int = 1):
        """Advance all schedules by a number of training steps."""
        for part in self._scheduled().values():
            part.advance(steps)

    def to(self, device: torch.device) -> "Objective":
        """Move scheduled values to a device."""
        for part in self._scheduled().values():
            part.to(device)
        return self

    def values(self) -> list[float]:
        """Current scheduled values; losses at different values cannot be compared."""
        return [value for part in self._scheduled().values() for value in part.values()]

    def nested(self) -> list["Objective"]:
        """This objective and those inside it."""
        return [self, *(each for part in self._scheduled().values() if isinstance(part, Objective) for each in part.nested())]

    def schedules(self) -> list[Callable[[int], float]]:
        """All schedules."""
        return [schedule for part in self._scheduled().values() for schedule in part.schedules()]

    def state_dict(self) -> dict:
        """State of all schedules."""
        return {name: part.state_dict() for name, part in self._scheduled().items()}

    def load_state_dict(self, state: dict):
        """Restore ``state_dict``."""
        for name, part in self._scheduled().items():
            part.load_state_dict(state[name])

    def _scheduled(self) -> dict[str, Any]:
        return {name: part for name, part in vars(self).items() if isinstance(part, Scheduled | Objective)}


class _PerExample(Objective):
    """An objective of per-example, per-particle terms, all particles drawn together; all sites are in one plate over the examples."""

    def __init__(self, particles: int, max_plate_nesting: int | None):
        super().__init__(num_particles=particles, vectorize_particles=True, max_plate_nesting=max_plate_nesting or math.inf)
        self._probed: tuple[tuple, Particles] | None = None  # identity of the last programs, and how they take particles

    def _run(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> TraceTerms:
        """One run of guide and model on all particles, with reparameterised draws."""
        models: list[poutine.Trace] = []
        on_model, on_guide = self._on_particles(model, guide, args, kwargs)
        traces = self._get_trace(record_traces(on_model, models), on_guide, args, kwargs)
        run = TraceTerms(*traces, draws=models[-1])
        check_reparameterised(type(self).__name__, run.latent)
        return run

    def _on_particles(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> list[Program]:
        """Both programs on all particles; how they take particles is determined once per pair."""
        pair = [model, guide]
        if self.num_particles > 1:
            inner = [[*wrapped(program)][-1] for program in pair]  # what wrappers record must not contain trial runs
            key = tuple(_identity(program) for program in inner)
            if self._probed is None or self._probed[0] != key:
                self._probed = key, probe_particles(*inner, args, kwargs)
            particles = self._probed[1]
            nesting = particles.nesting if self.max_plate_nesting == math.inf else self.max_plate_nesting - 1
            modes = particles.model, particles.guide
            pair = [on_particles(program, self.num_particles, nesting, how, particles.dim) for program, how in zip(pair, modes)]
        return [ScaleFactors()(program) for program in pair]


def _identity(program: Program) -> tuple[int, ...]:
    """Identity of a program; every access to a bound method makes a new object, so it is identified by its parts."""
    bound = getattr(program, "__self__", None), getattr(program, "__func__", None)
    return tuple(id(part) for part in (bound if None not in bound else (program,)))


class _ElboWrapper(Objective):
    """An objective that wraps another ELBO, by default ``default_elbo`` of the guide."""

    def __init__(self, elbo: ELBO | None):
        super().__init__()
        if elbo is not None and not hasattr(elbo, "differentiable_loss"):
            name = type(self).__name__
            raise ValueError(f"{name}: expected an ELBO with a differentiable_loss, such as Trace_ELBO, got {type(elbo).__name__}")
        self.elbo = elbo

    @property
    def has_kl(self) -> bool:
        """Whether ``Tempered`` can weight the KL of the wrapped ELBO."""
        inner = self.__dict__["elbo"]
        return not isinstance(inner, Objective) or inner.has_kl

    def finalize(self, latent):
        """Choose the default ELBO unless one was passed."""
        latent = list(latent)
        if self.arguments.get("elbo") is None:
            default = default_elbo(latent)
            # Pyro's TraceGraph_ELBO has no differentiable_loss
            self.__dict__["elbo"] = default if hasattr(default, "differentiable_loss") else Trace_ELBO()
        elif isinstance(self.elbo, Objective):
            self.elbo.finalize(latent)

    def _wrapped(self, guide: Program, args: tuple, kwargs: dict) -> ELBO:
        """The wrapped ELBO; runs the guide to choose it if ``finalize`` was not called."""
        if self.__dict__["elbo"] is None:
            with torch.no_grad(), programs.seeded(0, programs.device_of(guide)), poutine.block():
                self.finalize(programs.sites(poutine.trace(guide).get_trace(*args, **kwargs), observed=False).values())
        return self.elbo
