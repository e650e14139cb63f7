"""The joint density of a program's latents, mapped to real vectors: what proposals and AIS differentiate."""

import copy
import math
from collections.abc import Iterable

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import biject_to, constraints

from .. import programs
from ..programs import Program
from ..programs.terms import guide_mask, is_point, layers, log_density, per_example, requires_inverse
from ..training.batches import Args
from .particles import encoded, on_particles, plates_of

FLAT = "_flat"  # the auxiliary site of a guide that draws all latents at once, as real numbers
Samples = dict[str, Tensor]


class Density:
    """log p(x, u) of a block of examples, for real vectors u ``(particles, B, size)``.

    u concatenates all latent sites of the model, each mapped to the real line by Pyro's ``biject_to``; log p(u) includes the
    Jacobian.

    In ``log_terms`` latents that the model masks out have no density, in the guide neither. Elsewhere, and where the guide draws
    all from one auxiliary site, they have that of their prior, which leaves p(x) as it is.

    Args:
        model: the model.
        guide: draws the latents; its density is used in ``log_terms`` and ``log_guide``.
        args: the block of examples.

    Raises:
        ValueError: a latent that is discrete or on a space without such a map, an improper prior, sites outside the examples' plate.
    """

    def __init__(self, model: Program, guide: Program, args: Args):
        self.model, self.args, self.n = model, args, len(args[0])
        encoding = encoded(model, guide, args)
        self.guide, self.nesting, self.plate, self.traces = encoding.guide, encoding.nesting, encoding.plate, encoding.traces
        if self.plate.dim != -1:
            raise ValueError(f"expected the plate over the data, {self.plate.name!r}, at dim=-1, got dim={self.plate.dim}")
        self.of_prior = isinstance(guide, PriorGuide)
        latent = programs.sites(encoding.traces[1], observed=False).values()
        self.masked = not any(site["infer"].get("is_auxiliary") for site in latent)
        trace, _ = programs.traces(*(on_particles(program, 1, self.nesting) for program in (model, self.guide)), *args)
        self.sites = programs.sites(trace, observed=False)
        self.transforms = {name: _to_support(name, site["fn"]) for name, site in self.sites.items()}
        self.shapes = {name: self.transforms[name].inv(site["value"]).shape[1:] for name, site in self.sites.items()}
        self.widths = [math.prod(shape) // self.n for shape in self.shapes.values()]
        self.size = sum(self.widths)

    def draw(self, particles: int) -> Tensor:
        """Draws of u from the guide."""
        trace = poutine.trace(on_particles(self.guide, particles, self.nesting)).get_trace(*self.args)
        return self.flat({name: trace.nodes[name]["value"] for name in self.sites})

    def flat(self, values: Samples) -> Tensor:
        """u for the values of the sites."""
        return torch.cat([self._rows(self.transforms[name].inv(values[name])) for name in self.sites], -1)

    def values(self, u: Tensor) -> tuple[Samples, Tensor]:
        """The sites' values for u, and log |dz/du| ``(particles, B)``."""
        sites, log_det = {}, torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
        for name, part in zip(self.sites, u.split(self.widths, -1)):
            real = self._sites(part, self.shapes[name])
            sites[name] = self.transforms[name](real)
            log_det = log_det + per_example(self._log_det(name, real, sites[name]), len(u), self.plate, self.nesting).double()
        return sites, log_det

    def log_terms(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, u) and the guide's log q(u|x), each ``(particles, B)``, float64."""
        values, log_det = self.values(u)
        observed, prior = self._log_model(values, len(u), self.masked)
        base = prior if self.of_prior else self._log_guide(values | {FLAT: self._in_plates(u)}, len(u), self.masked)
        return observed + prior + log_det, base + log_det

    def log_joint(self, u: Tensor) -> Tensor:
        """log p(x, u), ``(particles, B)``, float64."""
        values, log_det = self.values(u)
        return sum(self._log_model(values, len(u), masked=False)) + log_det

    def slope(self, u: Tensor) -> Tensor:
        """The gradient of log p(x, u), ``(particles, B, size)``, 0 where it is not finite."""
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_joint(u).sum(), u)
        return slope.nan_to_num(0.0, 0.0, 0.0)

    def log_guide(self, u: Tensor) -> Tensor:
        """The guide's log q(u|x), ``(particles, B)``, float64; the model is not run."""
        values, log_det = self.values(u)
        return self._log_guide(values | {FLAT: self._in_plates(u)}, len(u), masked=False) + log_det

    def log_prior(self, u: Tensor) -> Tensor:
        """log p(u), ``(particles, B)``, float64."""
        values, log_det = self.values(u)
        return self._log_model(values, len(u), masked=False)[1] + log_det

    def on(self, args: Args) -> "Density":
        """The same density for as many other examples."""
        other = copy.copy(self)
        other.args = args
        return other

    def site_parts(self, u: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """The value of each site for u, and -log |dz/du| of it."""
        values, _ = self.values(u)
        parts = {name: self._sites(part, self.shapes[name]) for name, part in zip(self.sites, u.split(self.widths, -1))}
        return {name: (values[name], -self._log_det(name, real, values[name])) for name, real in parts.items()}

    def _in_plates(self, u: Tensor) -> Tensor:
        """u with the batch shape of a site: size 1 for plates between particles and examples."""
        return u.reshape(len(u), *[1] * (self.nesting - 1), self.n, self.size)

    def _log_det(self, name: str, real: Tensor, value: Tensor) -> Tensor:
        transform = self.transforms[name]
        steps = transform.log_abs_det_jacobian(real, value)
        return sum_rightmost(steps, len(self.sites[name]["fn"].event_shape) - transform.codomain.event_dim)

    def _log_model(self, values: Samples, particles: int, masked: bool) -> tuple[Tensor, Tensor]:
        """log p(x|z) and log p(z)."""
        trace = self._conditioned(self.model, values, particles)
        observed = [trace.nodes[name] for name in _sampled(trace) if name not in self.sites]
        latent = [trace.nodes[name] for name in self.sites]
        likelihood = sum(self._log_prob(site, particles, site["mask"]) for site in observed)
        return likelihood, sum(self._log_prob(site, particles, site["mask"] if masked else None) for site in latent)

    def _log_guide(self, values: Samples, particles: int, masked: bool) -> Tensor:
        with requires_inverse("this score", "use a flow with one, such as affine_autoregressive, or proposal=pa.proposals.prior"):
            trace = self._conditioned(self.guide, values, particles)
        masks = {name: guide_mask(trace.nodes[name], self.sites.get(name)) if masked else None for name in _sampled(trace)}
        return sum(self._log_prob(trace.nodes[name], particles, mask) for name, mask in masks.items())

    def run(self, u: Tensor):
        """Run the model at codes u, without computing densities."""
        self._with_values(self.model, self.values(u)[0], len(u))(*self.args)

    def _with_values(self, program: Program, values: Samples, particles: int) -> Program:
        return poutine.condition(on_particles(program, particles, self.nesting), data=values)

    def _conditioned(self, program: Program, values: Samples, particles: int) -> poutine.Trace:
        trace = poutine.trace(self._with_values(program, values, particles)).get_trace(*self.args)
        trace.compute_log_prob()
        return trace

    def _log_prob(self, site: dict, particles: int, mask: bool | Tensor | None) -> Tensor:
        return log_density(site, self.plate, particles, self.nesting, mask)

    def _rows(self, value: Tensor) -> Tensor:
        """``(particles, *inner plates, B, *event)`` as ``(particles, B, numbers)``."""
        return value.movedim(self.nesting, 1).reshape(len(value), self.n, -1)

    def _sites(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of ``_rows``, for a site of that shape, particles left out."""
        inner, event = shape[: self.nesting - 1], shape[self.nesting :]
        return rows.reshape(len(rows), self.n, *inner, *event).movedim(1, self.nesting)


class FlatGuide:
    """A guide that draws u from a distribution and sets every latent site to its part of u.

    Args:
        density: of the examples.
        q: of batch shape ``(B,)``.
    """

    def __init__(self, density: Density, q: dist.Distribution):
        self.density, self.q = density, q

    def sample_and_log_prob(self, particles: int) -> tuple[Tensor, Tensor]:
        """Draws of u ``(particles, B, size)`` and log q(u) ``(particles, B)``, float64."""
        if hasattr(self.q, "sample_and_log_prob"):
            return self.q.sample_and_log_prob((particles,))
        u = self.q.sample((particles,))
        return u, self.q.log_prob(u).double()

    def __call__(self, *_):
        density = self.density
        with pyro.plate("_data", density.n, dim=-1):
            u = pyro.sample(FLAT, self.q, infer={"is_auxiliary": True})
        parts = density.site_parts(u.reshape(-1, density.n, density.size))
        for name, site in density.sites.items():
            value, log_density = parts[name]
            if u.dim() == 2:  # no particles
                value, log_density = value[0], log_density[0]
            with plates_of(site, prefix=f"_{name}_"):
                pyro.sample(name, dist.Delta(value, log_density, event_dim=len(site["fn"].event_shape)))


class PriorGuide(programs.Wrapper):
    """A guide that draws every latent from the prior of a model."""

    def __call__(self, *args):
        with poutine.block(hide_fn=lambda site: site["type"] == "sample" and site["is_observed"]):
            self.program(*args)


def check_proper(owner: str, sites: Iterable[dict]):
    """``ValueError`` where a latent's prior is improper."""
    for site in sites:
        if any(isinstance(fn, dist.ImproperUniform) for fn in layers(site["fn"])):
            raise ValueError(
                f"{owner}: the prior of {site['name']!r} is improper, so p(x) does not exist; use a proper prior such as pa.priors.Normal"
            )


def point_site(guide_trace: poutine.Trace) -> str | None:
    """The name of a guide's latent site that is a point without a density, if there is one."""
    drawn = programs.sites(guide_trace, observed=False).values()
    if any(site["infer"].get("is_auxiliary") for site in drawn):  # the Deltas are functions of a site with a density
        return None
    return next((site["name"] for site in drawn if is_point(site)), None)


def _to_support(name: str, fn: dist.Distribution):
    check_proper("evaluation", [{"name": name, "fn": fn}])
    support = fn.support
    if support.is_discrete:
        raise ValueError(f"the latent {name!r} is discrete, and this needs real ones; score the model with pa.log_likelihood")
    try:
        return biject_to(_of_components(support))
    except NotImplementedError:
        raise ValueError(
            f"the latent {name!r} lies in {support}, which has no map to the real line; score the model with pa.log_likelihood"
        ) from None


def _of_components(support: constraints.Constraint) -> constraints.Constraint:
    """The support of a mixture's components."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _of_components(support.base_constraint)
    if isinstance(support, constraints.independent):
        return constraints.independent(_of_components(support.base_constraint), support.reinterpreted_batch_ndims)
    return support


def _sampled(trace: poutine.Trace) -> list[str]:
    """The sample sites of a trace, observed or not."""
    return [*programs.sites(trace, observed=True), *programs.sites(trace, observed=False)]
