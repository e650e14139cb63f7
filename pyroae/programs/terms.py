"""What the traces of a (model, guide) say about each datum: log-probabilities, and the KL of each unit of a code."""

import contextlib
from typing import Any

import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from .pairs import Program


def traces(model: Program, guide: Program, *args) -> tuple[poutine.Trace, poutine.Trace]:
    """One run of the guide and of the model on the guide's draws, as Pyro traces."""
    guide_trace = poutine.trace(guide).get_trace(*args)
    return poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args), guide_trace


def recorded(program: Program, traces: list[poutine.Trace]) -> Program:
    """The same program, a trace of whose every run is appended to ``traces``."""

    def run(*args, **kwargs):
        with poutine.trace() as tape:
            result = program(*args, **kwargs)
        traces.append(tape.trace)
        return result

    return run


def sites(trace: poutine.Trace, observed: bool) -> dict[str, dict]:
    """A trace's sample sites, the observed or the latent ones; plates are left out."""
    drawn = {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)}
    return {name: site for name, site in drawn.items() if site["is_observed"] == observed}


class TraceTerms:
    """Traces of one run of model and guide, divided into reconstruction, KL and priors of weights.

    Weights are latent sites outside the plate over the data that the guide sets to a point. Every other site must be in
    that plate.

    Raises:
        ValueError: a site outside the data's plate.
    """

    def __init__(self, model_trace: poutine.Trace, guide_trace: poutine.Trace):
        for trace in (model_trace, guide_trace):
            trace.compute_log_prob()
        self.model, self.guide = model_trace.nodes, guide_trace.nodes
        self.observed, latent = sites(model_trace, observed=True), sites(guide_trace, observed=False)
        self.weights = {name: site for name, site in latent.items() if is_point(site) and not in_plate(site)}
        self.latent = {name: site for name, site in latent.items() if name not in self.weights}
        for name, site in (self.latent | self.observed).items():
            if site["infer"].get("_enumerate_dim") is not None:
                raise ValueError(f"site {name!r} is summed out, so reconstruction and KL are not apart; use pa.elbo_terms")
            if not in_plate(site):
                raise ValueError(
                    f"site {name!r} is not inside a plate over the data (dim=-1), so it has no bound of each datum; use Trace_ELBO"
                )
        first = next(iter(self.observed.values()))
        self.particles = next((frame.size for frame in first["cond_indep_stack"] if frame.name == "num_particles_vectorized"), 1)
        self.data = next(frame.size for frame in first["cond_indep_stack"] if frame.dim == -1)
        self.scale = first["unscaled_log_prob"].new_ones(self.data) * first["scale"]

    def log_prob(self, nodes: dict, names: Any) -> Tensor:
        """The sites' log-probabilities together, without the plate's scale, ``(particles, data)``."""
        return sum(self.each(scale_and_mask(nodes[name]["unscaled_log_prob"], mask=nodes[name]["mask"])) for name in names)

    def each(self, terms: Tensor) -> Tensor:
        """Terms of a site in its plates as ``(particles, data)``; plates in between are summed over."""
        first = 1 if self.particles > 1 else 0  # Pyro has no plate for one particle
        while terms.dim() > 1 + first:
            terms = terms.sum(first)
        return terms.expand(self.particles, self.data)

    def over_data(self, terms: Tensor) -> Tensor:
        """The sum over the data, at the plate's scale, of the mean over particles."""
        return (self.scale * terms.mean(0)).sum()

    @property
    def reconstruction(self) -> Tensor:
        """log p(x|z) summed over the data, mean over particles."""
        return self.over_data(self.log_prob(self.model, self.observed))

    @property
    def kl(self) -> Tensor:
        """KL(q(z|x) || p(z)) summed over the data."""
        return self.units().sum()

    @property
    def log_weights_prior(self) -> Tensor | float:
        """log p of the weights, at its own scale."""
        terms = [self.model[name] for name in self.weights]
        return sum(scale_and_mask(site["unscaled_log_prob"], site["scale"], site["mask"]).sum() for site in terms) / self.particles

    def units(self) -> Tensor:
        """KL of every unit of the code summed over the data, ``(units,)``.

        Where prior and posterior are products over the numbers of z each number is a unit, otherwise the site is one. In
        closed form for a single latent site where Pyro knows one; otherwise log q - log p at the draws.
        """
        pairs = [(site, self.model[name]["fn"]) for name, site in self.latent.items()]
        return torch.stack([self.over_data(unit) for q, p in pairs for unit in self._kl(q, p, len(pairs) == 1)])

    def _kl(self, site: dict, p, closed: bool) -> list[Tensor]:
        q, z, event_dim = site["fn"], site["value"], site["fn"].event_dim
        apart = factorises(q) and factorises(p)
        if apart:
            q, p = q.base_dist, p.base_dist
        kl = _closed_form(q, p) if closed else None
        kl = q.log_prob(z) - p.log_prob(z) if kl is None else kl
        return [self.each(scale_and_mask(unit, mask=site["mask"])) for unit in (kl.flatten(-event_dim).unbind(-1) if apart else [kl])]


def in_plate(site: dict) -> bool:
    """Whether a site is in a plate over the data."""
    return any(frame.vectorized and frame.dim == -1 for frame in site["cond_indep_stack"])


def factorises(fn: Any) -> bool:
    """Whether a distribution is a product over the numbers of its event."""
    return isinstance(fn, Independent) and len(fn.base_dist.event_shape) == 0 and len(fn.event_shape) > 0


def is_point(site: dict) -> bool:
    """Whether a site is a ``Delta``, in whatever wrapping."""
    fn = site.get("fn")
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def reparameterised(site: dict) -> bool:
    """Whether a guide's site passes gradients through its draws."""
    return "fn" not in site or getattr(site["fn"], "has_rsample", False)


def check_reparameterised(owner: str, latent: dict[str, dict]):
    """``ValueError`` for a site whose draws would pass no gradient while gradients are asked for."""
    stuck = [name for name, site in latent.items() if not reparameterised(site)]
    if stuck and torch.is_grad_enabled():
        raise ValueError(f"{owner}: needs reparameterised draws, which the guide's site {stuck[0]!r} lacks; use TraceGraph_ELBO")


def _closed_form(q, p) -> Tensor | None:
    with contextlib.suppress(NotImplementedError):
        return kl_divergence(q, p)
